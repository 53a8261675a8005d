"""What the figures share: paper and axes, the headline, and text that matplotlib takes literally."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from lightning_sanity.report.palette import Theme
from lightning_sanity.report.wording import SYMBOL, answer
from lightning_sanity.result.sanity_result import SanityResult

CARD = 3.5  # inches; a dashboard shows such a figure at about 100 pixels an inch
KEY = 0.42  # inches of a scale of maps, with its words
_BAR, _BLOCK, _STEPS = 0.7, 1.3, 14  # inches of its bar, of it with its ends; its colours beside the first
_PAD = 8.0  # pixels between what must not touch


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """An empty figure that draws itself with Agg, wherever it ends up."""
    none: Any = "none"  # whatever the user's own default is
    figure = Figure(figsize=(width, height), dpi=100, layout=none, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def arrange(figure: Figure, panels: Sequence[Axes], columns: int = 1) -> None:
    """Place panels, row by row, on the paper that headline, axis title and legend leave, with room for their texts.

    Measures every text once; matplotlib's constrained layout measures each several times, which takes longer than to
    draw it.
    """
    width, height = figure.bbox.size
    low, high, right = _PAD, height - _PAD, width - _PAD
    for text in figure.texts:
        on_top = text.get_position()[1] > 0.5
        text.set_y(1 - _PAD / height if on_top else _PAD / height)
        box = text.get_window_extent()
        low, high = (low, box.y0 - _PAD) if on_top else (box.y1 + _PAD, high)
    for legend in figure.legends:
        if legend.get_window_extent().x0 > width / 4:
            right = min(right, legend.get_window_extent().x0 - _PAD)
        else:  # it stands above the panels, under the headline
            legend.set_bbox_to_anchor((0.0, high / height))
            high = legend.get_window_extent().y0 - _PAD
    reach = [_reach(axes) for axes in panels]  # left, right, below, above
    rows = [reach[start : start + columns] for start in range(0, len(reach), columns)]
    across = [[max(r[side] for r in reach[column::columns]) for side in (0, 1)] for column in range(columns)]
    down = [[max(r[side] for r in row) for side in (2, 3)] for row in rows]
    wide = (right - _PAD - sum(map(sum, across)) - _PAD * (columns - 1)) / columns
    tall = (high - low - sum(map(sum, down)) - _PAD * (len(rows) - 1)) / len(rows)
    for place, axes in enumerate(panels):
        row, column = divmod(place, columns)
        x = _PAD + sum(map(sum, across[:column])) + column * (wide + _PAD) + across[column][0]
        y = high - sum(map(sum, down[:row])) - row * (tall + _PAD) - down[row][1] - tall
        axes.set_position((x / width, y / height, wide / width, tall / height))


def _reach(axes: Axes) -> tuple[float, float, float, float]:
    """How many pixels the texts of a panel reach out of it: left, right, below, above."""
    panel, rows = axes.bbox, [label for label in axes.get_yticklabels() if label.get_text()]
    texts = [*axes.get_xticklabels(), *(child for child in axes.get_children() if isinstance(child, Text))]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    left = max([panel.x0 - label.get_window_extent().x0 for label in rows], default=0.0)
    if axes.yaxis.label.get_text():  # it stands beside the labels of the ticks, but only once it is drawn
        left += axes.yaxis.label.get_window_extent().width + _PAD
    return (
        max([left, *(panel.x0 - box.x0 for box in boxes)]),
        max([0.0, *(box.x1 - panel.x1 for box in boxes)]),
        max([0.0, *(panel.y0 - box.y0 for box in boxes)]),
        max([0.0, *(box.y1 - panel.y1 for box in boxes)]),
    )


def scale_of(row: Iterable[Tensor], theme: Theme) -> tuple[Colormap, int]:
    """The colours of one method's maps, and the value at which they begin."""
    signed = any(bool((values < 0).any()) for values in row)
    return LinearSegmentedColormap.from_list("", theme.signed if signed else theme.unsigned), -127 if signed else 0


def key_of_maps(figure: Figure, rows: Iterable[Tensor], theme: Theme, what: str = "map") -> None:
    """One small scale at the foot of a figure, ``KEY`` inches high: what the colours of its maps mean.

    Args:
        figure: Its height is settled.
        rows: All maps of it, a tensor for each method.
        theme: Whose colours they have.
        what: One of them.
    """
    scales = sorted({scale_of([row], theme)[1] for row in rows})
    bars = []
    for low in scales:
        colours = LinearSegmentedColormap.from_list("", theme.signed if low else theme.unsigned)
        shades = [to_hex(colours(k / _STEPS)) for k in range(_STEPS + 1)]
        bars.append(("\N{MINUS SIGN}", shades, "+") if low else ("0", shades, "most"))
    key(figure, bars, f"each {what} on its own scale, full from its 99th percentile on", theme)


def key(figure: Figure, bars: Sequence[tuple[str, Sequence[str], str]], words: str, theme: Theme) -> None:
    """Bars of colours between their ends, and words below, at the foot of a figure whose height is settled."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, KEY / height))
    axes.set(xlim=(0, width), ylim=(0, KEY))
    axes.set_axis_off()
    style: dict[str, Any] = {"va": "center", "color": theme.grey, "fontsize": 7.5}
    axes.text(width / 2, 0.12, words, ha="center", **style)
    for place, (least, colours, most) in enumerate(bars):
        start = width / 2 - len(bars) * _BLOCK / 2 + place * _BLOCK + 0.16
        side = _BAR / len(colours)
        starts = [start + k * side for k in range(len(colours))]
        boxes = [[(x, 0.26), (x + side, 0.26), (x + side, 0.36), (x, 0.36)] for x in starts]
        axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="none"))
        axes.text(start - 0.04, 0.31, least, ha="right", **style)
        axes.text(start + _BAR + 0.04, 0.31, most, ha="left", **style)


def colour_of(result: SanityResult, name: str, theme: Theme) -> str:
    """The colour of a method's outcome; grey if it is not gated, or if no verdict can be trusted."""
    verdict = result.verdicts[name]
    return theme.outcome[verdict.outcome] if verdict.gated and result.valid else theme.grey


def dress(axes: Axes, theme: Theme) -> None:
    """Axes for data: left and bottom line, a faint horizontal grid."""
    axes.set_facecolor(theme.paper)
    axes.grid(visible=True, axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.grey)
    axes.tick_params(colors=theme.grey, labelcolor=theme.ink, labelsize=8)


def headline(figure: Figure, result: SanityResult, theme: Theme) -> Text:
    """The answer in one line on top; if the run is not valid, a banner with the reason."""
    outcome, text = answer(result)
    lines = textwrap.fill(f"{SYMBOL[outcome]} {text}", int(figure.get_figwidth() * 10.5), break_on_hyphens=False)
    style: dict[str, Any] = {"x": 0.01, "ha": "left"}
    if not result.valid:
        lines = textwrap.fill(
            f"! NOT VALID, no verdict can be trusted: {result.validity}",
            int(figure.get_figwidth() * 10),
            break_on_hyphens=False,
        )
        box = {
            "boxstyle": "round,pad=0.3",
            "facecolor": theme.paper,
            "edgecolor": theme.outcome[outcome],
            "linewidth": 2,
        }
        style = {"x": 0.5, "ha": "center", "bbox": box}
    return figure.suptitle(literal(lines), color=theme.outcome[outcome], fontsize=11, fontweight="bold", **style)


def literal(text: str) -> str:
    """The same text for matplotlib: a dollar sign in a user's name must not start a formula."""
    return text.replace("$", r"\$")
