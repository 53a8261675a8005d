"""The callback beside a baseline, and beside a model that was trained on permuted labels."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lightning_sanity import Outcome, RandomLabelDataModule, SaliencySanityCallback, SanityResult
from lightning_sanity.callback.drift import drift
from lightning_sanity.cli import demo

pytestmark = pytest.mark.filterwarnings("ignore:saliency maps failed")

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def observer(**changes):
    given = {"probe": 12, "trials": 3, "repeats": 1, "max_steps": 3, "log_images": False}
    return SaliencySanityCallback("gradient", **{**given, **changes})


def fit(model, callback, folder, **changes):
    training, validation = demo.digits()
    trainer = pl.Trainer(callbacks=[callback], default_root_dir=folder, **{**QUIET, "max_epochs": 1, **changes})
    with torch.random.fork_rng():
        trainer.fit(model, DataLoader(training, 64, shuffle=True), DataLoader(validation, 256))
    return trainer


@pytest.fixture(scope="module")
def released(digits_network, tmp_path_factory):
    """The result file of a release of the trained digits network."""
    folder = tmp_path_factory.mktemp("released")
    callback = observer(log_images=True)  # without, the file holds no maps to compare with
    trainer = pl.Trainer(callbacks=[callback], default_root_dir=folder, **QUIET)
    trainer.validate(digits_network[0], DataLoader(demo.digits()[1], 256), verbose=False)
    digits_network[0].eval()
    return folder / "sanity" / "latest.json"


def test_a_model_is_no_worse_than_itself(digits_network, released, tmp_path):
    callback = observer(baseline=released)
    trainer = pl.Trainer(callbacks=[callback], default_root_dir=tmp_path, **QUIET)
    found = trainer.validate(digits_network[0], DataLoader(demo.digits()[1], 256), verbose=False)[0]
    digits_network[0].eval()
    assert found["sanity/gradient/baseline_drift"] == pytest.approx(1)
    assert found["sanity/gradient/baseline_change"] == 0
    assert found["sanity/passed"] == 1
    assert callback.result.settings["baseline"] == SanityResult.from_json(released).weights_digest


def test_a_pass_that_lost_too_much_stands_no_more(released, digits_network, tmp_path):
    callback = observer(baseline=released, max_drop=0.0)
    trainer = fit(demo.DigitsClassifier(), callback, tmp_path)
    verdict = callback.result.verdicts["gradient"]
    change = float(trainer.callback_metrics["sanity/gradient/baseline_change"])
    assert change == pytest.approx(verdict.psi - SanityResult.from_json(released).verdicts["gradient"].psi, abs=1e-6)
    assert verdict.outcome is not Outcome.PASS or change > 0
    if verdict.outcome is not Outcome.PASS:
        assert "against the baseline" in verdict.reason


def test_drift_is_measured_from_validation_to_validation(tmp_path):
    results = []

    class Keep(SaliencySanityCallback):
        def _publish(self, trainer, result):
            results.append((result, float(self.scalars(trainer)["sanity/gradient/drift"])))

    callback = Keep("gradient", probe=12, trials=1, repeats=1, max_steps=1, log_images=False)
    fit(demo.DigitsClassifier(), callback, tmp_path, max_epochs=2)
    assert results[0][1] == 1
    assert results[1][1] == pytest.approx(drift(results[1][0], results[0][0])["gradient"], abs=1e-6)
    assert results[1][1] < 0.99


def test_a_stored_model_with_random_labels_is_compared_at_every_validation(digits_network, tmp_path):
    training, validation = demo.digits()
    random = demo.DigitsClassifier()
    trainer = pl.Trainer(max_epochs=2, **QUIET)
    loaders = DataLoader(training, 64, shuffle=True), DataLoader(validation, 256)
    trainer.fit(random, datamodule=RandomLabelDataModule(loaders[0], val_dataloaders=loaders[1]))
    trainer.save_checkpoint(tmp_path / "random.ckpt")
    callback = SaliencySanityCallback(
        ["gradient", "input_x_gradient"],
        probe=24,
        trials=2,
        repeats=1,
        max_steps=1,
        log_images=False,
        reference_checkpoint=tmp_path / "random.ckpt",
    )
    trainer = pl.Trainer(callbacks=[callback], default_root_dir=tmp_path, **QUIET)
    found = trainer.validate(digits_network[0], DataLoader(validation, 256), verbose=False)[0]
    digits_network[0].eval()
    assert found["sanity/gradient/dri"] > found["sanity/input_x_gradient/dri"]
    stored = SanityResult.from_json(tmp_path / "sanity_labels" / "latest.json")
    assert stored.settings["test"] == "data_randomization"
    assert stored.verdicts["gradient"].psi == pytest.approx(found["sanity/gradient/dri"], abs=1e-6)


def test_the_stored_model_is_compared_once_and_then_left_where_time_is_short(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_sanity.callback.max_time._LARGEST_PART", 0.0)
    random, found = demo.DigitsClassifier(), []
    trainer = pl.Trainer(max_epochs=1, **QUIET)
    trainer.fit(random, *(DataLoader(part, 64) for part in demo.digits()))
    trainer.save_checkpoint(tmp_path / "other.ckpt")

    class Keep(SaliencySanityCallback):
        def _publish(self, trainer, result):
            found.append(self.label_result)

    given = {"probe": 12, "trials": 1, "repeats": 1, "max_steps": 1, "max_time": 60.0, "log_images": False}
    callback = Keep("gradient", **given, reference_checkpoint=tmp_path / "other.ckpt")
    with pytest.warns(UserWarning, match="too short for the data randomization test: its last result is kept"):
        fit(demo.DigitsClassifier(), callback, tmp_path, max_epochs=2)
    assert found[0] is found[1] is not None


@pytest.fixture
def misfit(tmp_path):
    """A checkpoint of another network."""
    torch.save({"state_dict": torch.nn.Linear(3, 2).state_dict()}, tmp_path / "misfit.ckpt")
    return tmp_path / "misfit.ckpt"


def test_a_reference_checkpoint_that_does_not_fit_costs_the_label_test_only(misfit, tmp_path):
    callback = observer(reference_checkpoint=misfit)
    with pytest.warns(
        UserWarning, match="data randomization test could not be run .* does not fit the model"
    ) as caught:
        trainer = fit(demo.DigitsClassifier(), callback, tmp_path, max_epochs=2)
    assert sum("does not fit" in str(warning.message) for warning in caught) == 1
    assert callback.label_result is None
    assert callback.unmeasured is None
    assert callback.result.step == trainer.global_step
    assert callback.result.verdicts["gradient"].psi == trainer.callback_metrics["sanity/gradient/psi"]
    assert trainer.callback_metrics["sanity/gradient/dri"] == 0


def test_a_label_test_that_breaks_later_costs_its_own_result_only(digits_network, tmp_path):
    path = tmp_path / "gone.ckpt"
    torch.save({"state_dict": digits_network[0].state_dict()}, path)

    class Remove(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            path.unlink()

    callback = observer(reference_checkpoint=path)
    trainer = pl.Trainer(callbacks=[callback, Remove()], default_root_dir=tmp_path, **QUIET)
    with pytest.warns(UserWarning, match="data randomization test could not be run .*gone.ckpt"):
        trainer.validate(digits_network[0], DataLoader(demo.digits()[1], 256), verbose=False)
    digits_network[0].eval()
    assert callback.result is not None
    assert callback.label_result is None


def test_on_error_raise_raises_for_the_label_test_too(misfit, tmp_path):
    with pytest.raises(ValueError, match="`reference_checkpoint` does not fit the model"):
        fit(demo.DigitsClassifier(), observer(reference_checkpoint=misfit, on_error="raise"), tmp_path)


@pytest.mark.parametrize("name", ["baseline", "reference_checkpoint"])
def test_a_reference_that_cannot_be_read_is_refused_before_training(tmp_path, name):
    (tmp_path / "bad").write_text("nothing of ours")
    with pytest.raises(MisconfigurationException, match=f"`{name}` cannot be read"):
        fit(demo.DigitsClassifier(), observer(**{name: tmp_path / "bad"}), tmp_path)
