"""What of a test fits into a given time: fewer depths and trials first, then fewer methods."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class Interrupted(RuntimeError):
    """The test ended before it had a result; why."""


@dataclass(frozen=True)
class Thinned:
    """What is left of a walk.

    Attributes:
        trials: How many trials.
        depths: Indices of the depths that are kept, the last always among them.
        dropped: Methods that are left out, most expensive first.
        seconds: What the rest is expected to take.
    """

    trials: int
    depths: tuple[int, ...]
    dropped: tuple[str, ...]
    seconds: float

    def settings(self, trials: int, depths: int) -> dict[str, Any]:
        """What was thinned of ``trials`` and ``depths``, in plain values; empty if nothing was."""
        found: dict[str, Any] = {}
        if self.trials < trials:
            found["trials"] = [self.trials, trials]
        if len(self.depths) < depths:
            found["depths"] = [len(self.depths), depths]
        if self.dropped:
            found["methods"] = list(self.dropped)
        return found


def thin(
    costs: Mapping[str, float],
    trials: int,
    depths: int,
    seconds: float,
    *,
    controls: Collection[str] = (),
    whole: bool = False,
) -> Thinned:
    """The largest walk that fits.

    Depths and trials shrink together, by the same share where whole numbers allow, down to two of each. Then methods
    go, the most expensive first, controls after all others, because without them a result cannot show that the test
    worked. At last one trial of one depth of the cheapest method is kept, whether it fits or not.

    Args:
        costs: Seconds that one step of each method takes.
        trials: Wanted trials.
        depths: Wanted depths.
        seconds: Time there is.
        controls: Methods that are kept as long as possible.
        whole: Keep all depths, because each measures something of its own.

    >>> thin({"gradient": 1.0, "gradcam": 1.0}, trials=4, depths=8, seconds=16.0)
    Thinned(trials=2, depths=(1, 3, 5, 7), dropped=(), seconds=16.0)
    >>> thin({"gradient": 1.0, "shapley": 9.0}, trials=4, depths=8, seconds=16.0).dropped
    ('shapley',)
    """
    kept = dict(costs)
    leaving = sorted((name for name in kept if name not in controls), key=lambda name: -kept[name])[:-1]
    leaving += sorted((name for name in kept if name in controls), key=lambda name: -kept[name])
    dropped: list[str] = []
    for name in [*leaving, None]:
        fitting = _fitting(sum(kept.values()), trials, depths, seconds, depths if whole else min(2, depths))
        if fitting is not None or name is None:
            break
        dropped.append(name)
        del kept[name]
    count, number = fitting or (1, depths if whole else 1)
    spread = tuple((place + 1) * depths // number - 1 for place in range(number))
    return Thinned(count, spread, tuple(dropped), count * number * sum(kept.values()))


def _fitting(cost: float, trials: int, depths: int, seconds: float, least_depths: int) -> tuple[int, int] | None:
    """The trials and depths of the largest grid that ``seconds`` pay for, as even a share of both as can be."""
    if cost <= 0:
        return trials, depths
    found = [(count, min(depths, int(seconds / (cost * count) + 1e-9))) for count in range(min(2, trials), trials + 1)]
    found = [(count, number) for count, number in found if number >= least_depths]
    return max(found, key=lambda pair: (min(pair[0] / trials, pair[1] / depths), pair[0] * pair[1]), default=None)


class _Alarm(BaseException):
    """Rings inside a method; no ``except Exception`` of its own stops it."""


@contextmanager
def alarm(seconds: float | None, message: str) -> Iterator[None]:
    """End a block that hangs, the way Ctrl-C would: by an exception between two Python operations.

    It needs Unix, the main thread and a process that uses neither ``SIGALRM`` nor its timer; elsewhere it does
    nothing. It cannot end a call that never comes back to Python, such as a device kernel or a lock in C. What the
    block was working on must be thrown away afterwards.

    Args:
        seconds: After which it rings; None never.
        message: Of the error.

    Raises:
        Interrupted: If the block took longer.
    """
    if seconds is None or not _alarm_is_free():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise _Alarm

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Alarm:
        raise Interrupted(message) from None
    finally:
        signal.signal(signal.SIGALRM, previous)


def _alarm_is_free() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    )
