"""An answer to "which method should I show?" in words: the table of the terminal, and Markdown."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence

from lightning_sanity._version import __version__
from lightning_sanity.report.columns import fitted, paragraph
from lightning_sanity.report.markdown import plain
from lightning_sanity.result.choice import Choice, Row, Score, Standing

_NARROWEST, _WIDEST = 60, 130
BASIS = (
    "What this rests on: these samples, these removals, this seed. A method that is recommended depends on the weights "
    "and says more than a random map or the edges of the input about what removing parts does to the output. It does "
    "not show that its maps are right, complete, or understood by those who look at them."
)
COLUMNS = {
    "fidelity": "fidelity: correlation, over random regions, of what the map says a region holds and what the output "
    "loses without it; 1 is best, 0 is chance",
    "deletion": "deletion: area under the probability while the most relevant parts are inserted first, less that "
    "while they are removed first; higher is better, 0 is chance",
    "localization": "localization: overlap of the most relevant positions with the masks; 1 is best",
}
"""What the columns mean, higher being better in all."""
_SYMBOL = {
    Standing.RECOMMENDED: "*",
    Standing.TIED: "=",
    Standing.PASSED: "+",
    Standing.OPEN: "?",
    Standing.FAILED: "x",
    Standing.UNMEASURED: "-",
    Standing.INAPPLICABLE: "-",
}


def account(choice: Choice, width: int | None = None) -> str:
    """The answer, its table, what the columns mean, what to beware of: what ``print`` shows.

    Args:
        choice: The answer.
        width: Columns; those of the terminal if None.
    """
    width = min(max(width or shutil.get_terminal_size((100, 24)).columns, _NARROWEST), _WIDEST)
    head = f"{'*' if choice.recommended else '-'} {choice.reason}"
    shown = [row for row in choice.table if row.verdict is not None or row.standing is Standing.OPEN]
    table = fitted(headings(choice), [cells(choice, row) for row in shown], width, leading=3) if shown else []
    below = [COLUMNS[metric] for metric in metrics(choice)]
    below += [f"baselines: {_baselines(choice)}"] if choice.baselines else []
    below += [f"warning: {each}" for each in choice.warnings]
    below += [f"{names} {standing}: {why}" for names, standing, why in reasons(choice)]
    below += [f"note: {each}" for each in choice.notes]
    below += [BASIS] if choice.recommended else []
    wrapped = [paragraph(text, width) for text in [head, *below]]
    return "\n".join([wrapped[0], *(["", *table] if table else []), "", *wrapped[1:]]).rstrip("\n")


def metrics(choice: Choice) -> list[str]:
    """The columns of scores that the answer has."""
    return list(dict.fromkeys(metric for row in choice.table for metric in row.scores))


def headings(choice: Choice) -> list[str]:
    """Of the table."""
    return ["", "method", "standing", "PSI [95 %]", *(f"{metric} [95 %]" for metric in metrics(choice)), "passes"]


def cells(choice: Choice, row: Row) -> list[str]:
    """One row of the table."""
    psi = "" if row.verdict is None else interval(row.verdict.psi, row.verdict.psi_low, row.verdict.psi_high)
    scores = [score(row.scores.get(metric)) for metric in metrics(choice)]
    return [_SYMBOL[row.standing], row.method, row.standing.value, psi, *scores, cost(row)]


def cost(row: Row) -> str:
    """Passes of one explanation."""
    return f"{row.cost:.3g}" if math.isfinite(row.cost) else "unknown"


def score(found: Score | None) -> str:
    """A score with its interval; marked where it beats the baselines for certain."""
    if found is None:
        return ""
    return interval(found.value, found.low, found.high) + (" b" if found.beats_baselines else "")


def interval(value: float, low: float, high: float) -> str:
    """A number with its ends.

    >>> interval(0.5, 0.25, 0.75), interval(float("nan"), 0.0, 0.0)
    ('0.50 [0.25, 0.75]', 'undefined')
    """
    return f"{value + 0.0:.2f} [{low + 0.0:.2f}, {high + 0.0:.2f}]" if math.isfinite(value) else "undefined"


def reasons(choice: Choice) -> list[tuple[str, str, str]]:
    """Why candidates are not shown: ``(methods, standing, sentence)``, one per sentence."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in choice.table:
        if row.standing not in (Standing.RECOMMENDED, Standing.TIED):
            # The table has the numbers of those that failed.
            reason = row.reason.split(": PSI ")[0] if row.standing is Standing.FAILED else row.reason
            found.setdefault((row.standing.value, reason), []).append(row.method)
    return [(", ".join(names), standing, reason) for (standing, reason), names in found.items()]


def _baselines(choice: Choice) -> str:
    parts = [
        f"{name} {metric} {found.value:.2f}"
        for metric, each in choice.baselines.items()
        for name, found in each.items()
    ]
    return f"{', '.join(parts)} (b = beats both for certain, with an interval for the difference that lies above 0)"


def markdown(choice: Choice) -> str:
    """The answer and its table for a pull request or a model card."""
    head = f"## {'✓' if choice.recommended else '?'} {plain(choice.reason)}"
    titles = headings(choice)[1:]
    rows: list[Sequence[str]] = [titles, ["---"] * len(titles)]
    rows += [[plain(cell) for cell in cells(choice, row)[1:]] for row in choice.table if row.verdict is not None]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    lines = [*(COLUMNS[metric] for metric in metrics(choice)), *(f"Warning: {each}" for each in choice.warnings)]
    refused = [f"{names} ({standing}): {why}" for names, standing, why in reasons(choice)]
    refused += [f"Note: {each}" for each in choice.notes]
    facts = "; ".join(
        [
            f"weights {choice.weights_digest}",
            f"probe {choice.probe_digest}",
            *(
                f"{key} {choice.settings[key]}"
                for key in ("model", "samples", "trials", "seed")
                if key in choice.settings
            ),
            f"lightning_sanity {__version__}",
        ]
    )
    listed = "\n".join(f"- {plain(line)}" for line in [*lines, *refused])
    return "\n\n".join([head, table, listed, BASIS, plain(facts)]) + "\n"
