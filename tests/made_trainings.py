"""Short trainings; networks and data that draw from every random stream meanwhile, and what must stay identical."""

import random

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_sanity import SaliencySanityCallback
from lightning_sanity.cli import demo


def callback(methods=("gradient", "guided_backprop"), **changes):
    """The callback with the least to do."""
    given = {"probe": 8, "trials": 1, "repeats": 1, "max_steps": 2, "log_images": False, "report": False}
    return SaliencySanityCallback(methods, **{**given, **changes})


def trainer(folder, *callbacks, **changes):
    """A silent trainer of one epoch, which saves checkpoints if it is given a ModelCheckpoint."""
    given = {
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks),
        "accelerator": "cpu",
    }
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**given, **changes})


def few_digits(training, validation, **changes):
    """Loaders of so many digits to train on, in batches of 64, and of the others in batches of so many."""
    most, others = demo.digits()
    few = TensorDataset(*(tensor[:training] for tensor in most.tensors))
    return DataLoader(few, 64, **changes), DataLoader(others, validation)


class Noisy(Dataset):
    """Digits with augmentation from all three global random streams."""

    def __init__(self, tensors):
        self.images, self.labels = tensors

    def __len__(self):
        return 192

    def __getitem__(self, index):
        noise = 0.01 * (torch.randn(1) + float(np.random.randn()) + random.gauss(0, 1))
        return self.images[index] + noise.float(), self.labels[index]


class Regularised(demo.DigitsClassifier):
    """With dropout beside BatchNorm, momentum and a schedule, a hook, a counter, a cached tensor and a metric."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(32, 10)
        )
        self.register_buffer("batches", torch.zeros(()))
        self.accuracy = MulticlassAccuracy(10)
        self.classifier[0].register_forward_hook(Counter())
        self.cached, self.forwards = None, 0

    def forward(self, images):
        self.forwards += 1
        self.batches += 1
        scores = super().forward(images)
        self.cached = scores.detach()
        self.accuracy.update(self.cached, self.cached.argmax(1))
        return scores

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("test/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Counter:
    """A hook with a state of its own."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, arguments, output):
        if not torch.is_inference_mode_enabled() and module.training:
            self.calls += 1


def assert_identical(one, two, path=""):
    assert type(one) is type(two), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_identical(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), path
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_identical(a, b, f"{path}[{index}]")
    else:
        assert one == two, path
