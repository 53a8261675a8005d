"""Parameter sensitivity index (PSI), its interval, and the guard against maps without signal.

With ``S(d)`` the mean similarity of the trained model's map to the map at depth ``d``, ``U`` the floor (unrelated
model, unrelated input) and ``C`` the ceiling (the same explanation run again)::

    PSI = 1 - mean_d (S(d) - U) / (C - U)

1 = as different as unrelated maps, 0 = the map ignores the model. The mean is over the whole cascade, because a method
can look harmless at full depth and yet ignore most of the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sanity._rng import generator

RESAMPLES = 1000
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
    """PSI of one measure: over the cascade, at its first and last step, and how far apart ceiling and floor are."""

    psi: Interval
    first: float
    last: float
    separation: float


def sensitivity(
    values: Tensor, floor: Tensor, ceiling: Tensor, *, absolute: bool = False, seed: int = 0, resamples: int = RESAMPLES
) -> Sensitivity:
    """PSI with its interval by a two-way bootstrap that resamples trials and samples together.

    Args:
        values: Similarity to the map at each depth, ``(trials, depths, N)``; NaN pairs are left out.
        floor: Similarity to unrelated samples' maps, same shape.
        ceiling: Similarity of repeats, ``(repeats, N)``.
        absolute: Use absolute values: for signed measures, where a strongly negative similarity retains information.
        seed: Of the resampling.
        resamples: Number of bootstrap resamples.
    """
    values, floor, ceiling = (t.double().abs() if absolute else t.double() for t in (values, floor, ceiling))
    trials, _, samples = values.shape
    one = values.new_ones(1, trials), values.new_ones(1, samples)
    point, separation = _psi(values, floor, ceiling, *one)
    rng = generator(seed, "bootstrap")
    by_trial, by_sample = _counts(trials, resamples, rng), _counts(samples, resamples, rng)
    both = _psi(values, floor, ceiling, by_trial, by_sample)[0].mean(1)
    low, high = _percentiles(both)
    by_trials = _variance(values.nanmean((1, 2))) / trials
    by_samples = _variance(values.nanmean((0, 1))) / samples
    share = by_trials / (by_trials + by_samples) if by_trials + by_samples > 0 else math.nan
    interval = Interval(float(point.mean()), low, high, share)
    return Sensitivity(interval, float(point[0, 0]), float(point[0, -1]), float(separation[0]))


def _psi(values: Tensor, floor: Tensor, ceiling: Tensor, by_trial: Tensor, by_sample: Tensor) -> tuple[Tensor, Tensor]:
    """``1 - (S(d) - U) / (C - U)`` per resample and depth ``(B, depths)``, and ``C - U`` ``(B,)``."""
    similarity = _weighted(values, by_trial, by_sample)  # (B, depths)
    unrelated = _weighted(floor, by_trial, by_sample).nanmean(1)
    repeats = by_trial.new_ones(len(by_trial), len(ceiling))
    again = _weighted(ceiling[:, None], repeats, by_sample)[:, 0]
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


def _counts(size: int, resamples: int, rng: torch.Generator) -> Tensor:
    """How often each of ``size`` items is drawn, ``(resamples, size)``."""
    drawn = torch.randint(size, (resamples, size), generator=rng)
    return torch.zeros(resamples, size, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(resamples, size, dtype=torch.float64)
    )


def _percentiles(values: Tensor) -> tuple[float, float]:
    known = values[values.isfinite()]
    if not known.numel():
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    return float(known.quantile(tail)), float(known.quantile(1 - tail))


def _variance(values: Tensor) -> float:
    known = values[values.isfinite()]
    return float(known.var()) if known.numel() > 1 else math.nan


@dataclass(frozen=True)
class Signal:
    """Whether the trained model's maps carry signal.

    Attributes:
        separation: Mean similarity under a little input noise minus mean similarity to other samples' maps.
        p: Probability of ranks this good if a map resembled its noisy repeat no more than another sample's map.
    """

    separation: float
    p: float


def signal(noise: Tensor, cross: Tensor) -> Signal:
    """The noise guard: per-sample ranks of ``noise`` among ``cross``, combined over samples.

    Args:
        noise: Similarity to the map of the slightly noisy input, ``(repeats, N)``.
        cross: Similarity to the maps of other samples, ``(K, N)``.
    """
    repeated = noise.double().nanmean(0)
    known = repeated.isfinite() & cross.isfinite().all(0)
    return Signal(float(repeated[known].mean() - cross.double()[:, known].mean()), rank_p(repeated, cross))


def dependence(kept: Tensor, randomised: Tensor) -> float:
    """Probability of maps this different if the method did not depend on the weights at all.

    Under that null, the similarity of a trained map to the map of the same model on a noisy input, and to the maps
    of re-initialised models on inputs with noise of their own, are exchangeable for each sample. Dependence is needed,
    but not enough: a copy of the input to which a little gradient is added depends on the weights as well.

    Args:
        kept: Similarity of the trained model's maps to its maps under input noise, ``(N,)``.
        randomised: The same for the re-initialised models, each trial with noise of its own, ``(trials, N)``.

    Besag & Clifford, "Generalized Monte Carlo significance tests", Biometrika 1989, per sample.
    """
    return rank_p(kept, randomised)


def rank_p(one: Tensor, others: Tensor) -> float:
    """One-sided probability that ``one`` ``(N,)`` exceeds its exchangeable ``others`` ``(K, N)`` by chance.

    The rank of each sample's value is uniform on ``{1/(K+1), ..., 1}`` and the samples are independent, so that the
    mean rank is close to normal with known moments. NaN without a single defined sample.
    """
    known = one.isfinite() & others.isfinite().all(0)
    if not bool(known.any()) or len(others) == 0:
        return math.nan
    one, others = one.double()[known], others.double()[:, known]
    count, samples = others.shape
    ranks = (1 + (others >= one).sum(0)) / (count + 1)
    mean, variance = (count + 2) / (2 * (count + 1)), ((count + 1) ** 2 - 1) / (12 * (count + 1) ** 2 * samples)
    z = (float(ranks.mean()) - mean) / math.sqrt(variance)
    return 0.5 * math.erfc(-z / math.sqrt(2))


def holm(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Probabilities adjusted for their number, so that at most ``alpha`` of such families holds a false rejection.

    NaN entries stay NaN and do not count. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    known = sorted((p, name) for name, p in probabilities.items() if not math.isnan(p))
    adjusted, largest = dict(probabilities), 0.0
    for place, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * p))
        adjusted[name] = largest
    return adjusted
