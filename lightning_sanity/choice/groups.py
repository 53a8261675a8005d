"""The same questions for every group of samples: a mean over all hides what happens to the rare ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sanity.choice.contest import Contest, compare
from lightning_sanity.result.psi import LEVEL, Interval, sensitivity
from lightning_sanity.result.verdict import SIGNED, Criterion, Evidence


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
    """Places of the samples of every group ``{name: (n,)}``, in the order of first appearance.

    Args:
        groups: The group of every sample: any values that can be told apart, or integers ``(N,)``.

    >>> members(["cat", "dog", "cat"])
    {'cat': tensor([0, 2]), 'dog': tensor([1])}
    """
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups.tolist() if isinstance(groups, Tensor) else groups):
        places.setdefault(str(group), []).append(place)
    return {name: torch.tensor(found) for name, found in places.items()}


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
    level = _shared(len(groups))
    return {
        name: compare({method: given[places] for method, given in scores.items()}, baselines, level=level, seed=seed)
        for name, places in groups.items()
    }


def _shared(looks: int) -> float:
    """The level at which that many intervals hold all at once (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(looks, 1)


def changes(whole: Contest, parts: Mapping[str, Contest], column: str = "") -> tuple[Change, ...]:
    """Where a method that may be the best over all is behind another one in a group, for certain.

    Args:
        whole: The contest of all samples.
        parts: Per group, see ``by_group``.
        column: The metric, for the answer.
    """
    return tuple(
        Change(group, column, method, better)
        for group, part in parts.items()
        for method in whole.tied
        if (better := tuple(name for name in part.names if (name, method) in part.ahead))
    )


def kept_by_group(
    evidence: Mapping[str, Evidence], groups: Mapping[str, Tensor], criterion: Criterion
) -> tuple[Kept, ...]:
    """Groups on which a method keeps its map: its index lies below ``min_psi`` there, for certain.

    Args:
        evidence: Per method, what its verdict rests on; ask for methods that pass on average.
        groups: See ``members``.
        criterion: Whose ``min_psi`` is the bound, and whose ``min_separation`` says which measures can tell.

    Returns:
        What was found, the lowest index first. A group of one or two samples is looked at like any other; its interval
        is for new trials, and for new samples as far as so few can tell.
    """
    places = [(name, found) for name, found in groups.items() if len(found)]
    return _kept(evidence, places, criterion)


def kept_by_sample(evidence: Mapping[str, Evidence], criterion: Criterion) -> tuple[Kept, ...]:
    """Samples on which a method keeps its map, over trials, for certain; the lowest index first.

    Arguments as in ``kept_by_group``. Of one trial nothing is certain.
    """
    samples = max((values.shape[-1] for each in evidence.values() for values in each.values.values()), default=0)
    return _kept(evidence, [(place, torch.tensor([place])) for place in range(samples)], criterion)


def _kept(
    evidence: Mapping[str, Evidence], places: Sequence[tuple[str | int, Tensor]], criterion: Criterion
) -> tuple[Kept, ...]:
    """What lies below the bound on some of the samples, at a level for all methods, places and measures at once."""
    level = _shared(sum(len(each.values) for each in evidence.values()) * len(places))
    found = []
    for method, each in evidence.items():
        for measure in each.values:
            for name, samples in places:
                index = _index(each, measure, samples, level, criterion)
                if index is not None and index.high < criterion.min_psi:
                    found.append(Kept(method, name, measure, index))
    worst: dict[tuple[str, str | int], Kept] = {}
    for kept in found:  # of several measures, the one that shows it best
        before = worst.get((kept.method, kept.group))
        if before is None or kept.psi.value < before.psi.value:
            worst[kept.method, kept.group] = kept
    return tuple(sorted(worst.values(), key=lambda kept: kept.psi.value))


def _index(each: Evidence, measure: str, samples: Tensor, level: float, criterion: Criterion) -> Interval | None:
    """The index of some samples alone; None where the measure cannot tell there, or nothing is defined."""
    values = each.values[measure][..., samples]
    if bool(values.isnan().all()):
        return None
    # Their own floor: on samples whose maps all look alike, be it by a common background, kept maps prove little.
    found = sensitivity(
        values,
        each.floor[measure][..., samples],
        each.ceiling[measure][:, samples],
        absolute=measure == SIGNED,
        weights=each.weights,
        level=level,
    )
    return found.psi if found.separation >= criterion.min_separation else None
