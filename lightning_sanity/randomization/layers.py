"""The layers of a recorded pass: which parameters are one layer's, and which layer reads what another made.

A layer stands at the operation that mixes channels by its weights: the topmost one that does, if several do. What
only scales, shifts or normalises (a bias, a batch normalisation, a layer scale, a class token) belongs to the layer
whose result it meets, so that no step only resets a constant. Nothing is told by the module that holds a parameter,
with one exception: PyTorch's recurrent layers, each of which is one layer however many operations it takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace

from torch import nn

from lightning_sanity.model.graph import Graph

Place = int | tuple[str, int]
"""Where a layer stands: an operation, or the number of a layer in a recurrent module."""
_NOWHERE = -1
WITHIN = "_within"
"""Ends the name of what a module's own pass reads where a copy has parted it from what others read of the module."""
_LAYER = re.compile(r"_l(\d+)(_reverse)?$")


@dataclass(frozen=True)
class Unit:
    """The parameters of one layer.

    Attributes:
        name: The module path a user would write, or the parameter's own name where a module holds several layers.
        parameters: Names of its parameters; one that several layers share appears once, in the unit of its topmost use.
        statistics: Names of the running statistics that belong to its normalisation layers.
        weights: Those of the parameters that mix channels; the others scale or shift.
        beside: Parameters that become random with it and take no part in coverage: a pass need not read them.
        scoring: Those of the weights whose products are the explained score, with no layer or running statistics after
            them. Which of two classes a score counts for is a convention, so the mean of these weights is none to keep.
    """

    name: str
    parameters: tuple[str, ...]
    statistics: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    scoring: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """A unit and where it stands.

    Attributes:
        unit: The unit.
        above: Indices of the layers that read what it made, in the list that it is in; that list runs from the output
            to the input.
    """

    unit: Unit
    above: frozenset[int]


def layers(model: nn.Module, graph: Graph, parameters: Sequence[str], statistics: Sequence[str]) -> list[Layer]:
    """The layers that reach the explained output, from there to the input.

    Args:
        model: The recorded model.
        graph: The recording.
        parameters: Names of the parameters that reach the explained output.
        statistics: Names of the running statistics that do.
    """
    sites = _Sites(model, graph, parameters)
    held: dict[Place, list[tuple[int, str]]] = {}
    for name in (*parameters, *statistics):
        place, use = sites.place_of(name)
        # How many operations a recurrent layer takes differs between devices; what is drawn must not.
        held.setdefault(place, []).append((0 if isinstance(place, tuple) else use, name))
    known = set(statistics)
    members = {place: [name for _, name in sorted(found, key=lambda item: item[0])] for place, found in held.items()}
    members = {place: names for place, names in members.items() if not known.issuperset(names)}
    named = _named(model, graph, {place: [n for n in names if n not in known] for place, names in members.items()})
    order = sites.order(members)
    number = {place: index for index, place in enumerate(order)}
    above = sites.above(order)

    def whole(place: Place) -> Unit:
        own = tuple(name for name in members[place] if name in known)
        scoring = () if above[place] or own else named[place].weights
        return replace(named[place], statistics=own, scoring=scoring)

    return [Layer(whole(place), frozenset(number[other] for other in above[place])) for place in order]


def repeated(model: nn.Module, graph: Graph, parameters: Sequence[str]) -> list[str]:
    """The parameters by which operations at several distances from the explained output mix channels.

    A layer that is called several times, with no tensor of its own for each call; PyTorch's recurrent layers apart.

    Args:
        model: The recorded model.
        graph: The recording.
        parameters: Names of the parameters that reach the explained output.
    """
    sites = _Sites(model, graph, parameters)
    return [name for name in parameters if recurrent_layer(model, name) is None and len(sites.distances(name)) > 1]


class _Sites:
    """The operations at which layers can stand."""

    def __init__(self, model: nn.Module, graph: Graph, parameters: Sequence[str]) -> None:
        self._model, self._graph = model, graph
        self._mixers = frozenset(use for name in parameters for use in self._mixing(name))
        self._distance = self._longest()
        self._readers: dict[int, list[int]] = {}
        for reader in graph.explained:
            for read in graph.reads[reader]:
                self._readers.setdefault(read, []).append(reader)
        self._homes: dict[int, Place] = {}  # of the operations of recurrent layers, the upper ones last
        self._stands: dict[Place, int] = {}
        for place, names in sorted(self._recurrent(parameters).items()):
            uses = [use for name in names for use in self._mixing(name)]
            if uses:
                self._homes |= dict.fromkeys(uses, place)
                self._stands[place] = self._topmost(uses)

    def _mixing(self, name: str) -> tuple[int, ...]:
        return tuple(use for use in self._graph.mixing.get(name, ()) if use in self._graph.explained)

    def _recurrent(self, parameters: Sequence[str]) -> dict[tuple[str, int], list[str]]:
        found: dict[tuple[str, int], list[str]] = {}
        for name in parameters:
            place = recurrent_layer(self._model, name)
            if place is not None:
                found.setdefault(place, []).append(name)
        return found

    def _longest(self) -> dict[int, int]:
        """The most operations that mix channels between each operation and the explained output."""
        distance = dict.fromkeys(self._graph.explained, 0)
        for use in sorted(self._graph.explained, reverse=True):
            for read in self._graph.reads[use]:
                distance[read] = max(distance[read], distance[use] + (use in self._mixers))
        return distance

    def _topmost(self, uses: Iterable[int]) -> int:
        return min(uses, key=lambda use: (self._distance[use], -use))

    def distances(self, name: str) -> set[int]:
        """How far from the explained output a parameter mixes channels, in operations that do."""
        return {self._distance[use] for use in self._mixing(name)}

    def place_of(self, name: str) -> tuple[Place, int]:
        """The layer that a parameter or statistic belongs to, and its use there."""
        mixing = self._mixing(name)
        use = self._topmost(mixing or self._graph.reaching(name))
        recurrent = recurrent_layer(self._model, name)
        if recurrent is not None and recurrent in self._stands:
            return recurrent, use
        site = self._site(use, bool(mixing))
        return (_NOWHERE if site is None else self._homes.get(site, site)), use

    def _site(self, use: int, mixing: bool) -> int | None:
        """The operation that mixed what is scaled or shifted, or else the one that mixes it next."""
        if mixing or use in self._mixers:
            return use
        if not self._mixers:
            return None
        before = self._nearest(use, lambda at: self._graph.reads[at])
        if before:
            return self._topmost(before)
        after = self._nearest(use, lambda at: self._readers.get(at, ()))
        return max(after, key=lambda site: (self._distance[site], -site), default=use)

    def _nearest(self, use: int, beside: Callable[[int], Iterable[int]]) -> set[int]:
        """The operations that mix channels and lie in one direction with no other between."""
        found: set[int] = set()
        seen, waiting = {use}, [use]
        while waiting:
            for other in beside(waiting.pop()):
                if other in self._mixers:
                    found.add(other)
                elif other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return found

    def _stand(self, place: Place) -> int:
        return self._stands[place] if isinstance(place, tuple) else place

    def order(self, places: Iterable[Place]) -> list[Place]:
        """From the output to the input; layers of one recurrent operation from the last to the first."""
        return sorted(places, key=lambda place: (self._stand(place), place if isinstance(place, tuple) else ()))[::-1]

    def above(self, order: Sequence[Place]) -> dict[Place, Set[Place]]:
        """Per layer, those that read what it made, with no other between."""
        standing: dict[int, list[Place]] = {}
        for place in order:
            standing.setdefault(self._stand(place), []).append(place)
        found: dict[Place, Set[Place]] = dict.fromkeys(standing.get(_NOWHERE, ()), frozenset())
        nearest: dict[int, frozenset[Place]] = {}
        for use in sorted(self._graph.explained, reverse=True):
            seen = nearest.pop(use, frozenset())
            for place in standing.get(use, ()):
                found[place], seen = seen, frozenset((place,))
            for read in self._graph.reads[use]:
                known = nearest.get(read)
                nearest[read] = seen if known is None or known <= seen else known | seen
        return found


def recurrent_layer(model: nn.Module, parameter: str) -> tuple[str, int] | None:
    """The recurrent module that holds a parameter, and which of its layers the parameter belongs to."""
    owner, _, leaf = parameter.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, nn.RNNCellBase):
        return owner, 0
    found = _LAYER.search(leaf) if isinstance(module, nn.RNNBase) else None
    return None if found is None else (owner, int(found.group(1)))


def owner_of(model: nn.Module, parameter: str) -> str:
    """Path of the module a parameter belongs to; a parametrisation belongs to the module that carries it."""
    return (
        parameter.split("parametrizations.", 1)[0].rstrip(".")
        if "parametrizations." in parameter
        else (parameter.rpartition(".")[0])
    )


def _named(model: nn.Module, graph: Graph, members: dict[Place, list[str]]) -> dict[Place, Unit]:
    """Units by the names that a person would write: the module's, where it holds no other layer."""
    weights = {place: [name for name in names if _mixes(graph, name)] for place, names in members.items()}
    first = {
        place: max(weights[place] or names, key=lambda name: model.get_parameter(name).numel())
        for place, names in members.items()
    }
    owners = [owner_of(model, name) for name in first.values()]

    def name_of(place: Place) -> str:
        name = first[place]
        owner = owner_of(model, name)
        layer = recurrent_layer(model, name)
        if layer is not None and owner:
            return owner if getattr(model.get_submodule(owner), "num_layers", 1) == 1 else f"{owner}.l{layer[1]}"
        return name if owner == "" or owners.count(owner) > 1 or _bears_children(model, owner) else owner

    return {
        place: Unit(name_of(place), tuple(names), weights=tuple(weights[place])) for place, names in members.items()
    }


def _mixes(graph: Graph, name: str) -> bool:
    return any(use in graph.explained for use in graph.mixing.get(name, ()))


def _bears_children(model: nn.Module, owner: str) -> bool:
    return any(
        next(child.parameters(), None) is not None
        for name, child in model.get_submodule(owner).named_children()
        if name != "parametrizations"
    )
