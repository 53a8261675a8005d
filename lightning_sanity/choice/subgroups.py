"""The answer for every group of samples, and where a method that passes on average keeps its map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_sanity.choice.groups import by_group, changes, kept_by_group, kept_by_sample, members
from lightning_sanity.choice.ranking import BASELINES, Ranking, Scores
from lightning_sanity.result.choice import Group
from lightning_sanity.result.verdict import Criterion, Evidence


@dataclass(frozen=True)
class Keeping:
    """Where methods keep their maps although the weights are random, for certain.

    Attributes:
        groups: Per method, per group, the sentence that says so.
        samples: Per method, the places of the samples.
    """

    groups: Mapping[str, Mapping[str, str]]
    samples: Mapping[str, tuple[int, ...]]


def checked(groups: Sequence[Any] | Tensor | None, samples: int) -> dict[str, Tensor]:
    """Places of the samples of every group; none where none are given.

    Raises:
        ValueError: If there is not one group for every sample.
    """
    if groups is None:
        return {}
    if len(groups) != samples:
        raise ValueError(f"groups must say one for each of the {samples} samples, not {len(groups)}")
    return members(groups)


def keeping(evidence: Mapping[str, Evidence], places: Mapping[str, Tensor], criterion: Criterion) -> Keeping:
    """Where methods that passed keep their maps.

    Args:
        evidence: Per method that passed.
        places: Per group.
        criterion: What a method must show.
    """
    groups: dict[str, dict[str, str]] = {}
    for kept in kept_by_group(evidence, places, criterion) if places else ():
        sentence = (
            f"PSI {kept.psi.value:.2f} [{kept.psi.low:.2f}, {kept.psi.high:.2f}] by {kept.measure}, below "
            f"{criterion.min_psi:g}"
        )
        groups.setdefault(kept.method, {})[str(kept.group)] = sentence
    samples: dict[str, tuple[int, ...]] = {}
    for kept in kept_by_sample(evidence, criterion):
        samples[kept.method] = (*samples.get(kept.method, ()), int(kept.group))
    return Keeping(groups, samples)


def answers(
    scores: Scores, ranking: Ranking | None, places: Mapping[str, Tensor], keeps: Keeping, seed: int
) -> tuple[Group, ...]:
    """The answer for every group.

    Args:
        scores: Per metric and method.
        ranking: Of all samples.
        places: Per group.
        keeps: Where methods keep their maps.
        seed: Of the simulated critical values.
    """
    tied: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in places}
    behind: dict[str, set[str]] = {name: set() for name in places}
    allowed = () if ranking is None else tuple(next(iter(ranking.contests.values())).names)
    chosen = () if ranking is None else (ranking.front.recommended, *ranking.front.also)
    for metric, table in scores.items() if ranking is not None else ():
        against = [name for name in BASELINES if name in table]
        entrants = {name: table[name] for name in (*allowed, *against)}
        parts = by_group(entrants, places, against, seed=seed)
        for name, part in parts.items():
            tied[name][metric] = part.tied
        for change in changes(ranking.contests[metric], parts, metric):  # type: ignore[union-attr]
            if change.method in chosen:
                behind[change.group].add(change.method)
    return tuple(
        Group(
            name,
            len(found),
            tied[name],
            tuple(sorted(behind[name])),
            {method: by[name] for method, by in keeps.groups.items() if name in by},
        )
        for name, found in places.items()
    )


def warnings_of(groups: Sequence[Group], recommended: str | None) -> list[str]:
    """What a reader must be told of the groups."""
    found = []
    for group in groups:
        for method, why in group.keeps.items():
            found.append(
                f"{method} passes on average, but on group '{group.name}' ({group.samples} samples) it keeps its map "
                f"although the weights are random: {why}"
            )
        if recommended in group.behind:
            found.append(
                f"on group '{group.name}' ({group.samples} samples) {recommended} is behind another method for certain"
            )
    return found
