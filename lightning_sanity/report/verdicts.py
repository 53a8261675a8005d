"""The verdicts: where each method stands, how its samples spread, and how that moved while training."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_sanity.report import decided, psi
from lightning_sanity.report.palette import DARK, LIGHT, Theme
from lightning_sanity.report.style import arrange, colour_of, dress, headline, literal, new_figure
from lightning_sanity.report.wording import SYMBOL, index_name, labelled, ordered, role, short_head, subject
from lightning_sanity.result.sanity_result import Outcome, SanityResult, Verdict

_POINT = {Outcome.PASS: "o", Outcome.FAIL: "X", Outcome.INCONCLUSIVE: "D"}


def verdicts(result: SanityResult, *, dark: bool = False) -> Figure:
    """Every method's parameter sensitivity index with its 95 % interval, against the threshold.

    Gated methods come first, failing ones on top, controls below a line in grey. A mark is hollow where no measure
    decided; what is undefined is hatched; an arrow with its number lies off the scale.
    If a control came out wrong, a banner says so.
    """
    theme = DARK if dark else LIGHT
    names = ordered(result)
    gated = sum(result.verdicts[name].gated for name in names)
    figure = new_figure(9, 1.35 + 0.34 * max(1, len(names)) + (0.0 if result.valid else 0.5), theme)
    headline(figure, result, theme)
    axes = figure.subplots()
    dress(axes, theme)
    low, high = psi_range(result)
    axes.set(xlim=(low, high), ylim=(len(names) - 0.4, -0.6))
    _threshold(axes, result, theme)
    if 0 < gated < len(names):
        axes.axhline(gated - 0.5, color=theme.grey, linewidth=0.8)
    for row, name in enumerate(names):
        _forest_row(axes, row, result.verdicts[name], (low, high), theme, colour_of(result, name, theme))
    _method_rows(axes, result, names, theme)
    axes.set_xticks([k / 4 for k in range(-2, 7) if low <= k / 4 <= high])
    figure.supxlabel(f"{index_name(result)} with 95 % interval: {_scale(result)}", color=theme.grey, fontsize=9)
    arrange(figure, [axes])
    return figure


def samples(result: SanityResult, *, dark: bool = False) -> Figure:
    """How the parameter sensitivity index of each method spreads over the samples.

    A dot per sample, a bar from quartile to quartile, a line at the median. A verdict is about the mean: a wide or
    split row says that the method answers differently for different inputs.
    """
    theme = DARK if dark else LIGHT
    names = ordered(result)
    figure = new_figure(9, 1.35 + 0.34 * max(1, len(names)) + (0.0 if result.valid else 0.5), theme)
    headline(figure, result, theme)
    axes = figure.subplots()
    dress(axes, theme)
    low, high = -0.5, 1.5
    axes.set(xlim=(low, high), ylim=(len(names) - 0.4, -0.6))
    _threshold(axes, result, theme)
    for row, name in enumerate(names):
        found = psi.of_samples(result, name)
        known = None if found is None else found[found.isfinite()]
        colour = colour_of(result, name, theme)
        if known is None or not len(known):
            hatched(axes, row, (low, high), theme)
            box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}
            axes.text(low + 0.02, row, "undefined", va="center", color=theme.ink, fontsize=9, bbox=box)
            continue
        shown = known.clamp(low, high)
        first, median, third = (float(shown.quantile(q)) for q in (0.25, 0.5, 0.75))
        axes.barh(row, third - first, left=first, height=0.52, color=colour, alpha=0.18)
        # Every dot at its own height in its row, or equal values would hide one another.
        heights = [row + 0.2 * (((7 * k) % 11) / 5 - 1) for k in range(len(shown))]
        axes.plot(shown.tolist(), heights, "o", color=colour, alpha=0.55, markersize=3.2, markeredgewidth=0)
        axes.plot([median, median], [row - 0.3, row + 0.3], color=theme.ink, linewidth=1.6)
    _method_rows(axes, result, names, theme)
    axes.set_xticks([k / 4 for k in range(-2, 7)])
    figure.supxlabel(f"{index_name(result)} of each sample: {_scale(result)}", color=theme.grey, fontsize=9)
    arrange(figure, [axes])
    return figure


def history(results: str | os.PathLike[str] | Iterable[SanityResult], *, dark: bool = False) -> Figure:
    """Every gated method's parameter sensitivity index while the model trained, with 95 % intervals.

    Args:
        results: Results with their steps in any order, or the folder to which the callback wrote ``step=<n>.json``.
        dark: Light ink on dark paper.

    Raises:
        ValueError: If there is no result, or one has no step.
    """
    theme = DARK if dark else LIGHT
    measured = in_training_order(results)
    latest = measured[-1]
    figure = new_figure(9, 4, theme)
    headline(figure, latest, theme)
    axes = figure.subplots()
    threads(axes, measured, theme)
    threshold = psi.threshold(latest)
    if threshold is not None:
        axes.text(
            1.0,
            threshold,
            f"passes from {threshold:g}",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            color=theme.grey,
            fontsize=8,
        )
    axes.set_ylabel(f"{index_name(latest)}: 0 = ignores the {subject(latest)}", color=theme.ink, fontsize=9)
    changed = len({result.probe_digest for result in measured}) > 1
    points = (
        "step of training;  \N{BLACK CIRCLE} PASS   \N{HEAVY MULTIPLICATION X} FAIL   \N{BLACK DIAMOND} INCONCLUSIVE"
    )
    if changed:
        points += "\nthe probe changed on the way: points of different probes do not compare"
    figure.supxlabel(points, color=theme.grey, fontsize=9)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="center right", frameon=False, fontsize=8, labelcolor=theme.ink, handlelength=2.6)
    arrange(figure, [axes])
    return figure


def threads(axes: Axes, measured: Sequence[SanityResult], theme: Theme, *, ticks: int = 8) -> None:
    """Every gated method's index over training with its interval, a mark for each verdict, and the threshold.

    Args:
        axes: Where to draw.
        measured: The results, in the order of training.
        theme: Colours.
        ticks: So many steps are named at most.
    """
    dress(axes, theme)
    names = list(dict.fromkeys(name for r in measured for name in ordered(r) if r.verdicts[name].gated))
    steps = [result.step or 0 for result in measured]
    for place, name in enumerate(names):
        colour = theme.lines[place % len(theme.lines)]
        dashes = ("-", "-.", ":")[place // len(theme.lines) % 3]
        verdicts_ = [result.verdicts.get(name) for result in measured]
        middle, low, high = (
            [math.nan if v is None else getattr(v, end) for v in verdicts_] for end in ("psi", "psi_low", "psi_high")
        )
        axes.plot(steps, middle, color=colour, linestyle=dashes, linewidth=1.7, label=literal(short_head(name, 30)))
        axes.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)
        for step, value, verdict in zip(steps, middle, verdicts_, strict=True):
            if verdict is not None:
                axes.plot(step, value, _POINT[verdict.outcome], color=colour, markersize=6)
    axes.set_ylim(-0.1, 1.25)
    axes.set_xticks(sorted({steps[place] for place in labelled(len(steps) - 1, ticks)}))
    threshold = psi.threshold(measured[-1])
    if threshold is not None:
        axes.axhline(threshold, color=theme.ink, linewidth=1.0)


def in_training_order(results: str | os.PathLike[str] | Iterable[SanityResult]) -> list[SanityResult]:
    """Results, or those of a folder, by their steps.

    Raises:
        ValueError: If there is none, or one has no step.
    """
    if isinstance(results, (str, os.PathLike)):
        folder = Path(results)
        measured = [SanityResult.from_json(path) for path in folder.glob("step=*.json")]
        if not measured:
            raise ValueError(f"no result in '{folder}': the callback writes 'step=<n>.json' to <log_dir>/sanity")
    else:
        measured = list(results)
    if not measured:
        raise ValueError("no result to draw a history of")
    if any(result.step is None for result in measured):
        raise ValueError("a result without a step has no place in a history: dataclasses.replace(result, step=...)")
    return sorted(measured, key=lambda result: result.step or 0)


def _scale(result: SanityResult) -> str:
    return f"0 = the map ignores the {subject(result)}, 1 = as different as unrelated maps, more is no better"


def _method_rows(axes: Axes, result: SanityResult, names: list[str], theme: Theme) -> None:
    """Names the rows of a chart with one method each."""
    labels = [short_head(name, 34) + role(name, result.verdicts[name]) for name in names]
    axes.set_yticks(range(len(names)), [literal(label) for label in labels])
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(theme.ink if result.verdicts[name].gated else theme.grey)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.grid(visible=False, axis="y")


def psi_range(result: SanityResult) -> tuple[float, float]:
    """The part of the scale that holds 0, 1 and every interval, within -0.5 and 1.5."""
    ends = [x for v in result.verdicts.values() for x in (v.psi_low, v.psi_high) if math.isfinite(x)]
    return max(-0.5, min([-0.03, *(x - 0.05 for x in ends)])), min(1.5, max([1.03, *(x + 0.05 for x in ends)]))


def _threshold(axes: Axes, result: SanityResult, theme: Theme) -> None:
    threshold = psi.threshold(result)
    if threshold is None:
        return
    low, high = axes.get_xlim()
    axes.axvspan(low, threshold, color=theme.outcome[Outcome.FAIL], alpha=0.07, linewidth=0)
    axes.axvspan(threshold, high, color=theme.outcome[Outcome.PASS], alpha=0.07, linewidth=0)
    axes.axvline(threshold, color=theme.ink, linewidth=1.2)
    label = f"passes from {threshold:g}"
    axes.text(threshold, 1.01, label, transform=axes.get_xaxis_transform(), ha="center", color=theme.ink, fontsize=8)


def _forest_row(axes: Axes, row: int, verdict: Verdict, limits: tuple[float, float], theme: Theme, colour: str) -> None:
    if math.isfinite(verdict.psi):
        interval(axes, row, verdict, limits, colour, theme)
    else:
        low, high = limits
        hatched(axes, row, limits, theme)
        box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.5}
        words = literal(decided.shortened(decided.cause(verdict), 32))
        axes.text(low + 0.02 * (high - low), row, words, va="center", color=theme.ink, fontsize=9, bbox=box)
    known = math.isfinite(verdict.psi)
    ink = theme.ink if verdict.gated else theme.grey
    deciding = decided.by(verdict, 24) if known else ""
    columns = (
        (10, f"{SYMBOL[verdict.outcome]} {verdict.outcome.value}", "bold", colour),
        (108, decided.number(verdict), "normal", ink),
        (198, literal(f"by {deciding}" if decided.measured(verdict) else deciding), "normal", theme.grey),
    )
    for offset, text, weight, shade in columns:
        axes.annotate(
            text,
            (1, row),
            (offset, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight=weight,
            color=shade,
        )


def interval(axes: Axes, row: float, verdict: Verdict, limits: tuple[float, float], colour: str, theme: Theme) -> None:
    """The index with its interval: hollow where no measure decided, an arrow with the number off the scale."""
    low, high = limits
    ends = [min(max(x, low), high) if math.isfinite(x) else verdict.psi for x in (verdict.psi_low, verdict.psi_high)]
    axes.plot(ends, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    inside = low <= verdict.psi <= high
    marker = _POINT[verdict.outcome] if inside else ("<" if verdict.psi < low else ">")
    face = colour if decided.measured(verdict) else theme.paper
    place = min(max(verdict.psi, low), high)
    axes.plot(place, row, marker, color=colour, markerfacecolor=face, markersize=8, clip_on=False)
    if not inside:
        aside = (8, "left") if verdict.psi < low else (-8, "right")
        box = {"facecolor": theme.paper, "edgecolor": "none", "pad": 1}
        axes.annotate(
            f"{verdict.psi:.2f}",
            (place, row),
            (aside[0], 0),
            textcoords="offset points",
            va="center",
            ha=aside[1],
            color=colour,
            fontsize=9,
            bbox=box,
        )


def hatched(axes: Axes, row: float, limits: tuple[float, float], theme: Theme, height: float = 0.7) -> None:
    """A row in which nothing is defined: hatched from end to end, so that no place in it is a value."""
    low, high = limits
    style: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": theme.grey,
        "hatch": "////",
        "linewidth": 0,
        "alpha": 0.45,
    }
    axes.barh(row, high - low, left=low, height=height, **style)
