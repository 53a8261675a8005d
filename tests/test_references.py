"""The callback beside a baseline, and beside a model that was trained on permuted labels."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lightning_sanity import Outcome, RandomLabelDataModule, SaliencySanityCallback, SanityResult, demo
from lightning_sanity.drift import drift

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
    callback = observer()
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
            results.append((result, float(self._scalars(trainer)["sanity/gradient/drift"])))

    callback = Keep("gradient", probe=12, trials=1, repeats=1, max_steps=1, log_images=False)
    fit(demo.DigitsClassifier(), callback, tmp_path, max_epochs=2)
    assert results[0][1] == 1
    assert results[1][1] == pytest.approx(drift(results[1][0], results[0][0])["gradient"], abs=1e-6)
    assert results[1][1] < 0.99


def test_a_stored_model_with_random_labels_is_compared_at_every_validation(digits_network, tmp_path):
    training, validation = demo.digits()
    twin = demo.DigitsClassifier()
    trainer = pl.Trainer(max_epochs=2, **QUIET)
    loaders = DataLoader(training, 64, shuffle=True), DataLoader(validation, 256)
    trainer.fit(twin, datamodule=RandomLabelDataModule(loaders[0], val_dataloaders=loaders[1]))
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


@pytest.mark.parametrize("name", ["baseline", "reference_checkpoint"])
def test_a_reference_that_cannot_be_read_is_refused_before_training(tmp_path, name):
    (tmp_path / "bad").write_text("nothing of ours")
    with pytest.raises(MisconfigurationException, match=f"`{name}` cannot be read"):
        fit(demo.DigitsClassifier(), observer(**{name: tmp_path / "bad"}), tmp_path)
