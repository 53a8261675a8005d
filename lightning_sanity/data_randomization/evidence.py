"""Evidence that models learned their labels, taken from what is there: the data module they were trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sanity.data_randomization.datamodule import RandomLabelDataModule
from lightning_sanity.data_randomization.idle_trainer import loaders_in, on_the_bench
from lightning_sanity.data_randomization.label_access import Path, label_of, path_of, usual_path
from lightning_sanity.data_randomization.learned_labels import Agreement, Memorization, agreement, combined
from lightning_sanity.data_randomization.random_labels import RandomLabels
from lightning_sanity.data_randomization.tallies import Tally, TallyError, added, tally
from lightning_sanity.explanation import probe as probes
from lightning_sanity.model.clone import evaluating
from lightning_sanity.model.outputs import logits


def memorization_on(
    data: pl.LightningDataModule | Sequence[pl.LightningDataModule],
    models: Sequence[nn.Module],
    random_label_models: Sequence[nn.Module],
    *,
    forward: Callable[..., Any] | None = None,
) -> Memorization:
    """Measure how well models learned their labels, on the data that they were trained with.

    Args:
        data: The ``RandomLabelDataModule`` of the random-label models; one for each where their seeds differ.
        models: Trained on the true labels of the same data.
        random_label_models: Trained on the random ones.
        forward: ``forward(model, *inputs) -> scores`` where calling the model is not enough.

    Raises:
        TypeError: If the data have no random labels.
        ValueError: If there is neither one data module nor one for each random-label model, or one leaves the
            training labels as they are.
    """
    given: list[RandomLabelDataModule] = []
    for each in [data] if isinstance(data, pl.LightningDataModule) else list(data):
        if not isinstance(each, RandomLabelDataModule):
            raise TypeError(
                f"memorization= is a Memorization, or the RandomLabelDataModule that the random-label models were "
                f"trained with, not {type(each).__name__}: wrap it, RandomLabelDataModule(data, seed=...), as it was "
                "in training"
            )
        if "train" not in each.splits:
            raise ValueError(
                f"memorization= randomises {', '.join(each.splits)} labels only: the random-label models must have "
                'been trained on random labels, splits=("train",)'
            )
        given.append(each)
    if len(given) not in (1, len(random_label_models)):
        raise ValueError(
            f"{len(given)} data modules for {len(random_label_models)} random-label models: pass one that all share, "
            "or one for each"
        )
    given = given if len(given) > 1 else given * len(random_label_models)
    found: list[Agreement | None] = []
    learned, unseen = [], []
    for model, wrapped in zip(random_label_models, given, strict=True):
        path = _path(wrapped)
        with on_the_bench(model, wrapped) as transfer:
            learned.append(tally_over(model, loaders_in(wrapped.train_dataloader()), transfer, path, forward))
            found.append(agreement_in(wrapped.random_labels["train"]))
            if is_overridden("val_dataloader", wrapped.datamodule):
                loaders = loaders_in(wrapped.datamodule.val_dataloader())[:1]
                unseen.append(tally_over(model, loaders, transfer, path, forward))
    true = []
    inner, path = given[0].datamodule, _path(given[0])
    for model in models:
        with on_the_bench(model, inner) as transfer:
            true.append(tally_over(model, loaders_in(inner.train_dataloader()), transfer, path, forward))
    return combined(true, learned, unseen, found)


def _path(wrapped: RandomLabelDataModule) -> Path:
    return path_of(wrapped.target_key)


def agreement_in(drawn: Sequence[RandomLabels]) -> Agreement | None:
    """How often random labels are the true ones, over all loaders of a split."""
    parts = [agreement(each.true.tolist(), each.assigned.tolist()) for each in drawn]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not known:
        return None
    total = sum(part.samples for part in known)
    shares = [sum(getattr(part, name) * part.samples for part in known) / total for name in ("share", "chance")]
    together = [part.association for part in known if math.isfinite(part.association)]
    return Agreement(shares[0], shares[1], total, min(1.0, min(together) * len(together)) if together else math.nan)


@torch.no_grad()
def tally_over(
    model: nn.Module,
    loaders: Iterable[Iterable[Any]],
    transfer: Callable[[Any], Any],
    path: Path | None,
    forward: Callable[..., Any] | None,
) -> Tally:
    """How well a model predicts all that loaders give, on the CPU."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    sums: Tally | None = None
    with evaluating(model):
        for loader in loaders:
            for batch in loader:
                inputs, labels = taken_apart(transfer(batch), path)
                inputs = tree_map(lambda t: t.to(device) if isinstance(t, Tensor) else t, inputs)
                sums = added(sums, tally(scores_of(model, inputs, forward), labels))
    if sums is None:
        raise ValueError("a loader gave no batch: how well its labels were learned is unknown")
    return {name: value.cpu() for name, value in sums.items()}


def taken_apart(batch: Any, path: Path | None) -> tuple[Any, Tensor]:
    """What a model is called with, and the labels of any kind, of a batch.

    Args:
        batch: Collated.
        path: Where the labels are; where batches usually have them if None.

    Raises:
        LabelError: If there is none at ``path``.
        TallyError: If labels are no numbers.
    """
    inputs = probes.split(batch)[0]
    labels = label_of(batch, usual_path(batch) if path is None else path)
    try:
        return inputs, torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TallyError(
            f"the labels of a batch are no numbers but {type(labels).__name__} ({error}): point target_key= to the "
            "class, the number or the mask"
        ) from error


def scores_of(model: nn.Module, inputs: Any, forward: Callable[..., Any] | None) -> Tensor:
    """What a model says to inputs, positional or by keyword."""
    call: Callable[..., Any] = model if forward is None else lambda *args, **named: forward(model, *args, **named)
    return logits(call(**inputs) if isinstance(inputs, Mapping) else call(*inputs))
