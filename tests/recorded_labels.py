"""A network that writes down the labels it is given, and the digits that it is given them for."""

from collections import Counter, defaultdict
from functools import partial

import lightning.pytorch as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_sanity.cli import demo
from lightning_sanity.data_randomization.datamodule import RandomLabelDataset

SIZE = 320
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def digits(size=SIZE):
    """Real digits as (image, label, index)."""
    images, labels = demo.digits()[0].tensors
    return TensorDataset(images[:size], labels[:size], torch.arange(size))


def validation_digits():
    images, labels = demo.digits()[1].tensors
    return TensorDataset(images[:64], labels[:64], torch.arange(64))


TRUE = digits().tensors[1]
EXPECTED = RandomLabelDataset(digits()).random_labels


class Batched(Dataset):
    """Digits that are fetched in batches, as Hugging Face data sets are."""

    def __init__(self):
        self.inner = digits()

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]

    def __getitems__(self, indices):
        return [self.inner[index] for index in indices]


class Named(Batched):
    """Digits as dictionaries."""

    def __getitem__(self, index):
        return dict(zip(("image", "label", "index"), self.inner[index], strict=True))

    def __getitems__(self, indices):
        return [self[index] for index in indices]


SHUFFLED = partial(DataLoader, batch_size=32, shuffle=True)


class Digits(pl.LightningDataModule):
    """A data module whose data set and loader are given by functions."""

    def __init__(self, make=digits, load=SHUFFLED, batch_size=32):
        super().__init__()
        self.save_hyperparameters("batch_size")
        self.make, self.load = make, load

    def setup(self, stage):
        assert self.trainer is not None
        self.training, self.validation = self.make(), validation_digits()

    def train_dataloader(self):
        assert self.trainer is not None
        return self.load(self.training)

    def val_dataloader(self):
        return DataLoader(self.validation, 64)

    def test_dataloader(self):
        return DataLoader(self.validation, 64)


class Recorder(demo.DigitsClassifier):
    """Keeps the (epoch, index, label) of every sample that it is given, in a file per rank."""

    def __init__(self, folder=None):
        super().__init__()
        self.folder, self.seen = folder, defaultdict(list)

    def _step(self, stage, batch):
        images, labels, indices = batch.values() if isinstance(batch, dict) else batch
        rows = zip(indices.tolist(), labels.tolist(), strict=True)
        self.seen[stage] += [(self.current_epoch, *row) for row in rows]
        return F.cross_entropy(self(images), labels)

    def training_step(self, batch, batch_idx):
        return self._step("train", batch)

    def validation_step(self, batch, batch_idx):
        self._step("val", batch)

    def test_step(self, batch, batch_idx):
        self._step("test", batch)

    def teardown(self, stage):
        if self.folder is not None:
            torch.save(dict(self.seen), self.folder / f"rank{self.global_rank}.pt")


def received(folder, datamodule, **changes):
    """Every (epoch, index, label) that training steps of all ranks were given."""
    folder.mkdir(exist_ok=True)
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 2, "default_root_dir": folder, **changes})
    trainer.fit(Recorder(folder), datamodule=datamodule)
    return [row for file in sorted(folder.glob("rank*.pt")) for row in torch.load(file)["train"]]


def label_by_index(rows):
    labels = {index: label for _, index, label in rows}
    assert all(labels[index] == label for _, index, label in rows), "the label of a sample changed during training"
    return labels


def assert_randomised(rows, size=SIZE, epochs=2):
    """One label per sample for the whole training, as frequent as before, agreeing with the true ones by chance."""
    labels = label_by_index(rows)
    true = {index: int(TRUE[index]) for index in labels}
    assert {epoch for epoch, _, _ in rows} == set(range(epochs))
    assert len(labels) == size
    assert Counter(labels.values()) == Counter(true.values())
    agreement = sum(labels[index] == true[index] for index in labels) / size
    assert agreement < 0.1 + 4 * (0.09 / size) ** 0.5  # four standard errors above chance
