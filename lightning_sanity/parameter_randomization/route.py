"""Which steps of a cascade are walked, and which of them left the outputs as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sanity.model.weights import restore, snapshot
from lightning_sanity.parameter_randomization.study import Study
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import Unit


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
