"""Several columns at once, without a composite score: who is undominated, and what is recommended.

A sum of metrics needs weights that nobody can defend, and metrics of faithfulness contradict one another (Hedström et
al., "The Meta-Evaluation Problem in Explainable AI", TMLR 2023, arXiv:2302.07265; Klein et al., "Navigating the Maze of
Explainable AI", NeurIPS 2024, arXiv:2409.16756). Columns stay apart: a method is dominated if another one is ahead of
it in some column and behind it in none, where "ahead" means for certain (see ``contest``). Cost is not one of the
columns that dominate, else the cheapest method would never be dominated, however bad: it chooses among the undominated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sanity.choice.contest import Contest
from lightning_sanity.resources.random_streams import generator
from lightning_sanity.result.bootstrap import counts, percentiles
from lightning_sanity.result.psi import Interval
from lightning_sanity.similarity.ranks import average_ranks

AGREE = 0.5
"""Rank correlation between two columns from which they count as telling the same story."""

_RANKABLE = 4
"""Methods without which a rank correlation means nothing: three are in one order by chance once in six times."""

_RESAMPLES = 1000


@dataclass(frozen=True)
class Front:
    """The answer of several columns.

    Attributes:
        undominated: Methods that no other one dominates, in the order of the table; never empty if there is one.
        dominated_by: For each other method, those that dominate it.
        beating: Methods that beat every baseline in some column and lose to none in any.
        recommended: The cheapest of the undominated that are in ``beating``; None if there is none.
        also: The others of these, the cheapest first: as good as can be told.
        without: Why nothing is recommended; empty if something is.
    """

    undominated: tuple[str, ...]
    dominated_by: Mapping[str, tuple[str, ...]]
    beating: tuple[str, ...]
    recommended: str | None
    also: tuple[str, ...] = ()
    without: str = ""


def front(
    columns: Mapping[str, Contest], cost: Mapping[str, float], *, allowed: Collection[str] | None = None
) -> Front:
    """Who is undominated, and which of these to recommend.

    Args:
        columns: Per metric, its contest. A method that took part in none is left out.
        cost: Of every method, in any one unit; NaN or missing counts as dearest.
        allowed: Methods that may be recommended and may dominate, because they passed the sanity test; all if None.
            Others are in no part of the answer: a method that ignores the model must not push out one that does not.
    """
    names = [name for contest in columns.values() for name in contest.names if allowed is None or name in allowed]
    names = list(dict.fromkeys(names))
    ahead = {pair for contest in columns.values() for pair in contest.ahead}
    beaten = {
        name: tuple(other for other in names if (other, name) in ahead and (name, other) not in ahead) for name in names
    }
    undominated = _not_dominated(names, beaten)
    beating = tuple(
        name
        for name in names
        if any(contest.beats_baselines(name) for contest in columns.values())
        and not any(contest.loses_to_a_baseline(name) for contest in columns.values())
    )
    order = {name: _price(cost, name) for name in names}
    good = sorted((name for name in undominated if name in beating), key=lambda name: order[name])
    return Front(
        undominated,
        {name: by for name, by in beaten.items() if name not in undominated},
        beating,
        good[0] if good else None,
        tuple(good[1:]),
        "" if good else _why_none(names, undominated, beating, columns),
    )


def _price(cost: Mapping[str, float], name: str) -> float:
    """Cost of a method; infinite where nobody knows."""
    known = cost.get(name, math.nan)
    return known if known == known else math.inf


def _not_dominated(names: Sequence[str], beaten: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Methods that nobody dominates without being dominated in return, be it by way of others.

    A may dominate B by one column, B dominate C by another and C dominate A by a third: then none of them is out, which
    is the Schwartz set of social choice.
    """
    place = {name: i for i, name in enumerate(names)}
    reach = torch.zeros(len(names), len(names), dtype=torch.bool)
    for name, others in beaten.items():
        reach[[place[other] for other in others], place[name]] = True
    for middle in range(len(names)):  # Warshall's transitive closure
        reach |= reach[:, middle, None] & reach[None, middle]
    out = (reach & ~reach.T).any(0)
    return tuple(name for name in names if not out[place[name]])


def _why_none(
    names: Sequence[str], undominated: Sequence[str], beating: Sequence[str], columns: Mapping[str, Contest]
) -> str:
    """Why there is nothing to recommend."""
    if not names:
        return "no method was left to compare"
    baselines = sorted({name for contest in columns.values() for name in contest.baselines})
    if not baselines:
        return "there was no baseline that a method could have beaten"
    samples = max(contest.samples for contest in columns.values())
    if not beating:
        return f"no method beats {' and '.join(baselines)} for certain on these {samples} samples"
    return f"those that beat {' and '.join(baselines)} ({', '.join(beating)}) are each dominated by another method"


@dataclass(frozen=True)
class Accord:
    """How far two columns rank the methods alike.

    Attributes:
        columns: The two.
        correlation: Spearman's correlation of the methods' means, with a percentile interval over samples.
        methods: How many methods both columns know.
        disjoint: Whether no method may be the best in both.
    """

    columns: tuple[str, str]
    correlation: Interval
    methods: int
    disjoint: bool

    @property
    def warning(self) -> str:
        """What a reader must be told; empty where the columns agree, or where too few methods were ranked to tell."""
        first, second = self.columns
        if self.methods < _RANKABLE:
            return ""
        if not math.isfinite(self.correlation.value):
            return f"'{first}' and '{second}' cannot be compared: one of them gives all methods the same score"
        if self.correlation.value >= AGREE and not self.disjoint:
            return ""
        found = (
            f"'{first}' and '{second}' rank the methods differently: rank correlation {self.correlation.value:.2f} "
            f"[{self.correlation.low:.2f}, {self.correlation.high:.2f}] over {self.methods} methods"
        )
        return f"{found}; none may be the best in both" if self.disjoint else found


def accords(
    scores: Mapping[str, Mapping[str, Tensor]], contests: Mapping[str, Contest], *, seed: int = 0
) -> tuple[Accord, ...]:
    """Rank correlation between every two columns.

    Args:
        scores: Per column and method ``(N,)``, higher is better: what the contests were made of.
        contests: Per column.
        seed: Of the resamples.

    Efron, "Bootstrap Methods: Another Look at the Jackknife", Annals of Statistics 1979.
    """
    found = []
    for first, second in itertools.combinations(contests, 2):
        names = [name for name in contests[first].names if name in contests[second].names]
        a, b = ([scores[column][name].double().cpu() for name in names] for column in (first, second))
        disjoint = bool(names) and not set(contests[first].tied) & set(contests[second].tied)
        found.append(Accord((first, second), _rank_correlation(a, b, seed), len(names), disjoint))
    return tuple(found)


def _rank_correlation(a: Sequence[Tensor], b: Sequence[Tensor], seed: int) -> Interval:
    """Spearman's correlation of the methods' means over samples, per method ``(N,)`` of the same samples."""
    if len(a) < 2:
        return Interval(math.nan, math.nan, math.nan)
    samples = len(a[0])
    drawn = counts(samples, _RESAMPLES, generator("accord", seed))
    drawn = torch.cat([torch.ones(1, samples, dtype=torch.float64), drawn])  # the first is the data as they are
    left, right = (_ranked_means(torch.stack(list(table)), drawn) for table in (a, b))
    together = (left * right).sum(1) / (left.square().sum(1) * right.square().sum(1)).sqrt()
    low, high = percentiles(together[1:].clamp(-1, 1))
    return Interval(float(together[0]), low, high)


def _ranked_means(table: Tensor, drawn: Tensor) -> Tensor:
    """Centred ranks of the weighted means of every method, ``(resamples, methods)``."""
    known = table.isfinite().double()
    means = drawn @ table.nan_to_num(0.0).T / (drawn @ known.T)
    ranks = average_ranks(means.nan_to_num(nan=0.0)).double()
    return ranks - ranks.mean(1, keepdim=True)
