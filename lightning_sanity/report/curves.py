"""What happens along the cascade: similarities, the parameter sensitivity index, and the predictions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import TICKDOWN
from torch import Tensor

from lightning_sanity.report import decided, psi
from lightning_sanity.report.palette import DARK, LIGHT, Theme
from lightning_sanity.report.style import CARD, arrange, colour_of, dress, headline, literal, new_figure
from lightning_sanity.report.wording import (
    SYMBOL,
    crowded,
    index_name,
    labelled,
    measure_title,
    ordered,
    origin,
    passing,
    reference,
    role,
    short_head,
    shown_on_cards,
    stage,
    step_names,
    subject,
)
from lightning_sanity.result.sanity_result import SanityResult

_CONTROLS = "controls, not gated:"
_COLUMNS = 3
_MARKERS = "os^DvPX*<>hd"


def curves(result: SanityResult, similarities: Sequence[str] | None = None, *, dark: bool = False) -> Figure:
    """Similarity of every method's map to the trained model's along the cascade, one panel per similarity.

    More than six gated methods have a panel each instead, with a line per similarity.

    The first point is the ceiling: what the same model gives. Bands hold 95 % of the trials'
    means over samples, or of the samples where there is one trial. A dotted level at the right is the floor: maps of
    unrelated models and inputs. A point without a defined value leaves a gap.

    Args:
        result: What to draw.
        similarities: Their names and order; by default those the test was asked for.
        dark: Light ink on dark paper.

    Raises:
        ValueError: If the result has no curve of a similarity.
    """
    occurring = list(dict.fromkeys(similarity for _, similarity in result.curves))
    asked = [similarities] if isinstance(similarities, str) else similarities
    if asked is None:
        asked = [name for name in result.settings.get("similarities", ()) if name in occurring] or occurring
    for name in asked:
        if name not in occurring:
            raise ValueError(f"no curve of '{name}' in this result; choose from: {', '.join(occurring) or 'none'}")
    theme = DARK if dark else LIGHT
    if crowded(result):
        return similarities_apart(result, asked, theme)
    styles = _styles(result, theme)
    columns = 1 if len(asked) < 2 else 2
    rows = max(1, math.ceil(len(asked) / 2))
    figure = new_figure(9, max(1.0 + 3.0 * rows, 1.6 + 0.2 * len(styles)), theme)
    headline(figure, result, theme)
    axes = [figure.add_subplot(rows, columns, 1 + place) for place in range(max(1, len(asked)))]
    for index, name in enumerate(asked):
        _panel(axes[index], result, name, styles, theme)
        _unit_axis(axes[index], result, theme, room=26 // columns)
        axes[index].set_title(
            literal(measure_title(name).replace(" (", "\n(")), color=theme.ink, fontsize=10, loc="left"
        )
        if index % columns == 0:
            axes[index].set_ylabel(f"similarity to the {reference(result)}'s map", color=theme.ink, fontsize=9)
    if not asked:
        dress(axes[0], theme)
        axes[0].text(0.5, 0.5, "no curves", transform=axes[0].transAxes, ha="center", color=theme.grey)
    figure.supxlabel(stage(result), color=theme.grey, fontsize=9)
    _method_legend(figure, result, styles, theme, {method for method, _ in result.curves})
    arrange(figure, axes, columns)
    return figure


def sensitivity(result: SanityResult, *, dark: bool = False) -> Figure:
    """Every method's parameter sensitivity index after each step, by the measure that decided, with 95 % intervals.

    Where a curve rises is where the map lets go of the trained model. The verdict rests on its mean over the steps,
    with an interval of its own. More than six gated methods have a panel each. Methods without a PSI, and controls
    without one, are named in the legend, or in their panel, alone.

    Args:
        result: What to draw.
        dark: Light ink on dark paper.
    """
    theme = DARK if dark else LIGHT
    if crowded(result):
        return sensitivities_apart(result, theme)
    styles = _styles(result, theme)
    lines = sum(2 if len(name) + len(result.verdicts[name].outcome.value) < 28 else 3 for name in styles)
    figure = new_figure(9, max(4.2, 1.2 + 0.165 * lines), theme)
    headline(figure, result, theme)
    axes = figure.subplots()
    dress(axes, theme)
    found = {name: psi.over_depth(result, name) for name in styles}
    drawn = {name: band for name, band in found.items() if band is not None}
    for name, band in drawn.items():
        _line(axes, band, 0.0, **styles[name])
    ends = torch.cat([band[0] for band in drawn.values()]) if drawn else torch.zeros(0)
    known = [*ends[ends.isfinite()].tolist(), 0.0, 1.0]
    # Intervals of a method with few defined pairs reach far out; the curves have to stay legible.
    axes.set_ylim(max(-0.6, min(known) - 0.12), min(1.7, max(known) + 0.12))
    levels = {"unrelated maps": 1.0, f"the {_whose(result)} map": 0.0}
    if (least := psi.threshold(result)) is not None:
        levels[passing(result, least).replace(" on", "\non")] = least
    end = len(result.units)
    for text, level in levels.items():
        axes.axhline(level, color=theme.ink, linewidth=1.0, linestyle=":" if level in (0, 1) else "-", zorder=1)
        box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}
        axes.text(1.03 * end, level, text, color=theme.grey, fontsize=8, va="center", bbox=box)
    axes.set_xlim(-0.02 * end, 1.25 * end)
    axes.set_ylabel(f"{index_name(result)}: 0 = ignores the {subject(result)}", color=theme.ink, fontsize=9)
    _unit_axis(axes, result, theme, room=26)
    if not drawn:
        axes.text(0.5, 0.5, "no index is defined", transform=axes.transAxes, ha="center", color=theme.grey)
    figure.supxlabel(stage(result), color=theme.grey, fontsize=9)
    _method_legend(figure, result, styles, theme, set(drawn), by_measure=True)
    arrange(figure, [axes])
    return figure


def output_change(result: SanityResult, *, dark: bool = False) -> Figure:
    """How far the predictions moved along the cascade: if they did not, no map had a reason to change."""
    theme = DARK if dark else LIGHT
    change = result.output_change
    figure = new_figure(9, 4, theme)
    axes = figure.subplots()
    dress(axes, theme)
    shown = (("same predicted class", change.agreement), ("correlation of outputs", change.correlation))
    for index, (label, values) in enumerate(shown):
        if bool(values.isnan().all()):
            label += " (undefined)"
        colour = theme.lines[index]
        _line(
            axes,
            psi.spread(values[..., None]),
            1.0,
            colour,
            marker=_MARKERS[index],
            linestyle=("-", "--")[index],
            label=label,
        )
    axes.set_ylim(top=1.05)
    axes.set_ylabel(f"agreement with the {reference(result)}", color=theme.ink, fontsize=9)
    _unit_axis(axes, result, theme, room=34)
    gradient, spread = (float(ratio.nanmean()) for ratio in (change.gradient_ratio, change.spread_ratio))
    axes.set_title(
        f"How far the predictions moved\n{_moved(result)}, relative to the {reference(result)}: "
        f"input gradient {_ratio(gradient)}, spread of outputs {_ratio(spread)}",
        color=theme.ink,
        fontsize=10,
        loc="left",
    )
    figure.supxlabel(stage(result), color=theme.grey, fontsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=theme.ink, loc="best")
    arrange(figure, [axes])
    return figure


def _apart(result: SanityResult, theme: Theme, columns: int) -> tuple[Figure, dict[str, Axes]]:
    """A panel for every method, controls last, all on one scale."""
    names = ordered(result) if columns > 1 else shown_on_cards(result)
    rows = math.ceil(len(names) / columns)
    figure = new_figure(9 if columns > 1 else CARD, 1.3 + (1.75 if columns > 1 else 1.3) * rows, theme)
    title = headline(figure, result, theme)
    title.set_fontsize(11 if columns > 1 else 9)
    panels: dict[str, Axes] = {}
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, 1 + place)
        dress(axes, theme)
        verdict = result.verdicts[name]
        words = f"{SYMBOL[verdict.outcome]} {short_head(name, 30)}{role(name, verdict)}"
        colour = colour_of(result, name, theme)
        axes.set_title(literal(words), color=colour, fontsize=9, loc="left")
        axes.set_xlim(-0.02 * len(result.units), 1.02 * len(result.units))
        panels[name] = axes
    last, steps = list(panels.values())[-columns:], len(result.units)
    end_name = f"step {steps}" if steps > 1 else result.units[0]
    for axes in panels.values():
        ends = [origin(result), end_name] if axes in last else ["", ""]
        axes.set_xticks([0, len(result.units)], ends, fontsize=8)
        first, end = axes.get_xticklabels()
        first.set_horizontalalignment("left")
        end.set_horizontalalignment("right")
    return figure, panels


def _noted(figure: Figure, result: SanityResult, theme: Theme, note: str) -> None:
    """Says under the panels what is drawn, and what the axis is."""
    lines = "\n".join(textwrap.fill(text, int(13 * figure.get_figwidth())) for text in (note, stage(result)) if text)
    figure.supxlabel(lines, color=theme.grey, fontsize=9)


def similarities_apart(
    result: SanityResult, similarities: Sequence[str], theme: Theme, columns: int = _COLUMNS
) -> Figure:
    """A panel for every method with a line per similarity; one column is as wide as a dashboard's card."""
    figure, panels = _apart(result, theme, columns)
    styles: dict[str, dict[str, Any]] = {
        name: {"color": theme.lines[k % len(theme.lines)], "marker": _MARKERS[k % len(_MARKERS)]}
        for k, name in enumerate(similarities)
    }
    for method, axes in panels.items():
        drawn = [name for name in similarities if (method, name) in result.curves]
        for name in drawn:
            curve = result.curves[method, name]
            _line(axes, psi.spread(curve.values), float(curve.ceiling.nanmean()), **styles[name])
        if all(bool(result.curves[method, name].values.isnan().all()) for name in drawn):
            axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", color=theme.grey, fontsize=9)
    _one_scale(panels, columns)
    handles = [Line2D([], [], **style) for style in styles.values()]
    names = [literal(short_head(name, 24)) for name in styles]
    where: dict[str, Any] = {"loc": "center right"} if columns > 1 else {"loc": "upper left", "ncols": 2}
    figure.legend(handles, names, frameon=False, fontsize=8, labelcolor=theme.ink, **where)
    pooled = "pairs of models" if subject(result) == "labels" else "trials"
    _noted(figure, result, theme, f"similarity to the {reference(result)}'s map; bands hold 95 % of the {pooled}")
    arrange(figure, list(panels.values()), columns)
    return figure


def sensitivities_apart(result: SanityResult, theme: Theme, columns: int = _COLUMNS) -> Figure:
    """A panel for every method with its index; one column is as wide as a dashboard's card."""
    figure, panels = _apart(result, theme, columns)
    least = psi.threshold(result)
    for method, axes in panels.items():
        verdict, band = result.verdicts[method], psi.over_depth(result, method)
        colour = colour_of(result, method, theme)
        for level in (0.0, 1.0):
            axes.axhline(level, color=theme.ink, linewidth=0.8, linestyle=":", zorder=1)
        if least is not None:
            axes.axhline(least, color=theme.ink, linewidth=0.8, zorder=1)
        words = f"{decided.number(verdict)} by {short_head(verdict.measure or '', 18)}"
        if band is None:
            words = decided.shortened(f"undefined: {decided.cause(verdict)}", 34)
        else:
            _line(axes, band, 0.0, colour, marker="")
        box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1}
        place = axes.transAxes
        axes.text(0.03, 0.94, literal(words), transform=place, va="top", color=theme.ink, fontsize=8, bbox=box)
    _one_scale(panels, columns, (-0.2, 1.55))
    ends = f"dotted: 0, the {_whose(result)} map, and 1, unrelated maps"
    passes = "" if least is None else f"line: {passing(result, least)}; "
    _noted(figure, result, theme, f"{index_name(result)}; {passes}{ends}")
    arrange(figure, list(panels.values()), columns)
    return figure


def _one_scale(panels: dict[str, Axes], columns: int, limits: tuple[float, float] | None = None) -> None:
    ends = [axes.get_ylim() for axes in panels.values()]
    low, high = limits or (max(-1.1, min(end[0] for end in ends)), min(1.2, max(end[1] for end in ends)))
    for place, axes in enumerate(panels.values()):
        axes.set_ylim(low, high)
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"] if place % columns == 0 else [""] * 3)


def _styles(result: SanityResult, theme: Theme) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each method, gated first; beyond the number of colours the dashes differ."""
    found: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(ordered(result)):
        style: dict[str, Any] = {"marker": _MARKERS[index % len(_MARKERS)], "color": theme.grey}
        if result.verdicts[name].gated:
            style["color"] = theme.lines[index % len(theme.lines)]
            style["linestyle"] = ("-", "-.", ":")[index // len(theme.lines) % 3]
        else:
            style |= {"linestyle": (0, (5, 2)), "linewidth": 0.9, "zorder": 1.5}
        found[name] = style
    return found


def _panel(axes: Axes, result: SanityResult, similarity: str, styles: dict[str, dict[str, Any]], theme: Theme) -> None:
    dress(axes, theme)
    end = len(result.units)
    undefined = []
    for name, style in styles.items():
        curve = result.curves.get((name, similarity))
        if curve is None:
            continue
        _line(axes, psi.spread(curve.values), float(curve.ceiling.nanmean()), **style)
        floor = float(curve.floor.nanmean())
        axes.plot([end, end * 1.1], [floor, floor], ":", color=style["color"], linewidth=1.5, alpha=0.75)
        if bool(curve.values.isnan().all()):
            undefined.append(short_head(name, 24))
    axes.margins(x=0.02)
    if undefined:
        note = literal("undefined: " + ", ".join(undefined))
        axes.text(0.02, 0.03, note, transform=axes.transAxes, color=theme.grey, fontsize=8)


def _line(axes: Axes, band: Tensor, start: float, color: str, label: str | None = None, **style: Any) -> None:
    """A line with its band, ``(3, depths)``: value, low, high; from ``start`` at x = 0."""
    middle, low, high = ([start, *row] for row in band.tolist())
    x = range(len(middle))
    style = {"linewidth": 1.7, "markersize": 4.5, "markevery": max(1, len(x) // 12)} | style
    axes.plot(x, middle, color=color, label=label, **style)
    axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)


def _whose(result: SanityResult) -> str:
    """Whose map an index of 0 is like."""
    return reference(result).removesuffix(" model")


def _moved(result: SanityResult) -> str:
    """Whose predictions moved."""
    return "Random-label models" if subject(result) == "labels" else "At the last step"


def _unit_axis(axes: Axes, result: SanityResult, theme: Theme, room: int) -> None:
    """Names the depths: all of them where there is room for ``room`` labels, else every k-th and the last."""
    depths = len(result.units)
    shown = labelled(depths, room)
    every = (origin(result), *step_names(result.units, 18))
    names = [literal(every[depth]) for depth in shown]
    slanted = sum(map(len, names)) + 2 * len(names) > 3 * room
    turned: dict[str, Any] = {"rotation": 38, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    # One artist for all marks: a minor tick consists of five, which together take longer than the rest of the panel.
    marks: dict[str, Any] = {"marker": TICKDOWN, "s": 2.5, "linewidths": 0.6, "color": theme.grey, "clip_on": False}
    axes.scatter(range(depths + 1), [0.0] * (depths + 1), transform=axes.get_xaxis_transform(), **marks)
    axes.set_xticks(shown, names, fontsize=8, **turned)  # after all else: it widens the axis to hold them


def _method_legend(
    figure: Figure,
    result: SanityResult,
    styles: dict[str, dict[str, Any]],
    theme: Theme,
    drawn: set[str],
    *,
    by_measure: bool = False,
) -> None:
    """Every method with its verdict; those drawn with their line, and the measure or the floor that it stands for."""
    handles, labels, colours = [], [], []
    for name, style in styles.items():
        verdict = result.verdicts[name]
        if not verdict.gated and _CONTROLS not in labels:
            handles.append(Line2D([], [], linestyle="none"))
            labels.append(_CONTROLS)
            colours.append(theme.grey)
        handles.append(Line2D([], [], **style) if name in drawn else Line2D([], [], linestyle="none"))
        label = f"{SYMBOL[verdict.outcome]} {short_head(name, 30)} - {verdict.outcome.value}"
        label = label if len(label) <= 32 else label.replace(" - ", "\n    - ")
        if by_measure:
            label += f"\n    by {short_head(verdict.measure or '', 24)}" if name in drawn else "\n    undefined"
        labels.append(label)
        colours.append(colour_of(result, name, theme))
    if not by_measure:
        handles.append(Line2D([], [], linestyle=":", color=theme.grey))
        labels.append("floor: unrelated maps")
        colours.append(theme.grey)
    figure.legend(
        handles,
        [literal(label) for label in labels],
        loc="center right",
        frameon=False,
        fontsize=8,
        labelcolor=colours,
        handlelength=2.6,
    )


def _ratio(value: float) -> str:
    return "undefined" if math.isnan(value) else f"\N{MULTIPLICATION SIGN}{value:.2g}"
