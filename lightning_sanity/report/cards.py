"""Figures as narrow as a dashboard's card: at 350 pixels across, no text is smaller than 9."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_sanity.report import decided, psi, strips
from lightning_sanity.report.curves import sensitivities_apart, similarities_apart
from lightning_sanity.report.illustrated import defined_share
from lightning_sanity.report.maps import picture_of
from lightning_sanity.report.palette import LIGHT
from lightning_sanity.report.style import CARD, KEY, colour_of, headline, key_of_maps, literal, new_figure, scale_of
from lightning_sanity.report.verdicts import hatched, in_training_order, interval, psi_range, threads
from lightning_sanity.report.wording import (
    SYMBOL,
    index_name,
    origin,
    role,
    short_head,
    shown_on_cards,
    step_title,
    subject,
)
from lightning_sanity.result.sanity_result import Outcome, SanityResult

_ROW = 0.46  # inches of a method
_SHARE = 0.16  # inches of the line under a row with blank maps
_BARS = 2.2  # inches that the scale of the index takes; its number stands to the right


def verdicts(result: SanityResult) -> Figure:
    """Every method in two lines: its name and verdict, and its index with the number.

    Controls have rows, here and on the other cards, where they are the reason that the run is not valid.
    """
    names = shown_on_cards(result)
    figure = new_figure(CARD, 1, LIGHT)
    top = _head(figure, result)
    height = top + _ROW * max(1, len(names)) + 0.55
    figure.set_figheight(height)
    _settle(figure)
    axes = figure.add_axes((0.1 / CARD, 0.5 / height, _BARS / CARD, (height - top - 0.5) / height))
    low, high = psi_range(result)
    axes.set(xlim=(low, high), ylim=(max(1, len(names)) - 0.5, -0.5), yticks=[], facecolor="none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=LIGHT.grey, labelcolor=LIGHT.ink, labelsize=7.5)
    axes.set_xticks([tick for tick in (0.0, 0.5, 1.0) if low <= tick <= high])
    least = psi.threshold(result)
    for row, name in enumerate(names):
        _row(axes, row, name, result, (low, high))
    if least is not None:
        for row in (row for row, name in enumerate(names) if math.isfinite(result.verdicts[name].psi)):
            axes.plot([least, least], [row - 0.02, row + 0.42], color=LIGHT.ink, linewidth=1, zorder=1)
    note = f"{index_name(result)}: 0 = ignores the {subject(result)}"
    if any(not math.isfinite(result.verdicts[name].psi) for name in names):
        note = f"{index_name(result)}, hatched where undefined"
    note += "" if least is None else f"; line: passes from {least:g}"
    figure.text(0.1 / CARD, 0.06 / height, note, color=LIGHT.grey, fontsize=7.5)
    return figure


def history(results: Iterable[SanityResult]) -> Figure:
    """Every method's index over training with the threshold, and under it whose line is whose."""
    measured = in_training_order(results)
    latest = measured[-1]
    figure = new_figure(CARD, 1, LIGHT)
    top, plot = _head(figure, latest), 1.7
    axes = figure.add_axes((0, 0, 1, 1))
    threads(axes, measured, LIGHT, ticks=4)
    axes.tick_params(labelsize=7.5)
    handles, labels = axes.get_legend_handles_labels()
    height = top + plot + 0.75 + 0.17 * len(labels)
    figure.set_figheight(height)
    _settle(figure)
    axes.set_position((0.38 / CARD, (height - top - plot) / height, (CARD - 0.5) / CARD, plot / height))
    least = psi.threshold(latest)
    passes = "" if least is None else f"; line: passes from {least:g}"
    note = f"{index_name(latest)} over steps of training{passes}"
    below = height - top - plot - 0.4
    figure.text(0.1 / CARD, below / height, note, color=LIGHT.grey, fontsize=7.5)
    style: dict[str, Any] = {"frameon": False, "fontsize": 7.5, "labelcolor": LIGHT.ink, "borderaxespad": 0.0}
    at = (0.1 / CARD, (below - 0.06) / height)
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=at, handlelength=2.4, borderpad=0.0, **style)
    return figure


def maps(result: SanityResult, sample: int) -> Figure:
    """One sample's maps in four columns: the input, the trained model's map, one half way, and the last.

    Above them verdict and index; under a row with blank maps how many pairs the index rests on.
    """
    pictures = result.pictures
    assert pictures is not None
    if pictures.in_rows:
        return strips.draw(result, sample, LIGHT, CARD)
    names = [name for name in shown_on_cards(result) if name in pictures.maps]
    shares = {name: defined_share(result, name) for name in names}
    depths = len(pictures.depths)
    shown = sorted({(depths + 1) // 2, depths})
    titles = ["input", origin(result), *(step_title(result, pictures.depths[place - 1], 12) for place in shown)]
    width = (CARD - 0.2) / 4 - 0.05
    height = width * pictures.inputs.shape[1] / pictures.inputs.shape[2]
    figure = new_figure(CARD, 1, LIGHT)
    top = _head(figure, result) + 0.32
    below = {name: 0.25 + (_SHARE if shares[name] else 0.0) for name in names}
    figure.set_figheight(top + sum(height + below[name] for name in names) + 0.1 + KEY)
    _settle(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, CARD), ylim=(figure.get_figheight(), 0))
    axes.set_axis_off()
    for column, text in enumerate(titles):
        x = 0.1 + column * (width + 0.05) + width / 2
        axes.text(x, top - 0.03, literal(text), ha="center", va="bottom", color=LIGHT.ink, fontsize=7)
    y = top + 0.2
    for name in names:
        _name(axes, 0.1, CARD - 0.1, y - 0.04, name, result, numbered=True)
        kept = pictures.maps[name][sample]
        scale = scale_of(kept, LIGHT)
        for column, picture in enumerate((pictures.inputs[sample], kept[0], *(kept[place] for place in shown))):
            x = 0.1 + column * (width + 0.05)
            picture_of(axes, picture, (x, x + width, y + height, y), scale, LIGHT)
        axes.text(0.1, y + height + 0.13, shares[name], va="center", color=LIGHT.grey, fontsize=7)
        y += height + below[name]
    axes.set(xlim=(0, CARD), ylim=(figure.get_figheight(), 0))
    key_of_maps(figure, [pictures.maps[name][sample] for name in names], LIGHT)
    return figure


def sensitivity(result: SanityResult) -> Figure:
    """The index after each step, a panel for every method."""
    return sensitivities_apart(result, LIGHT, 1)


def curves(result: SanityResult) -> Figure:
    """The similarities after each step, a panel for every method."""
    return similarities_apart(result, list(dict.fromkeys(key for _, key in result.curves)), LIGHT, 1)


def _head(figure: Figure, result: SanityResult) -> float:
    """Writes the answer; how many inches it takes."""
    title = headline(figure, result, LIGHT)
    title.set(fontsize=9, va="top")
    return 0.2 + 0.17 * len(title.get_text().splitlines()) + (0.0 if result.valid else 0.15)


def _settle(figure: Figure) -> None:
    """Puts the answer on top of a figure whose height is known now."""
    for text in figure.texts:
        text.set_y(1 - 0.08 / figure.get_figheight())


def _row(axes: Axes, row: int, name: str, result: SanityResult, limits: tuple[float, float]) -> None:
    verdict = result.verdicts[name]
    low, high = limits
    end = low + (high - low) * (CARD - 0.2) / _BARS
    _name(axes, low, end, row - 0.08, name, result)
    if math.isfinite(verdict.psi):
        interval(axes, row + 0.2, verdict, limits, colour_of(result, name, LIGHT), LIGHT)
        axes.text(end, row + 0.2, decided.number(verdict), ha="right", va="center", color=LIGHT.ink, fontsize=7.5)
        return
    hatched(axes, row + 0.2, (low, end), LIGHT, 0.4)
    box = {"facecolor": LIGHT.paper, "edgecolor": "none", "pad": 1}
    why = literal(decided.shortened(decided.cause(verdict), 54))
    axes.text(low + 0.03, row + 0.2, why, va="center", color=LIGHT.ink, fontsize=7.5, bbox=box)


def _name(
    axes: Axes, left: float, right: float, y: float, name: str, result: SanityResult, *, numbered: bool = False
) -> None:
    verdict = result.verdicts[name]
    words = f"{SYMBOL[verdict.outcome]} {verdict.outcome.value}"
    if numbered and math.isfinite(verdict.psi):
        words = f"{index_name(result)} {verdict.psi:.2f} {words}"
    room = 46 - len(words) - len(role(name, verdict))
    label = short_head(name, room) + role(name, verdict)
    axes.text(left, y, literal(label), va="bottom", color=LIGHT.ink if verdict.gated else LIGHT.grey, fontsize=8)
    weight = "bold" if verdict.outcome is not Outcome.INCONCLUSIVE else "normal"
    style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8, "fontweight": weight}
    axes.text(right, y, words, color=colour_of(result, name, LIGHT), **style)
