"""How long the callback may take beside training, and who gets what of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

SHARE = 0.05
"""Of the training time, that a callback takes by default between its first measurement and its last."""
_FIRST_LOOK = 10.0  # seconds that the first measurement may take by default, however short training was before
_LARGEST_PART = 1 / 3  # of a limit, that figures or the data randomization test may take
_LEAST_PART = 1 / 4  # of a limit, that is left to the test whatever else there is

Part = Literal["test", "labels", "drawing"]


@dataclass(frozen=True)
class Parts:
    """How a limit is divided: seconds of the test, whether to draw, whether to compare with other labels.

    ``decide`` is whether the verdicts are those that the run ends with, as far as is known.
    """

    test: float | None = None
    draw: bool = True
    compare: bool = True
    decide: bool = True


class Allowance:
    """What ``max_time`` allows at a validation.

    A number of seconds bounds every measurement. A number below 1 is a share of the training time and is kept like an
    account: what is not used is saved, what was too much is owed, and validations are skipped while there is less than
    the smallest measurement takes.

    ``"auto"`` is a share of ``SHARE`` with two exceptions. The first measurement may take some seconds whatever the
    share is, and the last of ``fit`` is made in full; what it will take is kept back from all others, which are made
    where there is enough for one more like the last one.

    Args:
        max_time: See above; None allows everything.
        every: Whether every validation must be measured, because something acts on each: then nothing is saved or owed.

    Attributes:
        saved: Seconds of the account.
        due: Whether the weights are to be measured once more, and in full, if training ends with them.
        takes: What each part took last, in seconds: ``"drawing"`` figures and page, at first a guess; ``"labels"`` the
            data randomization test, at first unknown, so that it is run once; ``"rest"`` all that follows the test.
    """

    def __init__(self, max_time: float | Literal["auto"] | None = None, *, every: bool = False) -> None:
        self.auto = max_time == "auto"
        self.max_time: float | None = SHARE if max_time == "auto" else max_time
        self.every, self.due = every, False
        self.saved = self._least = self._earned = self._reserve = 0.0
        self._first, self._last = True, False
        self.takes: dict[str, float] = {"drawing": 1.0, "labels": 0.0, "rest": 0.1}
        self._now: dict[str, float] = {}
        self._training, self._until = False, math.inf
        self._since = self._begun = time.perf_counter()

    @property
    def is_share(self) -> bool:
        """Whether it is a share of the training time."""
        return self.max_time is not None and self.max_time < 1

    def start(self) -> None:
        """Training begins; what was before does not count."""
        self._since = time.perf_counter()

    def begin(self, *, training: bool, last: bool = False) -> None:
        """A validation is over whose model may be measured.

        Args:
            training: Whether it belongs to training, so that others follow and there is time to take a share of.
            last: Whether training ends with it, as far as is known.
        """
        self._begun, self._now, self._training, self._last = time.perf_counter(), {}, training, last
        self._earned = (self.max_time or 0.0) * (self._begun - self._since) if self.is_share and training else 0.0
        self.saved += self._earned
        self._since = self._begun

    def affords(self) -> bool:
        """Whether there is enough for a measurement; the first is always made."""
        enough = self.every or self._earned == 0 or self.saved - self._reserve >= self._least
        enough |= self.auto and (self._first or self._last)
        self.due = self.auto and not enough
        return enough

    def divide(self, *, free: bool = False) -> Parts:
        """Who gets what: what would take a large part of the limit can wait, if there will be a later occasion.

        Args:
            free: Whether what was done so far does not count, because it is done once in a run.
        """
        if free:
            self._begun = self._since = time.perf_counter()
        decide = self._last or not self._training
        if self._unlimited:
            self._until = math.inf
            return Parts(decide=decide)
        limit = self._limit
        self._until = self._begun + limit
        left = max(self._until - time.perf_counter(), _LEAST_PART * limit)
        draw = not self._training or self.takes["drawing"] <= _LARGEST_PART * left
        compare = self.takes["labels"] <= _LARGEST_PART * left
        beside = self.takes["rest"] + draw * self.takes["drawing"] + compare * self.takes["labels"]
        return Parts(max(left - beside, _LEAST_PART * left), draw, compare, decide)

    @property
    def _unlimited(self) -> bool:
        """Whether this measurement is made in full."""
        if self.max_time is None or (self.is_share and not self._training):
            return True
        return self.auto and (self.every or self._last)

    @property
    def _limit(self) -> float:
        """Seconds of this measurement."""
        assert self.max_time is not None
        if self.auto and self._first:
            return max(self.saved, _FIRST_LOOK)
        return self.saved - self._reserve if self.is_share else self.max_time

    @contextmanager
    def timing(self, part: Part) -> Iterator[None]:
        """Learn what a part takes."""
        begun = time.perf_counter()
        yield
        self.takes[part] = self._now[part] = time.perf_counter() - begun

    def exceeded(self) -> bool:
        """Whether the time is up."""
        return time.perf_counter() > self._until

    def end(self, thinned: Mapping[str, object] | None, *, open_verdicts: bool = False) -> None:
        """All is done that is done at this validation.

        Args:
            thinned: What was left out of the test, as a result's settings have it; None if it gave no result.
            open_verdicts: Whether more trials could decide something.
        """
        now = time.perf_counter()
        spent, limit = now - self._begun, self._until - self._begun
        if "test" in self._now:
            self.takes["rest"] = max(spent - sum(self._now.values()), 0.0)
        if self._earned:
            self.saved = 0.0 if self.every else self.saved - spent
            self._least = spent if spent > limit else self._least
        if self._training:
            self.due = not self._last and (open_verdicts or (self.auto and bool(thinned)))
        if self.auto and self._training and thinned is not None:
            self._first, self._reserve, self._least = False, spent / _walked(thinned), spent
        self._since = now


def _walked(thinned: Mapping[str, object]) -> float:
    """The share of a test's trials and depths that was walked."""
    share = 1.0
    for what in ("trials", "depths"):
        kept = thinned.get(what)
        if isinstance(kept, Sequence):
            share *= kept[0] / kept[1]
    return share
