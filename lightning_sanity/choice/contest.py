"""Which methods score best on the same samples, and which cannot be told apart from the best.

Every method is scored on every sample, so that all comparisons are paired: what makes a sample easy or hard cancels.
Three questions, each with simultaneous intervals from the same mechanism, Student's t whose critical value is that of
the largest of all compared differences at once (max-t):

- How far is a method from the best of the others? Multiple comparisons with the best: Hsu, "Simultaneous Confidence
  Intervals for All Distances from the Best", Annals of Statistics 1981, and "Constrained Simultaneous Confidence
  Intervals for Multiple Comparisons with the Best", 1984. The methods whose interval reaches above 0 form a set that
  holds the truly best one with the probability ``level``.
- Does it beat the baselines? Many-to-one comparisons: Dunnett, "A Multiple Comparison Procedure for Comparing Several
  Treatments with a Control", JASA 1955.
- Which one is ahead of which? The comparisons behind the first question, pair by pair.

Dunnett's tables assume one variance for all; here every difference has its own, and their correlations are taken from
the data, shrunk towards none because few samples make them look too certain (Schäfer & Strimmer, "A Shrinkage Approach
to Large-Scale Covariance Matrix Estimation", 2005). Less correlation makes a critical value larger (Šidák, JASA 1967).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from lightning_sanity.resources.random_streams import generator
from lightning_sanity.resources.suggestions import unknown
from lightning_sanity.result.psi import LEVEL, Interval

LEAST = 2
"""Scores that a method needs to take part: one says nothing of how scores vary."""

_DRAWS = 4000
"""Simulated data sets behind a critical value: its level is then within .004 of the one asked for."""

_ENOUGH = 48
"""Degrees of freedom beyond which more no longer matter: a critical value is then at most 4 % larger than needed."""


@dataclass(frozen=True)
class Contest:
    """One metric's scores of several methods on the same samples, compared.

    Attributes:
        names: The methods that took part, in the order given; baselines and unmeasured ones are not among them.
        samples: How many samples were scored.
        level: Probability with which the set holds the truly best one, and all intervals of one kind hold at once.
        means: Per method and baseline, the mean score; each interval for that mean alone.
        behind: Per method, its mean less that of the best of the others; simultaneous. An interval that ends at 0
            says that it is not the best, one that begins at 0 that it is.
        tied: The methods that cannot be told apart from the best, the highest mean first.
        over: Per (method, baseline), the mean difference; simultaneous over all of them.
        ahead: Pairs (method, other) in which the first one is better for certain; consistent with ``tied``: a method
            is in the set unless another one is ahead of it.
        unmeasured: Methods with fewer than ``LEAST`` defined scores.
    """

    names: tuple[str, ...]
    samples: int
    level: float
    means: Mapping[str, Interval]
    behind: Mapping[str, Interval]
    tied: tuple[str, ...]
    over: Mapping[tuple[str, str], Interval]
    ahead: frozenset[tuple[str, str]]
    unmeasured: tuple[str, ...] = ()

    @property
    def best(self) -> str | None:
        """The method with the highest mean; None if none took part."""
        return self.tied[0] if self.tied else None

    @property
    def baselines(self) -> tuple[str, ...]:
        """What the methods were compared with."""
        return tuple(name for name in self.means if name not in self.names)

    def beats_baselines(self, name: str) -> bool:
        """Whether its interval over every baseline lies above 0; False where there is no baseline."""
        found = [interval for (method, _), interval in self.over.items() if method == name]
        return bool(found) and all(interval.low > 0 for interval in found)

    def loses_to_a_baseline(self, name: str) -> bool:
        """Whether its interval over some baseline lies below 0."""
        return any(interval.high < 0 for (method, _), interval in self.over.items() if method == name)


def compare(
    scores: Mapping[str, Tensor], baselines: Sequence[str] = (), *, level: float = LEVEL, seed: int = 0
) -> Contest:
    """Compare methods by their scores on the same samples.

    A sample on which one of two methods has no score is left out of the comparison of these two.

    Args:
        scores: Per method ``(N,)``, higher is better, NaN where undefined; the same samples in the same order.
        baselines: Names in ``scores`` of what a method must beat to mean anything: a random map, an edge detector.
        level: See ``Contest.level``; with several metrics, ``1 - (1 - level) / metrics`` holds for all at once.
        seed: Of the simulated critical values.

    Returns:
        The comparison. With two or three samples intervals are wide and the set is usually everybody.

    Raises:
        ValueError: If scores have different lengths, a baseline has none, or ``level`` is no probability.

    >>> clear = torch.linspace(0, 1, 16)
    >>> found = compare({"a": clear + 1, "b": clear + 0.1 * clear.flip(0), "noise": clear * 0}, ["noise"])
    >>> found.tied, found.beats_baselines("b")
    (('a',), True)
    """
    _check(scores, baselines, level)
    unmeasured = tuple(name for name, given in scores.items() if int(given.isfinite().sum()) < LEAST)
    names = tuple(name for name in scores if name not in baselines and name not in unmeasured)
    table = {name: given.detach().double().cpu() for name, given in scores.items()}
    measured = [name for name in table if name not in unmeasured]
    against = [name for name in baselines if name not in unmeasured]
    samples = len(next(iter(table.values()), ()))
    behind, ahead = _from_the_best(names, table, level, seed)
    means = {name: mean_interval(table[name], level) for name in measured}
    reached = {other for _, other in ahead}
    tied = sorted((n for n in names if n not in reached), key=lambda name: -means[name].value)
    pairs = [(name, baseline) for name in names for baseline in against]
    over = dict(zip(pairs, simultaneous([table[a] - table[b] for a, b in pairs], level, seed), strict=True))
    return Contest(names, samples, level, means, behind, tuple(tied), over, frozenset(ahead), unmeasured)


def mean_interval(values: Tensor, level: float = LEVEL) -> Interval:
    """Mean of ``(N,)`` with Student's t interval, NaN left out; of values that are all the same see `simultaneous`."""
    return simultaneous([values], level)[0]


def simultaneous(differences: Sequence[Tensor], level: float = LEVEL, seed: int = 0) -> list[Interval]:
    """Means of paired differences ``(N,)`` each, with intervals that hold all at once.

    Values that are all the same say nothing of how they vary. Their interval is the value alone only where so many
    of one sign are no chance (a sign test, over all that are compared); else it reaches to 0. Where all are 0 a method
    is taken for a copy, which a few scores of yes and no may be by chance.

    Args:
        differences: Of the same samples, NaN where undefined.
        level: Probability that every interval holds.
        seed: Of the simulated critical value.
    """
    if not differences:
        return []
    table = torch.stack([each.detach().double().cpu() for each in differences])  # (K, N)
    value, error, count = _students(table)
    bound = _critical(table, level, 2, _draws(len(table), table.shape[1], seed))
    return [
        _interval(float(v), float(e), int(n), bound, (1 - level) / (2 * len(table)))
        for v, e, n in zip(value, error, count, strict=True)
    ]


def _interval(value: float, error: float, count: int, bound: float, tail: float) -> Interval:
    """The interval of one mean: ``bound`` standard errors to either side."""
    if count < LEAST:
        return Interval(value, math.nan, math.nan)
    if error > 0 or value == 0:
        return Interval(value, value - bound * error, value + bound * error)
    return Interval(value, value, value) if 0.5**count <= tail else Interval(value, min(value, 0.0), max(value, 0.0))


def _from_the_best(
    names: Sequence[str], table: Mapping[str, Tensor], level: float, seed: int
) -> tuple[dict[str, Interval], set[tuple[str, str]]]:
    """Each method's distance to the best of the others, and who is ahead of whom for certain."""
    if len(names) < 2:
        return {}, set()
    draws = _draws(len(names) - 1, len(table[names[0]]), seed)
    value: dict[tuple[str, str], float] = {}  # how far the second lies above the first
    reach: dict[tuple[str, str], float] = {}  # how far at most it may lie below that
    for name in names:
        others = [other for other in names if other != name]
        gaps = torch.stack([table[other] - table[name] for other in others])
        bound, tail = _critical(gaps, level, 1, draws), (1 - level) / len(others)
        for other, v, e, n in zip(others, *_students(gaps), strict=True):
            ends = _interval(float(v), float(e), int(n), bound, tail)
            value[name, other], reach[name, other] = ends.value, ends.value - ends.low
    ahead = {(b, a) for (a, b), gap in value.items() if gap - reach[a, b] > 0}
    reached = {other for _, other in ahead}
    best = [name for name in names if name not in reached] or list(names)
    behind = {}
    for name in names:
        known = {b: gap for (a, b), gap in value.items() if a == name and math.isfinite(reach[name, b])}
        if not known:
            behind[name] = Interval(math.nan, math.nan, math.nan)
            continue
        upper = min(reach[name, b] - gap for b, gap in known.items())
        lower = min((-gap - reach[b, name] for b, gap in known.items() if b in best), default=0.0)
        behind[name] = Interval(-max(known.values()), min(0.0, lower), max(0.0, upper))
    return behind, ahead


def _students(table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard error and number of the defined values of every row of ``(K, N)``."""
    known = table.isfinite()
    count = known.sum(1)
    mean = torch.where(known, table, 0.0).sum(1) / count
    rest = torch.where(known, table - mean[:, None], 0.0)
    spread = rest.square().sum(1)
    # What rounding leaves of values that are all the same is no spread.
    rounding = torch.finfo(table.dtype).eps * torch.where(known, table, 0.0).abs().amax(1)
    spread = torch.where(spread <= count * (8 * rounding).square(), 0.0, spread)
    return mean, (spread / (count - 1) / count).sqrt(), count


def _draws(rows: int, samples: int, seed: int) -> Tensor:
    """Independent normal data ``(draws, 1 + freedom, rows)``: for the means first, then for the variances."""
    freedom = min(max(samples - 1, 1), _ENOUGH)
    return torch.randn(_DRAWS, freedom + 1, rows, generator=generator("contest", seed))


def _critical(table: Tensor, level: float, sides: int, draws: Tensor) -> float:
    """What the largest of the rows' Student's t exceeds with probability ``1 - level``; rows ``(K, N)``."""
    known = table.isfinite()
    counts = known.sum(1)
    rows = table[counts >= LEAST]
    if not len(rows):
        return math.nan
    freedom = int(counts[counts >= LEAST].min()) - 1
    if len(rows) == 1:
        return float(stats.t.ppf(1 - (1 - level) / sides, freedom))
    freedom = min(freedom, _ENOUGH)
    joint = draws[:, : freedom + 1, : len(rows)] @ torch.linalg.cholesky(_correlations(rows)).T.to(draws)
    scale = (joint[:, 1:].square().sum(1) / freedom).sqrt()
    largest = (joint[:, 0].abs() if sides == 2 else joint[:, 0]).div(scale).amax(1)
    return float(largest.quantile(level))


def _correlations(rows: Tensor) -> Tensor:
    """Correlations of the rows of ``(K, N)``, shrunk towards none; undefined values count as their row's mean."""
    known = rows.isfinite()
    count = known.sum(1, keepdim=True)
    rest = torch.where(known, rows - torch.where(known, rows, 0.0).sum(1, keepdim=True) / count, 0.0)
    length = rest.square().sum(1, keepdim=True).sqrt()
    unit = torch.where(length > 0, rest / length, 0.0)
    found = unit @ unit.T
    samples = rows.shape[1]
    # The variance of a correlation over samples: of its summands x_i y_i, of which it is the sum.
    squares = unit.square() @ unit.square().T
    varies = samples / max(samples - 1, 1) * (squares - found.square() / samples)
    off = ~torch.eye(len(rows), dtype=torch.bool)
    total = float(found.square()[off].sum())
    shrunk = min(1.0, float(varies[off].clamp_min(0).sum()) / total) if total > 0 else 1.0
    found = (1 - max(shrunk, 1e-6)) * found
    return found.fill_diagonal_(1.0)


def _check(scores: Mapping[str, Tensor], baselines: Sequence[str], level: float) -> None:
    shapes = {name: tuple(given.shape) for name, given in scores.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"scores are compared sample by sample: all must have one shape (N,), not {shapes}")
    for name in baselines:
        if name not in scores:
            raise ValueError(unknown("baseline", name, scores))
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability between 0 and 1, not {level!r}")
