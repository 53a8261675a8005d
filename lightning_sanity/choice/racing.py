"""When a sanity verdict may be given early, however often one looks.

A race gives every candidate a few trials, looks, drops those whose verdict is clear, and spends the rest on those that
are open. Looking at a 95 % interval after every round is wrong far more often than 5 %. Here the looks before the last
share out a small extra error: the chance that any of them settles wrongly is at most ``spend``, whatever the looks have
to do with one another (Boole's inequality), however many there are and however the race goes on. What is spent grows in
proportion to the data (Lan & DeMets, "Discrete Sequential Boundaries for Clinical Trials", Biometrika 1983; Kim &
DeMets, Biometrika 1987). The last look is the whole test itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sanity.result.psi import LEVEL
from lightning_sanity.result.sanity_result import Outcome, Verdict
from lightning_sanity.result.verdict import Criterion, Evidence, informative, judge

SPEND = 0.001
"""Extra probability of a wrong verdict on a candidate that all looks before the last may cause together."""

LEAST_TRIALS = 3
"""Trials before which no index settles: two that happen to agree make an interval look far too narrow, so that of 150
simulated studies of 13 methods three ended otherwise than the whole test, against none from three trials on."""


def levels(shares: Sequence[float], spend: float = SPEND) -> tuple[float, ...]:
    """Level of the interval at every look.

    Args:
        shares: What share of the whole test's data is there at each look: increasing, in ``(0, 1]``. The last one is
            the whole test, at its own level, if it is 1.
        spend: See ``SPEND``.

    Raises:
        ValueError: If shares do not increase or leave ``(0, 1]``, or ``spend`` leaves ``(0, 1)``.

    >>> [round(1 - level, 6) for level in levels((0.25, 0.5, 1.0), spend=0.01)]
    [0.0025, 0.0025, 0.05]
    """
    if not 0 < spend < 1:
        raise ValueError(f"spend must be a probability between 0 and 1, not {spend!r}")
    if not shares or any(not 0 < share <= 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise ValueError(f"the share of the data at every look must increase within (0, 1], not {list(shares)}")
    found = [1 - spend * (now - before) for before, now in zip([0.0, *shares], shares, strict=False)]
    return (*found[:-1], LEVEL) if shares[-1] == 1 else tuple(found)


def early(evidence: Evidence, criterion: Criterion, level: float) -> Verdict | None:
    """The verdict that this look settles, or None: go on.

    PASS and FAIL at ``level`` stand, from three trials on; so does what no further trial can change (a method that does
    not apply, an error).

    Args:
        evidence: What has been measured so far.
        criterion: What a method must show.
        level: Of this look, see ``levels``.
    """
    if evidence.trivial is not None:
        return judge(evidence, criterion)
    if max((informative(values) for values in evidence.values.values()), default=0) < LEAST_TRIALS:
        return None
    verdict = judge(evidence, criterion, level=level)
    return None if verdict.outcome is Outcome.INCONCLUSIVE else verdict
