"""An answer to "which method should I show?" as one self-contained page, and as a fragment for a notebook."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from jinja2 import Template

from lightning_sanity._version import __version__
from lightning_sanity.report import chart, thumbnails
from lightning_sanity.report.chart import Chart, Series
from lightning_sanity.report.choice_text import BASIS, COLUMNS, cells, headings, metrics, reasons
from lightning_sanity.report.palette import DARK, LIGHT
from lightning_sanity.report.templates import template
from lightning_sanity.resources.files import write_whole
from lightning_sanity.result.choice import Choice, Row, Score, Standing

_WIDTH, _HEIGHT, _MARGIN = 420, 300, 46
_ORDERS = {
    "cascading": "from the output down, all together",
    "independent": "one step at a time",
    "bottom_up": "from the input up, all together",
}
_SHOWN = (Standing.RECOMMENDED, Standing.TIED, Standing.PASSED)


@dataclass(frozen=True)
class Point:
    """A method in the plane of two metrics: where its mean lies, and how far its intervals reach."""

    name: str
    style: str
    x: float
    y: float
    across: tuple[float, float]
    upright: tuple[float, float]


@dataclass(frozen=True)
class Plane:
    """Two metrics against each other; what lies up and to the right is better in both."""

    names: tuple[str, str]
    points: tuple[Point, ...]
    ticks: tuple[tuple[float, float, str], ...]
    width: int = _WIDTH
    height: int = _HEIGHT
    margin: int = _MARGIN


def write(choice: Choice, path: str | os.PathLike[str]) -> Path:
    """Write the page of a choice; the file appears whole or not at all."""
    return write_whole(path, render(choice))


def render(choice: Choice) -> str:
    """The page of a choice as HTML."""
    return _template().render(
        choice=choice,
        version=__version__,
        light=LIGHT,
        dark=DARK,
        basis=BASIS,
        columns=[COLUMNS[metric] for metric in metrics(choice)],
        headings=headings(choice)[1:],
        rows=[(row, cells(choice, row)[1:]) for row in choice.table if row.verdict is not None],
        reasons=reasons(choice),
        plane=plane(choice),
        charts=_profiles(choice),
        likeness=_matrix(choice),
        gallery=_gallery(choice),
        colourings=thumbnails.colourings(),
        settings={**choice.settings, **{f"{key} (explanations)": f"{v:g}" for key, v in choice.spent.items()}},
    )


def fragment(choice: Choice) -> str:
    """The answer and its table for a notebook; everything that is a user's is escaped."""
    style = 'style="text-align:left;padding:.15rem .8rem .15rem 0"'
    head = "".join(f"<th {style}>{escape(text)}</th>" for text in headings(choice)[1:])
    rows = "".join(
        f"<tr>{''.join(f'<td {style}>{escape(cell)}</td>' for cell in cells(choice, row)[1:])}</tr>"
        for row in choice.table
        if row.verdict is not None
    )
    below = [*(COLUMNS[metric] for metric in metrics(choice)), *(f"Warning: {each}" for each in choice.warnings)]
    below += [*(f"Note: {each}" for each in choice.notes), BASIS]
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in below)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
    return f"<div><p><b>{escape(choice.reason)}</b></p>{table}{paragraphs}</div>"


@cache
def _template() -> Template:
    return template(
        "choice.html.j2", {"two": lambda value: f"{value + 0.0:.2f}" if math.isfinite(value) else "undefined"}
    )


def plane(choice: Choice) -> Plane | None:
    """The methods that passed and the baselines in the plane of the first two metrics; None where there is one."""
    names = metrics(choice)[:2]
    if len(names) < 2:
        return None
    found = [(row.method, row.standing.value, row.scores) for row in choice.table if _placed(row, names)]
    for baseline in next(iter(choice.baselines.values()), {}):
        scores = {metric: choice.baselines[metric][baseline] for metric in names}
        found.append((baseline, "baseline", scores))
    ends = [
        [end for _, _, scores in found for end in (scores[name].low, scores[name].high) if math.isfinite(end)]
        for name in names
    ]
    if not all(ends):
        return None
    spans = [(min(each), max(each)) for each in ends]

    def at(value: float, axis: int) -> float:
        low, high = spans[axis]
        part = (value - low) / max(high - low, 1e-9)
        room = (_WIDTH, _HEIGHT)[axis] - 2 * _MARGIN
        return round(_MARGIN + room * part if axis == 0 else _HEIGHT - _MARGIN - room * part, 1)

    def reach(score: Score, axis: int) -> tuple[float, float]:
        low, high = (end if math.isfinite(end) else score.value for end in (score.low, score.high))
        return at(low, axis), at(high, axis)

    points = tuple(
        Point(
            name,
            style.replace(" ", "-"),
            at(scores[names[0]].value, 0),
            at(scores[names[1]].value, 1),
            reach(scores[names[0]], 0),
            reach(scores[names[1]], 1),
        )
        for name, style, scores in found
    )
    ticks = tuple((axis, at(value, axis), f"{value:.2f}") for axis in (0, 1) for value in spans[axis])
    return Plane((names[0], names[1]), points, ticks)


def _placed(row: Row, names: Sequence[str]) -> bool:
    known = all(name in row.scores and math.isfinite(row.scores[name].value) for name in names)
    return row.standing in _SHOWN and known


def _profiles(choice: Choice) -> list[tuple[str, Chart]]:
    found = []
    for order, profile in choice.profile.items():
        title = f"{choice.recommended}, {_ORDERS.get(order, order)}"
        described = ", ".join(f"{step} {value:.2f}" for step, value in zip(profile.steps, profile.psi[0], strict=True))
        series = [Series(f"PSI by {profile.measure}", profile.psi, 0.0, "line-0")]
        found.append((order, chart.over_depth(title, f"PSI by {profile.measure}: {described}", profile.steps, series)))
    return found


def _matrix(choice: Choice) -> list[tuple[str, list[str]]]:
    """Rank agreement of the methods, a row each."""
    if choice.likeness is None:
        return []
    table = choice.likeness.by_measure["rank"].tolist()
    return [
        (name, [f"{value:.2f}" if math.isfinite(value) else "" for value in row])
        for name, row in zip(choice.likeness.names, table, strict=True)
    ]


def _gallery(choice: Choice) -> list[tuple[int, str, list[tuple[str, str, str | None]]]]:
    """The samples on which the two best methods differ most: place, picture, and each method's map."""
    pictures = None if choice.likeness is None else choice.likeness.pictures
    if choice.likeness is None or pictures is None:
        return []
    signed = {name: bool((maps < 0).any()) for name, maps in pictures.maps.items()}
    return [
        (
            sample,
            thumbnails.of_input(pictures.inputs[row]),
            [
                (name, "signed" if signed[name] else "unsigned", thumbnails.of_map(maps[row, 0], signed=signed[name]))
                for name, maps in pictures.maps.items()
            ],
        )
        for row, sample in enumerate(choice.likeness.differing)
    ]
