"""Results side by side in words: the terminal's table, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_sanity._version import __version__
from lightning_sanity.report import decided, psi
from lightning_sanity.report.markdown import MARKS, plain, unbroken
from lightning_sanity.report.wording import index_name
from lightning_sanity.result.comparison import Comparison, Track
from lightning_sanity.result.noninferiority import Difference
from lightning_sanity.result.sanity_result import Outcome, SanityResult, Verdict

NOT_MEASURED = "not measured"
_BECAME = {Outcome.PASS: "not worse", Outcome.FAIL: "worse", Outcome.INCONCLUSIVE: "not known"}
_ALONE = {Outcome.PASS: "passes", Outcome.FAIL: "fails", Outcome.INCONCLUSIVE: "open"}
STILL = ", still fails"
_STILL = "\N{HEAVY MINUS SIGN}"
_SHORT = 12  # characters of a digest


def letters(count: int) -> list[str]:
    """What results are called where their names do not fit: letters, numbers where these do not suffice.

    >>> letters(3), letters(27)[-1]
    (['A', 'B', 'C'], '27')
    """
    return [chr(ord("A") + k) if count <= 26 else str(k + 1) for k in range(count)]


def index(comparison: Comparison) -> str:
    """The short name of the index; two, where results of two tests were given."""
    return " / ".join(dict.fromkeys(map(index_name, comparison.results)))


def number(change: Difference) -> str:
    """A change with its interval.

    >>> from lightning_sanity.result import Outcome
    >>> number(Difference(Outcome.FAIL, "", -0.351, -0.4, -0.3)), number(Difference(Outcome.INCONCLUSIVE, ""))
    ('-0.35 [-0.40, -0.30]', 'unknown')
    """
    if not math.isfinite(change.value):
        return "unknown"
    return f"{change.value:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"


def became(track: Track) -> str:
    """What became of a method in a word or two; what is no worse may fail as before."""
    first, last = track.verdicts[0], track.verdicts[-1]
    if last is None:
        return "gone"
    if first is None:
        return f"new, {_ALONE[last.outcome]}"
    still = track.change.outcome is Outcome.PASS and last.outcome is Outcome.FAIL
    return _BECAME[track.change.outcome] + (STILL if still else "")


def why(change: Difference) -> str:
    """Its reason, without the numbers that stand beside it anyway."""
    return change.reason.split(": ")[0] if math.isfinite(change.value) else change.reason


def headings(comparison: Comparison) -> list[str]:
    """Of the terminal's table."""
    names = letters(len(comparison.results))
    return ["method", *names, f"{names[-1]} - {names[0]} [95 %]", "became"]


def rows(comparison: Comparison) -> list[list[str]]:
    """Of the terminal's table, the worst method first."""
    return [
        [
            track.method,
            *(_brief(verdict) for verdict in track.verdicts),
            number(track.change),
            became(track),
        ]
        for track in comparison.tracks
    ]


def about(result: SanityResult) -> str:
    """Model, step, weights and size of a result in a line."""
    settings, limit = result.settings, psi.threshold(result)
    facts = [
        str(settings.get("model", "model")),
        *([f"step {result.step}"] if result.step is not None else []),
        f"weights {result.weights_digest[:_SHORT]}",
        *(f"{settings[key]} {key}" for key in ("trials", "samples") if key in settings),
        *([] if limit is None else [f"passes from {limit:g}"]),
        *([result.created[:10]] if result.created else []),
        *([] if result.valid else ["NOT VALID"]),
    ]
    return ", ".join(facts)


def meaning(comparison: Comparison) -> str:
    """How to read the numbers."""
    return (
        f"{index(comparison)}: 0 = the map ignores what was made random, 1 = as different as unrelated maps, above 1 = "
        f"no better. Not worse: the whole 95 % interval of the change is above -{comparison.max_drop:g}. "
        "The change is of the smallest index over all measures, drawn over the samples of both results at once; where "
        "another measure decided a verdict, it is not the difference of the two numbers beside it."
    )


def markdown(comparison: Comparison, names: Sequence[str]) -> str:
    """The answer, the methods as a table, the worst first, and what was compared: for a pull request.

    Args:
        comparison: What became of the methods.
        names: Of the results, such as their files.
    """
    marks = letters(len(names))
    head = f"## {MARKS[comparison.outcome]} {comparison.outcome.value}: {plain(comparison.reason)}"
    titles = ["became", "method", *marks, f"{marks[-1]} - {marks[0]} [95 %]", "why"]
    lines = [titles, ["---"] * len(titles)]
    for track in comparison.tracks:
        verdicts = [plain(_full(verdict)) for verdict in track.verdicts]
        word = became(track)
        mark = _STILL if STILL in word else MARKS[track.change.outcome]
        last = [unbroken(number(track.change)), plain(why(track.change))]
        lines.append([unbroken(f"{mark} {word}"), plain(track.method), *verdicts, *last])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    listed = "\n".join(
        f"- {mark} = {plain(name)}: {plain(about(result))}"
        for mark, name, result in zip(marks, names, comparison.results, strict=True)
    )
    parts = [head, *([table] if comparison.tracks else []), listed, meaning(comparison)]
    return "\n\n".join([*parts, f"lightning_sanity {__version__}"]) + "\n"


def _brief(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    value = f"{verdict.psi:.2f}" if math.isfinite(verdict.psi) else decided.UNDEFINED
    return f"{value} {verdict.outcome.value}"


def _full(verdict: Verdict | None) -> str:
    return (
        NOT_MEASURED
        if verdict is None
        else f"{decided.number(verdict)} {MARKS[verdict.outcome]} {verdict.outcome.value}"
    )
