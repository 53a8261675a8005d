"""Methods with other parameters, written as in ``smoothgrad(n_samples=100)``: repairs, and what tuning tries."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from lightning_sanity.attribution.layers import maps_of
from lightning_sanity.attribution.registry import available, factory_named
from lightning_sanity.choice.subject import Subject
from lightning_sanity.result.sanity_result import Outcome, Verdict

LOCAL = {
    "integrated_gradients": "integrated_gradients_local",
    "deeplift": "deeplift_local",
    "deepshap": "deepshap_local",
    "input_x_gradient": "gradient",
}
"""What a method is without the factor of the input that makes it fail; Ancona et al. 2018 (arXiv:1711.06104)."""
_MORE = 4  # times the samples of a method whose draws decide its map
_LAYERS = 2  # other feature maps that a class activation map is tried on
_NOISE = (0.05, 0.3)
_BASELINES = ("mean", "blur")


def repairs(verdicts: Mapping[str, Verdict], layers: Sequence[str]) -> list[str]:
    """What may pass in the place of a method that did not.

    Args:
        verdicts: Of the candidates so far.
        layers: Other feature maps, by their modules' names, the last first.
    """
    found = []
    for name, verdict in verdicts.items():
        if name not in available() or verdict.passed:
            continue
        if name in LOCAL:
            found.append(LOCAL[name])
        if "n_samples" in verdict.reason and isinstance(count := _default(name, "n_samples"), int):
            found.append(f"{name}(n_samples={_MORE * count})")
        if "layer" in _parameters(name) and (verdict.outcome is Outcome.FAIL or "constant" in verdict.reason):
            found += [f"{name}(layer={layer!r})" for layer in layers]
    return [name for name in dict.fromkeys(found) if name not in verdicts]


def settings(name: str, layers: Sequence[str], image: bool) -> list[str]:
    """Settings of a method that tuning tries beside its default.

    Args:
        name: The method.
        layers: See ``repairs``.
        image: Whether a blurred input is there to be a baseline.
    """
    if name not in available():
        return []
    known = _parameters(name)
    found = [f"{name}(noise={noise})" for noise in _NOISE] if "noise" in known else []
    if "baseline" in known:
        found += [f"{name}(baseline={each!r})" for each in _BASELINES if image or each != "blur"]
    if "layer" in known:
        found += [f"{name}(layer={layer!r})" for layer in layers]
    return found


def other_layers(on: Subject) -> list[str]:
    """Feature maps before the last, by their modules' names, the later ones first; none where there are none."""
    try:
        maps = maps_of(on.what.model, on.what.inputs)
    except (RuntimeError, ValueError, TypeError):
        return []
    names = [layer.name.removeprefix("model.") for layer in maps]
    sides = [layer.layout.sides for layer in maps]
    found: list[str] = []
    for name, size in zip(reversed(names), reversed(sides), strict=True):
        taken = [sides[names.index(each)] for each in found]
        if name and size != sides[-1] and size not in taken:  # one of every size
            found.append(name)
    return found[:_LAYERS]


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(factory_named(name)).parameters


def _default(name: str, parameter: str) -> object:
    known = _parameters(name)
    return known[parameter].default if parameter in known else None
