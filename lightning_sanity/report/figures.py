"""Pictures of a result: its curves, maps and verdicts as matplotlib figures.

Every function takes a `SanityResult` and returns a `Figure` that belongs to nobody else: pyplot, which keeps figures
alive and picks a window system, is never imported, and no ``rcParams`` are changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_sanity.report.style import (
    DARK,
    LIGHT,
    SYMBOL,
    Theme,
    dress,
    headline,
    index_name,
    literal,
    new_figure,
    ordered,
    short_head,
    short_tail,
    stage,
    step_title,
    subject,
    wrapped,
)
from lightning_sanity.result import Outcome, SanityResult, Verdict

_POINT = {Outcome.PASS: "o", Outcome.FAIL: "X", Outcome.INCONCLUSIVE: "D"}
_CONTROLS = "controls, not gated:"
_MARKERS = "os^DvPX*<>hd"


def curves(result: SanityResult, similarities: Sequence[str] | None = None, *, dark: bool = False) -> Figure:
    """Similarity of every method's map to the trained model's along the cascade, one panel per similarity.

    The first point is the ceiling: two runs of the explanation of the trained model. Bands hold 95 % of the trials'
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
    styles = _styles(result, theme)
    columns = 1 if len(asked) < 2 else 2
    rows = max(1, math.ceil(len(asked) / 2))
    figure = new_figure(9, max(1.0 + 3.0 * rows, 1.6 + 0.2 * len(styles)), theme)
    headline(figure, result, theme)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for spare in axes[max(1, len(asked)) :]:
        spare.remove()
    for index, name in enumerate(asked):
        _panel(axes[index], result, name, styles, theme)
        _unit_axis(axes[index], result.units, theme, room=26 // columns)
        axes[index].set_title(literal(name), color=theme.ink, fontsize=10, loc="left")
        if index % columns == 0:
            axes[index].set_ylabel("similarity to the trained map", color=theme.ink, fontsize=9)
    if not asked:
        dress(axes[0], theme)
        axes[0].text(0.5, 0.5, "no curves", transform=axes[0].transAxes, ha="center", color=theme.grey)
    figure.supxlabel(stage(result), color=theme.grey, fontsize=9)
    _method_legend(figure, result, styles, theme)
    return figure


def maps(result: SanityResult, sample: int = 0, *, dark: bool = False) -> Figure:
    """One sample's maps, one row per method, from the trained model's to the last step's.

    Each map is scaled by itself, as the result keeps them.

    Args:
        result: What to draw.
        sample: Which of the kept pictures.
        dark: Light ink on dark paper; zero has the colour of the paper either way.

    Raises:
        ValueError: If the result kept no pictures, or no such sample.
    """
    pictures = result.pictures
    if pictures is None or not pictures.maps:
        raise ValueError("this result kept no pictures: inputs are not images, or the test ran with pictures=False")
    if not 0 <= sample < len(pictures.inputs):
        raise ValueError(f"sample must be from 0 to {len(pictures.inputs) - 1}, the pictures kept, not {sample}")
    theme = DARK if dark else LIGHT
    names = [name for name in ordered(result) if name in pictures.maps]
    titles = ["input", "trained", *(step_title(result, depth) for depth in pictures.depths)]
    signed, unsigned = (LinearSegmentedColormap.from_list("", c) for c in (theme.signed, theme.unsigned))
    height, width = (1.1 * side / max(pictures.inputs.shape[1:3]) for side in pictures.inputs.shape[1:3])
    left, gap = 2.15, 0.09
    figure = new_figure(max(6.0, left + len(titles) * (width + gap)), 1, theme, layout="none")
    title = headline(figure, result, theme)
    top = 0.65 + 0.19 * len(title.get_text().splitlines())
    bottom = top + len(names) * (height + gap)
    figure.set_figheight(bottom + 0.35)
    title.set_y(1 - 0.1 / figure.get_figheight())
    # One pair of axes in inches: one for each map would take seconds to lay out.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0))
    axes.set_axis_off()
    for column, text in enumerate(titles):
        x = left + column * (width + gap) + width / 2
        axes.text(x, top - 0.05, literal(text), ha="center", va="bottom", color=theme.ink, fontsize=8)
    for row, name in enumerate(names):
        y = top + row * (height + gap)
        shown = pictures.maps[name][sample]
        _row_label(axes, left - 0.1, y + height / 2, name, result.verdicts[name], theme)
        scale = (signed, -127) if bool((shown < 0).any()) else (unsigned, 0)
        for column, picture in enumerate((pictures.inputs[sample], *shown)):
            x = left + column * (width + gap)
            _picture(axes, picture, (x, x + width, y + height, y), scale, theme)
    zero, positive = ("black", "orange") if dark else ("white", "red")
    caption = f"each map scaled by its own largest value; signed maps: blue negative, {zero} 0, {positive} positive"
    axes.text(figure.get_figwidth() / 2, bottom + 0.2, caption, ha="center", color=theme.grey, fontsize=8)
    return figure


def verdicts(result: SanityResult, *, dark: bool = False) -> Figure:
    """Every method's parameter sensitivity index with its 95 % interval, against the threshold.

    Gated methods come first, controls below a line in grey. If a control came out wrong, a banner says so.
    """
    theme = DARK if dark else LIGHT
    names = ordered(result)
    gated = sum(result.verdicts[name].gated for name in names)
    figure = new_figure(9, 1.35 + 0.34 * max(1, len(names)) + (0.0 if result.valid else 0.5), theme)
    headline(figure, result, theme)
    axes = figure.subplots()
    dress(axes, theme)
    low, high = _psi_range(result)
    axes.set(xlim=(low, high), ylim=(len(names) - 0.4, -0.6))
    _threshold(axes, result, theme)
    if 0 < gated < len(names):
        axes.axhline(gated - 0.5, color=theme.grey, linewidth=0.8)
    for row, name in enumerate(names):
        _forest_row(axes, row, result.verdicts[name], (low, high), theme)
    labels = [short_head(name, 34) + ("" if result.verdicts[name].gated else "  (control)") for name in names]
    axes.set_yticks(range(len(names)), [literal(label) for label in labels])
    axes.set_xticks([k / 4 for k in range(-2, 7) if low <= k / 4 <= high])
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(theme.ink if result.verdicts[name].gated else theme.grey)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.grid(visible=False, axis="y")
    meaning = f"0 = the map ignores the {subject(result)}, 1 = as different as unrelated maps"
    label = f"{index_name(result)} with 95 % interval: {meaning}"
    figure.supxlabel(label, color=theme.grey, fontsize=9)
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
        _line(axes, values[..., None], 1.0, colour, marker=_MARKERS[index], linestyle=("-", "--")[index], label=label)
    axes.set_ylim(top=1.05)
    axes.set_ylabel("agreement with the trained model", color=theme.ink, fontsize=9)
    _unit_axis(axes, result.units, theme, room=34)
    gradient, spread = (float(ratio.nanmean()) for ratio in (change.gradient_ratio, change.spread_ratio))
    axes.set_title(
        "How far the predictions moved\nAt the last step, relative to the trained model: "
        f"input gradient {_ratio(gradient)}, spread of outputs {_ratio(spread)}",
        color=theme.ink,
        fontsize=10,
        loc="left",
    )
    figure.supxlabel(stage(result), color=theme.grey, fontsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=theme.ink, loc="best")
    return figure


# -------------------------------------------------------------------------------------------- curves and their axis


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
        _line(axes, curve.values, float(curve.ceiling.nanmean()), **style)
        floor = float(curve.floor.nanmean())
        axes.plot([end, end * 1.1], [floor, floor], ":", color=style["color"], linewidth=1.5, alpha=0.75)
        if bool(curve.values.isnan().all()):
            undefined.append(short_head(name, 24))
    axes.margins(x=0.02)
    if undefined:
        note = literal("undefined: " + ", ".join(undefined))
        axes.text(0.02, 0.03, note, transform=axes.transAxes, color=theme.grey, fontsize=8)


def _line(axes: Axes, values: Tensor, start: float, color: str, label: str | None = None, **style: Any) -> None:
    """The mean of ``values`` ``(trials, depths, N)`` with its band, from ``start`` at x = 0."""
    drawn = values.nanmean(2) if len(values) > 1 else values[0].T  # (trials or samples, depths)
    low, high = (drawn.nanquantile(q, dim=0).tolist() for q in (0.025, 0.975))
    x = range(values.shape[1] + 1)
    style = {"linewidth": 1.7, "markersize": 4.5, "markevery": max(1, len(x) // 12)} | style
    axes.plot(x, [start, *values.nanmean((0, 2)).tolist()], color=color, label=label, **style)
    axes.fill_between(x, [start, *low], [start, *high], color=color, alpha=0.13, linewidth=0)


def _unit_axis(axes: Axes, units: Sequence[str], theme: Theme, room: int) -> None:
    """Names the depths: all of them where there is room for ``room`` labels, else every k-th and the last."""
    step = math.ceil(len(units) / room)
    shown = [0, *sorted(depth for depth in range(len(units), 0, -step) if depth > step / 2)]
    names = [literal(short_tail(("trained", *units)[depth], 18)) for depth in shown]
    slanted = sum(map(len, names)) + 2 * len(names) > 3 * room
    turned: dict[str, Any] = {"rotation": 38, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(shown, names, fontsize=8, **turned)
    axes.set_xticks(range(len(units) + 1), minor=True)
    axes.tick_params(axis="x", which="minor", length=1.5, color=theme.grey)


def _method_legend(figure: Figure, result: SanityResult, styles: dict[str, dict[str, Any]], theme: Theme) -> None:
    handles, labels, colours = [], [], []
    drawn = {method for method, _ in result.curves}
    for name, style in styles.items():
        verdict = result.verdicts[name]
        if not verdict.gated and _CONTROLS not in labels:
            handles.append(Line2D([], [], linestyle="none"))
            labels.append(_CONTROLS)
            colours.append(theme.grey)
        handles.append(Line2D([], [], **style) if name in drawn else Line2D([], [], linestyle="none"))
        label = f"{SYMBOL[verdict.outcome]} {short_head(name, 30)} - {verdict.outcome.value}"
        labels.append(label if len(label) <= 32 else label.replace(" - ", "\n    - "))
        colours.append(theme.outcome[verdict.outcome] if verdict.gated else theme.grey)
    handles.append(Line2D([], [], linestyle=":", color=theme.grey))
    labels.append("floor: unrelated maps")
    colours.append(theme.grey)
    figure.legend(
        handles,
        [literal(label) for label in labels],
        loc="outside right center",
        frameon=False,
        fontsize=8,
        labelcolor=colours,
        handlelength=2.6,
    )


# -------------------------------------------------------------------------------------------------- forest and maps


def _psi_range(result: SanityResult) -> tuple[float, float]:
    ends = [x for v in result.verdicts.values() for x in (v.psi_low, v.psi_high) if math.isfinite(x)]
    return max(-0.5, min([-0.03, *(x - 0.05 for x in ends)])), min(1.5, max([1.03, *(x + 0.05 for x in ends)]))


def _threshold(axes: Axes, result: SanityResult, theme: Theme) -> None:
    threshold = dict(result.settings.get("criterion") or {}).get("min_psi")
    if threshold is None:
        return
    low, high = axes.get_xlim()
    axes.axvspan(low, threshold, color=theme.outcome[Outcome.FAIL], alpha=0.07, linewidth=0)
    axes.axvspan(threshold, high, color=theme.outcome[Outcome.PASS], alpha=0.07, linewidth=0)
    axes.axvline(threshold, color=theme.ink, linewidth=1.2)
    label = f"passes from {threshold:g}"
    axes.text(threshold, 1.01, label, transform=axes.get_xaxis_transform(), ha="center", color=theme.ink, fontsize=8)


def _forest_row(axes: Axes, row: int, verdict: Verdict, limits: tuple[float, float], theme: Theme) -> None:
    colour = theme.outcome[verdict.outcome] if verdict.gated else theme.grey
    low, high = limits
    if math.isfinite(verdict.psi):
        ends = [
            min(max(x, low), high) if math.isfinite(x) else verdict.psi for x in (verdict.psi_low, verdict.psi_high)
        ]
        axes.plot(ends, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot(min(max(verdict.psi, low), high), row, _POINT[verdict.outcome], color=colour, markersize=8)
        interval = f"{verdict.psi:.2f} [{verdict.psi_low:.2f}, {verdict.psi_high:.2f}]"
    else:
        interval = "undefined"
        axes.text(low + 0.02 * (high - low), row, "undefined", va="center", color=colour, fontsize=9, style="italic")
    columns = (
        (10, f"{SYMBOL[verdict.outcome]} {verdict.outcome.value}", "bold", colour),
        (108, interval, "normal", theme.ink if verdict.gated else theme.grey),
        (
            198,
            "" if verdict.measure is None else literal(f"by {short_head(verdict.measure, 22)}"),
            "normal",
            theme.grey,
        ),
    )
    for offset, text, weight, ink in columns:
        axes.annotate(
            text,
            (1, row),
            (offset, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight=weight,
            color=ink,
        )


def _picture(
    axes: Axes,
    values: Tensor,
    extent: tuple[float, float, float, float],
    scale: tuple[Colormap, int],
    theme: Theme,
) -> None:
    """An input ``(H, W, 3)``, which brings its colours, or a map ``(H, W)``."""
    left, right, bottom, top = extent
    colours, low = scale
    axes.imshow(values.numpy(), cmap=colours, vmin=low, vmax=127, extent=extent, aspect="auto", interpolation="nearest")
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=theme.grid, linewidth=0.8))
    if values.ndim == 2 and not bool(values.any()):
        middle = (left + right) / 2, (top + bottom) / 2
        axes.text(*middle, "blank", ha="center", va="center", color=theme.grey, style="italic", fontsize=9)


def _row_label(axes: Axes, x: float, y: float, name: str, verdict: Verdict, theme: Theme) -> None:
    outcome = f"{SYMBOL[verdict.outcome]} {verdict.outcome.value}"
    colour = theme.outcome[verdict.outcome]
    if not verdict.gated:
        outcome, colour = f"{outcome} (control)", theme.grey
    axes.text(x, y, literal(wrapped(name, 26)), ha="right", va="bottom", color=theme.ink, fontsize=9)
    axes.text(x, y + 0.03, outcome, ha="right", va="top", color=colour, fontsize=9, fontweight="bold")


def _ratio(value: float) -> str:
    return "undefined" if math.isnan(value) else f"\N{MULTIPLICATION SIGN}{value:.2g}"
