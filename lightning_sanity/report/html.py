"""The report: one self-contained page about a result.

No script, no network: styles, charts (SVG) and maps (small PNG) are inside the page, and its content security policy
forbids the rest. Everything that comes from a model, a file or a user is escaped.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from torch import Tensor

from lightning_sanity._version import __version__
from lightning_sanity.report import chart, decided, psi
from lightning_sanity.report.chart import Chart, Series
from lightning_sanity.report.gallery import Gallery
from lightning_sanity.report.learned import Learned
from lightning_sanity.report.palette import DARK, LIGHT
from lightning_sanity.report.reproduction import python_call
from lightning_sanity.report.templates import template
from lightning_sanity.report.wording import (
    SYMBOL,
    answer,
    index_name,
    measure_title,
    ordered,
    reproducibility,
    role,
    stage,
    subject,
)
from lightning_sanity.resources.files import write_whole
from lightning_sanity.resources.quoting import listed
from lightning_sanity.result.controls import COMPARISON, POSITIVE_CONTROL
from lightning_sanity.result.curve import Curve
from lightning_sanity.result.sanity_result import Outcome, SanityResult, Verdict

_DUTY = {
    "random": "must be INCONCLUSIVE: it is noise",
    POSITIVE_CONTROL: "must PASS: it is made of the model's outputs alone",
    COMPARISON: "none: a method like any other, for comparison",
}
_SCALE = (-0.25, 1.25)  # of the bars
_LISTED = 3  # as many methods a line of the first screen names
_TO_DO = {
    Outcome.FAIL: "not to be shown as evidence",
    Outcome.INCONCLUSIVE: "open; its reason below says what would settle it",
    Outcome.PASS: "necessary, not sufficient: the maps may still be wrong",
}
_DASHES = 4  # patterns that the style sheet knows


def write(result: SanityResult, path: str | os.PathLike[str]) -> Path:
    """Write the page of a result; the file appears whole or not at all."""
    return write_whole(path, render(result))


def render(result: SanityResult) -> str:
    """The page of a result as HTML."""
    outcome, headline = answer(result)
    names = ordered(result)
    styles = _styles(result)
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
        gated=[_Row.of(result, name) for name in names if result.verdicts[name].gated],
        controls=[(_Row.of(result, name), _duty(name)) for name in names if not result.verdicts[name].gated],
        styles=styles,
        charts={name: _psi_chart(result, name) for name in names if result.verdicts[name].gated},
        similarities=_similarity_charts(result, styles),
        change=_change_chart(result),
        agreement=_mean(result.output_change.agreement[:, -1]),
        correlation=_mean(result.output_change.correlation[:, -1]),
        gallery=Gallery.of(result),
        kind=dict(result.settings.get("axes") or {}).get("kind", "of an unknown kind"),
        records=result.to_records(),
        diagnostics=_diagnostics(result),
        call=python_call(result),
        learned=Learned.of(result),
        standing=_standing(result),
        trust=_trust(result),
    )


@cache
def _template() -> Template:
    filters: dict[str, Callable[..., Any]] = {
        "number": _number,
        "figures": _significant,
        "plain": _plain,
        "mean": _mean,
        "role": role,
        "breakable": _breakable,
    }
    return template("report.html.j2", filters)


def _number(value: float | None, digits: int = 2) -> str:
    """A number as people read it; a missing one says so.

    >>> _number(0.946), _number(float("nan")), _number(-0.0)
    ('0.95', 'undefined', '0.00')
    """
    if value is None or not math.isfinite(value):
        return "undefined"
    return f"{value + 0.0:.{digits}f}"


def _significant(value: float | None) -> str:
    """A number of any size with two significant figures.

    >>> _significant(0.00312), _significant(None)
    ('0.0031', 'undefined')
    """
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.2g}"


def _plain(value: Any) -> str:
    """A setting as text.

    >>> _plain("layer"), _plain({"min_psi": 0.65}), _plain(None)
    ('layer', '{"min_psi": 0.65}', 'null')
    """
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _breakable(name: str) -> str:
    """A name that a narrow column breaks after its dots and underscores, not within a word."""
    return re.sub(r"([._])", "\\1\N{ZERO WIDTH SPACE}", name)


def _mean(values: Tensor) -> float:
    return float(values.nanmean())


def _standing(result: SanityResult) -> list[tuple[Outcome, str, str]]:
    """For each outcome that occurs: which methods, and what to do about them. None where no verdict can be trusted."""
    if not result.valid:
        return []
    found = []
    for outcome, what in _TO_DO.items():
        verdicts = [(name, v) for name, v in result.verdicts.items() if v.gated and v.outcome is outcome]
        if not verdicts:
            continue
        if outcome is Outcome.INCONCLUSIVE:
            settled = {decided.settles(verdict) for _, verdict in verdicts}
            what = settled.pop() if len(settled) == 1 else what
        found.append((outcome, listed((name for name, _ in verdicts), _LISTED), what))
    return found


def _trust(result: SanityResult) -> str:
    """Whether the run can be trusted: yes, not shown, or no."""
    if not result.valid:
        return "No, for the reason above."
    if all(verdict.gated for verdict in result.verdicts.values()):
        return "Not shown: no control was run."
    return f"Yes: {result.validity}."


def _duty(name: str) -> str:
    return _DUTY.get(name, "must not PASS: it hardly looks at the model")


# ------------------------------------------------------------------------------------------------------ verdict rows


@dataclass(frozen=True)
class _Row:
    """A method with what its row and its section show.

    Attributes:
        name: The method.
        anchor: Its id in the page.
        verdict: Its verdict.
        undefined: Share of pairs without a similarity, by the deciding measure; NaN where nothing was measured.
        ceiling: Of that measure.
        floor: Of that measure.
        number: Its index with the interval.
        by: What decided, or why nothing did.
        decided: Whether a measure decided.
        bar: Left end and width of the interval on a scale of 0 to 100; None where there is none.
        point: Place of the PSI on it; NaN if undefined.
        beyond: Where the PSI lies: 1 beyond the right end of the scale, -1 beyond the left, 0 on it.
        dots: Places of the samples on it.
    """

    name: str
    anchor: str
    verdict: Verdict
    undefined: float
    ceiling: float
    floor: float
    number: str
    by: str
    decided: bool
    bar: tuple[float, float] | None
    point: float
    beyond: int
    dots: tuple[float, ...]

    @classmethod
    def of(cls, result: SanityResult, name: str) -> _Row:
        """What ``result`` says about the method ``name``."""
        verdict = result.verdicts[name]
        curve = None if verdict.measure is None else result.curves.get((name, verdict.measure))
        samples = psi.of_samples(result, name)
        ends = [_place(end) for end in (verdict.psi_low, verdict.psi_high)]
        known = math.isfinite(verdict.psi)
        return cls(
            name,
            f"method-{list(result.verdicts).index(name)}",
            verdict,
            math.nan if curve is None else float(curve.values.isnan().float().mean()),
            math.nan if curve is None else _mean(curve.ceiling),
            math.nan if curve is None else _mean(curve.floor),
            decided.number(verdict),
            decided.by(verdict, 44),
            decided.measured(verdict),
            (ends[0], round(ends[1] - ends[0], 1)) if known and all(map(math.isfinite, ends)) else None,
            _place(verdict.psi),
            (verdict.psi > _SCALE[1]) - (verdict.psi < _SCALE[0]),
            () if samples is None else tuple(_place(s) for s in samples.tolist() if math.isfinite(s)),
        )


def _place(value: float) -> float:
    """Where a PSI stands on a bar that is 100 wide."""
    low, high = _SCALE
    return round(100 * (min(max(value, low), high) - low) / (high - low), 1) if math.isfinite(value) else math.nan


# ------------------------------------------------------------------------------------------------------------ charts


def _styles(result: SanityResult) -> dict[str, str]:
    """Classes of each method's line: colour and dashes, controls grey."""
    gated = [name for name in ordered(result) if result.verdicts[name].gated]
    colours = len(LIGHT.lines)
    found = {name: f"line-{k % colours} dash-{k // colours % _DASHES}" for k, name in enumerate(gated)}
    return {name: found.get(name, "line-control dash-1") for name in ordered(result)}


def _amount(result: SanityResult) -> str:
    """How much was measured: of what, and on how many samples."""
    samples = f"{result.settings.get('samples', 'an unknown number of')} samples"
    if subject(result) == "labels":
        true, permuted = result.settings.get("models", ("an unknown number of", "of"))
        return f"{true} models that learned the true labels and {permuted} that learned random ones, {samples}"
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
    series = [
        Series(
            measure,
            band,
            0.0,
            f"outcome-{verdict.outcome.value}" if measure == verdict.measure else "line-aside",
            filled=measure == verdict.measure,
        )
        for measure, band in found.items()
        if band is not None
    ]
    if not series:
        return None
    limit = psi.threshold(result)
    passes = "" if limit is None else f"; it passes from {limit:g} on average"
    return chart.over_depth(
        f"{index_name(result)} of {name} " + _over(result),
        f"{verdict.outcome.value}: {index_name(result)} {decided.number(verdict)} by {verdict.measure}{passes}. "
        + _in_words(result, series[-1].band[0]),
        result.units,
        series,
        {} if limit is None else {f"passes from {limit:g} on average": limit},
    )


def _similarity_charts(result: SanityResult, styles: Mapping[str, str]) -> list[Chart]:
    """Similarity to the trained model's map, a chart per similarity, a line per method."""
    asked = dict.fromkeys([*result.settings.get("similarities", ()), *(key for _, key in result.curves)])
    charts = []
    for similarity in asked:
        curves = {
            name: result.curves[name, similarity]
            for name in reversed(list(styles))
            if (name, similarity) in result.curves
        }
        if not curves:
            continue
        ends = ", ".join(f"{name} {_number(_mean(curve.values[:, -1]))}" for name, curve in curves.items())
        charts.append(
            chart.over_depth(
                measure_title(similarity),
                _similarity_in_words(result, similarity, ends),
                result.units,
                [_similarity(name, curve, styles[name]) for name, curve in curves.items()],
                reach=(-1.0, 1.1),
            )
        )
    return charts


def _over(result: SanityResult) -> str:
    return "of random-label models" if subject(result) == "labels" else "over the depth of re-initialisation"


def _reference(result: SanityResult) -> str:
    """Whose maps and predictions others are compared with."""
    return "true-label model" if subject(result) == "labels" else "trained model"


def _similarity_in_words(result: SanityResult, similarity: str, ends: str) -> str:
    where = "With random labels" if subject(result) == "labels" else "At the last step"
    return f"Mean {similarity} to the {_reference(result)}'s map. {where}: {ends}."


def _similarity(name: str, curve: Curve, style: str) -> Series:
    return Series(name, psi.spread(curve.values), _mean(curve.ceiling), style, _mean(curve.floor))


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
        f"Agreement of the predictions with the {_reference(result)}'s", words or "undefined", result.units, series
    )


def _in_words(result: SanityResult, values: Tensor) -> str:
    """First and last value of a line."""
    if subject(result) == "labels":
        return f"{_number(float(values[-1]))} with random labels"
    return f"{_number(float(values[0]))} after {result.units[0]}, {_number(float(values[-1]))} after {result.units[-1]}"


def _diagnostics(result: SanityResult) -> dict[str, dict[str, float]]:
    """Further numbers per method, where a result has them."""
    found = getattr(result, "diagnostics", None) or {}
    return {name: dict(values) for name, values in found.items() if values}
