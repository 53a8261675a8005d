"""Several columns at once, without a composite score: who is undominated, and what is recommended.

A sum of metrics needs weights that nobody can defend, and metrics of faithfulness contradict one another (Hedström et
al., "The Meta-Evaluation Problem in Explainable AI", TMLR 2023, arXiv:2302.07265; Klein et al., "Navigating the Maze of
Explainable AI", NeurIPS 2024, arXiv:2409.16756). Columns stay apart: a method is dominated if another one is ahead of
it in some column and behind it in none, where "ahead" means for certain (see ``contest``). Cost is not one of the
columns that dominate, else the cheapest method would never be dominated, however bad: it chooses among the undominated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sanity.choice.contest import Contest
from lightning_sanity.resources.random_streams import generator
from lightning_sanity.result.bootstrap import counts
from lightning_sanity.result.psi import LEVEL, Interval
from lightning_sanity.similarity.ranks import average_ranks

AGREE = 0.5
"""Rank correlation between two columns from which they count as telling the same story."""

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
        """What a reader must be told; empty where the columns agree."""
        return ""


def accords(
    scores: Mapping[str, Mapping[str, Tensor]], contests: Mapping[str, Contest], *, seed: int = 0
) -> tuple[Accord, ...]:
    """Rank correlation between every two columns.

    Args:
        scores: Per column and method ``(N,)``, higher is better: what the contests were made of.
        contests: Per column.
        seed: Of the resamples.
    """
