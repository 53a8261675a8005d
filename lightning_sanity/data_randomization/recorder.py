"""The record of a training: how well it learned its labels, when it ended, and whose experiment it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from lightning_sanity.data_randomization.datamodule import RandomLabelDataModule
from lightning_sanity.data_randomization.evidence import agreement_in, scores_of, taken_apart
from lightning_sanity.data_randomization.idle_trainer import loaders_in
from lightning_sanity.data_randomization.label_access import LabelError, all_labels
from lightning_sanity.data_randomization.label_access import Path as LabelPath
from lightning_sanity.data_randomization.learned_labels import Agreement, agreement, chance, independent_samples
from lightning_sanity.data_randomization.tallies import ACCURACY, Tally, TallyError, added, score, tally
from lightning_sanity.explanation import probe as probes
from lightning_sanity.model.clone import evaluating
from lightning_sanity.resources.files import write_whole

RECORD, WEIGHTS = "run.json", "model.ckpt"


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        origin: Digest of the weights it started from.
        epochs: Epochs trained.
        max_epochs: Epochs allowed; -1 for no limit.
        stop_at: Training accuracy at which it was to end.
        train_accuracy: On the labels it was trained on, over the last epoch, each batch before the step on it.
        test_accuracy: On the validation labels, at the last validation.
        measure: What these are; see ``tallies.Score``.
        test_samples: See ``memorization.independent_samples``.
        chance: See ``memorization.chance``; None where there are no classes.
        labels: How often its labels were the true ones, where that is known.
        fingerprint: Of the experiment.
    """

    origin: str
    epochs: int
    max_epochs: int
    stop_at: float
    train_accuracy: float
    test_accuracy: float
    measure: str = ACCURACY
    test_samples: int = 0
    chance: float | None = None
    labels: Mapping[str, Any] | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    @property
    def agreement(self) -> Agreement | None:
        """How often its labels were the true ones."""
        return None if self.labels is None else Agreement(**self.labels)

    def __str__(self) -> str:
        return (
            f"{self.epochs} epochs, {self.measure} {self.train_accuracy:.1%} on its training labels, "
            f"{self.test_accuracy:.1%} on unseen samples"
        )

    @classmethod
    def read(cls, path: Path) -> Run:
        """What ``write`` wrote.

        Raises:
            ValueError: If it is no such record.
        """
        try:
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**stored)
        except (json.JSONDecodeError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"'{path}' is not the record of a run ({error}): remove it to train that model again"
            ) from error

    def write(self, path: Path) -> None:
        """Write it; the file appears whole or not at all."""
        write_whole(path, json.dumps(asdict(self)))


@dataclass(frozen=True)
class Question:
    """What a training is asked.

    Attributes:
        stop_at: Training accuracy at which it ends.
        path: Where a batch carries its labels; where batches usually do if None.
        forward: ``forward(module, *inputs) -> scores`` where calling the module is not enough.
        true_labels: Of the training samples in their order, for data modules other than ``RandomLabelDataModule``.
    """

    stop_at: float
    path: LabelPath | None = None
    forward: Callable[..., Any] | None = None
    true_labels: Sequence[Any] | None = None


class Recorder(pl.Callback):
    """Counts right predictions on what the network receives, ends the training at memorisation, and keeps the run."""

    def __init__(self, folder: Path, question: Question, origin: str, fingerprint: Mapping[str, str]) -> None:
        self.folder, self.question, self.origin, self.fingerprint = folder, question, origin, fingerprint
        self._sums: dict[str, Tally] = {}
        self._agreement: Agreement | None = None

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation:
            raise MisconfigurationException(
                "the accuracy on unseen samples is needed, but there is no validation: give the data module a "
                "`val_dataloader()`, and the trainer no `limit_val_batches=0`"
            )
        self._agreement = self._measured_agreement(trainer)

    def _measured_agreement(self, trainer: pl.Trainer) -> Agreement | None:
        """How often the labels of this training are the true ones, in the order of its data set."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, RandomLabelDataModule):
            return agreement_in(data.random_labels["train"])
        true, path = self.question.true_labels, self.question.path
        if true is None or path is None:
            return None
        try:
            return agreement(true, all_labels(loaders_in(trainer.train_dataloader)[0].dataset, path))
        except (LabelError, AttributeError):
            return None

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sums.pop("train", None)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._count("train", trainer, pl_module, batch)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._sums.pop("test", None)

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx == 0 and not trainer.sanity_checking:
            self._count("test", trainer, pl_module, batch)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reduce("test", trainer)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reduce("train", trainer)
        memorized = score(self._sums["train"]).value
        pl_module.log("memorized", memorized, prog_bar=True, sync_dist=True)
        if memorized >= self.question.stop_at and "test" in self._sums:
            trainer.should_stop = True

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Here, because a strategy that starts its own processes leaves nothing but weights to the one that called it.
        if "test" not in self._sums:
            raise MisconfigurationException("training ended before the first validation: set check_val_every_n_epoch=1")
        weights = trainer.strategy.lightning_module_state_dict()
        trainer.strategy.save_checkpoint({"state_dict": weights}, self.folder / WEIGHTS)
        if trainer.is_global_zero:
            self._run(trainer).write(self.folder / RECORD)
        trainer.strategy.barrier()

    def _run(self, trainer: pl.Trainer) -> Run:
        train, test = score(self._sums["train"]), score(self._sums["test"])
        classes = train.confusion is not None and test.confusion is not None
        return Run(
            self.origin,
            trainer.current_epoch,
            -1 if trainer.max_epochs is None else trainer.max_epochs,
            self.question.stop_at,
            train.value,
            test.value,
            train.measure,
            independent_samples(test.confusion) if test.confusion is not None else 0,
            chance(train.confusion, test.confusion) if classes else None,  # type: ignore[arg-type]
            None if self._agreement is None else asdict(self._agreement),
            dict(self.fingerprint),
        )

    def _reduce(self, split: str, trainer: pl.Trainer) -> None:
        if split in self._sums:
            sums = self._sums[split]
            self._sums[split] = {
                name: trainer.strategy.reduce(value, reduce_op="sum").cpu() for name, value in sums.items()
            }

    @torch.no_grad()
    def _count(self, split: str, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        try:
            inputs, labels = taken_apart(batch, self.question.path)
            with evaluating(pl_module), trainer.precision_plugin.forward_context():
                outputs = scores_of(pl_module, inputs, self.question.forward)
            self._sums[split] = added(self._sums.get(split), tally(outputs, labels))
        except (TallyError, LabelError, probes.ProbeError) as error:
            raise MisconfigurationException(f"the labels of a {split} batch cannot be compared: {error}") from error
