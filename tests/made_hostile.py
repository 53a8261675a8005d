"""Users' modules and data that would notice a test: logging in ``forward``, counting hooks, generators of their own."""

import random
import warnings
from contextlib import contextmanager

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_sanity import SaliencySanityCallback
from lightning_sanity.model.clone import state_digest
from lightning_sanity.release.gating import gate
from lightning_sanity.release.policy import Policy

CLASSES = 4


class Small(pl.LightningModule):
    """A convolutional network with BatchNorm and dropout, trained with momentum and a schedule."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Flat(Small):
    """A network of full layers with LayerNorm."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.LayerNorm(12), nn.GELU())
        self.head = nn.Linear(12, CLASSES)

    def forward(self, images):
        return self.head(self.body(images))


class Logging(Small):
    """Logs whenever it is called."""

    def forward(self, images):
        scores = super().forward(images)
        self.log("norm", scores.norm(dim=1).mean(), on_step=False, on_epoch=True)
        if self.logger is not None:
            self.logger.log_metrics({"calls": 1.0})
        return scores


class Counting(Small):
    """Counts its calls in closures, objects and through the module itself."""

    def __init__(self):
        super().__init__()
        self.counted, self.outside = 0, Outside()
        outside, norms = self.outside, []
        self.norms = norms
        self.body[0].register_forward_hook(lambda module, given, output: norms.append(float(output.detach().norm())))
        self.body[3].register_forward_hook(self.outside.see)
        self.head.register_forward_pre_hook(lambda module, given: setattr(outside, "heads", outside.heads + 1))
        self.head.register_forward_hook(self.count)

    def count(self, module, given, output):
        self.counted += 1
        self.log("mean", output.detach().mean(), on_step=False, on_epoch=True)


class Outside:
    def __init__(self):
        self.heads, self.seen = 0, []

    def see(self, module, given, output):
        self.seen.append(output.shape)


class Images(Dataset):
    """Noisy images with a class each; what draws the noise is given."""

    def __init__(self, noise, size=48):
        draw = torch.Generator().manual_seed(0)
        self.labels = torch.arange(size) % CLASSES
        self.images = torch.randn(size, 1, 8, 8, generator=draw) + self.labels[:, None, None, None]
        self.noise, self.asked = noise, []

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.images[index] + 0.1 * self.noise(), self.labels[index]


class Stream(IterableDataset):
    """The same as a stream that goes on where it was left."""

    def __init__(self, images, rounds=100):
        self.samples = (images[index % len(images)] for index in range(rounds * len(images)))

    def __iter__(self):
        for _ in range(24):
            yield next(self.samples)


def still():
    return 0.0


def drawing(kind):
    """Noise from a generator of the kind's own."""
    if kind == "numpy":
        numbers = np.random.default_rng(0)
        return numbers.standard_normal
    if kind == "python":
        numbers = random.Random(0)
        return lambda: numbers.gauss(0, 1)
    if kind == "torch":
        held = torch.Generator().manual_seed(0)
        return lambda: float(torch.randn((), generator=held))
    return still


def observer(**changes):
    given = {"probe": 4, "trials": 1, "repeats": 1, "max_steps": 1, "report": False, "log_images": False}
    return SaliencySanityCallback(**{"methods": ["gradient"], **given, **changes})


@contextmanager
def quiet():
    with warnings.catch_warnings():
        for words in (
            "saliency maps failed",
            ".*number of training batches",
            "Your `IterableDataset` has",
            ".*sampler has shuffling",
            ".*`lr_sch",
        ):
            warnings.filterwarnings("ignore", words)
        yield


def loader(data, **changes):
    return DataLoader(data, 8, **changes)


def trainer(folder, callbacks, **changes):
    given = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    given |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, callbacks=callbacks, **{**given, **changes})


class Witness(pl.Callback):
    """Notes which weights the callback before it found at each validation."""

    def __init__(self):
        self.digests = []

    def note(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.digests.append(state_digest(pl_module.state_dict()))

    on_validation_epoch_end = on_test_epoch_end = note


def others_in(path):
    """A checkpoint without what the callback keeps in it."""
    saved = torch.load(path, weights_only=False)
    saved["callbacks"] = {k: v for k, v in saved["callbacks"].items() if not k.startswith("SaliencySanityCallback")}
    return saved


def told(folder, path):
    """Whether the gate finds a result about the weights of a checkpoint."""
    decision = gate(folder / "sanity", Policy(weights=path))
    return any(check.name == "weights" and check.outcome.value == "PASS" for check in decision.checks)
