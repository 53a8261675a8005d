"""Units: which parameters are re-initialised together, and in what order.

Order and membership come from use, not from definition: a unit stands where the forward pass reads its parameters
(see ``graph``). A layer joins its weights and what is bound to it, the normalisation, layer scale or bias vector that
follows, so that no step only resets a constant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lightning_sanity.model.graph import Graph, trace
from lightning_sanity.model.weights import own_class

Granularity = str | Sequence[str]
ORDERS = ("cascading", "bottom_up", "independent", "full")


class RandomizationError(RuntimeError):
    """A parameter could not be re-initialised."""


@dataclass(frozen=True)
class Unit:
    """Parameters that are re-initialised together in one step.

    Attributes:
        name: The module path a user would write, or the parameter's own name where a container holds it.
        parameters: Names of its parameters; a tied parameter appears once, in the unit of its topmost use.
        statistics: Names of the running statistics that belong to its normalisation layers.
        beside: Parameters that become random with it and take no part in coverage: a pass need not read them.
    """

    name: str
    parameters: tuple[str, ...]
    statistics: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The units of a model.

    Attributes:
        units: From output to input.
        unused: Parameters that the forward pass never read.
        notes: What a reader should know about them.
    """

    units: tuple[Unit, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()


def units(model: nn.Module, inputs: Any, granularity: Granularity = "layer") -> tuple[Unit, ...]:
    """The units of ``model``, from output to input, by the use that one forward pass makes of its parameters.

    Args:
        model: In the mode in which it is explained, normally ``eval()``.
        inputs: Its input, or a tuple of its positional arguments; one or two samples are enough.
        granularity: ``"layer"``, ``"block"``, or module names / regular expressions that each make one unit.

    Raises:
        ValueError: If ``granularity`` is unknown, or a name matches nothing.
        RandomizationError: If the forward pass uses no parameter, or one that has no values yet.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return plan(model, trace(model, inputs), granularity).units


def plan(model: nn.Module, graph: Graph, granularity: Granularity = "layer", max_steps: int | None = None) -> Plan:
    """Group the parameters that ``graph`` saw in use; see ``units``.

    Args:
        model: The traced model.
        graph: Its recording.
        granularity: See ``units``.
        max_steps: Merge neighbouring units evenly until at most this many remain.
    """
    parameters = dict(model.named_parameters())
    _refuse_empty(parameters)
    used = [name for name in graph.order() if name in parameters and _is_weight(parameters[name])]
    if not used:
        raise RandomizationError(
            f"{type(model).__name__} uses no floating-point parameter in its forward pass: there is nothing to "
            "re-initialise. Of a quantised or scripted model pass the float model; layers in a Python list are "
            "reached in an nn.ModuleList, tensors as nn.Parameter."
        )
    layers = _with_unowned_statistics(model, _layers(model, used, graph), graph)
    notes: tuple[str, ...] = ()
    if isinstance(granularity, str) and granularity == "layer":
        grouped = layers
    elif isinstance(granularity, str) and granularity == "block":
        blocks = _blocks(model, layers)
        grouped = _merge(layers, lambda unit: _innermost(unit, blocks))
    elif isinstance(granularity, str):
        raise ValueError(
            f"unknown granularity '{granularity}'; choose 'layer', 'block', or pass a list of module names or regexes"
        )
    else:
        grouped, notes = _listed(model, layers, granularity)
    if max_steps is not None and len(grouped) > max_steps:
        notes += (f"{len(grouped)} units merged evenly into {max_steps} steps (max_steps)",)
        grouped = _thin(grouped, max_steps)
    unused = tuple(name for name, p in parameters.items() if name not in graph.uses and _is_weight(p))
    return Plan(tuple(grouped), unused, notes)


def _is_weight(parameter: Tensor) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _refuse_empty(parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise RandomizationError(f"'{name}' is lazy and has no values yet: run one batch through the model first")
        if parameter.is_meta:
            raise RandomizationError(
                f"'{name}' is a meta tensor without values: materialise the model and load it first"
            )


def owner_of(model: nn.Module, parameter: str) -> str:
    """Path of the module a parameter belongs to; a parametrisation belongs to the module that carries it."""
    return (
        parameter.split("parametrizations.", 1)[0].rstrip(".")
        if "parametrizations." in parameter
        else (parameter.rpartition(".")[0])
    )


def _layers(model: nn.Module, used: Sequence[str], graph: Graph) -> list[Unit]:
    """Layer units, output first: weighted groups in the order of their last use, with the vectors that follow them."""
    parameters = dict(model.named_parameters())
    groups: dict[tuple[str, int], list[str]] = {}
    for name in used:  # weight and bias may be read by different operations of one module: the module is the group
        owner = owner_of(model, name)
        bearing = _bears_children(model, owner)
        key = (owner, graph.uses[name][-1]) if bearing else (owner, -1)
        groups.setdefault(key, []).append(name)
    order = sorted(groups.items(), key=lambda item: max(graph.uses[name][-1] for name in item[1]))
    members: list[list[tuple[str, list[str]]]] = []
    leading: list[tuple[str, list[str]]] = []
    for (owner, _), names in order:
        entry = (_unit_name(model, owner, names), names)
        if any(has_fan(parameters[name]) for name in names):
            members.append([*leading, entry])
            leading = []
        elif members:
            members[-1].append(entry)
        else:  # vectors before any weighted layer, an input normalisation for example, go with the first one
            leading.append(entry)
    if leading:
        members.append(leading)
    found = [_unit(model, parameters, group) for group in members]
    return _distinct(list(reversed(found)))


def _bears_children(model: nn.Module, owner: str) -> bool:
    module = model.get_submodule(owner)
    return owner == "" or any(
        True
        for name, child in module.named_children()
        if name != "parametrizations" and next(child.parameters(), None) is not None
    )


def _unit_name(model: nn.Module, owner: str, names: Sequence[str]) -> str:
    if owner == "" or (_bears_children(model, owner) and len(names) == 1):
        return names[0]
    return owner


def has_fan(parameter: Tensor) -> bool:
    """Whether it mixes channels: two or more sides longer than one. A vector scales, shifts or marks only."""
    return sum(side > 1 for side in parameter.shape) >= 2


def _unit(model: nn.Module, parameters: Mapping[str, nn.Parameter], group: Sequence[tuple[str, Sequence[str]]]) -> Unit:
    weighted = [name for name, names in group if any(has_fan(parameters[n]) for n in names)]
    names = tuple(name for _, members in group for name in members)
    return Unit((weighted or [group[0][0]])[0], names, _statistics(model, names))


def _statistics(model: nn.Module, parameters: Iterable[str]) -> tuple[str, ...]:
    """Running statistics held beside the given parameters."""
    owners = dict.fromkeys(owner_of(model, name) for name in parameters)
    return tuple(name for owner in owners for name in _statistics_of(model.get_submodule(owner), owner))


def _statistics_of(module: nn.Module, path: str) -> tuple[str, ...]:
    """Running statistics that a module holds itself."""
    held = [key for key in ("running_mean", "running_var") if isinstance(getattr(module, key, None), Tensor)]
    return tuple(f"{path}.{key}" if path else key for key in held)


def _with_unowned_statistics(model: nn.Module, layers: Sequence[Unit], graph: Graph) -> list[Unit]:
    """Running statistics of a normalisation without weights belong to the layer whose values it normalises."""
    owned = {name for unit in layers for name in unit.statistics}
    gained: dict[int, list[str]] = {}
    for owner, module in model.named_modules():
        names = [name for name in _statistics_of(module, owner) if name in graph.uses and name not in owned]
        if names:
            at = min(graph.uses[names[0]])
            before = [
                max([use for name in unit.parameters for use in graph.uses[name] if use <= at], default=-1)
                for unit in layers
            ]
            nearest = before.index(max(before)) if max(before) >= 0 else len(layers) - 1
            gained.setdefault(nearest, []).extend(names)
    return [replace(unit, statistics=(*unit.statistics, *gained.get(index, ()))) for index, unit in enumerate(layers)]


def _distinct(found: list[Unit]) -> list[Unit]:
    """Give units of one name (two groups of one container) the names of their first parameters."""
    counts: dict[str, int] = {}
    for unit in found:
        counts[unit.name] = counts.get(unit.name, 0) + 1
    return [
        unit if counts[unit.name] == 1 else Unit(unit.parameters[0], unit.parameters, unit.statistics) for unit in found
    ]


# ------------------------------------------------------------------------------------------- blocks, names, thinning


def _blocks(model: nn.Module, layers: Sequence[Unit]) -> tuple[str, ...]:
    """Paths of the modules that make one block each.

    A module is opened when it only holds others: the root, a plain container, one that holds most of the network, or
    a stack of repeated multi-layer modules. What is not opened is a block.
    """
    inside: dict[str, int] = {}
    for unit in layers:
        parts = unit.name.split(".")
        for depth in range(len(parts) + 1):
            path = ".".join(parts[:depth])
            inside[path] = inside.get(path, 0) + 1

    def repeated(path: str) -> bool:
        if not _is_module(model, path):  # a bare parameter
            return False
        kinds = [
            own_class(child)
            for name, child in model.get_submodule(path).named_modules()
            if name and inside.get(f"{path}.{name}" if path else name, 0) >= 2 and not isinstance(child, _CONTAINERS)
        ]
        return len(kinds) > len(set(kinds))

    def closed(path: str) -> list[str]:
        module = model.get_submodule(path) if _is_module(model, path) else None
        children = [f"{path}.{n}" if path else n for n, _ in module.named_children()] if module is not None else []
        children = [child for child in children if inside.get(child)]
        plain = path == "" or (module is not None and own_class(module) in _CONTAINERS)
        trunk = inside[path] > len(layers) / 2
        if not children or not (plain or trunk or repeated(path)):
            return [path]
        return [block for child in children for block in closed(child)]

    return tuple(closed(""))


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _is_module(model: nn.Module, path: str) -> bool:
    return path == "" or any(name == path for name, _ in model.named_modules(remove_duplicate=False))


def _innermost(unit: Unit, paths: Sequence[str]) -> str:
    """The longest of ``paths`` that contains the unit, else the unit itself."""
    containing = [path for path in paths if unit.name == path or unit.name.startswith(path + ".")]
    return max(containing, key=len, default=unit.name)


def _merge(layers: Sequence[Unit], group_of: Callable[[Unit], str]) -> list[Unit]:
    """Join units of one group at the place of the group's topmost unit."""
    groups: dict[str, list[Unit]] = {}
    for unit in layers:
        groups.setdefault(group_of(unit), []).append(unit)
    return [_joined(name, members) for name, members in groups.items()]


def _joined(name: str, members: Sequence[Unit]) -> Unit:
    return Unit(
        name,
        tuple(parameter for unit in members for parameter in unit.parameters),
        tuple(statistic for unit in members for statistic in unit.statistics),
    )


def _listed(model: nn.Module, layers: Sequence[Unit], patterns: Sequence[str]) -> tuple[list[Unit], tuple[str, ...]]:
    """Units by module names or regexes; what no pattern covers stays in units of its own, never trained."""
    paths = [name for name, _ in model.named_modules() if name]
    chosen: list[str] = []
    for pattern in patterns:
        matched = [path for path in paths if path == pattern or re.fullmatch(pattern, path)]
        if not matched:
            raise ValueError(f"granularity: '{pattern}' matches no module; there are {', '.join(paths[:20])} ...")
        chosen += matched

    def group_of(unit: Unit) -> str | None:
        containing = [path for path in chosen if unit.name == path or unit.name.startswith(path + ".")]
        return min(containing, key=len, default=None)

    named = [(group_of(unit), unit) for unit in layers]
    runs: list[tuple[str | None, list[Unit]]] = []
    for group, unit in named:
        same = next((run for run in runs if run[0] == group), None) if group is not None else None
        if same is not None:
            same[1].append(unit)
        elif group is None and runs and runs[-1][0] is None:
            runs[-1][1].append(unit)
        else:
            runs.append((group, [unit]))
    found = [_joined(group or _span(members), members) for group, members in runs]
    rest = [unit.name for (group, _), unit in zip(runs, found, strict=True) if group is None]
    note = (
        (f"not covered by the given granularity, re-initialised as further steps: {', '.join(rest)}",) if rest else ()
    )
    return found, note


def _span(members: Sequence[Unit]) -> str:
    return members[0].name if len(members) == 1 else f"{members[0].name}..{members[-1].name}"


def _thin(grouped: Sequence[Unit], steps: int) -> list[Unit]:
    """Merge neighbours into ``steps`` groups of nearly equal size."""
    edges = [round(k * len(grouped) / steps) for k in range(steps + 1)]
    parts = [grouped[low:high] for low, high in pairwise(edges)]
    return [_joined(_span(part), part) for part in parts if part]


def subsets(found: Sequence[Unit], order: str) -> tuple[tuple[Unit, ...], ...]:
    """Which units carry random weights at each step of ``order``; every order is subsets of one twin's units.

    Raises:
        ValueError: If ``order`` is unknown.
    """
    if order == "cascading":
        return tuple(tuple(found[: depth + 1]) for depth in range(len(found)))
    if order == "bottom_up":
        return tuple(tuple(found[::-1][: depth + 1]) for depth in range(len(found)))
    if order == "independent":
        return tuple((unit,) for unit in found)
    if order == "full":
        return (tuple(found),)
    raise ValueError(f"unknown order '{order}'; choose from: {', '.join(ORDERS)}")
