"""Resampling of rows and samples together, for indices whose interval has no closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sanity.result.psi import LEVEL, over_depths, shares

RESAMPLES = 1000


def psi(
    values: Tensor,
    floor: Tensor,
    ceiling: Tensor,
    by_trial: Tensor,
    by_sample: Tensor,
    by_repeat: Tensor | None = None,
    weights: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """``1 - (S - U) / (C - U)`` and ``C - U`` per resample, ``(B,)`` each, over depths of these ``weights``."""
    similarity, level = (_weighted(table, by_trial, by_sample) for table in (values, floor))  # (B, depths)
    kept, unrelated = (over_depths(each, shares(each.isfinite(), weights)) for each in (similarity, level))
    by_repeat = by_trial.new_ones(len(by_trial), len(ceiling)) if by_repeat is None else by_repeat
    again = _weighted(ceiling[:, None], by_repeat, by_sample)[:, 0]
    separation = again - unrelated
    return 1 - (kept - unrelated) / separation, separation


def _weighted(table: Tensor, by_row: Tensor, by_sample: Tensor) -> Tensor:
    """Weighted mean over rows and samples of ``(rows, depths, N)``, NaN left out: ``(B, depths)``."""
    known = ~table.isnan()
    rows, depths, samples = table.shape

    def total(of: Tensor) -> Tensor:
        per_row = (by_row @ of.reshape(rows, -1)).reshape(-1, depths, samples)
        return torch.einsum("bdn,bn->bd", per_row, by_sample)

    return total(table.nan_to_num(0.0) * known) / total(known.double())


def counts(size: int, resamples: int, rng: torch.Generator) -> Tensor:
    """How often each of ``size`` items is drawn, ``(resamples, size)``."""
    drawn = torch.randint(size, (resamples, size), generator=rng)
    return torch.zeros(resamples, size, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(resamples, size, dtype=torch.float64)
    )


def percentiles(values: Tensor) -> tuple[float, float]:
    """Ends of the central 95 % of the finite values; NaN without any."""
    known = values[values.isfinite()]
    if not known.numel():
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    return float(known.quantile(tail)), float(known.quantile(1 - tail))
