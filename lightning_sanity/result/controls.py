"""Methods whose verdict is known beforehand, and what a run is worth when one comes out otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lightning_sanity.result.sanity_result import Outcome, Verdict

POSITIVE_CONTROL = "gradient"
CONTROLS = (POSITIVE_CONTROL, "edge_detector", "input_copy", "random")
"""Run beside the user's methods: the plain gradient must not fail on a trained network, the others must not pass."""


def validated(verdicts: Mapping[str, Verdict], wrong: str | None) -> tuple[dict[str, Verdict], bool, str]:
    """The verdicts, whether they stand, and why; none stands if something was ``wrong`` with the run."""
    if wrong is None:
        seen = [name for name in CONTROLS if name in verdicts]
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


def wrong_control(
    verdicts: Mapping[str, Verdict],
    gradient_failed: str = "which changes with the weights of any trained network: is the model trained, and is its "
    "re-initialisation random?",
) -> str | None:
    """Which control came out otherwise than it must, if one did."""
    for name in ("edge_detector", "input_copy", "input_plus_gradient", "constant"):
        if name in verdicts and verdicts[name].outcome is Outcome.PASS:
            return f"the control '{name}' passed, which hardly looks at the model"
    if "random" in verdicts and verdicts["random"].outcome is not Outcome.INCONCLUSIVE:
        return f"the control 'random', which is noise, came out {verdicts['random'].outcome.value}"
    if "gradient" in verdicts and verdicts["gradient"].outcome is Outcome.FAIL:
        return f"the plain gradient failed, {gradient_failed}"
    return None
