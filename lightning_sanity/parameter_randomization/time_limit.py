"""A limit on the time of a walk: what of it fits, whether another trial does, and the account of what trials took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from lightning_sanity.parameter_randomization.work_sharing import Division
from lightning_sanity.resources.budget import Cost, Thinned, thin
from lightning_sanity.resources.processes import Share

_BUSY = 5  # factor by which a walk may take longer than planned before it is said to hang
_MARGIN = 0.1  # of the time that is left, not planned for


class TimeLimit:
    """Kept by all processes of a test together.

    Args:
        deadline: Value of ``time.perf_counter()`` by which to be done; None = no limit.
        clock: Reads the time once the device has done what it was given.
        share: This process's part of the work.
    """

    def __init__(self, deadline: float | None, clock: Callable[[], float], share: Share) -> None:
        self.deadline, self._clock, self._share = deadline, clock, share
        self.thinned: dict[str, Any] = {}
        self.trials: float = math.inf
        self._cost: Cost | None = None
        self._predicted = self._measured = 0.0

    def left(self) -> float | None:
        """Seconds that are left; None without a limit."""
        return None if self.deadline is None else max(self.deadline - time.perf_counter(), 0.0)

    def clock(self) -> Callable[[], float]:
        """What walks read their own time from."""
        return time.perf_counter if self.deadline is None else self._clock

    def patience(self, methods: Collection[str], depths: int) -> float:
        """Seconds after which a walk over all depths is said to hang.

        What is left of a short time may be less than the least walk takes, on a busy machine several times less.
        """
        takes = 0.0 if self._cost is None else self._cost.seconds(methods, 1, depths)
        return max(1.0, _BUSY * takes)

    def thin(
        self, cost: Cost, trials: int, depths: int, *, controls: Iterable[str], whole: bool, copies: tuple[int, int]
    ) -> Thinned:
        """What of the walk fits, the same on all processes.

        Args:
            cost: What trials take on this process.
            trials: How many are wanted.
            depths: How many there are.
            controls: Methods among those of ``cost`` that are controls.
            whole: Whether depths are either all walked or not at all.
            copies: Noisy copies that this process made for the noise guard, and how many were wanted.
        """
        assert self.deadline is not None
        parts = self._share.exchange((cost, self.deadline - time.perf_counter(), copies[0]))
        cost = Cost.largest([part[0] for part in parts])
        # A little is left for what comes after, and so that the last trial is not lost to a breath of delay.
        left = (1 - _MARGIN) * min(part[1] for part in parts)
        plan = thin(cost, trials, depths, left, controls=[n for n in cost.step if n in set(controls)], whole=whole)
        self._cost = cost
        self.trials = plan.trials if plan.trials < trials else math.inf
        self.thinned = plan.settings(trials, depths)
        if (fewest := min(part[2] for part in parts)) < copies[1]:
            self.thinned["noisy copies"] = [fewest, copies[1]]
        return plan

    def fits(
        self, begun: float, walked: int, before: int, following: Sequence[str], depths: int, division: Division
    ) -> bool:
        """Whether another trial fits, going by those that this process walked; its first of all always does.

        Args:
            begun: When these trials began, by the clock.
            walked: How many of them are done, by all processes.
            before: How many were done before them.
            following: Methods that are followed.
            depths: How many are walked.
            division: Who does what.
        """
        done = sum(map(division.concerns, range(walked)))
        if self.deadline is None or self._cost is None or before + done == 0:
            return True
        if not division.concerns(walked):
            return True
        now = self._clock()
        ahead = self._cost.ahead if before == 0 else 0
        known = (now - begun) / done if done > ahead else 0.0
        if ahead or done == 0:  # the first was partly walked before
            known = max(known, self._cost.later().seconds(following, 1, depths))
        fits: bool = self._share.agreed(now + known <= self.deadline)
        return fits

    def account(self, following: Sequence[str], walked: int, before: int, depths: int, seconds: float) -> None:
        """Note what some trials took and what they were expected to take."""
        if self._cost is not None:
            cost = self._cost if before == 0 else self._cost.later()
            self._predicted += cost.seconds(following, walked, depths)
            self._measured += seconds

    def spent(self) -> dict[str, float]:
        """The account, for the record; empty without a limit."""
        if self._cost is None:
            return {}
        return {"predicted_seconds": self._predicted, "measured_seconds": self._measured}
