"""How long the callback may take beside training, and who gets what of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

SHARE = 0.05
"""Of the training time, that a callback takes by default."""
LEAST = 8.0
"""Seconds that it may take by default, however short training is."""
LONGEST_END = 30.0
"""Seconds within which what a training ends with is measured in full by default, whatever its share is."""
_FIRST_PART = 0.4  # of what a training is going to allow, that its first measurement may take in advance
_LONGEST_FIRST = 10.0  # seconds of the first measurement, where nothing has been saved up for more
_LARGEST_PART = 1 / 3  # of a limit, that figures or the data randomization test may take
_LEAST_PART = 1 / 4  # of a limit, that is left to the test whatever else there is

Part = Literal["test", "labels", "drawing"]


@dataclass(frozen=True)
class Parts:
    """How a limit is divided: seconds of the test, whether to draw, whether to compare with other labels.

    ``decide`` is whether the verdicts are those that the run ends with, as far as is known; ``extend`` within how many
    seconds trials have to be done that the test adds by itself.
    """

    test: float | None = None
    draw: bool = True
    compare: bool = True
    decide: bool = True
    extend: float | None = None


class Allowance:
    """What ``max_time`` allows at a validation.

    A number of seconds bounds every measurement. A number below 1 is a share of the training time and is kept like an
    account: what is not used is saved, what was too much is owed, and validations are skipped while there is less than
    the smallest measurement takes.

    ``"auto"`` is a share of ``SHARE`` with two exceptions. The first measurement is made in advance: it may take a part
    of what training is going to allow. The last of ``fit`` is made in full; what it will take is kept back from all
    others, which are made where there is enough for one more like the last one. Only where it would take longer than
    ``LONGEST_END``, and than what was saved, it is thinned; and trials are added to it only as far as what was saved,
    or is left of ``LEAST``, pays for them.

    Args:
        max_time: See above; None allows everything.
        every: Whether every validation must be measured, because something acts on each: then nothing is saved or owed.
        watched: The share of a last measurement's trials that one makes which others follow.

    Attributes:
        saved: Seconds of the account.
        spent: Seconds that measurements in training have taken so far.
        trained: Seconds of training without them.
        due: Whether the weights are to be measured once more, and in full, if training ends with them.
        takes: What each part took last, in seconds: ``"drawing"`` figures and page, at first a guess; ``"labels"`` the
            data randomization test, at first unknown, so that it is run once; ``"rest"`` all that follows the test.
    """

    def __init__(
        self, max_time: float | Literal["auto"] | None = None, *, every: bool = False, watched: float = 1.0
    ) -> None:
        self.auto = max_time == "auto"
        self.max_time: float | None = SHARE if max_time == "auto" else max_time
        self.every, self.due = every, False
        self.saved = self.spent = self.trained = 0.0
        self._watched = watched
        self._least = self._earned = self._reserve = self._done = 0.0
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

    def begin(self, *, training: bool, last: bool = False, done: float = 0.0) -> None:
        """A validation is over whose model may be measured.

        Args:
            training: Whether it belongs to training, so that others follow and there is time to take a share of.
            last: Whether training ends with it, as far as is known.
            done: The share of training that is over; 0 where nobody knows.
        """
        self._begun, self._now, self._done = time.perf_counter(), {}, done
        self._training, self._last = training, last
        trained = self._begun - self._since if training else 0.0
        self.trained += trained
        self._earned = (self.max_time or 0.0) * trained if self.is_share else 0.0
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
        self._until = math.inf
        if self._unlimited:
            return Parts(decide=self._last or not self._training)
        if self.auto and self._last:
            return self._ending()
        limit = self._limit
        self._until = self._begun + limit
        left = max(self._until - time.perf_counter(), _LEAST_PART * limit)
        draw = self.takes["drawing"] <= _LARGEST_PART * left or not self._training or self._shown_anyway
        compare = self.takes["labels"] <= _LARGEST_PART * left
        beside = self.takes["rest"] + draw * self.takes["drawing"] + compare * self.takes["labels"]
        test = max(left - beside, _LEAST_PART * left)
        return Parts(test, draw, compare, decide=self._last or not self._training)

    @property
    def _unlimited(self) -> bool:
        """Whether this measurement may take what it takes."""
        if self.max_time is None or (self.is_share and not self._training):
            return True
        return self.auto and self.every

    def _ending(self) -> Parts:
        """What training ends with: in full unless that takes very long, with more trials as far as there is time."""
        beside = self.takes["rest"] + self.takes["drawing"] + self.takes["labels"] + time.perf_counter() - self._begun
        longest = max(self.saved, LONGEST_END)
        full = not self._first and self._reserve <= longest
        extend = max(self.saved, LEAST - self.spent) - beside
        return Parts(None if full else max(longest - beside, _LEAST_PART * longest), extend=max(extend, 0.0))

    @property
    def _limit(self) -> float:
        """Seconds of this measurement."""
        assert self.max_time is not None
        if self.auto and self._first:
            return max(self.saved, self._in_advance)
        return self.saved - self._reserve if self.is_share else self.max_time

    @property
    def _in_advance(self) -> float:
        """Seconds that the first measurement may take of what training is going to allow."""
        if self._done == 0:
            return _LONGEST_FIRST
        return min(_FIRST_PART * max(SHARE * self.trained / self._done, LEAST), _LONGEST_FIRST)

    @contextmanager
    def timing(self, part: Part) -> Iterator[None]:
        """Learn what a part takes."""
        begun = time.perf_counter()
        yield
        self.takes[part] = self._now[part] = time.perf_counter() - begun

    @property
    def _shown_anyway(self) -> bool:
        """Whether this measurement is drawn whatever it takes, because it is the first that anybody sees."""
        return self.auto and self._first

    def exceeded(self) -> bool:
        """Whether the time is up for what can wait."""
        return time.perf_counter() > self._until and not self._shown_anyway

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
        self.spent += spent if self._training else 0.0
        if self._earned:
            self.saved = 0.0 if self.every else self.saved - spent
            self._least = spent if spent > limit else self._least
        if self._training:
            self.due = not self._last and (open_verdicts or (self.auto and bool(thinned)))
        if self.auto and self._training and thinned is not None:
            self._first, self._reserve, self._least = False, self._in_full(thinned), spent
        self._since = now

    def _in_full(self, thinned: Mapping[str, object]) -> float:
        """Seconds that the last measurement will take, going by this one."""
        walked = _walked(thinned) * (1.0 if self._last else self._watched)
        return self.takes["rest"] + self.takes["drawing"] + self.takes["labels"] + self._now.get("test", 0.0) / walked

    def account(self, *, open_verdicts: bool = False) -> str | None:
        """What was taken beside training, in words; None where there is nothing to tell.

        Args:
            open_verdicts: Whether more trials, for which there was no time, could decide something.
        """
        if not self.spent or not self.trained:
            return None
        said = f"measured for {self.spent:.1f} s beside {self.trained:.0f} s of training"
        said += f" ({self.spent / self.trained:.1%})"
        limited = self.auto and not self.every
        if limited and self.spent > SHARE * self.trained:
            said += f", more than {SHARE:.0%} because what training ends with is measured in any case"
        if limited and open_verdicts:
            said += "; max_time=None lets an open verdict take the trials that it needs"
        return said


def _walked(thinned: Mapping[str, object]) -> float:
    """The share of a test's trials and depths that was walked."""
    share = 1.0
    for what in ("trials", "depths"):
        kept = thinned.get(what)
        if isinstance(kept, Sequence):
            share *= kept[0] / kept[1]
    return share
