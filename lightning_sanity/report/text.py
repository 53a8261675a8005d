"""A result in words: the table of the terminal and of a notebook, its legend, its reasons, what to do next."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from html import escape

from lightning_sanity.report import decided
from lightning_sanity.report.columns import coloured, fitted, paragraph
from lightning_sanity.report.palette import LIGHT
from lightning_sanity.report.psi import threshold
from lightning_sanity.report.wording import SYMBOL, answer, index_name, learners, ordered, role, short_head, subject
from lightning_sanity.result.sanity_result import Outcome, SanityResult
from lightning_sanity.result.verdict import NOT_APPLICABLE

_NARROWEST, _WIDEST = 60, 120
_LONGEST = 44  # characters of what stands beside a number
_FEW = 0.1  # share of undefined pairs from which a number is marked
_MARK = "(*) in the other pairs the other model's map was constant: they are left out, not counted as different"
_RELEASE_TRIALS, _RELEASE_SAMPLES = 20, 64


def account(result: SanityResult, title: str = "", *, colour: bool = False, width: int | None = None) -> str:
    """The verdicts as a table, how to read it, the reasons of what did not pass, and what to do next.

    Args:
        result: Of either test.
        title: What the first line begins with.
        colour: Whether verdicts are coloured, as a terminal can show them.
        width: Columns; those of the terminal if None.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    width = min(max(width, _NARROWEST), _WIDEST)
    rows = _rows(result)
    outcome, headline = answer(result)
    headline = headline if result.valid else f"NOT VALID, no verdict can be trusted: {result.validity}"
    paragraphs = [title + (f"{SYMBOL[outcome]} {headline}" if result.valid else headline)]
    marked = any("(*)" in row[-1] for row in rows)
    compared = learners(result)
    paragraphs += [legend(result), *([f"compared: {compared}"] if compared else []), *([_MARK] if marked else [])]
    paragraphs += _explained(result)
    paragraphs += [*(f"note: {note}" for note in result.notes), *advice(result)]
    wrapped = [paragraph(text, width) for text in paragraphs]
    table = fitted(["method", "verdict", f"{index_name(result)} [95 %]", "by"], rows, width, leading=2)
    if colour:
        table = list(map(coloured, table))
    return "\n".join([wrapped[0], "", *table, "", *wrapped[1:]])


def line(result: SanityResult) -> str:
    """The gated methods' verdicts in one line."""
    if not result.valid:
        return f"no verdict: {result.validity}"
    gated = [(name, verdict) for name, verdict in result.verdicts.items() if verdict.gated]
    parts = []
    for name, verdict in gated:
        known = f" {verdict.psi:.2f}" if math.isfinite(verdict.psi) else ""
        parts.append(f"{short_head(name, 30)} {verdict.outcome.value}{known}")
    return f"{index_name(result)}: {', '.join(parts)}" if parts else "only controls were tested"


def legend(result: SanityResult) -> str:
    """How to read the index: from which on it passes, and what 0, 1 and more than 1 mean."""
    index, limit = index_name(result), threshold(result)
    passes = "" if limit is None else f"passes from {limit:g} (whole interval); "
    return f"{index} {passes}0 = ignores the {subject(result)}, 1 = as different as unrelated maps, above 1 = no better"


def reasons(result: SanityResult, methods: Sequence[str] | None = None) -> list[tuple[str, str, str]]:
    """Why methods did not pass, all gated ones if None: ``(methods, outcome, sentence)``, one per sentence."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name in ordered(result):
        verdict = result.verdicts[name]
        if not verdict.passed and (verdict.gated if methods is None else name in methods):
            by_reason.setdefault((verdict.outcome.value, verdict.reason), []).append(name)
    return [(", ".join(names), outcome, reason) for (outcome, reason), names in by_reason.items()]


def _explained(result: SanityResult) -> list[str]:
    """The reasons as sentences; none where the run is not valid, whose reason stands above."""
    return [f"{names} {outcome}: {why}" for names, outcome, why in reasons(result)] if result.valid else []


def advice(result: SanityResult) -> list[str]:
    """What to do next."""
    gated = {name: verdict for name, verdict in result.verdicts.items() if verdict.gated}
    if not gated or not result.valid:
        return []
    failed = [name for name, verdict in gated.items() if verdict.outcome is Outcome.FAIL]
    foreign = [name for name, verdict in gated.items() if verdict.reason.startswith(NOT_APPLICABLE)]
    todo = [f"next: do not show maps of {', '.join(failed)} as evidence about this model"] if failed else []
    if foreign:
        rest = [name for name in gated if name not in foreign]
        others = f"methods={rest}" if rest else "name other methods"
        todo.append(f"next: leave out {', '.join(foreign)}, which cannot apply to this model: {others}")
    if todo:
        return todo
    trials, samples = result.settings.get("trials"), result.settings.get("samples")
    small = (isinstance(trials, int) and trials < _RELEASE_TRIALS) or (
        isinstance(samples, int) and samples < _RELEASE_SAMPLES
    )
    if result.passed and small and subject(result) == "weights":
        return [
            f"next: this was a quick look ({trials} trials, {samples} samples); test a release with "
            f"trials={_RELEASE_TRIALS} and {_RELEASE_SAMPLES} samples"
        ]
    return []


def markup(result: SanityResult) -> str:
    """The answer, the verdicts and the legend as HTML for a notebook; everything that is a user's is escaped."""
    outcome, headline = answer(result)
    head = f"{SYMBOL[outcome]} {headline}" if result.valid else f"NOT VALID: {result.validity}"
    headings = ("method", "verdict", f"{index_name(result)} [95 %]", "by")
    cell = 'style="text-align:left;padding:.15rem .8rem .15rem 0"'
    rows = []
    for row, name in zip(_rows(result), ordered(result), strict=True):
        ink = LIGHT.outcome[result.verdicts[name].outcome] if result.verdicts[name].gated else LIGHT.grey
        cells = [f"<td {cell}>{escape(text)}</td>" for text in row]
        cells[1] = f'<td {cell}><b style="color:{ink}">{escape(row[1])}</b></td>'
        rows.append(f"<tr>{''.join(cells)}</tr>")
    compared = learners(result)
    below = [legend(result), *([f"compared: {compared}"] if compared else []), *_explained(result), *advice(result)]
    return (
        f"<div><p><b>{escape(head)}</b></p><table><thead><tr>"
        + "".join(f"<th {cell}>{escape(text)}</th>" for text in headings)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        + "".join(f"<p>{escape(text)}</p>" for text in below)
        + "</div>"
    )


def undefined_share(result: SanityResult, method: str) -> float:
    """Share of the pairs without a similarity by the measure that decided; 0 where nothing was measured."""
    measure = result.verdicts[method].measure
    curve = None if measure is None else result.curves.get((method, measure))
    return 0.0 if curve is None else float(curve.values.isnan().double().mean())


def _rows(result: SanityResult) -> list[list[str]]:
    rows = []
    for name in ordered(result):
        verdict = result.verdicts[name]
        label = " ".join(name.split()) + role(name, verdict)
        missing = undefined_share(result, name) if math.isfinite(verdict.psi) else 0.0
        few = f", on {1 - missing:.0%} of the pairs (*)" if missing > _FEW else ""
        rows.append([label, verdict.outcome.value, decided.number(verdict), decided.by(verdict, _LONGEST) + few])
    return rows
