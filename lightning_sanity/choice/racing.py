"""When a sanity verdict may be given early, however often one looks.

A race gives every candidate a few trials, looks, drops those whose verdict is clear, and spends the rest on those that
are open. Looking at a 95 % interval after every round is wrong far more often than 5 %. Here the looks before the last
share out a small extra error: the chance that any of them settles wrongly is at most ``spend``, whatever the looks have
to do with one another (Boole's inequality), however many there are and however the race goes on. The schedule follows
O'Brien & Fleming (Biometrics 1979) by the spending function of Lan & DeMets ("Discrete Sequential Boundaries for
Clinical Trials", Biometrika 1983): hardly any error early, when few trials tell little. The last look is the test itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_sanity.result.sanity_result import Verdict
from lightning_sanity.result.verdict import Criterion, Evidence

SPEND = 0.005
"""Extra probability of a wrong verdict on a candidate that all looks before the last may cause together."""


def levels(shares: Sequence[float], spend: float = SPEND) -> tuple[float, ...]:
    """Level of the interval at every look.

    Args:
        shares: What share of the whole test's data is there at each look: increasing, in ``(0, 1]``. The last one is
            the whole test, at its own level, if it is 1.
        spend: See ``SPEND``.

    Raises:
        ValueError: If shares do not increase or leave ``(0, 1]``.
    """


def early(evidence: Evidence, criterion: Criterion, level: float) -> Verdict | None:
    """The verdict that this look settles, or None: go on.

    PASS and FAIL at ``level`` stand; so does what no further trial can change (a method that does not apply).

    Args:
        evidence: What has been measured so far.
        criterion: What a method must show.
        level: Of this look, see ``levels``.
    """


@dataclass(frozen=True)
class Race:
    """How a race went.

    Attributes:
        verdicts: Per candidate, the verdict and the look (from 0) that settled it.
        explained: Share of the explanations that the whole test of all candidates would have made.
    """

    verdicts: Mapping[str, tuple[Verdict, int]]
    explained: float
