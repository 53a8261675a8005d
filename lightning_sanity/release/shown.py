"""Is the method that is shown one that was recommended for these weights?"""

from __future__ import annotations

import os

from lightning_sanity.release.gating import Check, Decision
from lightning_sanity.resources.quoting import listed
from lightning_sanity.result.choice import Choice
from lightning_sanity.result.sanity_result import Outcome


def shown(method: str | None, choice: Choice | str | os.PathLike[str] | None, decision: Decision) -> Check:
    """Whether a method may be shown: a choice about the weights that are released recommends it, or ties it with that.

    Args:
        method: The one that is shown.
        choice: What ``choose_methods`` found, or its file.
        decision: Of the gate, whose results say which weights are released.

    Raises:
        ValueError: If one of the two is missing, or the file is no choice.
        OSError: If it cannot be read.
    """
    if method is None or choice is None:
        missing = "--shown METHOD" if method is None else "--choice CHOICE.json, what lightning-sanity choose wrote"
        raise ValueError(f"--shown and --choice go together: add {missing}")
    source = "" if isinstance(choice, Choice) else str(choice)
    found = choice if isinstance(choice, Choice) else Choice.from_json(choice)

    def check(outcome: Outcome, reason: str) -> Check:
        return Check(f"shown: {method}", outcome, reason, source)

    if found.weights_digest not in decision.weights_digests:
        released = listed([digest[:12] for digest in decision.weights_digests]) or "none"
        return check(
            Outcome.FAIL,
            f"the choice is about other weights ({found.weights_digest[:12]}; the results are about {released}): "
            "choose anew for these",
        )
    if method in found.recommended_set:
        return check(Outcome.PASS, "recommended for these weights, or as good as can be told")
    row = next((row for row in found.table if row.method == method), None)
    why = "it was no candidate" if row is None else f"{row.standing.value}: {row.reason}"
    instead = f"; recommended: {listed(found.recommended_set)}" if found.recommended_set else "; nothing is recommended"
    return check(Outcome.FAIL, f"not in the recommended set of these weights ({why}){instead}")
