"""The options of the parameter randomization test, stated once for the function, the callback and the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from torch import nn

from lightning_sanity.engine import ENGINES
from lightning_sanity.explanation.options import DEFAULTS as SHARED
from lightning_sanity.explanation.options import (
    CommonOptions,
    check_choice,
    check_common,
    check_expressions,
    check_integer,
    check_yes_no,
    known,
    layer_in,
)
from lightning_sanity.parameter_randomization.diagnostics import check_names
from lightning_sanity.parameter_randomization.looks import Looks
from lightning_sanity.randomization.granularity import no_module
from lightning_sanity.randomization.strategies import STRATEGIES, Reinitialize
from lightning_sanity.randomization.twins import NORM_STATS, device_named
from lightning_sanity.randomization.unit import ORDERS, Granularity
from lightning_sanity.resources.memory import check_memory
from lightning_sanity.resources.suggestions import unknown

_GRANULARITIES = ("layer", "block")


MOST_TRIALS = 100_000
"""Trials beyond which a number is a slip of the pen."""


class WalkOptions(CommonOptions, total=False):
    """How the cascade is walked.

    Args:
        order: ``"cascading"`` from the output down, the only order in which a method can pass; ``"bottom_up"`` and
            ``"full"``, all at once, can refuse a method; ``"independent"``, one step at a time, says which layer a map
            reads and judges nothing.
        granularity: ``"layer"``, ``"block"``, or a list of names and regular expressions of modules or parameters,
            each of which makes one unit of all that it matches. What lies at one distance from the explained output,
            the members of an ensemble for example, is one step.
        max_steps: Walk at most this many steps, evenly chosen, the first and the last among them, of ten or more also
            their neighbours. An index stays the mean over all steps: between walked ones it takes straight lines.
            ``"auto"`` walks 12; all of them where the network has no more, and where the order is ``"independent"``.
            On six trainings that this number was not chosen on, of up to 152 steps, that moved an index by at most
            .01; those of class activation maps, some of whose pairs are undefined, by at most .07. None walks all. The
            notes and ``settings["walked"]`` say which were walked. A single step can refuse a method, and never
            pass one.
        reinitialize: ``"normal"``: each tensor redrawn with its own mean and standard deviation, the weights of the
            head around 0, which works on every architecture. Also ``"shuffle"``, ``"reset"`` (the modules' own),
            ``"xavier"``, ``"kaiming"``, a function of a module, or a twin factory: a function without arguments that
            builds the architecture anew, such as ``lambda: Net(**hparams)``. Where it fills in one constant that
            multiplies, as a head of zeros, the tensor is redrawn by ``"normal"`` and named.
        twin_device: Where twins live, one at a time, from which each unit is copied over in its turn: ``"cpu"`` keeps
            them out of a GPU's memory. None = where their factory makes them, which is the CPU unless it says
            otherwise. The result is the same.
        norm_stats: Running statistics of normalisation layers: ``"auto"`` (the twin's own, else kept), ``"keep"``,
            ``"reset"`` or ``"recalibrate"`` on the inputs.
        trials: Independent re-initialisations; a release wants 20, a look during training less. One trial never
            passes. ``"auto"`` runs 5, then up to 10 and 20 for the gated methods whose interval still straddles the
            threshold. Or ``Looks``, by which every method stops when its own verdict is clear.
        retarget: Explain each randomised model's own prediction instead, as the original code did.
        diagnostics: Second opinions on the same maps, which never gate: ``"cross_image"``, ``"random_logit"`` (four
            more explanations of the trained model), ``"entropy"``, ``"dependence"`` (one more explanation per trial).
        engine: ``"auto"`` explains many depths of a trial at once where that gives the same maps, at the price of one
            more copy of the weights; ``result.engine`` says how (``"two_stream"``, or ``"full_batch"`` where the
            network cannot be traced). ``"folded"`` also folds batch normalisations into the layers before them, where
            that pays: a few per cent of the time for two copies of their weights. Its maps are equal to rounding,
            which moves one by up to some per cent where a rectifier's input is nearly zero. ``"plain"`` explains one
            depth after the other, without any copy.
        max_batch: Most samples that are explained at once, against running out of memory; all if None. A stochastic
            method draws other noise for other parts. Methods that run many altered copies of a sample have a
            ``max_batch`` of their own for these.
        max_memory: Bytes that the test may keep above the trained model, on its device: weights, maps and activations,
            not what a library needs inside one operation. Fewer samples, copies or depths are explained at a time; the
            result stays the same. Stochastic methods are not split into smaller batches: that would change their
            noise. ``settings["memory"]`` has what was decided; the notes say where even one sample takes more.
        constants: Names, as ``result.coverage.hidden`` has them, or regular expressions of tensors that the model
            computes with, that are no registered parameters and that nobody trained. What shows by itself that it is
            constant (index tables, masks, sinusoidal positions, scales of the inputs) need not be declared.
    """

    order: str
    granularity: Granularity
    max_steps: int | Literal["auto"] | None
    reinitialize: Reinitialize
    twin_device: str | None
    norm_stats: str
    trials: int | Literal["auto"] | Looks
    retarget: bool
    diagnostics: Sequence[str]
    engine: str
    max_batch: int | None
    max_memory: int | None
    constants: Sequence[str]


DEFAULTS: WalkOptions = {
    **SHARED,
    "order": "cascading",
    "granularity": "layer",
    "max_steps": "auto",
    "reinitialize": "normal",
    "twin_device": None,
    "norm_stats": "auto",
    "trials": 5,
    "retarget": False,
    "diagnostics": ("cross_image",),
    "engine": "auto",
    "max_batch": None,
    "max_memory": None,
    "constants": (),
}


def settled(options: Mapping[str, Any], of: str) -> WalkOptions:
    """All options of a call, checked as far as they do not depend on the model.

    Raises:
        TypeError: If there is no such option.
        ValueError: Which option is wrong, why, and what would be right.
    """
    given = cast(WalkOptions, known(options, DEFAULTS, of))
    check_common(given)
    check_choice("order", given["order"], ORDERS)
    _check_granularity(given["granularity"])
    _check_reinitialize(given["reinitialize"])
    check_yes_no("retarget", given["retarget"])
    check_choice("norm_stats", given["norm_stats"], NORM_STATS)
    check_choice("engine", given["engine"], tuple(ENGINES))
    for name in ("trials", "max_steps"):
        settled_later = given[name] == "auto" or isinstance(given[name], Looks)
        if not settled_later and (given[name] is not None or name == "trials"):
            check_integer(name, given[name], 1, MOST_TRIALS if name == "trials" else None)
    if given["max_batch"] is not None:
        check_integer("max_batch", given["max_batch"], 1)
    check_memory(given["max_memory"])
    device_named(given["twin_device"])
    constants = check_expressions("constants", given["constants"])
    return {**given, "diagnostics": check_names(given["diagnostics"]), "constants": constants}


def settled_for(model: nn.Module, given: WalkOptions) -> WalkOptions:
    """The options with the names in them found in the model.

    Raises:
        ValueError: Which name is none of the model's, and what may have been meant.
    """
    own = getattr(model, "_orig_mod", model)
    modules = [name for name, _ in own.named_modules(remove_duplicate=False) if name]
    paths = [*modules, *(name for name, _ in own.named_parameters(remove_duplicate=False))]
    granularity = given["granularity"]
    for pattern in () if isinstance(granularity, str) else granularity:
        if not any(path == pattern or re.fullmatch(pattern, path) for path in paths):
            raise ValueError(no_module(pattern, paths))
    return {**given, "layer": layer_in(model, given["layer"])}


def _check_granularity(given: Any) -> None:
    if isinstance(given, str):
        if given not in _GRANULARITIES:
            choices = unknown("granularity", given, _GRANULARITIES)
            raise ValueError(f"{choices}, or pass a list of module names or regular expressions")
        return
    if not check_expressions("granularity", given):
        raise ValueError(f"granularity must be 'layer', 'block', or a list of names, not {given!r}")


def _check_reinitialize(given: Any) -> None:
    if isinstance(given, str):
        if given not in STRATEGIES:
            choices = unknown("re-initialisation", given, STRATEGIES)
            raise ValueError(f"reinitialize: {choices}, a function of a module, or a twin factory")
    elif not callable(given):
        raise ValueError(
            f"reinitialize must be one of {', '.join(STRATEGIES)}, a function of a module, or a twin "
            f"factory (a function without arguments), not {given!r}"
        )
