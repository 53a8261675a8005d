"""The numbers of a result that a dashboard shows and a monitor watches: always the same keys, always finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_sanity.callback.drift import drift
from lightning_sanity.result.sanity_result import Outcome, SanityResult

_DECIDED = ("passed", "inconclusive", "psi", "psi_low", "dri")


def scalars(
    result: SanityResult | None,
    methods: Sequence[str],
    similarities: Sequence[str],
    *,
    age: int,
    seconds: float,
    moved: Mapping[str, float],
) -> dict[str, float]:
    """What is logged; what is undefined, or was not measured, has the worst value.

    ``<method>/inconclusive`` tells that from a map that is as bad as can be.

    Args:
        result: Of the last test, if there is one.
        methods: The gated methods.
        similarities: Those to log.
        age: Steps since the last test.
        seconds: That the last test took, with all that was shown of it.
        moved: See ``drift``, against the test before.
    """
    values = {
        "passed": float(result is not None and result.passed),
        "age": float(age),
        "seconds": 0.0 if result is None else seconds,
    }
    for method in methods:
        verdict = None if result is None else result.verdicts[method]
        values[f"{method}/passed"] = float(verdict is not None and verdict.passed)
        undecided = verdict is None or verdict.outcome is Outcome.INCONCLUSIVE
        values[f"{method}/inconclusive"] = float(undecided)
        values[f"{method}/psi"] = _finite(None if verdict is None else verdict.psi, 0.0)
        values[f"{method}/psi_low"] = _finite(None if verdict is None else verdict.psi_low, 0.0)
        values[f"{method}/drift"] = _finite(moved.get(method), 1.0)
        for key in similarities:
            curve = None if result is None else result.curves.get((method, key))
            values[f"{method}/{key}"] = _finite(None if curve is None else float(curve.mean[-1]), 1.0)
            values[f"{method}/{key}_auc"] = _finite(None if curve is None else float(curve.mean.nanmean()), 1.0)
    return values


def of_testing(values: Mapping[str, float]) -> dict[str, float]:
    """Those that a table of test metrics needs: what was decided, and by which index."""
    return {name: value for name, value in values.items() if name.rpartition("/")[2] in _DECIDED}


def beside_baseline(result: SanityResult | None, baseline: SanityResult, methods: Sequence[str]) -> dict[str, float]:
    """How far maps and indices are from those of the last release; the worst value where the probes differ."""
    comparable = result is not None and result.probe_digest == baseline.probe_digest
    moved = drift(result, baseline) if comparable and result is not None else {}
    values = {}
    for method in methods:
        now, before = None if result is None else result.verdicts[method], baseline.verdicts.get(method)
        change = now.psi - before.psi if comparable and now is not None and before is not None else None
        values[f"{method}/baseline_drift"] = _finite(moved.get(method), 0.0)
        values[f"{method}/baseline_change"] = _finite(change, -1.0)
    return values


def beside_random_labels(labels: SanityResult | None, methods: Sequence[str]) -> dict[str, float]:
    """The indices of the data randomization test."""
    return {
        f"{method}/dri": _finite(None if labels is None else labels.verdicts[method].psi, 0.0) for method in methods
    }


def _finite(value: float | None, worst: float) -> float:
    return worst if value is None or not math.isfinite(value) else value
