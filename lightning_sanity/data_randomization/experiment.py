"""The data randomization test from start to end: trains both kinds of models with a Trainer and compares them.

Each run leaves its weights and a record behind, so that an interrupted experiment goes on where it stopped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_sanity.data_randomization.drt import data_randomization_test
from lightning_sanity.data_randomization.learned_labels import (
    Memorization,
    accuracy,
    chance,
    confusion,
    independent_samples,
)
from lightning_sanity.explanation import probe as probes
from lightning_sanity.model.clone import evaluating, weights_digest
from lightning_sanity.model.outputs import logits
from lightning_sanity.resources.files import write_whole
from lightning_sanity.resources.random_streams import isolated_rng, stream_seed
from lightning_sanity.result.sanity_result import SanityResult

KINDS = ("true", "permuted")

_TRAINER = {
    "max_epochs": 100,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


_RECORD, _WEIGHTS = "run.json", "model.ckpt"


@dataclass(frozen=True)
class Run:
    """One finished training.

    Attributes:
        origin: Digest of the weights it started from, which tells whether a stored run belongs to this experiment.
        epochs: Epochs trained.
        max_epochs: Epochs allowed; -1 for no limit.
        train_accuracy: On the labels it was trained on, over the last epoch, each batch before the step on it.
        test_accuracy: On the validation labels, at the last validation.
        test_samples: See ``memorization.independent_samples``.
        chance: See ``memorization.chance``.
    """

    origin: str
    epochs: int
    max_epochs: int
    train_accuracy: float
    test_accuracy: float
    test_samples: int
    chance: float

    def __str__(self) -> str:
        return (
            f"{self.epochs} epochs, accuracy {self.train_accuracy:.1%} on its training labels, "
            f"{self.test_accuracy:.1%} on unseen samples"
        )


def random_label_experiment(
    make_module: Callable[[], pl.LightningModule],
    datamodule: pl.LightningDataModule,
    *,
    out: str | Path,
    models: int = 3,
    probe: Any = 64,
    trainer: Mapping[str, Any] | None = None,
    permuted: Callable[[pl.LightningDataModule, int], pl.LightningDataModule] | None = None,
    stop_at: float = 0.99,
    seed: int = 0,
    device: torch.device | str = "cpu",
    forward: Callable[..., Any] | None = None,
    **test: Any,
) -> SanityResult:
    """Train models on the true and on permuted labels, and compare their attributions.

    A training ends early once the labels are memorised. Its weights and record go to ``<out>/<kind>-labels-<index>/``;
    a finished run is not trained again, and one that missed ``stop_at`` only if more epochs are allowed than before.
    Works with every strategy whose checkpoint is one file; every process returns the result.

    Args:
        make_module: Makes an untrained module; called once per model, under another seed each.
        datamodule: Training data, and validation data for the accuracy on unseen samples.
        out: Folder of this experiment; ``result.json`` is written there.
        models: How many models of each kind; three are needed for a PASS.
        probe: What is explained: that many samples of the validation set, balanced over its classes, or any of what
            ``SaliencySanityCallback`` takes. Batch transfer hooks are not applied to it.
        trainer: Arguments for ``Trainer``; by default 100 epochs at most, without loggers and checkpoints.
        permuted: ``(datamodule, seed) -> datamodule`` with permuted training labels; ``RandomLabelDataModule`` if None.
        stop_at: Training accuracy at which a training ends.
        seed: Of initial weights, permutations, the probe and the test.
        device: Where the trained models are compared.
        forward: ``forward(module, *inputs) -> scores`` where calling the module is not enough.
        **test: Further arguments of ``data_randomization_test``: methods, criterion ...

    Returns:
        The result of ``data_randomization_test``, with the measured accuracies.

    Raises:
        ValueError: If an argument is wrong, or ``out`` holds the runs of another experiment.
        RuntimeError: If a training was interrupted.
    """
    if not isinstance(models, int) or models < 1:
        raise ValueError(f"models must be an integer of at least 1, not {models!r}")
    if not 0 < stop_at <= 1:
        raise ValueError(f"stop_at must be an accuracy above 0 and at most 1, not {stop_at!r}")
    arguments = {**_TRAINER, **(trainer or {})}
    out, shuffle = Path(out), permuted or _random_labels
    trained: list[pl.LightningModule] = []
    runs: list[Run] = []
    for kind, index in product(KINDS, range(models)):
        key, folder = stream_seed(seed, kind, index), out / f"{kind}-labels-{index}"
        with isolated_rng(key):
            module = make_module()
            run = _finished(folder, module, arguments, stop_at)
            if run is None:
                data = datamodule if kind == "true" else shuffle(datamodule, key % 2**31)
                run = _train(folder, module, data, arguments, stop_at, forward)
        trained.append(_loaded(module, folder).to(device))
        runs.append(run)
    result = data_randomization_test(
        trained[:models],
        trained[models:],
        _probe_inputs(probe, datamodule, seed),
        memorization=_memorization(runs[:models], runs[models:]),
        seed=seed,
        forward=forward,
        **test,
    )
    rank_zero_only(result.to_json)(out / "result.json")
    return result


def _random_labels(datamodule: pl.LightningDataModule, seed: int) -> pl.LightningDataModule:
    from lightning_sanity.data_randomization.datamodule import RandomLabelDataModule

    return RandomLabelDataModule(datamodule, seed=seed)


def _finished(folder: Path, module: pl.LightningModule, arguments: Mapping[str, Any], stop_at: float) -> Run | None:
    """The stored run, if there is one and training it again would change nothing."""
    record = folder / _RECORD
    if not record.exists():
        return None
    run = _read(record)
    if run.origin != weights_digest(module):
        raise ValueError(
            f"'{folder}' holds a run that started from other weights (another module, or another seed=): choose "
            "another out=, or remove it"
        )
    allowed = arguments["max_epochs"]
    if run.train_accuracy < stop_at and (allowed in (-1, None) or allowed > run.max_epochs >= 0):
        return None
    rank_zero_info(f"{folder.name} was trained before: {run}")
    return run


def _train(
    folder: Path,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    arguments: Mapping[str, Any],
    stop_at: float,
    forward: Callable[..., Any] | None,
) -> Run:
    record = folder / _RECORD
    record.unlink(missing_ok=True)
    own = copy.deepcopy(dict(arguments))  # callbacks have a state, and the next run needs fresh ones
    given = own.pop("callbacks", None) or []
    callbacks = [*(given if isinstance(given, list) else [given]), _Recorder(folder, module, stop_at, forward)]
    trainer = pl.Trainer(**{"default_root_dir": folder, **own, "callbacks": callbacks})
    trainer.fit(module, datamodule=data)
    if not record.exists():
        raise RuntimeError(f"the training of {folder.name} did not finish; call again to train it anew")
    run = _read(record)
    rank_zero_info(f"{folder.name} is trained: {run}")
    return run


def _read(record: Path) -> Run:
    try:
        stored: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return Run(**stored)
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"'{record}' is not the record of a run ({error}): remove it to train that model again"
        ) from error


def _loaded(module: pl.LightningModule, folder: Path) -> pl.LightningModule:
    module.configure_model()
    module.load_state_dict(torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True)["state_dict"])
    return module


def _memorization(true: Sequence[Run], permuted: Sequence[Run]) -> Memorization:
    return Memorization(
        tuple(run.train_accuracy for run in true),
        tuple(run.train_accuracy for run in permuted),
        tuple(run.test_accuracy for run in permuted),
        min(run.test_samples for run in permuted),
        permuted[0].chance,
    )


def _probe_inputs(probe: Any, datamodule: pl.LightningDataModule, seed: int) -> Any:
    loader = None
    if isinstance(probe, int):
        datamodule.prepare_data()  # in this process nothing may have happened yet: finished runs, or spawned ones
        datamodule.setup("fit")
        loader = next(iter(tree_leaves(datamodule.val_dataloader())), None)
    return probes.form(probe, loader, seed=seed).inputs


class _Recorder(pl.Callback):
    """Counts right predictions on what the network receives, ends the training at memorisation, and keeps the run."""

    def __init__(
        self, folder: Path, module: pl.LightningModule, stop_at: float, forward: Callable[..., Any] | None
    ) -> None:
        self.folder, self.stop_at, self.forward = folder, stop_at, forward
        self.origin = weights_digest(module)
        self._counts: dict[str, Tensor] = {}  # confusion matrices

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation:
            raise MisconfigurationException(
                "the accuracy on unseen samples is needed, but there is no validation: give the data module a "
                "`val_dataloader()`, and the trainer no `limit_val_batches=0`"
            )

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counts.pop("train", None)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._count("train", trainer, pl_module, batch)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._counts.pop("test", None)

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx == 0 and not trainer.sanity_checking:
            self._count("test", trainer, pl_module, batch)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if "test" in self._counts:
            self._counts["test"] = trainer.strategy.reduce(self._counts["test"], reduce_op="sum").cpu()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._counts["train"] = trainer.strategy.reduce(self._counts["train"], reduce_op="sum").cpu()
        memorized = accuracy(self._counts["train"])
        pl_module.log("memorized", memorized, prog_bar=True, sync_dist=True)
        if memorized >= self.stop_at and "test" in self._counts:
            trainer.should_stop = True

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Here, because a strategy that starts its own processes leaves nothing but weights to the one that called it.
        if "test" not in self._counts:
            raise MisconfigurationException("training ended before the first validation: set check_val_every_n_epoch=1")
        weights = trainer.strategy.lightning_module_state_dict()
        trainer.strategy.save_checkpoint({"state_dict": weights}, self.folder / _WEIGHTS)
        if trainer.is_global_zero:
            run = Run(
                self.origin,
                trainer.current_epoch,
                -1 if trainer.max_epochs is None else trainer.max_epochs,
                accuracy(self._counts["train"]),
                accuracy(self._counts["test"]),
                independent_samples(self._counts["test"]),
                chance(self._counts["train"], self._counts["test"]),
            )
            write_whole(self.folder / _RECORD, json.dumps(asdict(run)))
        trainer.strategy.barrier()

    @torch.no_grad()
    def _count(self, split: str, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        inputs, labels = probes.split(batch)
        if labels is None:
            raise MisconfigurationException(
                f"no class labels found in a {split} batch of type {type(batch).__name__}: a batch must be "
                "(inputs, labels) or a dictionary with such keys"
            )
        with evaluating(pl_module), trainer.precision_plugin.forward_context():
            outputs = self.forward(pl_module, *inputs) if self.forward is not None else pl_module(*inputs)
        self._counts[split] = self._counts.get(split, 0) + confusion(logits(outputs), labels)
