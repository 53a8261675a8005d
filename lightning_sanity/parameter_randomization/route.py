"""Which steps of a cascade are walked, and which of them left the outputs as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_sanity.model.weights import restore, snapshot
from lightning_sanity.parameter_randomization.study import Study
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import Unit
from lightning_sanity.resources.budget import spread

ENOUGH = 12
"""Steps that are walked of a deeper cascade unless more are asked for: an index is a mean over steps, and that many
give it within a hundredth or two where no pair is undefined."""
_WITH_NEIGHBOURS = 10  # steps from which the first and the last are walked together with the one beside them


@dataclass(frozen=True)
class Route:
    """Which steps of a cascade are walked.

    Attributes:
        steps: The units that are random at each depth.
        places: Which of the cascade's steps these are, from 0.
        of: How many steps it has.
    """

    steps: Sequence[Sequence[Unit]]
    places: tuple[int, ...]
    of: int

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def nested(self) -> bool:
        """Whether every depth's random units stay random at the next."""
        return all(unit in self.steps[-1] for step in self.steps for unit in step)

    def only(self, depths: Sequence[int]) -> Route:
        """The route through some of its depths."""
        return Route([self.steps[depth] for depth in depths], tuple(self.places[depth] for depth in depths), self.of)

    def silent(self, trained: Tensor, outputs: Tensor, leaves: Callable[[int], bool]) -> frozenset[int]:
        """Steps, by their places in the cascade, that left the outputs bitwise as they were in every trial.

        Args:
            trained: The trained model's outputs ``(N, ...)``.
            outputs: ``(trials, depths, N, ...)``.
            leaves: Whether a depth changes no outputs, asked where they differ by no more than rounding.
        """
        nested = self.nested
        before = trained.expand_as(outputs).clone()
        if nested:
            before[:, 1:] = outputs[:, :-1]
        found: set[int] = set()
        for depth, place in enumerate(self.places):
            ours, theirs = outputs[:, depth], before[:, depth]
            if torch.equal(ours, theirs) or (torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6) and leaves(depth)):
                lowest = self.places[depth - 1] + 1 if nested and depth > 0 else place
                found.update(range(lowest if nested else place, place + 1))
        return frozenset(found)


def most_steps(wanted: int | Literal["auto"] | None, order: str, of: int) -> int | None:
    """How many steps are walked at most; None = all.

    Args:
        wanted: See ``WalkOptions.max_steps``.
        order: In which units become random; where each step speaks for itself, none stands for its neighbours.
        of: How many steps there are.
    """
    if wanted != "auto":
        return wanted
    return None if order == "independent" or of <= ENOUGH else ENOUGH


def chosen(most: int | None, of: int) -> tuple[int, ...]:
    """Which of a cascade's steps are walked: evenly spread, the first and the last among them.

    A curve is steepest at its ends, at the layers of the output and of the input. Of ten or more steps two are
    therefore the second and the last but one, so that the first and the last count for themselves alone.

    Args:
        most: How many; None = all.
        of: How many there are.

    >>> chosen(3, 9)
    (0, 4, 8)
    >>> chosen(10, 50)
    (0, 1, 8, 14, 21, 28, 35, 41, 48, 49)
    """
    number = min(most or of, of)
    if number == of or number < _WITH_NEIGHBOURS:
        return spread(number, of)
    return (0, *(1 + place for place in spread(number - 2, of - 2)), of - 1)


def route_of(steps: Sequence[Sequence[Unit]], most: int | None) -> Route:
    """The route through all steps, or through so many of them; see ``chosen``."""
    places = chosen(most, len(steps))
    return Route([steps[place] for place in places], places, len(steps))


def leaves_outputs(study: Study, route: Route, reinitializer: Reinitializer, depth: int) -> bool:
    """Whether a step changes nothing of the outputs by passes of their own; shared walks leave rounding."""
    saved = snapshot(study.model, study.trained)
    redraw = reinitializer.start_trial(0)
    earlier = route.steps[depth - 1] if route.nested and depth > 0 else ()
    try:
        for unit in earlier:
            redraw(study.model, unit)
        before = study.what.outputs()
        for unit in route.steps[depth]:
            if unit not in earlier:
                redraw(study.model, unit)
        return torch.equal(before, study.what.outputs())
    finally:
        restore(study.model, saved)
