"""Parameter sensitivity index (PSI) and its interval.

With ``S(d)`` the mean similarity of the trained model's map to the map at depth ``d``, ``U`` the floor (unrelated
model, unrelated input) and ``C`` the ceiling (the same explanation run again)::

    PSI = 1 - mean_d (S(d) - U) / (C - U)

1 = as different as unrelated maps, 0 = the map ignores the model. The mean is over the whole cascade, because a method
can look harmless at full depth and yet ignore most of the network.

Intervals are for new trials and new samples alike: PSI is linearised in the single similarities, the variances between
trials and between samples add up, less their interaction, which both contain (Cameron, Gelbach & Miller, "Robust
Inference With Multiway Clustering", 2011), and few trials cost a wider quantile of Student's t (Satterthwaite 1946).
Percentiles of a bootstrap over trials and samples would be simpler, but such an interval is too narrow: with three to
five trials that differ, it covered the true PSI in only 81 to 87 % of simulations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided 95 % interval and the share of its variance that trials cause."""

    value: float
    low: float
    high: float
    trial_share: float = math.nan


@dataclass(frozen=True)
class Sensitivity:
    """PSI of one measure: over the cascade, at its first and last step, and how far apart ceiling and floor are.

    ``separation_low`` is the lower end of its 95 % interval, where it was computed.
    """

    psi: Interval
    first: float
    last: float
    separation: float
    separation_low: float = math.nan


def sensitivity(values: Tensor, floor: Tensor, ceiling: Tensor, *, absolute: bool = False) -> Sensitivity:
    """PSI over the cascade with its interval.

    Args:
        values: Similarity to the map at each depth, ``(trials, depths, N)``; NaN pairs are left out.
        floor: Similarity to unrelated samples' maps, same shape.
        ceiling: Similarity of repeats, ``(repeats, N)``.
        absolute: Use absolute values: for signed measures, where a strongly negative similarity retains information.
    """
    psi, influence, separation = _linearised(values, floor, ceiling, absolute)
    whole = two_way_interval(float(psi.nanmean()), influence.nanmean(1))
    return Sensitivity(whole, float(psi[0]), float(psi[-1]), separation)


def sensitivity_curve(values: Tensor, floor: Tensor, ceiling: Tensor, *, absolute: bool = False) -> Tensor:
    """PSI at every depth with its interval, ``(3, depths)``: value, low, high; NaN where a depth is undefined.

    The mean of the values over depths is the PSI of ``sensitivity``. An interval holds for its own depth, not for the
    whole curve at once. Arguments as there.
    """
    psi, influence, _ = _linearised(values, floor, ceiling, absolute)
    found = [two_way_interval(float(value), influence[:, depth]) for depth, value in enumerate(psi)]
    return torch.tensor([[i.value, i.low, i.high] for i in found], dtype=torch.float64).T


def sensitivity_of_samples(values: Tensor, floor: Tensor, ceiling: Tensor, *, absolute: bool = False) -> Tensor:
    """PSI of every sample over the whole cascade, ``(N,)``, against the floor and ceiling of all of them.

    With no undefined pair their mean is the PSI of ``sensitivity``. Arguments as there.
    """
    values, floor, ceiling = (t.double().abs() if absolute else t.double() for t in (values, floor, ceiling))
    unrelated, again = floor.nanmean((0, 2)).nanmean(), ceiling.nanmean()
    return 1 - (values.nanmean(0).nanmean(0) - unrelated) / (again - unrelated)


def two_way_interval(value: float, influence: Tensor) -> Interval:
    """Interval of an estimate from the influence of every (trial, sample) pair on it, ``(trials, N)``.

    With a single trial it is for new samples and that trial only.
    """
    trials, samples = influence.shape
    by_trial = float(influence.mean(1).var()) / trials if trials > 1 else 0.0
    by_sample = float(influence.mean(0).var()) / samples if samples > 1 else 0.0
    both = 0.0
    if trials > 1 and samples > 1:
        rest = influence - influence.mean(1, keepdim=True) - influence.mean(0, keepdim=True) + influence.mean()
        both = float(rest.square().sum()) / ((trials - 1) * (samples - 1)) / (trials * samples)
    variance = max(by_trial, by_sample, by_trial + by_sample - both)
    total = by_trial + by_sample
    share = by_trial / total if total > 0 else math.nan
    if trials == samples == 1 or not math.isfinite(variance):
        return Interval(value, math.nan, math.nan, share)
    if variance == 0:
        return Interval(value, value, value, share)
    parts = [(by_trial, trials - 1), (by_sample, samples - 1), (both, (trials - 1) * (samples - 1))]
    if variance > total - both:  # one of them alone
        parts = [part for part in parts[:2] if part[0] == variance]
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts if degrees)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(value, value - half, value + half, share)


def _linearised(values: Tensor, floor: Tensor, ceiling: Tensor, absolute: bool) -> tuple[Tensor, Tensor, float]:
    """PSI per depth ``(depths,)``, every pair's influence on it ``(trials, depths, N)``, and ceiling minus floor."""
    values, floor, ceiling = (t.double().abs() if absolute else t.double() for t in (values, floor, ceiling))
    similarity, by_similarity = _influence(values)
    unrelated, by_unrelated = (t.nanmean(axis) for t, axis in zip(_influence(floor), (0, 1), strict=True))
    again, by_again = _influence(ceiling.nanmean(0)[None, None])
    separation = again[0] - unrelated
    retained = (similarity - unrelated) / separation
    kept = retained[:, None]
    influence = (kept * by_again + (1 - kept) * by_unrelated[:, None] - by_similarity) / separation
    return 1 - retained, influence, float(separation)


def _influence(table: Tensor) -> tuple[Tensor, Tensor]:
    """Mean per depth ``(depths,)`` and each pair's deviation ``(rows, depths, N)``, 0 where undefined.

    Deviations are scaled so that the mean over all pairs is the influence, however many pairs are undefined.
    """
    known = ~table.isnan()
    count = known.sum((0, 2)).double()
    mean = table.nan_to_num(0.0).sum((0, 2)) / count
    pairs = table.shape[0] * table.shape[2]
    deviation = torch.where(known, table - mean[:, None], 0.0) * (pairs / count)[:, None]
    return mean, deviation
