"""Units and steps: which parameters are re-initialised together, and in what order.

A unit is the parameters of one layer; a step is the units that lie at one distance from the explained output, so that
paths that run side by side (the members of an ensemble, towers, branches, a query, a key and a value) become random
together. On a chain every layer is a step. Only what reaches the explained output is a step at all; order and
membership come from use, not from definition (see ``graph`` and ``layers``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from torch import Tensor, nn

from lightning_sanity.model.graph import Graph, trace
from lightning_sanity.randomization.granularity import Granularity, Group, groups
from lightning_sanity.randomization.layers import Unit, layers, owner_of, repeated
from lightning_sanity.randomization.naming import step_names
from lightning_sanity.resources.quoting import listed

__all__ = ["ORDERS", "Granularity", "Plan", "RandomizationError", "Step", "Unit", "plan", "subsets", "units"]

ORDERS = ("cascading", "bottom_up", "independent", "full")
_Item = TypeVar("_Item")


class RandomizationError(RuntimeError):
    """A parameter could not be re-initialised."""


@dataclass(frozen=True)
class Step:
    """Units that are re-initialised together.

    Attributes:
        name: What a person would call them.
        units: Each drawn from a random stream of its own.
    """

    name: str
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Plan:
    """The steps of a model.

    Attributes:
        steps: From the explained output to the input.
        aside: Units that the forward pass reads, but whose result never reaches the explained output: other heads,
            poolers. They are random from the first step on, so that nothing trained is left, and are no steps.
        unused: Parameters that the forward pass never read; random from the first step on, because a later pass may.
        notes: What a reader should know about them.
    """

    steps: tuple[Step, ...]
    aside: tuple[Unit, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> tuple[Unit, ...]:
        """Those that reach the explained output, from there to the input."""
        return tuple(unit for step in self.steps for unit in step.units)

    @property
    def drawn(self) -> tuple[Unit, ...]:
        """All that is re-initialised."""
        return (*self.units, *self.aside)

    def depths(self, order: str) -> dict[tuple[Unit, ...], str]:
        """The units that are random at each depth, in the order walked, with the name of the step that it adds.

        Raises:
            ValueError: If ``order`` is unknown.
        """
        found: dict[tuple[Unit, ...], str] = {}
        for walked in subsets(self.steps, order):
            beside = () if found and order == "independent" else self.aside
            units = (*beside, *(unit for step in walked for unit in step.units))
            found[units] = walked[-1].name if order != "full" else "all units"
        return found


def units(model: nn.Module, inputs: Any, granularity: Granularity = "layer") -> tuple[Unit, ...]:
    """The units of ``model``, from output to input, by the use that one forward pass makes of its parameters.

    Args:
        model: In the mode in which it is explained, normally ``eval()``.
        inputs: Its input, or a tuple of its positional arguments; one or two samples are enough.
        granularity: ``"layer"``, ``"block"``, or a list of names and regular expressions of modules or parameters: all
            that one of them matches makes one unit, and more exact names are served first.

    Raises:
        ValueError: If ``granularity`` is unknown, or a name matches nothing that is used.
        RandomizationError: If the forward pass uses no parameter, or one that has no values yet.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(_joined(group.name, group.units) for group in _groups(model, trace(model, inputs), granularity))


def plan(model: nn.Module, graph: Graph, granularity: Granularity = "layer") -> Plan:
    """Order the parameters that ``graph`` saw in use into steps; see ``units``.

    Args:
        model: The traced model.
        graph: Its recording.
        granularity: See ``units``.
    """
    found = _groups(model, graph, granularity)
    notes: tuple[str, ...] = ()
    rest = [] if isinstance(granularity, str) else [group.name for group in found if not group.asked]
    if rest:
        notes += (f"not covered by the given granularity, re-initialised as further steps: {', '.join(rest)}",)
    steps = _by_distance(found)
    aside = _aside(model, graph)
    if aside:
        notes += (
            "used, but not for what is explained, so no steps; random from the first step on: "
            f"{', '.join(unit.name.removesuffix(_ASIDE) for unit in aside)}",
        )
    again = listed(
        repeated(model, graph, [name for group in found for unit in group.units for name in unit.parameters])
    )
    if again:
        notes += (f"used several times on the way, random with the use nearest to the output: {again}",)
    unused = tuple(name for name, p in model.named_parameters() if name not in graph.uses and _is_weight(p))
    unread = (Unit(_UNREAD, (), beside=unused),) if unused else ()
    return Plan(tuple(steps), (*aside, *unread), unused, notes)


def _groups(model: nn.Module, graph: Graph, granularity: Granularity) -> list[Group]:
    _refuse_empty(model)
    used = [name for name, parameter in model.named_parameters() if _is_weight(parameter) and name in graph.uses]
    reaching = [name for name in used if graph.reaching(name)]
    if not reaching:
        where = "whose result reaches the explained output" if used else "in its forward pass"
        raise RandomizationError(
            f"{type(model).__name__} uses no floating-point parameter {where}: there is nothing to re-initialise. "
            "Of a quantised or scripted model pass the float model; layers in a Python list are reached in an "
            "nn.ModuleList, tensors as nn.Parameter."
        )
    found = groups(model, layers(model, graph, reaching, _statistics(model, graph)), granularity)
    return found if isinstance(granularity, str) else _runs(found)


def _is_weight(parameter: Tensor) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _refuse_empty(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise RandomizationError(f"'{name}' is lazy and has no values yet: run one batch through the model first")
        if parameter.is_meta:
            raise RandomizationError(
                f"'{name}' is a meta tensor without values: materialise the model and load it first"
            )


def _statistics(model: nn.Module, graph: Graph, reaching: bool = True) -> list[str]:
    """Running statistics that the pass read and that reach, or do not reach, the explained output."""
    buffers = [name for name, buffer in model.named_buffers() if _is_weight(buffer) and name in graph.uses]
    own = [name for name in buffers if name.rpartition(".")[2] in ("running_mean", "running_var")]
    return [name for name in own if bool(graph.reaching(name)) == reaching]


_ASIDE = " (not explained)"
_UNREAD = "(never read)"


def _aside(model: nn.Module, graph: Graph) -> tuple[Unit, ...]:
    """What the pass reads and the explained output does not need, by module."""
    read = [
        name
        for name, parameter in model.named_parameters()
        if _is_weight(parameter) and name in graph.uses and not graph.reaching(name)
    ]
    owners: dict[str, list[str]] = {}
    for name in read:
        owners.setdefault(owner_of(model, name) or name, []).append(name)
    statistics = _statistics(model, graph, reaching=False)
    return tuple(
        Unit(
            owner + _ASIDE,
            tuple(names),
            tuple(name for name in statistics if name.rpartition(".")[0] == owner),
            tuple(name for name in names if name in graph.mixing),
        )
        for owner, names in owners.items()
    )


def _runs(found: Sequence[Group]) -> list[Group]:
    """Neighbours that nobody asked for as one group each; what was asked for lies between them."""
    levels = [list(level) for _, level in groupby(found, key=lambda group: group.distance)]
    runs: list[Group] = []
    for asked, following in groupby(levels, key=lambda level: any(group.asked for group in level)):
        if asked:
            runs += [group for level in following for group in level]
        else:
            rest = [group for level in following for group in level]
            units = tuple(unit for group in rest for unit in group.units)
            runs.append(Group(_span([unit.name for unit in units]), units, rest[0].distance, asked=False))
    return runs


def _by_distance(found: Sequence[Group]) -> list[Step]:
    """Groups at one distance from the explained output as one step."""
    levels = [list(level) for _, level in groupby(found, key=lambda group: group.distance)]
    names = step_names([[group.name for group in reversed(level)] for level in levels])  # as they ran
    return [
        Step(name, tuple(unit for group in level for unit in group.units))
        for name, level in zip(names, levels, strict=True)
    ]


def _joined(name: str, members: Sequence[Unit]) -> Unit:
    return Unit(
        name,
        tuple(parameter for unit in members for parameter in unit.parameters),
        tuple(statistic for unit in members for statistic in unit.statistics),
        tuple(weight for unit in members for weight in unit.weights),
        scoring=tuple(weight for unit in members for weight in unit.scoring),
    )


def _span(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"


def subsets(found: Sequence[_Item], order: str) -> tuple[tuple[_Item, ...], ...]:
    """What carries random weights at each depth of ``order``; every order is subsets of one twin.

    Raises:
        ValueError: If ``order`` is unknown.
    """
    if order == "cascading":
        return tuple(tuple(found[: depth + 1]) for depth in range(len(found)))
    if order == "bottom_up":
        return tuple(tuple(found[::-1][: depth + 1]) for depth in range(len(found)))
    if order == "independent":
        return tuple((item,) for item in found)
    if order == "full":
        return (tuple(found),)
    raise ValueError(f"unknown order '{order}'; choose from: {', '.join(ORDERS)}")
