"""Line charts for a page: coordinates that a template draws as SVG, in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sanity.report.wording import labelled, step_names

WIDTH, HEIGHT = 400, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 14, 12, 74


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: What it shows.
        band: Value, low and high at each depth, ``(3, depths)``; NaN leaves a gap.
        start: Value of what nothing was made random in, left of the first depth.
        style: Class for the page's style sheet.
        floor: A level to mark at the right edge; NaN for none.
        filled: Whether to draw the band.
    """

    label: str
    band: Tensor
    start: float
    style: str
    floor: float = math.nan
    filled: bool = True


@dataclass(frozen=True)
class Line:
    """A series in the chart's coordinates: SVG path data of its line, of its band, and of its floor."""

    label: str
    style: str
    path: str
    band: str
    floor: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """A chart in its own coordinates, ``WIDTH`` x ``HEIGHT``, origin at the top left.

    Attributes:
        title: Its name.
        description: What it shows, for readers who do not see it.
        lines: In drawing order.
        x_ticks: Position and name of the labelled depths.
        y_ticks: Position and value of the grid lines.
        levels: Position and name of reference lines.
    """

    title: str
    description: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    levels: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def over_depth(
    title: str,
    description: str,
    units: Sequence[str],
    series: Sequence[Series],
    levels: Mapping[str, float] | None = None,
    *,
    start: str = "trained",
    reach: tuple[float, float] = (-0.6, 1.6),
) -> Chart:
    """A chart over the depth of a cascade.

    Args:
        title: Its name.
        description: What it shows in words.
        units: Names of the depths.
        series: The lines, the most important last.
        levels: Reference lines.
        start: Name of what stands before the first depth.
        reach: How far the vertical axis follows the lines; what lies beyond is drawn at its edge.
    """
    levels = dict(levels or {})
    low, high = _limits(series, [*levels.values(), 0.0, 1.0], reach)

    def x(depth: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * depth / (len(units) + 0.35), 1)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (high - inside) / (high - low), 1)

    def line(one: Series) -> Line:
        middle, lower, upper = ([one.start, *row] for row in one.band.tolist())
        points = [(x(depth), y(value)) for depth, value in enumerate(middle) if math.isfinite(value)]
        band = _filled(lower, upper, x, y) if one.filled else ""
        floor = ""
        if math.isfinite(one.floor):
            floor = f"M{x(len(units))} {y(one.floor)}H{x(len(units) + 0.35)}"
        return Line(one.label, one.style, _line(middle, x, y), band, floor, tuple(points))

    names = (start, *step_names(units, 14))
    step = 0.25 if high - low < 1.6 else 0.5
    ticks = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Chart(
        title,
        description,
        tuple(line(one) for one in series),
        tuple((x(depth), names[depth]) for depth in labelled(len(units), 9)),
        tuple((y(tick), f"{tick:g}") for tick in ticks),
        tuple((y(level), name) for name, level in levels.items()),
    )


def _limits(series: Sequence[Series], extra: list[float], reach: tuple[float, float]) -> tuple[float, float]:
    values = torch.cat([torch.tensor([*extra, *(one.start for one in series)]), *(one.band[0] for one in series)])
    known = values[values.isfinite()]
    return max(reach[0], float(known.min()) - 0.08), min(reach[1], float(known.max()) + 0.08)


def _line(values: Sequence[float], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """Path through the defined values; a new stroke after each gap."""
    path, drawing = [], False
    for depth, value in enumerate(values):
        if math.isfinite(value):
            path.append(f"{'L' if drawing else 'M'}{x(depth)} {y(value)}")
        drawing = math.isfinite(value)
    return "".join(path)


def _filled(
    low: Sequence[float], high: Sequence[float], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """Path around every run of defined ends."""
    path: list[str] = []
    run: list[int] = []
    for depth in range(len(low) + 1):
        if depth < len(low) and math.isfinite(low[depth]) and math.isfinite(high[depth]):
            run.append(depth)
            continue
        if len(run) > 1:
            ends = [f"{x(k)} {y(high[k])}" for k in run] + [f"{x(k)} {y(low[k])}" for k in reversed(run)]
            path.append("M" + "L".join(ends) + "Z")
        run = []
    return "".join(path)
