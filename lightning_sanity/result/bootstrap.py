"""Resampling of rows and samples together, for indices whose interval has no closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sanity.result.psi import LEVEL

RESAMPLES = 1000


def psi(
    values: Tensor,
    floor: Tensor,
    ceiling: Tensor,
    by_trial: Tensor,
    by_sample: Tensor,
    by_repeat: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``1 - (S(d) - U) / (C - U)`` per resample and depth ``(B, depths)``, and ``C - U`` ``(B,)``."""
    similarity = _weighted(values, by_trial, by_sample)  # (B, depths)
    unrelated = _weighted(floor, by_trial, by_sample).nanmean(1)
    by_repeat = by_trial.new_ones(len(by_trial), len(ceiling)) if by_repeat is None else by_repeat
    again = _weighted(ceiling[:, None], by_repeat, by_sample)[:, 0]
    separation = again - unrelated
    return 1 - (similarity - unrelated[:, None]) / separation[:, None], separation


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


def variance(values: Tensor) -> float:
    """Variance of the finite values; NaN for fewer than two."""
    known = values[values.isfinite()]
    return float(known.var()) if known.numel() > 1 else math.nan
