"""The shared walks of some trials, where several processes divide the trials: all of them walk for the same methods."""

from __future__ import annotations

from collections.abc import Callable, Collection

from lightning_sanity.division import Division
from lightning_sanity.engine import Engine, Trial
from lightning_sanity.shares import Share
from lightning_sanity.twins import TrialDraw


def in_common(share: Share, engine: Engine | None) -> Engine | None:
    """The engine for the methods that every process can walk; None, on all of them, if there are none."""
    names = share.common(() if engine is None else engine.methods)
    return engine.keep(names) if engine is not None and names else None


class SharedWalks:
    """Who walks which trial, and the walks of this process.

    A walk that fails on one process, and a method that is not proven there, is given up by all, so that a result does
    not depend on who walked what. Each process therefore walks the first of its trials before the work is divided for
    good. A walk that fails later concerns its own process alone: the plain loop takes over there.

    Args:
        share: This process's part of the work.
        engine: Makes the walks, if they are to be had.
        divide: Divides the work, given the methods that are walked.
        draw: How a trial, given by its place, re-initialises units.
        attempt: Walks a trial; None if that fails.
        ready: A first trial that was walked before, by a process that does all the work.

    Attributes:
        division: Of the work.
    """

    def __init__(
        self,
        share: Share,
        engine: Engine | None,
        divide: Callable[[Collection[str]], Division],
        draw: Callable[[int], TrialDraw],
        attempt: Callable[[Engine, TrialDraw], Trial | None],
        ready: Trial | None = None,
    ) -> None:
        self._engine, self._attempt = in_common(share, engine), attempt
        self._ready: dict[int, Trial | None] = {} if ready is None else {0: ready}
        self.division = divide(self.names())
        if self._engine is None or share.world == 1:
            return
        place = next((place for place in range(self.division.trials) if self.division.walks(place)), None)
        if place is not None:
            self._ready[place] = attempt(self._engine, draw(place))
        self._engine = in_common(share, self._engine)
        self.division = divide(self.names())

    def names(self) -> tuple[str, ...]:
        """Methods that are walked."""
        return () if self._engine is None else tuple(self._engine.methods)

    def trial(self, place: int, redraw: TrialDraw) -> Trial | None:
        """All depths of a trial, if it is this process's to walk, and if that succeeds."""
        if self._engine is None or not self.division.walks(place):
            return None
        found = self._ready.pop(place, None) or self._attempt(self._engine, redraw)
        return None if found is None else found.keep(self._engine.methods)
