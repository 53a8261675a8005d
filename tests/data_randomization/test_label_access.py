"""How the labels of a data set are read, what is refused, and what their agreement proves."""

import logging

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from recorded_labels import QUIET, SIZE, TRUE, Batched, Digits, Named, Recorder, digits
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from lightning_sanity import RandomLabelDataModule
from lightning_sanity.data_randomization.datamodule import RandomLabelDataset


def test_the_agreement_is_measured_said_and_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    datamodule = RandomLabelDataModule(Digits())
    trainer = pl.Trainer(**{**QUIET, "logger": CSVLogger(tmp_path)}, max_epochs=1, log_every_n_steps=1)
    trainer.fit(Recorder(), datamodule=datamodule)
    labels = datamodule.random_labels["train"][0]
    agreement = sum(int(labels[index]) == int(TRUE[index]) for index in range(SIZE)) / SIZE
    assert datamodule.label_agreement["train"] == pytest.approx(agreement)
    assert datamodule.chance_agreement["train"] == pytest.approx(float(((TRUE.bincount() / SIZE) ** 2).sum()))
    assert f"train labels are randomised: {agreement:.1%} of 320 agree with the true ones" in caplog.text
    assert "as frequent as before" in caplog.text
    logged = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "random_labels/train_agreement" in logged


def test_a_collate_function_that_brings_the_true_labels_back_is_refused():
    def restoring(samples):
        images, _, indices = default_collate(samples)
        return images, TRUE[indices], indices

    with pytest.raises(MisconfigurationException, match="true labels still arrive"):
        RandomLabelDataModule(DataLoader(digits(), 32, collate_fn=restoring)).train_dataloader()


class Mixed(Batched):
    def __getitem__(self, index):
        image, _, index = super().__getitem__(index)
        return image, torch.rand(10), index


def test_data_sets_that_draw_their_labels_are_refused():
    with pytest.raises(MisconfigurationException, match="differs from one reading to the next"):
        RandomLabelDataModule(DataLoader(Mixed(), 32)).train_dataloader()


class Reading(Dataset):
    """Counts how many samples are read; its list of targets may be wrong."""

    def __init__(self, targets):
        self.targets, self.inner, self.reads = targets, digits(), 0

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        self.reads += 1
        image, label, index = self.inner[index]
        return image, int(label), index


def test_labels_are_taken_from_the_list_of_a_data_set_without_reading_it():
    data = Reading(TRUE.tolist())
    RandomLabelDataModule(DataLoader(Subset(data, range(300)), 32)).train_dataloader()
    assert data.reads < 100


def test_a_wrong_list_of_labels_is_not_believed():
    remapped = Reading([0 if label == 3 else label for label in TRUE.tolist()])  # right for nine classes
    loader = RandomLabelDataModule(DataLoader(remapped, 32)).train_dataloader()
    assert torch.equal(loader.dataset.random_labels.true, TRUE)


def test_labels_are_not_read_again_when_loaders_are_asked_for_again():
    data = Reading(None)
    datamodule = RandomLabelDataModule(DataLoader(data, 32))
    first = datamodule.train_dataloader().dataset
    reads = data.reads
    assert datamodule.train_dataloader().dataset is first
    assert data.reads == reads


def tensors(labels):
    return TensorDataset(torch.zeros(len(labels), 2), labels)


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (TensorDataset(torch.zeros(50, 2)), {}, "no label at target_key=1: the sample is a tuple of 1"),
        (Named(), {}, r"a dict with the keys 'image', 'label', 'index'\. Pass target_key="),
        (Named(), {"target_key": "class"}, "no label at target_key='class'"),
        (tensors(torch.zeros(50, dtype=torch.long)), {}, "all 50 samples have the label 0: with one class"),
        (tensors(torch.rand(50)), {"mode": "uniform"}, "labels are not classes: 50 distinct floating-point values"),
        (tensors(torch.arange(50) % 2), {"fraction": 0.02}, "no label changed: fraction=0.02 of 50 samples is 1"),
        (tensors(torch.zeros(0)), {}, "TensorDataset.* is empty"),
        (RandomLabelDataset(digits()), {}, "randomised already"),
        (Subset(RandomLabelDataset(digits()), range(9)), {}, "randomised already"),
    ],
)
def test_labels_that_cannot_be_randomised_are_refused(data, arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        RandomLabelDataModule(DataLoader(data, 32), **arguments).train_dataloader()


def test_regression_labels_are_permuted_with_a_note(caplog):
    caplog.set_level(logging.INFO)
    values = torch.rand(100)
    loader = RandomLabelDataModule(DataLoader(tensors(values), 100)).train_dataloader()
    _, permuted = next(iter(loader))
    assert not torch.equal(permuted, values)
    assert torch.equal(permuted.sort().values, values.sort().values)
    assert "look continuous (regression)" in caplog.text


def test_a_class_that_dominates_is_pointed_out():
    with pytest.warns(UserWarning, match="96% of the randomised train labels are the true ones by chance"):
        RandomLabelDataModule(DataLoader(tensors((torch.arange(1000) < 20).long()), 100)).train_dataloader()
