"""How long work shows itself: what is done and what is left, in time, to a caller's function or a bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int, str], None]
"""``(done, total, label)``, both in milliseconds: ``done`` went by, and ``total`` is what all is expected to take."""

_TELLS = 0.1  # of a kind's work: so much must be done before its own price is believed, and not that of all work


class Forecast:
    """The time that work takes, foreseen while it is done.

    Work comes in kinds (explaining the trained model; walking trials), each in units of about equal cost, and some of
    it in rounds that are alike. What is left of a kind takes as long per unit as its last round; while none is over, as
    what was done of it; and as what was done of all, where that says too little.

    Args:
        progress: Told whenever something is done; it may raise to end the work.
        now: Reads the time, in seconds.
    """

    def __init__(self, progress: Progress | None = None, now: Callable[[], float] = time.perf_counter) -> None:
        self._progress, self._now = progress, now
        self._begun = self._last = now()
        self._planned: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._round: dict[str, tuple[float, float]] = {}
        self._rounds: dict[str, float] = {}

    def plan(self, kind: str, units: float) -> None:
        """So many units of a kind are still to be done, whatever was planned before."""
        self._planned[kind] = self._done.get(kind, 0.0) + units

    def did(self, kind: str, units: float, label: str) -> None:
        """So many more of them are done, since something was done last."""
        now = self._now()
        self._done[kind] = self._done.get(kind, 0.0) + units
        self._seconds[kind] = self._seconds.get(kind, 0.0) + now - self._last
        self._tell(self.left(), label)

    def within(self, seconds: float, label: str) -> None:
        """Other work is being done meanwhile, which will take so many seconds more by its own forecast."""
        self._tell(seconds + self.left(), label)

    def _tell(self, left: float, label: str) -> None:
        self._last = self._now()
        if self._progress is not None:
            done = round(1000 * (self._last - self._begun))
            self._progress(done, done + round(1000 * left), label)

    def round(self, kind: str) -> None:
        """A round of a kind is over: those to come will be like it."""
        units, seconds = self._round.get(kind, (0.0, 0.0))
        self._round[kind] = self._done.get(kind, 0.0), self._seconds.get(kind, 0.0)
        if self._round[kind][0] > units:
            self._rounds[kind] = (self._round[kind][1] - seconds) / (self._round[kind][0] - units)

    def left(self) -> float:
        """Seconds that what is planned will still take, from when something was done last."""
        done = sum(self._done.values())
        overall = sum(self._seconds.values()) / done if done else 0.0
        return sum(
            max(units - self._done.get(kind, 0.0), 0.0) * self._price(kind, overall)
            for kind, units in self._planned.items()
        )

    def _price(self, kind: str, overall: float) -> float:
        if kind in self._rounds:
            return self._rounds[kind]
        done = self._done.get(kind, 0.0)
        return self._seconds[kind] / done if done and done >= _TELLS * self._planned[kind] else overall


@contextmanager
def progress_bar(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """The caller's own callback, or a bar on a terminal."""
    if callable(progress):
        yield progress
    elif progress is False or (progress is None and not sys.stderr.isatty()):
        yield None
    else:
        from tqdm import tqdm

        form = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"
        with tqdm(desc="randomization test", leave=False, bar_format=form) as bar:

            def tick(done: int, total: int, label: str) -> None:
                bar.total = total  # more trials may raise it, a limit on time may lower it
                bar.set_postfix_str(f"{tqdm.format_interval((total - done) / 1000)} left, {label}", refresh=False)
                bar.update(done - bar.n)

            yield tick
