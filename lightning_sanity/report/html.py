"""The report: one self-contained page about a result.

No script, no network: styles, charts (SVG) and maps (small PNG) are inside the page, and its content security policy
forbids the rest. Everything that comes from a model, a file or a user is escaped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from torch import Tensor

from lightning_sanity._version import __version__
from lightning_sanity.report import chart, decided, first_screen, illustrated, psi, thumbnails, tokens
from lightning_sanity.report.chart import Chart, Series
from lightning_sanity.report.first_screen import Row, duty
from lightning_sanity.report.gallery import Gallery
from lightning_sanity.report.learned import Learned
from lightning_sanity.report.palette import DARK, LIGHT
from lightning_sanity.report.reproduction import python_call
from lightning_sanity.report.similarity_charts import Similarities
from lightning_sanity.report.templates import template
from lightning_sanity.report.wording import (
    SYMBOL,
    answer,
    breakable,
    index_name,
    learners,
    ordered,
    origin,
    passing,
    reference,
    reproducibility,
    role,
    setting,
    stage,
    subject,
)
from lightning_sanity.resources.files import write_whole
from lightning_sanity.result.sanity_result import SanityResult


def write(result: SanityResult, path: str | os.PathLike[str]) -> Path:
    """Write the page of a result; the file appears whole or not at all."""
    return write_whole(path, render(result))


def render(result: SanityResult) -> str:
    """The page of a result as HTML."""
    outcome, headline = answer(result)
    names = ordered(result)
    return _template().render(
        result=result,
        version=__version__,
        light=LIGHT,
        dark=DARK,
        symbol=SYMBOL,
        outcome=outcome,
        headline=headline,
        subject=subject(result),
        index=index_name(result),
        amount=_amount(result),
        stage=stage(result),
        reproducibility=reproducibility(result),
        threshold=psi.threshold(result),
        place=first_screen.place,
        marks=first_screen.marks(result),
        gated=[Row.of(result, name) for name in names if result.verdicts[name].gated],
        controls=[(Row.of(result, name), duty(name)) for name in names if not result.verdicts[name].gated],
        charts={name: _psi_chart(result, name) for name in names if result.verdicts[name].gated},
        similarities=Similarities.of(result),
        change=_change_chart(result),
        agreement=_mean(result.output_change.agreement[:, -1]),
        correlation=_mean(result.output_change.correlation[:, -1]),
        gallery=Gallery.of(result),
        colourings=thumbnails.colourings(),
        absent=illustrated.absent(result),
        shades=list(zip(tokens.shades(LIGHT), tokens.shades(DARK), strict=True)),
        records=result.to_records(),
        diagnostics=_diagnostics(result),
        call=python_call(result),
        learned=Learned.of(result),
        standing=first_screen.standing(result),
        trust=first_screen.trust(result),
        scale=first_screen.scale(result),
    )


@cache
def _template() -> Template:
    filters: dict[str, Callable[..., Any]] = {
        "number": decided.plain,
        "figures": _significant,
        "plain": setting,
        "mean": _mean,
        "role": role,
        "breakable": breakable,
    }
    return template("report.html.j2", filters)


def _significant(value: float | None) -> str:
    """A number of any size with two significant figures.

    >>> _significant(0.00312), _significant(None)
    ('0.0031', 'undefined')
    """
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.2g}"


def _mean(values: Tensor) -> float:
    return float(values.nanmean())


# ------------------------------------------------------------------------------------------------------------ charts


def _amount(result: SanityResult) -> str:
    """How much was measured: of what, and on how many samples."""
    samples = f"{result.settings.get('samples', 'an unknown number of')} samples"
    if subject(result) == "labels":
        return f"{learners(result)}, {samples}"
    return f"{result.settings.get('trials', 'an unknown number of')} trials, {samples}{_mapped(result)}"


def _mapped(result: SanityResult) -> str:
    """The shape of the maps, and over which axis of the inputs they are summed."""
    axes, shape = result.settings.get("axes"), result.settings.get("input_shape")
    if not isinstance(axes, dict) or "summed" not in axes or not isinstance(shape, list):
        return ""
    sides = [str(side) for axis, side in enumerate(shape) if axis and axis != axes["summed"]]
    how = "nothing summed" if axes["summed"] is None else f"inputs summed over axis {axes['summed']}"
    return f", maps of {' x '.join(sides) or '1'} ({how})"


def _psi_chart(result: SanityResult, name: str) -> Chart | None:
    """PSI over depth by every measure, the deciding one with its interval; None where nothing is defined."""
    verdict = result.verdicts[name]
    measures = sorted({*verdict.psi_of, *filter(None, [verdict.measure])} - {verdict.measure})
    # Only the deciding measure's interval is drawn.
    found = {measure: psi.over_depth(result, name, measure) for measure in measures if measure}
    if verdict.measure:
        found[verdict.measure] = psi.over_depth(result, name)
    decisive = f"outcome-{verdict.outcome.value}" if result.valid else "line-control"
    series = [
        Series(
            measure,
            band,
            0.0,
            decisive if measure == verdict.measure else "line-aside",
            filled=measure == verdict.measure,
        )
        for measure, band in found.items()
        if band is not None
    ]
    if not series:
        return None
    limit = psi.threshold(result)
    passes = "" if limit is None else f"; it {passing(result, limit)}"
    return chart.over_depth(
        f"{index_name(result)} of {name} " + _over(result),
        f"{verdict.outcome.value}: {index_name(result)} {decided.number(verdict)} by {verdict.measure}{passes}. "
        + _in_words(result, series[-1].band[0]),
        result.units,
        series,
        {} if limit is None else {passing(result, limit): limit},
        start=origin(result),
    )


def _over(result: SanityResult) -> str:
    return "of random-label models" if subject(result) == "labels" else "over the depth of re-initialisation"


def _change_chart(result: SanityResult) -> Chart:
    change = result.output_change
    shown = (("same predicted class", change.agreement, 0), ("correlation of outputs", change.correlation, 1))
    series = [
        Series(label, psi.spread(values[..., None]), 1.0, f"line-{place} dash-{place}")
        for label, values, place in shown
        if not bool(values.isnan().all())
    ]
    words = "; ".join(f"{one.label}: {_in_words(result, one.band[0])}" for one in series)
    return chart.over_depth(
        f"Agreement of the predictions with the {reference(result)}'s",
        words or "undefined",
        result.units,
        series,
        start=origin(result),
    )


def _in_words(result: SanityResult, values: Tensor) -> str:
    """First and last value of a line."""
    if subject(result) == "labels":
        return f"{decided.plain(float(values[-1]))} with random labels"
    first, last = (decided.plain(float(values[place])) for place in (0, -1))
    return f"{first} after {result.units[0]}, {last} after {result.units[-1]}"


def _diagnostics(result: SanityResult) -> dict[str, dict[str, float]]:
    """Further numbers per method, where a result has them."""
    found = getattr(result, "diagnostics", None) or {}
    return {name: dict(values) for name, values in found.items() if values}
