"""Weights that are used in several places, parted on a copy: each use becomes random at its own turn.

A language model's head often is its embedding table. Were they one tensor, the explained input's own embedding would be
random from the first step on, and a map that copies the embeddings, which ignores the network, would pass. So on the
copy every use that can be told by its place gets a tensor of its own: by the name under which a module holds the
weight, by the path under which a module is called, and by whether a module or somebody else reads its weight. What
stands at one turn, such as the towers of a siamese network, stays shared. One layer that is called in a loop cannot
be parted: it becomes random with the use nearest to the output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_sanity.model.graph import Graph
from lightning_sanity.model.weights import is_sharded
from lightning_sanity.randomization.layers import WITHIN, repeated
from lightning_sanity.randomization.unit import plan
from lightning_sanity.resources.quoting import listed


def part(model: nn.Module, graph: Graph, record: Callable[[], Graph]) -> tuple[Graph, tuple[str, ...]]:
    """Give each use of a weight a tensor of its own, where that gives it a turn of its own.

    Args:
        model: A copy of the user's model; of a sharded one, which is the user's itself, nothing is parted.
        graph: Its recording.
        record: Records it again.

    Returns:
        The recording of what the copy is now, and what a reader should know.
    """
    reaching = [name for name, _ in model.named_parameters() if graph.reaching(name)]
    again = [] if is_sharded(model) else repeated(model, graph, reaching)
    if not again:
        return graph, ()
    wanted = {id(model.get_parameter(name)) for name in again}
    copies, origin = _copied_modules(model, wanted)
    _watch_within(model, again)
    groups = _slots(model, wanted | set(origin.values()), origin)
    for slots in groups:
        for slot in slots[1:]:
            if slot.held is slots[0].held:
                slot.hold(nn.Parameter(slot.held.detach().clone(), requires_grad=slot.held.requires_grad))
    parted = record()
    turns = _turns(model, parted)
    kept = [_join(slots, turns, parted.uses) for slots in groups]
    _undo(model, copies)
    said = [" = ".join(names) for names in kept if names]
    if not said:
        return graph, ()
    return record(), (f"shared weights, each use of which has a tensor and a turn of its own: {listed(said)}",)


def _turns(model: nn.Module, graph: Graph) -> dict[str, int]:
    """The step at which each parameter that reaches the explained output becomes random."""
    steps = plan(model, graph).steps
    return {name: place for place, step in enumerate(steps) for unit in step.units for name in unit.parameters}


# --------------------------------------------------------------------------------------------------------------- slots


@dataclass(frozen=True)
class _Slot:
    """A place that holds a parameter: the registry of a module, and the name there."""

    name: str
    module: nn.Module
    leaf: str

    @property
    def held(self) -> nn.Parameter:
        held = self.module._parameters[self.leaf]
        assert held is not None
        return held

    def hold(self, parameter: nn.Parameter) -> None:
        self.module._parameters[self.leaf] = parameter


def _slots(model: nn.Module, wanted: Collection[int], origin: Mapping[int, int]) -> list[tuple[_Slot, ...]]:
    """The slots of every wanted parameter, in the order of definition, where there are several."""
    found: dict[int, list[_Slot]] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            key = origin.get(id(parameter), id(parameter))
            if key in wanted:
                found.setdefault(key, []).append(_Slot(f"{path}.{leaf}" if path else leaf, module, leaf))
    return [tuple(slots) for slots in found.values() if len(slots) > 1]


def _join(slots: Sequence[_Slot], turns: Mapping[str, int], read: Collection[str]) -> tuple[str, ...]:
    """Let slots share one tensor again where being parted gains nothing; names of those that are parted."""
    by_turn: dict[int | None, _Slot] = {}
    turn_of: dict[str, int | None] = {}
    for slot in slots:
        # What nobody but the module itself reads needs no second slot.
        name = next((each for each in (slot.name, slot.name + WITHIN) if each in read), None)
        if name is not None:
            turn_of[slot.name] = turns.get(name)
            by_turn.setdefault(turns.get(name), slot)
    first = next(iter(by_turn.values()), slots[0])
    for slot in slots:
        slot.hold((by_turn[turn_of[slot.name]] if slot.name in turn_of else first).held)
    return tuple(slot.name for slot in by_turn.values()) if len(by_turn) > 1 else ()


# ------------------------------------------------------------------------------------------ modules with several paths

_Copies = list[tuple[nn.Module, str, nn.Module]]
"""Who held a module under a further path, under which key, and the module."""


def _copied_modules(model: nn.Module, wanted: Collection[int]) -> tuple[_Copies, dict[int, int]]:
    """Put a copy under every further path of modules that hold wanted parameters; which parameter is whose copy."""
    every = list(model.modules())
    seen: set[int] = set()
    copies: _Copies = []
    origin: dict[int, int] = {}

    def walk(parent: nn.Module) -> None:
        for key, child in parent._modules.items():
            if child is None:
                continue
            if id(child) not in seen:
                seen.add(id(child))
                walk(child)
            elif any(id(parameter) in wanted for parameter in child.parameters()):
                inside = set(map(id, child.modules()))
                made = copy.deepcopy(child, {id(other): other for other in every if id(other) not in inside})
                origin.update({id(ours): id(theirs) for ours, theirs in _pairs(made, child)})
                copies.append((parent, key, child))
                parent._modules[key] = made

    walk(model)
    return copies, origin


# ------------------------------------------------------------------------------------------- weights that others read


class _ReadWithin:
    """A module whose own forward pass reads other weights than those who look at it; see ``_watch_within``."""

    _running = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own."""
        self._running += 1
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._running -= 1

    def __getattr__(self, name: str) -> Any:
        inside = self._running and name + WITHIN in self.__dict__["_parameters"]
        return super().__getattr__(name + WITHIN if inside else name)  # type: ignore[misc]


def _watch_within(model: nn.Module, names: Sequence[str]) -> None:
    """Give the holders of some parameters a second slot, for their own passes.

    ``F.linear(hidden, self.embedding.weight)`` in a decoder reads what the embedding's own pass reads otherwise.
    """
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if module is model or isinstance(module, torch.jit.ScriptModule):
            continue
        if not isinstance(module, _ReadWithin):
            kind = type(module)
            module.__class__ = type(kind.__name__, (_ReadWithin, kind), {"__module__": kind.__module__})
        module._parameters[leaf + WITHIN] = module._parameters[leaf]


def _undo(model: nn.Module, copies: _Copies) -> None:
    """Put back what was tried and gained nothing."""
    for parent, key, child in reversed(copies):
        made = parent._modules[key]
        assert made is not None
        if all(ours is theirs for ours, theirs in _pairs(made, child)):
            parent._modules[key] = child
    for module in model.modules():
        if isinstance(module, _ReadWithin):
            held = module._parameters
            for leaf in [leaf for leaf in held if leaf.endswith(WITHIN)]:
                if held[leaf] is held[leaf.removesuffix(WITHIN)]:
                    del held[leaf]
            if not any(leaf.endswith(WITHIN) for leaf in held):
                module.__class__ = type(module).__mro__[2]


def _pairs(one: nn.Module, other: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    return zip(one.parameters(), other.parameters(), strict=True)
