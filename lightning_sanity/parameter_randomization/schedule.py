"""How many trials are walked: a given number, or as many as open verdicts need and time allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Set

from lightning_sanity.parameter_randomization.cascade import Cascade
from lightning_sanity.parameter_randomization.judging import undecided
from lightning_sanity.parameter_randomization.looks import Looks
from lightning_sanity.parameter_randomization.options import WalkOptions
from lightning_sanity.parameter_randomization.walk_results import Walk
from lightning_sanity.resources.processes import Share
from lightning_sanity.result.verdict import Criterion, Scope

AUTO_TRIALS = (5, 5, 10)
"""How many trials "auto" runs, and adds for verdicts that are still open."""


def walk_trials(
    cascade: Cascade,
    given: WalkOptions,
    gated: Set[str],
    scope: Callable[[Walk], Scope],
    share: Share,
    until: float = math.inf,
) -> tuple[Walk, tuple[str, ...]]:
    """All trials; or, for "auto" and ``Looks``, as many as are needed, by a schedule that was fixed beforehand.

    Args:
        cascade: What walks them; not started.
        given: Options of the test.
        gated: The methods that count.
        scope: What a walk can tell.
        share: This process's part of the work.
        until: Value of ``time.perf_counter()`` by which trials have to be done that are added to the first ones.

    Returns:
        The walk, and in words what was not added for want of time.
    """
    trials, criterion = given["trials"], given["criterion"] or Criterion()
    looks = trials if isinstance(trials, Looks) else None
    schedule = (trials,) if isinstance(trials, int) else AUTO_TRIALS if looks is None else looks.trials
    cascade.start(schedule[0])
    begun = time.perf_counter()
    cascade.extend(schedule[0])
    each = (time.perf_counter() - begun) / schedule[0]
    for look, more in enumerate(schedule[1:]):
        if cascade.interrupted:
            break
        walk = cascade.walk()
        if looks is None:
            still_open = undecided(walk, gated, criterion, scope(walk))
        else:
            still_open = looks.unsettled(walk, gated, criterion, scope(walk), look)
        if still_open:
            left = until - time.perf_counter()
            if not all(share.exchange(more * each <= left)):
                return walk, (_left_out(more, more * each, left),)
            cascade.extend(more, still_open)
    return cascade.walk(), ()


def _left_out(trials: int, takes: float, left: float) -> str:
    had = f"{left:.1f} s were left for them" if left > 0 else "no time was left for them"
    return f"{trials} more trials, which could decide it, would have taken about {takes:.1f} s, and {had}"
