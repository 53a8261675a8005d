"""For test suites: an assertion that says which method failed and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from lightning_sanity.release.gating import gate
from lightning_sanity.release.policy import Policy
from lightning_sanity.result.sanity_result import Outcome, SanityResult


def assert_passes(
    result: SanityResult | str | os.PathLike[str],
    methods: str | Sequence[str] | None = None,
    policy: Policy | None = None,
) -> None:
    """Fail a test unless the gate lets a result pass.

    Args:
        result: A result, the file of one, or a folder; see ``gate``.
        methods: Methods that must pass, in place of ``policy.require``.
        policy: What else is asked.

    Raises:
        AssertionError: With a line for everything that did not pass.

    Example::

        def test_the_maps_we_ship_depend_on_the_model(model, images):
            assert_passes(parameter_randomization_test(model, images, methods=["gradcam"], trials=20))
    """
    __tracebackhide__ = True  # pytest then points at the caller's line
    policy = policy or Policy()
    if methods is not None:
        policy = replace(policy, require=(methods,) if isinstance(methods, str) else tuple(methods))
    decision = gate(result, policy)
    if not decision.passed:
        missed = [check for check in decision.checks if check.outcome is not Outcome.PASS]
        lines = [f"  {check.outcome.value:13s} {check.name}: {check.reason}" for check in missed]
        raise AssertionError("\n".join([f"saliency maps: {decision.outcome.value}", *lines]))
