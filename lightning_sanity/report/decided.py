"""The number that decided: what every table, figure and page shows of a verdict, and what stands there if none did."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from lightning_sanity.result.sanity_result import Outcome, Verdict

UNDEFINED = "undefined"
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_ADVICE = 90  # characters of what would settle a verdict
_MORE = re.compile(r"about (\d+) ([a-z ]+) instead of (\d+) would settle it")


def number(verdict: Verdict) -> str:
    """The index that the reason names, with its 95 % interval.

    >>> number(Verdict(Outcome.PASS, "", 0.931, 0.88, 0.97, "ssim")), number(Verdict(Outcome.INCONCLUSIVE, ""))
    ('0.93 [0.88, 0.97]', 'undefined')
    """
    if not math.isfinite(verdict.psi):
        return UNDEFINED
    ends = verdict.psi_low, verdict.psi_high
    known = all(map(math.isfinite, ends))
    return f"{verdict.psi:.2f} [{', '.join(f'{end:.2f}' for end in ends) if known else UNDEFINED}]"


def plain(value: float | None, digits: int = 2) -> str:
    """A number as people read it; a missing one says so.

    >>> plain(0.946), plain(float("nan")), plain(-0.0)
    ('0.95', 'undefined', '0.00')
    """
    return UNDEFINED if value is None or not math.isfinite(value) else f"{value + 0.0:.{digits}f}"


def measured(verdict: Verdict) -> bool:
    """Whether a measure decided: an index that an open verdict's reason does not speak of decided nothing."""
    if not math.isfinite(verdict.psi) or verdict.measure is None:
        return False
    return verdict.outcome is not Outcome.INCONCLUSIVE or f"by {verdict.measure}" in verdict.reason


def by(verdict: Verdict, limit: int) -> str:
    """The measure that decided or, where none did, why: at most ``limit`` characters."""
    return shortened(str(verdict.measure) if measured(verdict) else cause(verdict), limit)


def cause(verdict: Verdict) -> str:
    """The first clause of the reason.

    >>> cause(Verdict(Outcome.INCONCLUSIVE, "the maps carry no signal: under a little noise ..."))
    'the maps carry no signal'
    """
    return re.split(r"[:;(]", " ".join(verdict.reason.split()))[0].strip() or "no reason given"


def shortened(text: str, limit: int) -> str:
    """At most ``limit`` characters, cut after a word where one ends near.

    >>> shortened("the maps carry no signal", 16)
    'the maps carry…'
    """
    if len(text) <= limit:
        return text
    head = text[: limit - 1]
    space = head.rfind(" ")
    return (head[:space] if space > limit // 2 else head).rstrip() + _ELLIPSIS


def settles(verdict: Verdict) -> str:
    """What would settle an open verdict, as its reason ends.

    >>> settles(Verdict(Outcome.INCONCLUSIVE, "PSI 0.7 straddles 0.65; about 24 trials instead of 5 would settle it"))
    'open; about 24 trials instead of 5 would settle it'

    An aside in brackets at the end, and where it gets long why that would help, is left to the reason.
    """
    _, _, rest = " ".join(verdict.reason.split()).partition("; " if "; " in verdict.reason else ": ")
    rest = re.sub(r" \([^()]*\)$", "", (rest or verdict.reason).rstrip("."))  # an aside
    if len(rest) > _ADVICE and ": " in rest:
        rest = rest.partition(": ")[0]  # why, after what to do
    return f"open; {shortened(rest, _ADVICE)}"


def settles_all(verdicts: Sequence[Verdict]) -> str:
    """What would settle several open verdicts: as much of each kind of data as the one that asks for most of it.

    >>> asked = ("about 8 trials instead of 3", "about 5 trials instead of 3", "about 148 samples instead of 16")
    >>> settles_all([Verdict(Outcome.INCONCLUSIVE, f"PSI straddles 0.65; {more} would settle it") for more in asked])
    'open; about 8 trials instead of 3 and 148 samples instead of 16 would settle them'
    """
    said = {settles(verdict) for verdict in verdicts}
    if len(said) == 1:
        return said.pop()
    asked = [found for verdict in verdicts if (found := _MORE.search(verdict.reason))]
    if not asked:
        return "open; the reason of each, below, says what would settle it"
    most: dict[str, tuple[int, int]] = {}
    for found in asked:
        wanted, unit, had = found.groups()
        most[unit] = max(most.get(unit, (0, 0)), (int(wanted), int(had)))
    data = " and ".join(
        f"{wanted} {unit} instead of {had}" for unit, (wanted, had) in sorted(most.items(), reverse=True)
    )
    whom = "them" if len(asked) == len(verdicts) else f"{len(asked)} of {len(verdicts)}"
    return f"open; about {data} would settle {whom}"
