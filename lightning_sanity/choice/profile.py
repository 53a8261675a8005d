"""What of the weights a method's maps depend on: its index step by step, in three orders of re-initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_sanity.parameter_randomization.mprt import parameter_randomization_test
from lightning_sanity.result.choice import Profile
from lightning_sanity.result.psi import sensitivity_curve
from lightning_sanity.result.sanity_result import SanityResult
from lightning_sanity.result.verdict import SIGNED

ORDERS = ("independent", "bottom_up")
"""Beside the cascade from the output down, which the sanity test has walked."""
TRIALS = 2


def profile_in(result: SanityResult, method: str, measure: str | None = None) -> Profile | None:
    """The index of a method at every step of a result, by the measure that decided."""
    measure = measure or result.verdicts[method].measure
    curve = None if measure is None else result.curves.get((method, measure))
    if curve is None or measure is None:
        return None
    found = sensitivity_curve(
        curve.values, curve.floor, curve.ceiling, absolute=measure == SIGNED, weights=result.depth_weights
    )
    return Profile(result.units, found.float(), measure)


def further_profiles(
    model: nn.Module, inputs: Any, target: Any, method: Mapping[str, Any], measure: str, options: Mapping[str, Any]
) -> dict[str, Profile]:
    """The index of one method in the other orders.

    Args:
        model: See ``choose_methods``.
        inputs: See there.
        target: See there.
        method: ``{name: method}``.
        measure: The similarity.
        options: Of ``parameter_randomization_test``.
    """
    found = {}
    for order in ORDERS:
        given = {**options, "order": order, "trials": TRIALS, "controls": False}
        result = parameter_randomization_test(
            model, inputs, target, methods=dict(method), pictures=False, progress=False, **given
        )
        one = profile_in(result, next(iter(method)), measure)
        if one is not None:
            found[order] = one
    return found
