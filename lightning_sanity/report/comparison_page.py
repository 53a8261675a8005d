"""Results side by side as one self-contained page: a dumbbell per method, the worst first."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from jinja2 import Template

from lightning_sanity._version import __version__
from lightning_sanity.report import decided, psi
from lightning_sanity.report.comparison_text import NOT_MEASURED, about, became, index, letters, meaning, number, why
from lightning_sanity.report.palette import DARK, LIGHT
from lightning_sanity.report.templates import template
from lightning_sanity.report.wording import SYMBOL, breakable, setting
from lightning_sanity.resources.files import write_whole
from lightning_sanity.resources.quoting import listed
from lightning_sanity.result.comparison import Comparison, Track, differing
from lightning_sanity.result.sanity_result import Outcome, Verdict

_TALL, _FLAT = 26, 19  # pixels of a lane: of few results, of many
_FEW = 4
_LISTED = 3  # as many methods a line of the first screen names
_MEANING = {
    "not known": "the sentence beside the method says why",
    "not worse, still fails": "not to be shown as evidence, as before",
    "new, fails": "not to be shown as evidence",
    "gone": "measured before, and not in the last result",
}
_SHAPE = {Outcome.PASS: "circle", Outcome.FAIL: "cross", Outcome.INCONCLUSIVE: "diamond"}


@dataclass(frozen=True)
class Lane:
    """One result in the dumbbell of a method; places across are percent of its width, down are pixels.

    Attributes:
        name: The result's letter.
        verdict: None where the method was not measured.
        number: Its index with the interval.
        by: The measure that decided or, where none did, why.
        y: The middle of the lane.
        x: Where the index lies, at the edge if it is off the scale; None if undefined.
        ends: Of the interval; None where there is none.
        shape: Of the mark.
        hollow: Whether no measure decided.
        beyond: The index, where it is off the scale.
        threshold: From where it passes; None if the result does not say.
    """

    name: str
    verdict: Verdict | None
    number: str
    by: str
    y: float
    x: float | None
    ends: tuple[float, float] | None
    shape: str
    hollow: bool
    beyond: str
    threshold: float | None


@dataclass(frozen=True)
class Dumbbell:
    """A method in all results.

    Attributes:
        track: What it shows.
        word: What became of the method.
        change: From the first result to the last.
        why: What that means.
        lanes: One per result.
        links: From lane to lane, ``(x, y, x, y)``.
        height: Pixels.
        description: The same in words, for readers who do not see it.
    """

    track: Track
    word: str
    change: str
    why: str
    lanes: tuple[Lane, ...]
    links: tuple[tuple[float, float, float, float], ...]
    height: int
    description: str


def write(comparison: Comparison, path: str | os.PathLike[str], names: Sequence[str]) -> Path:
    """Write the page of a comparison, see ``render``; the file appears whole or not at all."""
    return write_whole(path, render(comparison, names))


def render(comparison: Comparison, names: Sequence[str]) -> str:
    """The page of a comparison as HTML.

    Args:
        comparison: What became of the methods.
        names: Of the results, such as their files.
    """
    results, marks = comparison.results, letters(len(comparison.results))
    low, high = reach(comparison)
    limits = [psi.threshold(result) for result in results]
    shared = limits[0] if len(set(limits)) == 1 else None
    return _template().render(
        comparison=comparison,
        version=__version__,
        light=LIGHT,
        dark=DARK,
        symbol=SYMBOL,
        index=index(comparison),
        meaning=meaning(comparison),
        standing=_standing(comparison),
        key=[(m, name, about(result), result.valid) for m, name, result in zip(marks, names, results, strict=True)],
        marks=marks,
        dumbbells=[dumbbell(comparison, track, (low, high)) for track in comparison.tracks],
        ticks=[(place(k / 2, low, high), f"{k / 2:g}") for k in range(-1, 4) if low <= k / 2 <= high],
        threshold=None if shared is None else (place(shared, low, high), f"passes from {shared:g}"),
        differing=differing(results),
    )


@cache
def _template() -> Template:
    return template("comparison.html.j2", {"breakable": breakable, "plain": setting})


def reach(comparison: Comparison) -> tuple[float, float]:
    """The part of the scale that holds 0, 1 and every interval, within -0.5 and 1.5."""
    verdicts = [verdict for track in comparison.tracks for verdict in track.verdicts if verdict is not None]
    ends = [x for v in verdicts for x in (v.psi, v.psi_low, v.psi_high) if math.isfinite(x)]
    return max(-0.5, min([-0.04, *(x - 0.05 for x in ends)])), min(1.5, max([1.04, *(x + 0.05 for x in ends)]))


def place(value: float, low: float, high: float) -> float:
    """Where a number stands on a scale that is 100 wide; what is off it at its end."""
    return round(100 * (min(max(value, low), high) - low) / (high - low), 2)


def dumbbell(comparison: Comparison, track: Track, limits: tuple[float, float]) -> Dumbbell:
    """The drawing of one method."""
    count = len(track.verdicts)
    step, marks = (_TALL if count <= _FEW else _FLAT), letters(count)
    lanes = tuple(
        _lane(mark, verdict, step * (k + 0.5), limits, psi.threshold(result))
        for k, (mark, verdict, result) in enumerate(zip(marks, track.verdicts, comparison.results, strict=True))
    )
    known = [(lane.x, lane.y) for lane in lanes if lane.x is not None]
    # What does not compare is not joined.
    links = () if comparison.problem else tuple((*one, *other) for one, other in pairwise(known))
    return Dumbbell(
        track,
        became(track),
        number(track.change),
        why(track.change),
        lanes,
        links,
        step * count,
        _described(comparison, track, lanes),
    )


def _lane(mark: str, verdict: Verdict | None, y: float, limits: tuple[float, float], limit: float | None) -> Lane:
    threshold = None if limit is None else place(limit, *limits)
    if verdict is None:
        return Lane(mark, None, NOT_MEASURED, "", y, None, None, "", False, "", threshold)
    low, high = limits
    ends = verdict.psi_low, verdict.psi_high
    known = math.isfinite(verdict.psi)
    off = known and not low <= verdict.psi <= high
    return Lane(
        mark,
        verdict,
        decided.number(verdict),
        decided.by(verdict, 60),
        y,
        place(verdict.psi, low, high) if known else None,
        (place(ends[0], low, high), place(ends[1], low, high)) if known and all(map(math.isfinite, ends)) else None,
        ("left" if verdict.psi < low else "right") if off else _SHAPE[verdict.outcome],
        not decided.measured(verdict),
        f"{verdict.psi:.2f}" if off else "",
        threshold,
    )


def _described(comparison: Comparison, track: Track, lanes: Sequence[Lane]) -> str:
    parts = []
    for lane, result in zip(lanes, comparison.results, strict=True):
        if lane.verdict is None:
            parts.append(f"{lane.name} {NOT_MEASURED}")
            continue
        limit = psi.threshold(result)
        passes = "" if limit is None else f", passes from {limit:g}"
        behind = f"by {lane.by}" if decided.measured(lane.verdict) else lane.by
        parts.append(f"{lane.name} {lane.number} {lane.verdict.outcome.value}, {behind}{passes}")
    last = f"{became(track)}, {why(track.change)}, change {number(track.change)}"
    return f"{track.method}: {last}. {index(comparison)}: {'; '.join(parts)}."


def _standing(comparison: Comparison) -> list[tuple[Outcome, str, str, str]]:
    """For each word that occurs: outcome, word, which methods, and what it means. None where nothing compares."""
    if comparison.problem is not None:
        return []
    by_word: dict[str, list[Track]] = {}
    for track in comparison.tracks:
        by_word.setdefault(became(track), []).append(track)
    return [
        (tracks[0].change.outcome, word, listed((track.method for track in tracks), _LISTED), _MEANING.get(word, ""))
        for word, tracks in by_word.items()
    ]
