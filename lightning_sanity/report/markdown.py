"""A result in Markdown: the summary for a pull request, and the metadata of a model card."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from lightning_sanity._version import __version__
from lightning_sanity.report import decided
from lightning_sanity.report.wording import (
    SYMBOL,
    answer,
    index_name,
    learners,
    ordered,
    reproducibility,
    role,
    subject,
)
from lightning_sanity.result.sanity_result import Outcome, SanityResult

MARKS = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.INCONCLUSIVE: "❓"}
"""What stands before a word of a verdict where Markdown has no colours."""


def summary(result: SanityResult) -> str:
    """The answer, the verdicts as a table, and what they rest on: for a pull request, a release note, a model card."""
    outcome, headline = answer(result)
    if result.valid:
        head = f"## {SYMBOL[outcome]} {plain(headline)}"
    else:
        head = f"## ! NOT VALID, no verdict can be trusted\n\n{plain(result.validity)}"
    settings = result.settings
    facts = [
        f"weights {plain(result.weights_digest)}",
        f"probe {plain(result.probe_digest)}",
        *filter(None, [learners(result)]),
        *(f"{key} {plain(settings[key])}" for key in ("model", "trials", "samples", "seed") if key in settings),
        f"{100 * result.coverage.share:.1f} % of the {_changed(result)}",
        f"lightning_sanity {__version__}",
    ]
    meaning = (
        f"{index_name(result)}: 0 = the map ignores the {subject(result)}, 1 = as different as unrelated maps, "
        "above 1 = no better. "
        "A pass is necessary, not sufficient: it does not show that a map is right."
    )
    parts = [head, table(result), meaning, plain(reproducibility(result)), "; ".join(facts)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _changed(result: SanityResult) -> str:
    labels = subject(result) == "labels"
    return "parameters differ between the models" if labels else "used parameters proven changed"


def table(result: SanityResult) -> str:
    """The verdicts as a table, gated methods first."""
    rows = [["method", "verdict", f"{index_name(result)} [95 %]", "why"], ["---"] * 4]
    for name in ordered(result):
        verdict = result.verdicts[name]
        label = plain(name) + role(name, verdict)
        rows.append([label, verdict.outcome.value, decided.number(verdict), plain(verdict.reason)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def model_card(
    result: SanityResult,
    model_name: str,
    *,
    task: str = "image-classification",
    dataset: str = "unknown",
    dataset_name: str | None = None,
) -> str:
    """The metadata block that begins a Hugging Face model card: PSI and verdict of every gated method.

    Args:
        result: What to report.
        model_name: As the card calls the model.
        task: Identifier of the task, such as ``"image-classification"``.
        dataset: Identifier of the probe's data set on the hub, or ``"unknown"``.
        dataset_name: Its readable name; ``dataset`` if None.

    Raises:
        ValueError: If no gated method has an index: the block has no place for a missing number. Also if the run is
            not valid, whose numbers must not be published.
    """
    if not result.valid:
        raise ValueError(f"this run is not valid and belongs on no model card: {result.validity}")
    metrics = [
        {
            "type": "parameter_sensitivity_index",
            "value": round(verdict.psi, 4),
            "name": f"PSI of {name}",
            "args": {
                "verdict": verdict.outcome.value,
                "interval": [round(verdict.psi_low, 4), round(verdict.psi_high, 4)],
                "measure": verdict.measure,
            },
        }
        for name, verdict in result.verdicts.items()
        if verdict.gated and math.isfinite(verdict.psi)
    ]
    if not metrics:
        raise ValueError("no gated method of this result has a parameter sensitivity index to put on a model card")
    source: dict[str, Any] = {"type": dataset, "name": dataset_name or dataset, "args": {"digest": result.probe_digest}}
    block = {
        "model-index": [
            {
                "name": model_name,
                "results": [{"task": {"type": task}, "dataset": source, "metrics": metrics}],
            }
        ]
    }
    return f"---\n{yaml.safe_dump(block, sort_keys=False, allow_unicode=True)}---\n"


def unbroken(text: str) -> str:
    """The same on one line, however narrow its column is."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def plain(value: Any) -> str:
    """Text that stays text: no tags, no emphasis, no links, no end of a cell or a line."""
    flat = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*~]|\](?=[(\[])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", flat)
