"""The same questions for every group of samples: a mean over all hides what happens to the rare ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_sanity.choice.contest import Contest
from lightning_sanity.result.psi import Interval
from lightning_sanity.result.verdict import Criterion, Evidence


@dataclass(frozen=True)
class Kept:
    """A group of samples, or one sample, on which a method keeps its map though the weights are random.

    Attributes:
        method: Which one.
        group: Name of the group, or the place of the sample.
        measure: The similarity that shows it.
        psi: Its index on that group alone; simultaneous over all methods, groups and measures looked at.
    """

    method: str
    group: str | int
    measure: str
    psi: Interval


@dataclass(frozen=True)
class Change:
    """A group whose best methods are not those of all samples.

    Attributes:
        group: Which one.
        column: The metric.
        method: A method that may be the best of all, and is not of this group for certain.
        better: Those that are ahead of it there.
    """

    group: str
    column: str
    method: str
    better: tuple[str, ...]


def members(groups: Sequence[object] | Tensor) -> dict[str, Tensor]:
    """Places of the samples of every group ``{name: (n,)}``, in the order of first appearance."""


def by_group(
    scores: Mapping[str, Tensor], groups: Mapping[str, Tensor], baselines: Sequence[str] = (), *, seed: int = 0
) -> dict[str, Contest]:
    """The contest of every group. Its level is shared out: all groups' sets and intervals hold at once.

    Args:
        scores: See ``contest.compare``.
        groups: See ``members``.
        baselines: See ``contest.compare``.
        seed: See ``contest.compare``.
    """


def changes(whole: Contest, parts: Mapping[str, Contest], column: str = "") -> tuple[Change, ...]:
    """Where a method that may be the best over all is behind another one in a group, for certain."""


def kept_by_group(
    evidence: Mapping[str, Evidence], groups: Mapping[str, Tensor], criterion: Criterion
) -> tuple[Kept, ...]:
    """Groups on which a method keeps its map: its index lies below ``min_psi`` there, for certain.

    Args:
        evidence: Per method, what its verdict rests on; ask for methods that pass on average.
        groups: See ``members``.
        criterion: Whose ``min_psi`` is the bound.
    """


def kept_by_sample(evidence: Mapping[str, Evidence], criterion: Criterion) -> tuple[Kept, ...]:
    """Samples on which a method keeps its map, over trials, for certain; the lowest index first."""
