"""What a user's checkpoint keeps of the last result: plain Python, which loads with ``weights_only=True``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sanity.result.sanity_result import SanityResult


def kept_of(result: SanityResult) -> dict[str, Any]:
    """What is stored beside the weights.

    Args:
        result: Of the last measurement.
    """
    return {
        "version": 1,
        "stale": False,
        "probe_ids": None if result.probe_ids is None else list(result.probe_ids),
        "probe_digest": result.probe_digest,
        "weights_digest": result.weights_digest,
        "step": result.step,
        "passed": result.passed,
        "outcomes": {name: verdict.outcome.value for name, verdict in result.verdicts.items()},
    }


def restored(state: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """What was stored by an earlier run, kept for the record and never counted as a result; and the step measured then.

    Args:
        state: See ``kept_of``; of any version.
    """
    return {**state, "stale": True}, int(state.get("step") or 0)
