"""One file per measurement, which says what was measured; nothing old passes for the last."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from made_hostile import Images, Small, drawing, loader, observer, quiet, trainer

from lightning_sanity import SanityResult
from lightning_sanity.model import checkpoint
from lightning_sanity.release.gating import gate
from lightning_sanity.release.policy import Policy


def images():
    return loader(Images(drawing("none")))


def read(folder):
    return {path.name: SanityResult.from_json(path) for path in folder.glob("*.json")}


def test_two_validations_at_one_step_have_a_file_each(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="first", save_top_k=1, monitor=None)
    run = trainer(
        tmp_path,
        [observer(report=True, max_time=None), saving],
        enable_checkpointing=True,
        max_epochs=1,
        accumulate_grad_batches=6,
        val_check_interval=2,
    )
    with quiet():
        run.fit(Small(), images(), images())
    found = read(tmp_path / "sanity")
    assert set(found) == {"latest.json", "step=0.json", "step=0-batch=4.json", "step=1.json"}
    assert [found[name].settings["batch"] for name in ("step=0.json", "step=0-batch=4.json")] == [2, 4]
    # Running statistics moved in between, so these are other weights.
    assert len({result.weights_digest for result in found.values()}) == 3
    assert found["latest.json"].weights_digest == found["step=1.json"].weights_digest


def test_every_checkpoint_of_a_validation_has_its_result(tmp_path):
    saving = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, monitor="loss")
    run = trainer(tmp_path, [observer(report=True), saving], enable_checkpointing=True, val_check_interval=2)
    with quiet():
        run.fit(Small(), images(), images())
    written = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    assert len(written) == 6
    for path in written:
        decision = gate(tmp_path / "sanity", Policy(weights=path))
        assert "about these weights" in decision.checks[0].reason


def test_checkpoints_between_validations_are_named_at_the_end(tmp_path, caplog):
    between = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, every_n_train_steps=4)
    after = ModelCheckpoint(tmp_path / "checkpoints", filename="after", save_top_k=-1)
    run = trainer(tmp_path, [observer(report=True), between, after], enable_checkpointing=True)
    with quiet(), caplog.at_level("INFO"):
        run.fit(Small(), images(), images())
    (said,) = [message for message in caplog.messages if "no measured validation saw" in message]
    assert said.startswith("checkpoints of step 4, 8 hold weights")  # those of step 12 were validated


@pytest.fixture
def tested(tmp_path):
    """A run of three epochs whose best checkpoint is the first, validated and tested afterwards; its folder."""

    class Worsening(Small):
        def validation_step(self, batch, batch_idx):
            self.log("worse", float(self.current_epoch))

    saving = ModelCheckpoint(tmp_path, monitor="worse", filename="best")
    run = trainer(
        tmp_path,
        [observer(report=True, log_images=True, max_time=None), saving],
        enable_checkpointing=True,
        max_epochs=3,
        logger=CSVLogger(tmp_path, name="", version=""),
    )
    with quiet():
        run.fit(Worsening(), images(), images())
        run.validate(dataloaders=images(), ckpt_path="best", verbose=False, weights_only=True)
        run.test(dataloaders=images(), ckpt_path="best", verbose=False, weights_only=True)
    return tmp_path


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Checkpoint directory", "ignore:Experiment logs")
def test_later_stages_replace_nothing_and_say_whose_weights(tested):
    found = read(tested / "sanity")
    assert set(found) == {
        *(f"step={step}.json" for step in (6, 12, 18)),
        "validate-step=6.json",
        "test-step=6.json",
        "latest.json",
    }
    for stage in ("validate", "test"):
        later = found[f"{stage}-step=6.json"]
        assert later.weights_digest == found["step=6.json"].weights_digest
        assert (later.step, later.settings["stage"]) == (6, stage)
    assert found["step=18.json"].weights_digest != found["step=6.json"].weights_digest
    pictures = {path.stem.removeprefix("curves-") for path in (tested / "sanity").glob("curves-*.png")}
    assert pictures == {name.removesuffix(".json") for name in found if name != "latest.json"}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_weights_of_a_checkpoint_have_its_step_in_another_trainer(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="last")
    run = trainer(tmp_path, [saving], enable_checkpointing=True, max_epochs=1)
    with quiet():
        run.fit(Small(), images(), images())
    measured = observer(report=True)
    other = trainer(tmp_path / "other", [measured])
    with quiet():
        other.validate(Small(), images(), ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True)
    assert measured.result.step == 6
    assert measured.result.weights_digest in checkpoint.digests(tmp_path / "last.ckpt")
    assert (tmp_path / "other" / "sanity" / "validate-step=6.json").exists()


def breaking_at(epoch):
    class Breaking(Small):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    def method(model, inputs, target):
        leaf = inputs.clone().requires_grad_()
        return torch.autograd.grad(model(leaf).sum(), leaf)[0]

    def copy(model):
        if model.broken:
            raise OSError("cannot be copied")
        made = Small()
        made.load_state_dict(model.state_dict())
        return made

    class Switch(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            pl_module.broken = trainer.current_epoch == epoch

    return Breaking(), Switch(), {"methods": {"own": method}, "clone_fn": copy}


def test_a_validation_that_could_not_be_measured_outdates_the_latest_result(tmp_path):
    model, switch, options = breaking_at(1)
    run = trainer(tmp_path, [switch, observer(report=True, **options)])
    with quiet(), pytest.warns(UserWarning, match="could not be run; training goes on.*cannot be copied"):
        run.fit(model, images(), images())
    latest = SanityResult.from_json(tmp_path / "sanity" / "latest.json")
    assert not latest.valid
    assert "outdated: the validation at step 12 was not measured" in latest.validity
    assert not gate(tmp_path / "sanity").passed
    assert SanityResult.from_json(tmp_path / "sanity" / "step=6.json").step == 6


def test_the_next_measured_validation_is_the_latest_again(tmp_path):
    model, switch, options = breaking_at(1)
    run = trainer(tmp_path, [switch, observer(report=True, max_time=None, **options)], max_epochs=3)
    with quiet(), pytest.warns(UserWarning, match="cannot be copied"):
        run.fit(model, images(), images())
    latest = SanityResult.from_json(tmp_path / "sanity" / "latest.json")
    assert latest.step == 18
    assert "outdated" not in str(latest.validity)


def test_a_run_that_measures_nothing_leaves_no_other_runs_result_as_the_latest(tmp_path):
    first = trainer(tmp_path, [observer(report=True)], max_epochs=1)
    model, switch, options = breaking_at(0)
    second = trainer(tmp_path, [switch, observer(report=True, **options)], max_epochs=1)
    with quiet():
        first.fit(Small(), images(), images())
        with pytest.warns(UserWarning, match="cannot be copied"):
            second.fit(model, images(), images())
    assert not (tmp_path / "sanity" / "latest.json").exists()
    assert (tmp_path / "sanity" / "step=6.json").exists()
