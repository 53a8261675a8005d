"""What the first screen of a page says: who failed, passed or is open, what to do, and whether to trust the run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_sanity.report import decided, psi
from lightning_sanity.report.wording import index_name, ordered, subject
from lightning_sanity.resources.quoting import listed
from lightning_sanity.result.controls import COMPARISON, POSITIVE_CONTROL
from lightning_sanity.result.sanity_result import Outcome, SanityResult, Verdict

_DUTY = {
    "random": "must be INCONCLUSIVE: it is noise",
    POSITIVE_CONTROL: "must PASS: it is made of the model's outputs alone",
    COMPARISON: "none: a method like any other, for comparison",
}
_SCALE = (-0.25, 1.25)  # of the bars
_APART = 0.2  # of two marks above the bars
_LISTED = 3  # as many methods a line names
_CAUSE = 90  # characters of why no measure decided
_TO_DO = {
    Outcome.FAIL: "not to be shown as evidence",
    Outcome.INCONCLUSIVE: "open",
    Outcome.PASS: "necessary, not sufficient: the maps may still be wrong",
}


def standing(result: SanityResult) -> list[tuple[Outcome, str, str]]:
    """For each outcome that occurs: which methods, and what to do about them. None where no verdict can be trusted."""
    if not result.valid:
        return []
    found = []
    for outcome, what in _TO_DO.items():
        verdicts = {name: result.verdicts[name] for name in ordered(result)}
        verdicts = {name: v for name, v in verdicts.items() if v.gated and v.outcome is outcome}
        if not verdicts:
            continue
        if outcome is Outcome.INCONCLUSIVE:
            what = decided.settles_all(list(verdicts.values()))
        found.append((outcome, listed(verdicts, _LISTED), what))
    return found


def trust(result: SanityResult) -> str:
    """Whether the run can be trusted: yes, not shown, or no."""
    if not result.valid:
        return "No, for the reason above."
    controls = sum(not verdict.gated for verdict in result.verdicts.values())
    if not controls:
        return "Not shown: no control was run."
    return (
        "Yes: its control came out as it must."
        if controls == 1
        else f"Yes: all {controls} controls came out as they must."
    )


def scale(result: SanityResult) -> str:
    """What the numbers of the table mean, in a line."""
    limit = psi.threshold(result)
    passes = "" if limit is None else f", passes from {limit:g}"
    return f"{index_name(result)} with its 95 % interval{passes}; 0 = ignores the {subject(result)}"


def marks(result: SanityResult) -> list[float]:
    """The values to name above the bars: the threshold, and 0 and 1 where they do not stand too near."""
    limit = psi.threshold(result)
    ends = [0.0, 1.0]
    return ends if limit is None else sorted([limit, *(end for end in ends if abs(end - limit) >= _APART)])


def duty(name: str) -> str:
    """How a control has to come out, and why."""
    return _DUTY.get(name, "must not PASS: it hardly looks at the model")


@dataclass(frozen=True)
class Row:
    """A method with what its row and its section show.

    Attributes:
        name: The method.
        anchor: Its id in the page.
        verdict: Its verdict.
        undefined: Share of pairs without a similarity, by the deciding measure; NaN where nothing was measured.
        ceiling: Of that measure.
        floor: Of that measure.
        number: Its index with the interval.
        by: What decided, or why nothing did.
        decided: Whether a measure decided.
        bar: Left end and width of the interval on a scale of 0 to 100; None where there is none.
        point: Place of the PSI on it; NaN if undefined.
        beyond: Where the PSI lies: 1 beyond the right end of the scale, -1 beyond the left, 0 on it.
        dots: Places of the samples on it.
    """

    name: str
    anchor: str
    verdict: Verdict
    undefined: float
    ceiling: float
    floor: float
    number: str
    by: str
    decided: bool
    bar: tuple[float, float] | None
    point: float
    beyond: int
    dots: tuple[float, ...]

    @classmethod
    def of(cls, result: SanityResult, name: str) -> Row:
        """What ``result`` says about the method ``name``."""
        verdict = result.verdicts[name]
        curve = None if verdict.measure is None else result.curves.get((name, verdict.measure))
        samples = psi.of_samples(result, name)
        ends = [place(end) for end in (verdict.psi_low, verdict.psi_high)]
        known = math.isfinite(verdict.psi)
        return cls(
            name,
            f"method-{list(result.verdicts).index(name)}",
            verdict,
            math.nan if curve is None else float(curve.values.isnan().float().mean()),
            math.nan if curve is None else float(curve.ceiling.nanmean()),
            math.nan if curve is None else float(curve.floor.nanmean()),
            decided.number(verdict),
            decided.by(verdict, _CAUSE),
            decided.measured(verdict),
            (ends[0], round(ends[1] - ends[0], 1)) if known and all(map(math.isfinite, ends)) else None,
            place(verdict.psi),
            (verdict.psi > _SCALE[1]) - (verdict.psi < _SCALE[0]),
            () if samples is None else tuple(place(s) for s in samples.tolist() if math.isfinite(s)),
        )


def place(value: float) -> float:
    """Where a PSI stands on a bar that is 100 wide; NaN if undefined."""
    low, high = _SCALE
    return round(100 * (min(max(value, low), high) - low) / (high - low), 1) if math.isfinite(value) else math.nan
