import contextlib
import copy
import json
import pickle
import warnings

import lightning.pytorch as pl
import made_trainings
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ModelPruning
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from made_trainings import few_digits, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import Outcome, SaliencySanityCallback, SanityCheckFailed, SanityResult
from lightning_sanity.callback.released_weights import obstacle
from lightning_sanity.cli import demo
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.model.digest import state_digest

METHODS = ("gradient", "guided_backprop")


@pytest.fixture(scope="module")
def loaders():
    return few_digits(256, 256, shuffle=True)


def callback(methods=METHODS, **changes):
    return made_trainings.callback(methods, **{"trials": 2, **changes})


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "saliency maps failed the randomization test")  # guided backprop should
        warnings.filterwarnings("ignore", ".*number of training batches.*")
        warnings.filterwarnings("ignore", "The dirpath has changed")
        yield


def test_fit_logs_every_key_of_the_contract(tmp_path, loaders):
    run = trainer(tmp_path, callback())
    run.fit(demo.DigitsClassifier(), *loaders)
    expected = {"passed", "age", "seconds"} | {
        f"{method}/{key}"
        for method in METHODS
        for key in ("passed", "inconclusive", "psi", "psi_low", "ssim", "ssim_auc", "spearman", "spearman_auc", "drift")
    }
    logged = {key for key in run.callback_metrics if key.startswith("sanity/")}
    assert logged == {f"sanity/{key}" for key in expected}


def test_checkpoint_and_early_stopping_see_the_score_of_the_same_validation(tmp_path, loaders):
    checkpoint = ModelCheckpoint(tmp_path, monitor="sanity/gradient/psi", mode="max", save_top_k=-1)
    stopping = EarlyStopping("sanity/gradient/psi", mode="max", stopping_threshold=-1.0)
    run = trainer(tmp_path, checkpoint, stopping, callback(), max_epochs=3)
    run.fit(demo.DigitsClassifier(), *loaders)
    assert run.current_epoch == 1  # the threshold was reached at the first validation
    assert len(checkpoint.best_k_models) == 1


def test_standalone_validate_in_inference_mode_gives_the_verdicts_of_fit(tmp_path, loaders):
    model, measured = demo.DigitsClassifier(), callback()
    run = trainer(tmp_path, measured)
    run.fit(model, *loaders)
    in_fit = measured.result
    run.validate(model, loaders[1], verbose=False)
    assert measured.result is not in_fit
    assert measured.result.weights_digest == in_fit.weights_digest
    assert measured.result.verdicts == in_fit.verdicts


def test_the_probe_is_the_same_at_every_validation(tmp_path, loaders):
    seen = []

    class Watching(SaliencySanityCallback):
        def on_validation_epoch_end(self, trainer, pl_module):
            super().on_validation_epoch_end(trainer, pl_module)
            seen.append(self.result.probe_digest if self.result else None)

    watching = Watching(METHODS, probe=8, trials=1, repeats=1, max_steps=1, log_images=False, report=False)
    trainer(tmp_path, watching, max_epochs=2).fit(demo.DigitsClassifier(), *loaders)
    assert seen[0] is None  # Lightning's dry validation run is skipped
    assert seen[1] == seen[2] is not None


def test_tensorboard_gets_figures_and_the_folder_gets_the_result(tmp_path, loaders):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    run = trainer(tmp_path, callback(log_images=True, report=True), logger=logger)
    run.fit(demo.DigitsClassifier(), *loaders)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    events.Reload()
    assert any("curves" in tag for tag in events.Tags()["images"])
    assert any("maps" in tag for tag in events.Tags()["images"])
    assert "sanity/gradient/psi" in events.Tags()["scalars"]
    written = tmp_path / "run" / "sanity" / f"step={run.global_step}.json"
    assert SanityResult.from_json(written).step == run.global_step
    assert json.loads((tmp_path / "run" / "sanity" / "latest.json").read_text())["step"] == run.global_step
    assert f"step {run.global_step}" in (tmp_path / "run" / "sanity" / "report.html").read_text(encoding="utf-8")


def steps_of(files):
    return sorted(int(path.stem.split("=")[1]) for path in files)


def limited(tmp_path, loaders, max_time, *callbacks, **changes):
    """A run of three validations; the steps that have figures, and those that have a result."""
    measured = callback("gradient", trials=1, max_steps=1, log_images=True, report=True, max_time=max_time, **changes)
    run = trainer(tmp_path, measured, *callbacks, max_epochs=3, logger=CSVLogger(tmp_path, name="", version=""))
    with contextlib.suppress(SystemExit):
        run.fit(demo.DigitsClassifier(), *loaders)
    folder = tmp_path / "sanity"
    return steps_of(folder.glob("curves-step=*.png")), steps_of(folder.glob("step=*.json")), folder / "report.html"


def test_figures_wait_for_the_end_of_fit_where_time_is_short_and_results_do_not(tmp_path, loaders):
    figures, results, page = limited(tmp_path, loaders, 1.0)
    assert results == [4, 8, 12]
    assert len(figures) == 1  # the loggers' steps begin at 0
    assert "step 12" in page.read_text(encoding="utf-8")


def test_figures_do_not_wait_where_there_is_time(tmp_path, loaders):
    figures, results, _ = limited(tmp_path, loaders, 1000.0)
    assert len(figures) == len(results) == 3


def test_figures_that_wait_are_shown_when_training_breaks_off(tmp_path, loaders):
    class Press(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    figures, results, page = limited(tmp_path, loaders, 1.0, Press())
    assert results == [4, 8]
    assert len(figures) == 1
    assert "step 8" in page.read_text(encoding="utf-8")


def test_a_share_too_small_for_a_test_is_saved_up(tmp_path, loaders):
    _, results, page = limited(tmp_path, loaders, 1e-6)
    assert results == [4]  # the first is made in any case
    assert "step 4" in page.read_text(encoding="utf-8")


def test_a_validation_that_is_monitored_is_measured_whatever_it_takes(tmp_path, loaders):
    watch = EarlyStopping("sanity/gradient/psi", mode="max", patience=10)
    _, results, _ = limited(tmp_path, loaders, 1e-6, watch)
    assert results == [4, 8, 12]


def test_on_fail_warn_names_the_method_and_the_reason(tmp_path, loaders):
    run = trainer(tmp_path, callback(trials=4, max_steps=None))
    with pytest.warns(UserWarning, match="guided_backprop: the map keeps too much of itself"):
        run.fit(demo.DigitsClassifier(), *loaders)


def test_long_tests_show_progress_as_lines(tmp_path, loaders, monkeypatch, caplog):
    monkeypatch.setattr("lightning_sanity.callback.trainer._PROGRESS_EVERY", 0.0)
    with caplog.at_level("INFO"):
        trainer(tmp_path, callback()).fit(demo.DigitsClassifier(), *loaders)
    assert any("randomization test: " in message and "trial 2" in message for message in caplog.messages)


def test_what_is_not_to_be_said_is_not(tmp_path, loaders, monkeypatch, caplog, capsys):
    monkeypatch.setattr("lightning_sanity.callback.trainer._PROGRESS_EVERY", 0.0)
    with caplog.at_level("INFO"):
        trainer(tmp_path, callback(verbose=False)).fit(demo.DigitsClassifier(), *loaders)
    assert not any("randomization test: " in message for message in caplog.messages)
    assert "sanity" not in capsys.readouterr().out


@pytest.mark.parametrize("remade", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_the_callback_measures_as_it_does(tmp_path, loaders, remade):
    measured, model = callback(), demo.DigitsClassifier()
    trainer(tmp_path, measured).validate(model, loaders[1], verbose=False)
    copied = remade(measured)
    assert json.dumps(copied.result.to_dict()) == json.dumps(measured.result.to_dict())
    assert copied.state_dict() == measured.state_dict()
    trainer(tmp_path, copied).validate(model, loaders[1], verbose=False)
    assert copied.result.to_dict()["verdicts"] == measured.result.to_dict()["verdicts"]


def test_on_fail_stop_ends_training(tmp_path, loaders):
    run = trainer(tmp_path, callback(on_fail="stop", criterion=None, trials=4, max_steps=None), max_epochs=3)
    run.fit(demo.DigitsClassifier(), *loaders)
    assert run.current_epoch == 1


def test_on_fail_raise_raises_after_the_last_checkpoint(tmp_path, loaders):
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    run = trainer(tmp_path, checkpoint, callback(on_fail="raise", trials=4, max_steps=None))
    with pytest.raises(SanityCheckFailed, match="guided_backprop is FAIL"):
        run.fit(demo.DigitsClassifier(), *loaders)
    assert (tmp_path / "last.ckpt").exists()


def test_on_fail_raise_counts_a_test_that_never_ran_as_failed(tmp_path, loaders):
    run = trainer(tmp_path, callback(on_fail="raise"), limit_val_batches=0)
    said, raised = "will measure nothing: limit_val_batches=0", "never gave a result .* limit_val_batches=0"
    with pytest.warns(UserWarning, match=said), pytest.raises(SanityCheckFailed, match=raised):
        run.fit(demo.DigitsClassifier(), *loaders)


def test_every_n_validations_logs_the_last_value_with_its_age(tmp_path, loaders):
    ages = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                ages.append(float(trainer.callback_metrics["sanity/age"]))

    run = trainer(tmp_path, callback(every_n_validations=2), Watch(), max_epochs=3)
    run.fit(demo.DigitsClassifier(), *loaders)
    assert ages == [0, 4, 0]  # four batches an epoch


def test_every_n_validations_refuses_a_monitor_on_its_stale_values(tmp_path, loaders):
    checkpoint = ModelCheckpoint(tmp_path, monitor="sanity/gradient/psi")
    run = trainer(tmp_path, callback(every_n_validations=2), checkpoint)
    with pytest.raises(MisconfigurationException, match="measured only at every 2-th validation"):
        run.fit(demo.DigitsClassifier(), *loaders)


def test_two_callbacks_of_one_name_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `SaliencySanityCallback`"):
        trainer(tmp_path, callback(name="other"), callback(seed=1, name="other"))


def test_two_named_callbacks_log_side_by_side(tmp_path, loaders):
    run = trainer(tmp_path, callback("gradient"), callback("gradient", name="strict", trials=1))
    run.fit(demo.DigitsClassifier(), *loaders)
    assert {"sanity/gradient/psi", "sanity/strict/gradient/psi"} <= set(run.callback_metrics)


def test_weight_averaging_before_the_callback_is_refused(tmp_path, loaders):
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="came with Lightning 2.6")
    run = trainer(tmp_path, averaging.WeightAveraging(), callback())
    with pytest.raises(MisconfigurationException, match="list SaliencySanityCallback first"):
        run.fit(demo.DigitsClassifier(), *loaders)


def test_users_checkpoint_loads_with_weights_only(tmp_path, loaders):
    checkpoint = ModelCheckpoint(tmp_path, filename="with_state")
    trainer(tmp_path, checkpoint, callback()).fit(demo.DigitsClassifier(), *loaders)
    loaded = torch.load(tmp_path / "with_state.ckpt", weights_only=True)
    state = next(v for k, v in loaded["callbacks"].items() if k.startswith("SaliencySanityCallback"))
    assert state["outcomes"]["guided_backprop"] in {"FAIL", "INCONCLUSIVE"}


class NeedsTrainer(demo.DigitsClassifier):
    def forward(self, images):
        return super().forward(images) * (1 + 0 * self.trainer.global_step)


class NotANumber(demo.DigitsClassifier):
    def forward(self, images):
        return super().forward(images) * torch.nan

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(super().forward(batch[0]), batch[1])


def test_a_model_that_needs_its_trainer_is_reported_and_training_goes_on(tmp_path, loaders):
    run = trainer(tmp_path, callback(), max_epochs=2)
    with pytest.warns(UserWarning, match="its forward needs a Trainer, which a clone does not have"):
        run.fit(NeedsTrainer(), *loaders)
    assert run.current_epoch == 2
    assert run.callback_metrics["sanity/passed"] == 0


def test_a_model_that_needs_its_trainer_works_with_forward(tmp_path, loaders):
    measured = callback(forward=lambda model, images: demo.DigitsClassifier.forward(model, images))
    trainer(tmp_path, measured).fit(NeedsTrainer(), *loaders)
    assert measured.result.verdicts["gradient"].psi > 0.5


def test_on_error_raise_raises(tmp_path, loaders):
    run = trainer(tmp_path, callback(on_error="raise"))
    with pytest.raises(ValueError, match="its forward needs a Trainer"):
        run.fit(NeedsTrainer(), *loaders)


def test_nan_outputs_are_inconclusive_and_no_scalar_is_nan(tmp_path, loaders):
    measured = callback()
    run = trainer(tmp_path, measured)
    run.fit(NotANumber(), *loaders)
    assert measured.result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert "NaN or infinity" in measured.result.verdicts["gradient"].reason
    assert all(value.isfinite() for key, value in run.callback_metrics.items() if key.startswith("sanity/"))


def test_a_validation_set_of_one_sample_is_reported_and_training_goes_on(tmp_path, loaders):
    training, validation = loaders
    one = torch.utils.data.DataLoader(torch.utils.data.Subset(validation.dataset, [0]))
    run = trainer(tmp_path, callback(), max_epochs=1)
    with pytest.warns(UserWarning, match="the data set has only 1: every map is compared with another sample's"):
        run.fit(demo.DigitsClassifier(), training, one)
    assert run.current_epoch == 1


def test_the_users_transfer_hooks_reach_the_probe(tmp_path, loaders):
    class Normalising(demo.DigitsClassifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 2 - 1, batch[1]

    plain, normalised = callback(), callback()
    trainer(tmp_path, plain).fit(demo.DigitsClassifier(), *loaders)
    trainer(tmp_path, normalised).fit(Normalising(), *loaders)
    assert plain.result.probe_ids == normalised.result.probe_ids
    assert plain.result.probe_digest != normalised.result.probe_digest


def test_fast_dev_run_measures_a_minimum(tmp_path, loaders):
    measured = callback(trials=5)
    trainer(tmp_path, measured, fast_dev_run=True).fit(demo.DigitsClassifier(), *loaders)
    assert measured.result.settings["trials"] == 1


def test_saved_hyperparameters_build_nothing_unasked(tmp_path, loaders):
    built = []

    class Saving(demo.DigitsClassifier):
        def __init__(self, learning_rate=1e-3, width=64):
            super().__init__(learning_rate)
            built.append(width)
            self.save_hyperparameters()
            self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512, width), nn.ReLU(), nn.Linear(width, 10))

    measured = callback()
    trainer(tmp_path, measured).fit(Saving(width=48), *loaders)
    assert measured.result.settings["reinitialize"] == "normal"
    assert measured.result.coverage.share == 1.0
    assert built == [48]


def saved_state(path):
    loaded = torch.load(path, weights_only=True)
    return next(state for key, state in loaded["callbacks"].items() if key.startswith("SaliencySanityCallback"))


def test_a_checkpoint_says_whether_it_holds_the_measured_weights(tmp_path, loaders):
    after = ModelCheckpoint(tmp_path, filename="after")
    before = ModelCheckpoint(tmp_path, filename="before", every_n_train_steps=3)  # one step before the validation
    trainer(tmp_path, after, before, callback("gradient"), max_epochs=2).fit(demo.DigitsClassifier(), *loaders)
    assert saved_state(tmp_path / "after.ckpt")["matches_measured"] is True
    assert saved_state(tmp_path / "before.ckpt")["matches_measured"] is False


def test_a_checkpoint_of_averaged_weights_matches_the_measured_average(tmp_path, loaders):
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="came with Lightning 2.6")
    checkpoint = ModelCheckpoint(tmp_path, filename="average")
    measured = callback("gradient")
    run = trainer(tmp_path, measured, averaging.EMAWeightAveraging(decay=0.5), checkpoint)
    run.fit(demo.DigitsClassifier(), *loaders)
    assert saved_state(tmp_path / "average.ckpt")["matches_measured"] is True
    saved = torch.load(tmp_path / "average.ckpt", weights_only=True)
    assert state_digest(saved["state_dict"]) == measured.result.weights_digest


@pytest.mark.parametrize("permanent", [True, False])
def test_a_checkpoint_of_pruned_weights_matches_the_measured_ones(tmp_path, loaders, permanent):
    pruning = ModelPruning(
        "l1_unstructured", amount=0.3, prune_on_train_epoch_end=False, make_pruning_permanent=permanent
    )
    measured, checkpoint = callback("gradient"), ModelCheckpoint(tmp_path, filename="pruned")
    trainer(tmp_path, pruning, measured, checkpoint).fit(demo.DigitsClassifier(), *loaders)
    assert saved_state(tmp_path / "pruned.ckpt")["matches_measured"] is True
    assert measured.result.coverage.share == 1.0


@pytest.mark.parametrize("first", [True, False])
def test_pruning_after_the_measurement_is_refused(tmp_path, loaders, first):
    pruning = ModelPruning("l1_unstructured", amount=0.3, prune_on_train_epoch_end=first)
    run = trainer(tmp_path, *([pruning, callback()] if first else [callback(), pruning]))
    with pytest.raises(MisconfigurationException, match="pass it prune_on_train_epoch_end=False and list it before"):
        run.fit(demo.DigitsClassifier(), *loaders)


def test_sharded_strategies_are_refused_with_the_way_out(tmp_path):
    class FSDPStrategy:
        pass

    measured = callback()
    assert "consolidated checkpoint" in obstacle([measured], FSDPStrategy(), measured)


def test_a_restored_result_is_marked_stale_and_counts_as_none(tmp_path, loaders):
    checkpoint = ModelCheckpoint(tmp_path, filename="first")
    trainer(tmp_path, callback("gradient"), checkpoint).fit(demo.DigitsClassifier(), *loaders)
    assert saved_state(tmp_path / "first.ckpt")["stale"] is False

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            assert resumed.result is None
            trainer.save_checkpoint(tmp_path / "again.ckpt")

    resumed = callback("gradient")
    run = trainer(tmp_path, resumed, Look(), ModelCheckpoint(tmp_path / "second"), max_epochs=2)
    run.fit(demo.DigitsClassifier(), *loaders, ckpt_path=tmp_path / "first.ckpt")
    again = saved_state(tmp_path / "again.ckpt")
    assert (again["stale"], again["step"], again["matches_measured"]) == (True, 4, True)  # resumed at these weights
    assert resumed.result.step == 8


def test_on_fail_raise_refuses_weights_that_were_trained_on_after_the_last_test(tmp_path, loaders):
    run = trainer(tmp_path, callback("gradient", on_fail="raise"), max_steps=6, max_epochs=2)
    with pytest.raises(SanityCheckFailed, match="training went on after the last test, at step 4"):
        run.fit(demo.DigitsClassifier(), *loaders)


def test_trainer_test_measures_on_the_test_set(tmp_path, loaders):
    class Tested(demo.DigitsClassifier):
        def test_step(self, batch, batch_idx):
            self.log("test/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    images, labels = loaders[1].dataset.tensors
    measured = callback("gradient")
    run = trainer(tmp_path, measured)
    (logged,) = run.test(Tested(), DataLoader(TensorDataset(images[:64], labels[:64]), 64), verbose=False)
    about = {f"sanity/gradient/{key}" for key in ("passed", "inconclusive", "psi", "psi_low")}
    assert set(logged) == {"test/accuracy", "sanity/passed"} | about  # few rows beside the user's own
    assert max(measured.result.probe_ids) < 64


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_precision_32_measures_in_float32_whatever_the_trainer_uses(tmp_path, digits_network, precision):
    model, images, labels = digits_network
    loader = DataLoader(TensorDataset(images[:64], labels[:64]), 64)
    seen = set()

    def looking(model, inputs, target):
        outputs = model(leaf := inputs.clone().requires_grad_())
        seen.add(outputs.dtype)
        return torch.autograd.grad(outputs.float().gather(1, target[:, None]).sum(), leaf)[0]

    measured = callback({"looking": looking}, precision="32")
    trained = copy.deepcopy(model)
    trainer(tmp_path, measured, precision=precision).validate(trained, loader, verbose=False)
    assert seen == {torch.float32}
    assert measured.result.weights_digest == weights_digest(trained)
    seen.clear()
    theirs = callback({"looking": looking})
    trainer(tmp_path, theirs, precision=precision).validate(trained, loader, verbose=False)
    assert seen == {torch.bfloat16}
    assert theirs.result.probe_ids == measured.result.probe_ids


def test_two_classes_that_log_the_same_keys_are_refused(tmp_path, loaders):
    class Own(SaliencySanityCallback):
        pass

    run = trainer(tmp_path, callback("gradient"), Own("gradient"))
    with pytest.raises(MisconfigurationException, match=r"two instances .* would log 'sanity/age'.*tell them apart"):
        run.fit(demo.DigitsClassifier(), *loaders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"methods": "salency"},
            "unknown attribution method 'salency'; did you mean gradient\\? choose from: gradient",
        ),
        ({"similarities": ("sim",)}, "unknown similarity 'sim'; did you mean ssim\\? choose from"),
        ({"order": "sideways"}, "unknown order 'sideways'; choose from: cascading"),
        ({"on_fail": "ignore"}, "unknown on_fail 'ignore'; choose from: warn, stop, raise"),
        ({"probe": 1}, "probe must be an integer of at least 2, not 1"),
        ({"max_time": 0}, "max_time must be a number above 0, not 0"),
        ({"max_memory": "2GB"}, "max_memory must be a number of bytes"),
        ({"precision": "16"}, "unknown precision '16'; choose from: None, 32"),
        ({"trials": 0}, "trials must be an integer of at least 1, not 0"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        SaliencySanityCallback(**arguments)
