"""The demo: a small CNN on scikit-learn's digits, watched while it trains and tested before its release."""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity.callback.sanity_callback import SaliencySanityCallback
from lightning_sanity.cli.terminal import say
from lightning_sanity.explanation.probe import from_dataset
from lightning_sanity.parameter_randomization.mprt import parameter_randomization_test
from lightning_sanity.report import figures
from lightning_sanity.report.loggers import log_result
from lightning_sanity.report.text import account
from lightning_sanity.result.sanity_result import SanityResult

PASSING = ("gradient", "smoothgrad", "gradcam", "integrated_gradients_local")
NOT_PASSING = ("guided_backprop", "guided_gradcam", "input_x_gradient", "integrated_gradients")
WATCHED = ("gradient", "gradcam", "guided_backprop")
"""Methods that the literature found to depend on the model, those it found not to, and those shown while training."""


class DigitsClassifier(pl.LightningModule):
    """A convolutional network with BatchNorm for 16 x 16 grey images of ten classes."""

    def __init__(self, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.features = nn.Sequential(*_block(1, 16), *_block(16, 32, stride=2), *_block(32, 32), nn.MaxPool2d(2))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``(N, 10)`` of images ``(N, 1, 16, 16)``."""
        scores: Tensor = self.classifier(self.features(images))
        return scores

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy."""
        images, labels = batch
        self.log("val/accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.learning_rate)


def _block(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU()]


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and validation set: 1400 and 397 real handwritten digits, enlarged to 16 x 16, in ``[0, 1]``."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the demo needs scikit-learn: pip install "lightning-sanity[demo]"') from error
    raw = load_digits()
    images = torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    labels = torch.as_tensor(raw.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])


def train(
    training: TensorDataset, validation: TensorDataset, *, epochs: int, seed: int, **trainer_arguments: Any
) -> tuple[DigitsClassifier, pl.Trainer]:
    """A trained classifier and its trainer."""
    pl.seed_everything(seed, verbose=False)
    model = DigitsClassifier()
    arguments = {"accelerator": "cpu", "enable_model_summary": False, "log_every_n_steps": 10, **trainer_arguments}
    trainer = pl.Trainer(max_epochs=epochs, **arguments)
    trainer.fit(model, DataLoader(training, 64, shuffle=True), DataLoader(validation, 256))
    return model, trainer


def run(out: Path, epochs: int, trials: int, samples: int, seed: int) -> int:
    """Train, test, print a table, write pictures; the exit code says whether the verdicts agree with the literature."""
    for name, value, least in (("epochs", epochs, 1), ("trials", trials, 2), ("samples", samples, 2)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, not {value}")
    try:
        from lightning.pytorch.loggers import TensorBoardLogger
        from rich.console import Console
        from rich.progress import Progress

        logger = TensorBoardLogger(out, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{error}; the demo needs: pip install "lightning-sanity[demo]"') from error
    console = Console()
    training, validation = digits()
    console.print(f"Training a small CNN on {len(training)} real digits; saliency maps are tested as it trains.")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    callback = SaliencySanityCallback(WATCHED, probe=16, trials=3, on_error="raise", verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        # Guided backprop must fail, and early maps may be undecided: the table at the end says what came of it.
        warnings.filterwarnings(
            "ignore", "saliency maps failed|the randomization test is inconclusive|no verdict of the"
        )
        warnings.filterwarnings("ignore", ".*is deprecated")
        model, trainer = train(
            training,
            validation,
            epochs=epochs,
            seed=seed,
            logger=logger,
            callbacks=[callback],
            default_root_dir=out,
            check_val_every_n_epoch=2,
        )
    console.print(f"Trained to {float(trainer.callback_metrics['val/accuracy']):.1%} validation accuracy.")
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"Testing {len(PASSING + NOT_PASSING)} methods, {trials} trials", total=None)
        result = parameter_randomization_test(
            model,
            from_dataset(validation, samples, seed=seed).inputs,
            methods=PASSING + NOT_PASSING,
            trials=trials,
            seed=seed,
            progress=lambda done, total, label: bar.update(task, completed=done, total=total),
        )
    result = replace(result, step=trainer.global_step)
    result.to_json(out / "result.json")
    result.to_html(out / "report.html")
    log_result([logger], result, prefix="release", step=trainer.global_step, over_training=False)
    logger.finalize("success")
    for name, figure in (
        ("verdicts", figures.verdicts(result)),
        ("curves", figures.curves(result)),
        ("maps", figures.maps(result)),
    ):
        figure.savefig(out / f"{name}.png", dpi=120)
    say(account(result, colour=sys.stdout.isatty()))
    surprises = _surprises(result)
    for line in surprises:
        console.print(f"[bold]Unexpected:[/bold] {line}")
    console.print(
        f"\nLook at {out / 'verdicts.png'}, {out / 'maps.png'} and {out / 'curves.png'}; everything is in "
        f"{out / 'report.html'} and {out / 'result.json'}.\nThe training run: tensorboard --logdir {out}"
    )
    return 3 if not result.valid else int(bool(surprises))


def _surprises(result: SanityResult) -> list[str]:
    found = [f"{name} did not pass" for name in PASSING if not result.verdicts[name].passed]
    return found + [f"{name} passed" for name in NOT_PASSING if result.verdicts[name].passed]
