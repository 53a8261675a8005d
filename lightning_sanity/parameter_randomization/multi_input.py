"""Models of several inputs: every one explained in its turn, and one verdict over all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_sanity.explanation.request import explainable
from lightning_sanity.parameter_randomization.mprt import parameter_randomization_test
from lightning_sanity.result.evidence import over_all
from lightning_sanity.result.sanity_result import SanityResult, Verdict


def multi_input_randomization_test(
    model: nn.Module, inputs: Any, target: Any = None, *, tokens: Any = None, **arguments: Any
) -> SanityResult:
    """The parameter randomization test of every floating-point input, in one result.

    Curves and verdicts of a method are called "method[input]"; under the method's own name stands the verdict over all
    inputs: PASS if each passed, FAIL if one failed.

    Args:
        model: See ``parameter_randomization_test``.
        inputs: A tuple or a mapping.
        target: See there.
        tokens: Where token ids among the inputs are explained; ``{key: Tokens(...)}``. Integer inputs that are not
            named here are passed through.
        arguments: See there; ``explain`` is what varies.

    Raises:
        ValueError: If there is nothing to explain, or as there.
    """
    of = dict(tokens or {})
    names = tuple(dict.fromkeys((*explainable(inputs), *of)))
    if not names:
        raise ValueError("no input is a floating-point tensor: pass tokens={key: Tokens()} to explain token ids")
    return combined(
        {
            str(name): parameter_randomization_test(
                model, inputs, target, explain=name, tokens=of.get(name), **arguments
            )
            for name in names
        }
    )


def combined(results: Mapping[str, SanityResult]) -> SanityResult:
    """One result of tests of the same model and the same draws that explain different inputs."""
    first = next(iter(results.values()))
    verdicts: dict[str, Verdict] = {}
    for method in first.verdicts:
        each = {name: result.verdicts[method] for name, result in results.items() if method in result.verdicts}
        verdicts[method] = over_all(each)
        verdicts |= {f"{method}[{name}]": verdict for name, verdict in each.items()}
    invalid = {name: result.validity for name, result in results.items() if not result.valid}
    return replace(
        first,
        curves={
            (f"{method}[{name}]", measure): curve
            for name, result in results.items()
            for (method, measure), curve in result.curves.items()
        },
        verdicts=verdicts,
        valid=not invalid,
        validity="; ".join(f"{name}: {reason}" for name, reason in (invalid or {"all": first.validity}).items()),
        settings={
            **first.settings,
            "explained": list(results),
            "similarities": list(dict.fromkeys(m for r in results.values() for m in r.settings["similarities"])),
            "input_shape": {name: result.settings["input_shape"] for name, result in results.items()},
            "axes": {name: result.settings["axes"] for name, result in results.items()},
        },
        seconds=sum(result.seconds for result in results.values()),
        pictures=None,
        trained_maps={
            f"{method}[{name}]": maps
            for name, result in results.items()
            for method, maps in result.trained_maps.items()
        },
        reproducibility={
            f"{method}[{name}]": again
            for name, result in results.items()
            for method, again in result.reproducibility.items()
        },
        grounds={
            f"{method}[{name}]": grounds
            for name, result in results.items()
            for method, grounds in result.grounds.items()
        },
        diagnostics={
            f"{method}[{name}]": found
            for name, result in results.items()
            for method, found in result.diagnostics.items()
        },
    )
