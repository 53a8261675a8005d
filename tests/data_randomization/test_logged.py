"""What trainings wrote down themselves is evidence that labels were learned."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import Outcome, SaliencySanityCallback
from lightning_sanity.cli import demo
from lightning_sanity.data_randomization.logged import logged_accuracy
from lightning_sanity.data_randomization.recorder import Run

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Small(demo.DigitsClassifier):
    """Logs an accuracy that is not its own, so that it is known where it comes from."""

    def __init__(self, **how):
        super().__init__()
        self.how = how

    def training_step(self, batch, batch_idx):
        if self.how:
            self.log("train/acc", 0.875, **self.how)
        self.log("val_train_loss", 0.5, on_epoch=True)
        return super().training_step(batch, batch_idx)


def loader(size=32):
    return DataLoader(TensorDataset(*(tensor[:size] for tensor in demo.digits()[0].tensors)), 16)


def fit(model, folder, *callbacks):
    trainer = pl.Trainer(max_epochs=2, callbacks=list(callbacks), default_root_dir=folder, **QUIET)
    trainer.fit(model, loader(), loader())
    return trainer


@pytest.fixture
def reference(tmp_path):
    """A checkpoint as an experiment leaves it."""
    folder = tmp_path / "permuted-labels-0"
    folder.mkdir()
    torch.save({"state_dict": Small().state_dict()}, folder / "model.ckpt")
    labels = {"share": 0.1, "chance": 0.1, "samples": 200, "association": 0.4}
    Run("", 9, 9, 0.99, 0.995, 0.1, test_samples=99, chance=0.1, labels=labels).write(folder / "run.json")
    return folder / "model.ckpt"


@pytest.mark.parametrize(
    ("how", "expected"),
    [({"on_epoch": True, "on_step": False}, 0.875), ({"on_epoch": True, "on_step": True}, 0.875), ({}, None)],
)
def test_an_accuracy_is_known_by_its_name_where_whole_epochs_are_logged(tmp_path, how, expected):
    assert logged_accuracy(fit(Small(**how), tmp_path)) == expected


def test_an_accuracy_of_single_steps_does_not_count(tmp_path):
    assert logged_accuracy(fit(Small(on_epoch=False, on_step=True), tmp_path)) is None


@pytest.mark.parametrize("logged", [True, False])
def test_the_callback_compares_with_the_evidence_that_there_is(tmp_path, reference, logged):
    callback = SaliencySanityCallback(
        "gradient", probe=8, trials=1, repeats=1, max_steps=1, log_images=False, reference_checkpoint=reference
    )
    fit(Small(**({"on_epoch": True, "on_step": False} if logged else {})), tmp_path, callback)
    verdict, known = callback.label_result.verdicts["gradient"], callback.label_result.settings["memorization"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    if logged:
        assert (known["true_train"], known["permuted_train"]) == ([0.875], [0.995])
        assert "true-label model 0 learned only 87.5%" in verdict.reason
    else:
        assert known is None
