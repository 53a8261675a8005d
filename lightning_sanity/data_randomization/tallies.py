"""How well predictions fit labels of any kind, as sums that add up over batches and processes.

What labels are is known only once all of them were seen: a batch of 0 and 1 may be of a regression. So a tally holds
the sums of every reading that their shapes allow, and ``score`` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Tally = Mapping[str, Tensor]
"""Sums by name; two tallies of one data set add up name by name."""

ACCURACY, EXACT_MATCH, EXPLAINED_VARIANCE, IOU = "accuracy", "exact match", "explained variance", "IoU"


class TallyError(ValueError):
    """Outputs and labels do not belong together."""


@dataclass(frozen=True)
class Score:
    """How well a model predicts labels.

    Attributes:
        measure: ``"accuracy"`` of classes; ``"exact match"`` of several labels per sample; ``"explained variance"`` of
            numbers, ``1 - |y - f|^2 / |y - mean|^2``; ``"IoU"`` of masks, mean over the classes that occur.
        value: At most 1; NaN if undefined.
        confusion: How often each class (row) was predicted to be each class (column), where there are classes of
            samples; else None.
    """

    measure: str
    value: float
    confusion: Tensor | None = None


@torch.no_grad()
def tally(outputs: Tensor, labels: Tensor) -> Tally:
    """The sums of a batch.

    Args:
        outputs: Scores ``(N, C)`` of classes or labels, ``(N,)`` or ``(N, 1)`` of one; ``(N, C, ...)`` of pixels;
            ``(N, ..., C)`` of tokens; or numbers. Logits, or probabilities where they are a sigmoid's.
        labels: Class indices ``(N, ...)``, negative ones left out; or what has the shape of the outputs: 0 and 1,
            one-hot rows, masks, numbers.

    Raises:
        TallyError: If their shapes do not belong together, or a class has no output.
    """
    if outputs.device.type == "mps":  # which has no doubles
        outputs = outputs.cpu()
    labels = labels.detach().to(outputs.device)
    if outputs.ndim and labels.ndim and len(outputs) == len(labels):
        if outputs.ndim > 1 and outputs.shape[1] > 1 and labels.shape == outputs.shape[:1] + outputs.shape[2:]:
            if not labels.is_floating_point() or bool((labels == labels.round()).all()):
                return _classes(outputs.movedim(1, -1), labels, "classes" if labels.ndim == 1 else "pixels")
        elif outputs.ndim > 1 and outputs.shape[1] > 1 and labels.shape == (len(outputs), 1) and outputs.ndim == 2:
            return _classes(outputs, labels[:, 0], "classes")
        elif outputs.ndim > 2 and labels.shape == outputs.shape[:-1] and not labels.is_floating_point():
            return _classes(outputs, labels, "tokens")
        if outputs.numel() == labels.numel() and _alike(outputs, labels):
            return _elements(outputs.reshape(len(outputs), -1), labels.reshape(len(labels), -1), outputs.ndim > 2)
    raise TallyError(
        f"labels of shape {tuple(labels.shape)} ({labels.dtype}) do not fit outputs of shape {tuple(outputs.shape)}: "
        "labels must be class indices, one per sample, pixel or token, or have the shape of the outputs. Is "
        "target_key= the place of the label, and are the outputs those of the network (forward=)?"
    )


def _alike(outputs: Tensor, labels: Tensor) -> bool:
    return [size for size in outputs.shape if size > 1] == [size for size in labels.shape if size > 1]


def _classes(outputs: Tensor, labels: Tensor, kind: str) -> Tally:
    """Confusion of classes, whose scores lie along the last dimension."""
    count = outputs.shape[-1]
    known = labels >= 0  # negative classes are "ignored" by PyTorch's losses
    wanted, guessed = labels[known].long(), outputs.argmax(-1)[known]
    if wanted.numel() and int(wanted.max()) >= count:
        raise TallyError(
            f"label {int(wanted.max())} has no output: the model has {count}, for classes 0 to {count - 1}"
        )
    cells = torch.bincount(wanted * count + guessed, minlength=count**2).reshape(count, count)
    return {kind: cells}


def _elements(outputs: Tensor, labels: Tensor, spatial: bool) -> Tally:
    """Sums of what could be 0 and 1, one-hot rows, or numbers; ``(N, D)`` each."""
    f, y = outputs.double(), labels.double()
    right = [(f > threshold) == (y > 0.5) for threshold in (0.0, 0.5)]
    sums = {
        "spatial": f.new_tensor(float(spatial)),
        "rows": f.new_tensor(float(len(f))),
        "not 0 or 1": ((y != 0) & (y != 1)).sum().double(),
        "not of a class": ((y < 0).any(1) | ((y.sum(1) - 1).abs() > 1e-3)).sum().double(),
        "outside [0, 1]": ((f < 0) | (f > 1)).sum().double(),
        "exact": torch.stack([each.all(1).sum() for each in right]).double(),
        "binary": torch.stack(
            [
                torch.bincount(((y > 0.5).long() * 2 + (f > threshold).long()).flatten(), minlength=4)
                for threshold in (0.0, 0.5)
            ]
        ).double(),
        "sum": y.sum(0),
        "squares": (y**2).sum(0),
        "error": ((y - f) ** 2).sum(0),
    }
    columns = f.shape[1]
    if 1 < columns <= 4096 and not spatial:
        cells = torch.bincount(y.argmax(1) * columns + f.argmax(1), minlength=columns**2)
        sums["rows of classes"] = cells.reshape(columns, columns).double()
    return sums


def added(one: Tally | None, other: Tally) -> Tally:
    """The sums of both.

    Raises:
        TallyError: If they are of different kinds of labels.
    """
    if one is None:
        return other
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in other.items()}:
        raise TallyError(f"the labels or outputs change their shape between batches: {_forms(one)} and {_forms(other)}")
    return {name: value + other[name] for name, value in one.items()}


def _forms(sums: Tally) -> str:
    name = next((key for key in ("classes", "pixels", "tokens") if key in sums), None)
    return f"{len(sums[name])} {name}" if name else f"{len(sums['sum'])} numbers per sample"


def score(sums: Tally) -> Score:
    """What the labels turned out to be, and how well they were predicted."""
    for kind in ("classes", "tokens"):
        if kind in sums:
            return Score(ACCURACY, _diagonal(sums[kind]), sums[kind].cpu() if kind == "classes" else None)
    if "pixels" in sums:
        return Score(IOU, _iou(sums["pixels"]))
    probabilities = int(float(sums["outside [0, 1]"]) == 0)
    binary = sums["binary"][probabilities].reshape(2, 2)
    rows = sums.get("rows of classes")
    if rows is not None and float(sums["not of a class"]) == 0:
        return Score(ACCURACY, _diagonal(rows), rows.long().cpu())
    if float(sums["not 0 or 1"]) == 0:
        if float(sums["spatial"]) > 0:
            return Score(IOU, _ratio(binary[1, 1], binary.sum() - binary[0, 0]))
        if len(sums["sum"]) == 1:
            return Score(ACCURACY, _diagonal(binary), binary.long().cpu())
        return Score(EXACT_MATCH, _ratio(sums["exact"][probabilities], sums["rows"]))
    total = (sums["squares"] - sums["sum"] ** 2 / sums["rows"]).sum()
    return Score(EXPLAINED_VARIANCE, 1 - _ratio(sums["error"].sum(), total))


def _diagonal(cells: Tensor) -> float:
    return _ratio(cells.trace(), cells.sum())


def _iou(cells: Tensor) -> float:
    """Intersection over union, mean over the classes that occur among labels or predictions."""
    inside = cells.diagonal().double()
    union = cells.sum(0) + cells.sum(1) - cells.diagonal()
    return float((inside / union)[union > 0].mean())


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part) / float(whole) if float(whole) else math.nan
