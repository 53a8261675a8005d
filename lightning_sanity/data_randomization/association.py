"""Do the labels that a model was given go together with the true ones? Random ones do so by chance only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_sanity.data_randomization.label_access import identity
from lightning_sanity.resources.random_streams import generator

_SAMPLES_PER_CLASS = 4.0  # fewer on the average, and labels are numbers rather than classes
_COLUMNS = 64
_MOST = 10_000


def association(true: Sequence[Any], assigned: Sequence[Any]) -> float:
    """Probability that labels drawn at random go together with the true ones as much as these do.

    Labels that are exchanged class by class, or numbers with a little noise, hardly ever equal the true ones and yet
    say all about them.

    Args:
        true: Labels of all samples.
        assigned: Those that a model was given, in the same order.

    Returns:
        Of classes by Pearson's statistic of their table, of numbers by rank correlation, the least of several columns
        times their number; NaN of whatever else, such as masks.

    >>> association([0, 1, 2, 3] * 25, [1, 2, 3, 0] * 25) < 1e-9
    True
    """
    keys = [list(map(identity, labels)) for labels in (true, assigned)]
    if max(len(set(each)) for each in keys) * _SAMPLES_PER_CLASS <= len(keys[0]):
        return table_association(torch.stack([_numbered(each) for each in keys]))
    columns = [_columns(labels) for labels in (true, assigned)]
    if any(each is None for each in columns):
        return math.nan
    return _rank_association(*columns)  # type: ignore[arg-type]


def table_association(classes: Tensor) -> float:
    """Probability of a table of two classifications at least this far from independence, under exchange of samples.

    The statistic's mean and variance under all exchanges are exact, its distribution is taken for a gamma's. Where
    classes are rare its tail is wrong: 1e-5 was seen once in 500 exchanges.

    Args:
        classes: Class indices ``(2, N)``; of more than 10,000, so many are drawn.

    Dawson, "A simplified expression for the variance of the chi-squared function on a contingency table", 1954.
    """
    if classes.shape[1] > _MOST:
        classes = classes[:, torch.randperm(classes.shape[1], generator=generator("association"))[:_MOST]]
    classes = torch.stack([torch.unique(each, return_inverse=True)[1] for each in classes])
    count, sums = classes.shape[1], [each.bincount().double() for each in classes]
    sizes = [len(each) for each in sums]
    if min(sizes) < 2 or count < 4:
        return math.nan
    expected = sums[0][:, None] * sums[1] / count
    cells = torch.bincount(classes[0] * sizes[1] + classes[1], minlength=sizes[0] * sizes[1]).reshape(sizes)
    statistic = float(((cells - expected) ** 2 / expected).sum())
    mean = count * (sizes[0] - 1) * (sizes[1] - 1) / (count - 1)
    v = [(size - 1) * (count - size) / (count - 1) for size in sizes]
    w = [(count * float((1 / each).sum()) - size**2) / (count - 2) for each, size in zip(sums, sizes, strict=True)]
    variance = 2 * count / (count - 3) * (v[0] - w[0]) * (v[1] - w[1]) + count**2 / (count - 1) * w[0] * w[1]
    if variance <= 0:
        return math.nan
    from scipy.stats import gamma  # half a second to import

    return float(gamma.sf(statistic, mean**2 / variance, scale=variance / mean))


def _numbered(keys: Sequence[Any]) -> Tensor:
    place = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([place[key] for key in keys])


def _columns(labels: Sequence[Any]) -> Tensor | None:
    """Rows of few numbers ``(N, columns)``, if they are that."""
    try:
        rows = torch.stack([torch.as_tensor(label, dtype=torch.float64).flatten() for label in labels])
    except (TypeError, ValueError, RuntimeError):
        return None
    return rows if 0 < rows.shape[1] <= _COLUMNS and bool(rows.isfinite().all()) else None


def _rank_association(true: Tensor, assigned: Tensor) -> float:
    if true.shape != assigned.shape or len(true) < 4:
        return math.nan
    from scipy.stats import spearmanr  # half a second to import

    varying = [(a, b) for a, b in zip(true.T.numpy(), assigned.T.numpy(), strict=True) if a.std() > 0 and b.std() > 0]
    if not varying:
        return math.nan
    return min(1.0, min(float(spearmanr(a, b).pvalue) for a, b in varying) * len(varying))
