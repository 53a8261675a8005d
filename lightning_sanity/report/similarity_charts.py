"""A page's charts of similarity to the trained model's map: one per similarity, of many methods one per method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_sanity.report import chart, decided, psi
from lightning_sanity.report.chart import Chart, Series
from lightning_sanity.report.palette import LIGHT
from lightning_sanity.report.wording import SYMBOL, crowded, measure_title, ordered, origin, reference, role, subject
from lightning_sanity.result.sanity_result import SanityResult

_DASHES = 4  # patterns that the style sheet knows


@dataclass(frozen=True)
class Similarities:
    """The charts and what their lines are.

    Attributes:
        legend: Style, name and role of every line.
        charts: In the order of the page.
        apart: Whether each chart belongs to one method and a line to a similarity, rather than the other way round.
    """

    legend: tuple[tuple[str, str, str], ...]
    charts: tuple[Chart, ...]
    apart: bool

    @classmethod
    def of(cls, result: SanityResult) -> Similarities:
        """Of all curves of ``result``; of those of gated methods alone where each has a chart of its own."""
        asked = list(dict.fromkeys([*result.settings.get("similarities", ()), *(key for _, key in result.curves)]))
        if not crowded(result):
            styles = _of_methods(result)
            legend = tuple((style, name, role(name, result.verdicts[name])) for name, style in styles.items())
            upwards = list(reversed(styles))  # the first lies on top
            panels = [(measure_title(key), key, {name: (name, key) for name in upwards}) for key in asked]
            return cls(legend, _charts(result, panels, styles), False)
        styles = {key: _style(place) for place, key in enumerate(asked)}
        legend = tuple((style, measure_title(key), "") for key, style in styles.items())
        gated = [name for name in ordered(result) if result.verdicts[name].gated]
        titles = {name: f"{SYMBOL[result.verdicts[name].outcome]} {name}" for name in gated}
        panels = [(titles[name], f"similarity of {name}", {key: (name, key) for key in asked}) for name in gated]
        return cls(legend, _charts(result, panels, styles), True)


def _of_methods(result: SanityResult) -> dict[str, str]:
    """Classes of each method's line: colour and dashes, controls grey."""
    gated = [name for name in ordered(result) if result.verdicts[name].gated]
    found = {name: _style(place) for place, name in enumerate(gated)}
    return {name: found.get(name, "line-control dash-1") for name in ordered(result)}


def _style(place: int) -> str:
    colours = len(LIGHT.lines)
    return f"line-{place % colours} dash-{place // colours % _DASHES}"


def _charts(
    result: SanityResult, panels: list[tuple[str, str, dict[str, tuple[str, str]]]], styles: Mapping[str, str]
) -> tuple[Chart, ...]:
    """A chart for each title, what it shows, and its lines by name; none where nothing was measured."""
    where = "With random labels" if subject(result) == "labels" else "At the last step"
    charts = []
    for title, what, lines in panels:
        curves = {name: result.curves[key] for name, key in lines.items() if key in result.curves}
        if not curves:
            continue
        ends = ", ".join(f"{name} {decided.plain(float(c.values[:, -1].nanmean()))}" for name, c in curves.items())
        series = [
            Series(
                name,
                psi.spread(curve.values),
                float(curve.ceiling.nanmean()),
                styles[name],
                float(curve.floor.nanmean()),
            )
            for name, curve in curves.items()
        ]
        words = f"Mean {what} to the {reference(result)}'s map. {where}: {ends}."
        charts.append(chart.over_depth(title, words, result.units, series, start=origin(result), reach=(-1.0, 1.1)))
    return tuple(charts)
