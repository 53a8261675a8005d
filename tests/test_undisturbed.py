"""Training with the callback is bit-identical to training without it."""

import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_sanity import SaliencySanityCallback, demo


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
    """With dropout beside BatchNorm, momentum and a schedule."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(512, 32), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(32, 10)
        )

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def checkpoint(tmp_path, callbacks, **changes):
    """Everything a checkpoint holds except the callbacks' own states, and the streams' states afterwards."""
    pl.seed_everything(7, verbose=False)
    training, validation = demo.digits()
    model = Regularised()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=callbacks,
        **changes,
    )
    trainer.fit(model, DataLoader(Noisy(training.tensors), 16, shuffle=True), DataLoader(Noisy(validation.tensors), 64))
    path = tmp_path / f"{len(callbacks)}.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    saved.pop("callbacks", None)
    modes = [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return saved, modes, gradients, (torch.get_rng_state(), np.random.get_state()[1], random.getstate())


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


def observer(**changes):
    given = {"probe": 4, "trials": 1, "repeats": 1, "max_steps": 2, "report": False, "log_images": False}
    return SaliencySanityCallback(["gradient", "smoothgrad", "guided_gradcam"], **{**given, **changes})


@pytest.mark.filterwarnings("ignore:saliency maps failed")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"val_check_interval": 0.25, "accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
    ],
    ids=lambda changes: ",".join(f"{k}={v}" for k, v in changes.items()) or "plain",
)
def test_training_is_bit_identical_with_the_callback(tmp_path, changes):
    with_callback = checkpoint(tmp_path, [observer()], **changes)
    without = checkpoint(tmp_path, [], **changes)
    assert_identical(with_callback, without)


def test_training_is_bit_identical_when_the_test_breaks(tmp_path):
    def broken(model, inputs, target):
        torch.rand(5), np.random.rand(5), random.random()
        raise RuntimeError("broken on purpose")

    with_callback = checkpoint(tmp_path, [SaliencySanityCallback(broken, probe=4, trials=1, report=False)])
    assert_identical(with_callback, checkpoint(tmp_path, []))
