"""What of a test fits into a given time: fewer depths and trials first, then fewer methods."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

_FREE = 1.1  # factor by which a method that comes almost for nothing may raise the cost


class Interrupted(RuntimeError):
    """The test ended before it had a result; why."""


@dataclass(frozen=True)
class Thinned:
    """What is left of a walk.

    Attributes:
        trials: How many trials.
        depths: Indices of the depths that are kept, the first and the last among them; of one, the last.
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


@dataclass(frozen=True)
class Shared:
    """A walk that serves all depths of some methods at once.

    Attributes:
        methods: Which.
        trial: Seconds per trial.
        depth: Seconds per depth of a trial, besides.
    """

    methods: frozenset[str]
    trial: float
    depth: float


@dataclass(frozen=True)
class Cost:
    """What trials of a walk take, in seconds.

    Attributes:
        step: Of each method, per depth of a trial.
        once: Of each method that costs something per trial.
        trial: Per trial, whatever the methods.
        depth: Per depth of a trial, whatever the methods.
        shared: Walks that methods share.
        ahead: How many trials' shared walks every process has already made.
        workers: How many processes divide the trials among them, each of which one does whole.
        first: Per depth of the first trial, besides.
    """

    step: Mapping[str, float]
    once: Mapping[str, float] = field(default_factory=dict)
    trial: float = 0.0
    depth: float = 0.0
    shared: tuple[Shared, ...] = ()
    ahead: int = 0
    workers: int = 1
    first: float = 0.0

    def seconds(self, methods: Collection[str], trials: int, depths: int) -> float:
        """Of so many trials with these methods."""
        rounds = math.ceil(trials / self.workers)
        each = self.trial + sum(self.once.get(name, 0.0) for name in methods)
        each += depths * (self.depth + sum(self.step[name] for name in methods))
        walks = sum(walk.trial + depths * walk.depth for walk in self.shared if not walk.methods.isdisjoint(methods))
        return depths * self.first + rounds * each + max(rounds - self.ahead, 0) * walks

    def later(self) -> Cost:
        """Of trials that are not the first ones."""
        return replace(self, first=0.0, ahead=0)

    @staticmethod
    def largest(costs: Sequence[Cost]) -> Cost:
        """Of several processes the slowest's; for what all of them measured, and walk for the same methods."""
        if len(costs) == 1:
            return costs[0]
        names = [name for name in costs[0].step if all(name in cost.step for cost in costs)]
        walks = zip(*(sorted(cost.shared, key=lambda walk: sorted(walk.methods)) for cost in costs), strict=True)
        return Cost(
            {name: max(cost.step[name] for cost in costs) for name in names},
            {name: max(cost.once[name] for cost in costs) for name in names},
            max(cost.trial for cost in costs),
            max(cost.depth for cost in costs),
            tuple(Shared(w[0].methods, max(s.trial for s in w), max(s.depth for s in w)) for w in walks),
            min(cost.ahead for cost in costs),
            costs[0].workers,
            max(cost.first for cost in costs),
        )


def thin(
    cost: Cost,
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
    worked. If even that does not fit, the same is tried with a single trial. At last one trial of one depth of the
    cheapest method is kept, and of those that come almost for nothing beside it, whether it fits or not.

    Args:
        cost: What it takes, for every method in question.
        trials: Wanted trials.
        depths: Wanted depths.
        seconds: Time there is.
        controls: Methods that are kept as long as possible.
        whole: Keep all depths, because each measures something of its own.

    >>> thin(Cost({"gradient": 1.0, "gradcam": 1.0}), trials=4, depths=8, seconds=16.0)
    Thinned(trials=2, depths=(0, 2, 5, 7), dropped=(), seconds=16.0)
    >>> thin(Cost({"gradient": 1.0, "shapley": 9.0}), trials=4, depths=8, seconds=16.0).dropped
    ('shapley',)
    """

    def dearest(names: list[str]) -> list[str]:
        return sorted(names, key=lambda name: -cost.seconds([name], trials, depths))

    leaving = dearest([name for name in cost.step if name not in controls])[:-1]
    leaving += dearest([name for name in cost.step if name in controls])
    for least in (2, 1):
        for number in range(len(leaving) + 1):
            kept = [name for name in cost.step if name not in leaving[:number]]
            cost_of, fewest = partial(cost.seconds, kept), depths if whole else least
            size = _fitting(cost_of, trials, depths, seconds, (least, fewest))
            if size is not None:
                return _thinned(cost, kept, *size, depths)
    size = 1, depths if whole else 1
    last = [name for name in cost.step if name not in leaving]
    free = [name for name in leaving if cost.seconds([*last, name], *size) <= _FREE * cost.seconds(last, *size)]
    return _thinned(cost, [name for name in cost.step if name in (*last, *free)], *size, depths)


def _thinned(cost: Cost, kept: Sequence[str], trials: int, number: int, depths: int) -> Thinned:
    dropped = sorted(cost.step.keys() - set(kept), key=lambda name: -cost.seconds([name], trials, depths))
    return Thinned(trials, spread(number, depths), tuple(dropped), cost.seconds(kept, trials, number))


def spread(number: int, depths: int) -> tuple[int, ...]:
    """So many of the depths, evenly spread, the first and the last among them; of one, the last.

    >>> spread(3, 9)
    (0, 4, 8)
    """
    if number == 1:
        return (depths - 1,)
    return tuple(round(place * (depths - 1) / (number - 1)) for place in range(number))


def _fitting(
    cost: Callable[[int, int], float], trials: int, depths: int, seconds: float, least: tuple[int, int]
) -> tuple[int, int] | None:
    """The trials and depths of the largest grid that ``seconds`` pay for, as even a share of both as can be."""
    found = [
        (count, number)
        for count in range(min(least[0], trials), trials + 1)
        for number in range(min(least[1], depths), depths + 1)
        if cost(count, number) <= seconds * (1 + 1e-9)
    ]
    return max(found, key=lambda pair: (min(pair[0] / trials, pair[1] / depths), pair[0] * pair[1]), default=None)


class _Alarm(BaseException):
    """Rings inside a method; no ``except Exception`` of its own stops it."""


class _Ring:
    """What the signal calls; one per block, so that a block knows its own alarm from that of a block around it."""

    def __call__(self, number: int, frame: Any) -> None:
        raise _Alarm(self)


@contextmanager
def alarm(seconds: float | None, message: str) -> Iterator[None]:
    """End a block that hangs, the way Ctrl-C would: by an exception between two Python operations.

    Alarms may be set inside one another; the one that is due first rings. It needs Unix, the main thread and a process
    that uses neither ``SIGALRM`` nor its timer; elsewhere it does nothing. It cannot end a call that never comes back
    to Python, such as a device kernel or a lock in C. What the block was working on must be thrown away afterwards.

    Args:
        seconds: After which it rings; None never.
        message: Of the error.

    Raises:
        Interrupted: If the block took longer.
    """
    left, begun = _before_it_rings(), time.monotonic()
    if seconds is None or left is None or seconds >= left:
        yield
        return
    ring = _Ring()
    previous = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _Alarm as rung:
        if rung.args != (ring,):
            raise
        raise Interrupted(message) from None
    finally:
        signal.signal(signal.SIGALRM, previous)
        if left < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), 1e-3))


def _before_it_rings() -> float | None:
    """Seconds that an alarm of ours around this block leaves it; infinite without one; None where none can be set."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return None
    handler, left = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0]
    if isinstance(handler, _Ring) and left > 0:
        return left
    return math.inf if handler is signal.SIG_DFL and left == 0 else None
