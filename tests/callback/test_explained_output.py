"""The probe's labels tell which of a module's outputs holds its scores; nobody has to name it."""

import pytest
import torch
from made_trainings import callback, few_digits, trainer
from torch.nn import functional as F

from lightning_sanity.cli import demo
from lightning_sanity.model import checkpoint


class WithFeatures(demo.DigitsClassifier):
    """Returns what it found before its scores."""

    def __init__(self, width=64):
        super().__init__(learning_rate=3e-3)
        self.width = width

    def forward(self, images):
        hidden = self.classifier[:3](self.features(images))
        return hidden[:, : self.width], self.classifier[3](hidden)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0])[1], batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0])[1], batch[1]))


@pytest.mark.parametrize("training", [False, True])
def test_a_probe_with_all_classes_says_how_wide_the_scores_are(tmp_path, training):
    watching = callback("gradient", probe=10)
    run = trainer(tmp_path, watching, limit_train_batches=1)
    loaders = few_digits(64, 200)
    run.fit(WithFeatures(), *loaders) if training else run.validate(WithFeatures(), loaders[1], verbose=False)
    found = watching.result.settings["explained_output"]
    assert found["name"] == "1"
    assert "the labels" in found["known"]
    assert any("explained is the model's output '1'" in note for note in watching.result.coverage.notes)


def test_what_predicts_the_labels_is_explained_where_widths_are_equal(tmp_path):
    """And Lightning's dry run, in which nothing predicts them yet, does not warn of it."""
    watching = callback("gradient", probe=20)
    trainer(tmp_path, watching, max_epochs=4, check_val_every_n_epoch=4).fit(
        WithFeatures(width=10), *few_digits(512, 200)
    )
    assert watching.result.settings["explained_output"] == {"name": "1", "known": "it alone predicts the labels"}


def test_the_data_randomization_test_beside_it_explains_the_same_output(tmp_path):
    torch.manual_seed(1)
    other = WithFeatures()
    path = tmp_path / "random.ckpt"
    torch.save({"state_dict": other.state_dict()}, path)
    assert checkpoint.load(path).keys() == other.state_dict().keys()
    watching = callback("gradient", probe=10, reference_checkpoint=path)
    trainer(tmp_path, watching).validate(WithFeatures(), few_digits(64, 200)[1], verbose=False)
    assert watching.label_result.settings["explained_output"]["name"] == "1"
