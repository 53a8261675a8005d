"""Methods whose verdict is known beforehand, and what a run is worth when one comes out otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lightning_sanity.result.sanity_result import Outcome, Verdict

POSITIVE_CONTROL = "output_pattern"
COMPARISON = "gradient"
"""Run beside the user's methods for comparison: a method like any other, whose verdict says nothing about the run."""
CONTROLS = (POSITIVE_CONTROL, COMPARISON, "edge_detector", "input_copy", "random")
"""Run beside the user's methods: what the outputs alone make must pass, what hardly looks at the model must not."""
KNOWN = (*CONTROLS, "input_plus_gradient", "constant")
"""All that can be a control; whatever bears another name is a method, and counts."""


def validated(verdicts: Mapping[str, Verdict], wrong: str | None) -> tuple[dict[str, Verdict], bool, str]:
    """The verdicts, whether they stand, and why; none stands if something was ``wrong`` with the run."""
    if wrong is None:
        seen = [name for name in CONTROLS if name in verdicts and name != COMPARISON]
        return (
            dict(verdicts),
            True,
            f"every control came out as it must ({', '.join(seen)})" if seen else "no control was run",
        )
    void = {
        name: replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=f"the run is invalid: {wrong}")
        if verdict.gated
        else verdict
        for name, verdict in verdicts.items()
    }
    return void, False, wrong


def wrong_control(verdicts: Mapping[str, Verdict]) -> str | None:
    """Which control came out otherwise than it must, if one did.

    The positive control must pass where anything can; what no walk of this kind can decide, or so few trials, leaves it
    open and says nothing about the run.
    """
    for name in ("edge_detector", "input_copy", "input_plus_gradient", "constant"):
        if name in verdicts and verdicts[name].outcome is Outcome.PASS:
            return f"the control '{name}' passed, which hardly looks at the model"
    if "random" in verdicts and verdicts["random"].outcome is not Outcome.INCONCLUSIVE:
        return f"the control 'random', which is noise, came out {verdicts['random'].outcome.value}"
    positive = verdicts.get(POSITIVE_CONTROL)
    if positive is not None and positive.outcome is Outcome.FAIL:
        return (
            f"the control '{POSITIVE_CONTROL}' failed, a map made of the model's outputs alone: they hardly changed "
            f"({positive.reason})"
        )
    return None
