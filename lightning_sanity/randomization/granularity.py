"""How coarse a step is: each layer, each block, or what a list of names asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from lightning_sanity.model.weights import own_class
from lightning_sanity.randomization.layers import Layer, Unit, owner_of

Granularity = str | Sequence[str]
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Group:
    """Layers that become random together because the granularity says so.

    Attributes:
        name: Of the layer, the block or the pattern.
        units: From the output to the input.
        distance: The most groups between it and the explained output.
        asked: Whether it was asked for; what a list of names leaves over was not.
    """

    name: str
    units: tuple[Unit, ...]
    distance: int
    asked: bool = True


def groups(model: nn.Module, found: Sequence[Layer], granularity: Granularity) -> list[Group]:
    """The layers in groups, by distance from the explained output.

    Raises:
        ValueError: If ``granularity`` is unknown, or a name in it matches nothing that reaches the explained output.
    """
    if isinstance(granularity, str) and granularity not in ("layer", "block"):
        raise ValueError(
            f"unknown granularity '{granularity}'; choose 'layer', 'block', or pass a list of module names or regexes"
        )
    if granularity == "layer":
        return _grouped(found, [None] * len(found))
    if granularity == "block":
        blocks = _blocks(model, [layer.unit for layer in found])
        return _grouped(found, [_innermost(layer.unit.name, blocks) for layer in found])
    return _listed(model, found, granularity)


def _grouped(found: Sequence[Layer], names: Sequence[str | None]) -> list[Group]:
    """Groups by name, a layer without one by itself; each stands where its topmost layer does."""
    keys = [name if name is not None else index for index, name in enumerate(names)]
    distance: list[int] = []
    for layer, key in zip(found, keys, strict=True):  # what is above comes before
        distance.append(max((distance[other] + (keys[other] != key) for other in layer.above), default=0))
    members: dict[str | int, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    made = [
        Group(
            key if isinstance(key, str) else found[key].unit.name,
            tuple(found[index].unit for index in indices),
            min(distance[index] for index in indices),
            asked=isinstance(key, str),
        )
        for key, indices in members.items()
    ]
    return sorted(made, key=lambda group: group.distance)


def _innermost(name: str, paths: Sequence[str]) -> str:
    """The longest of ``paths`` that contains a name, else the name itself."""
    return max((path for path in paths if _within(name, path)), key=len, default=name)


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


# ------------------------------------------------------------------------------------------------------------- blocks


def _blocks(model: nn.Module, found: Sequence[Unit]) -> tuple[str, ...]:
    """Paths of the modules that make one block each.

    A module is opened when it only holds others: the root, a plain container, one that holds most of the network, or
    a stack of repeated multi-layer modules. What is not opened is a block.
    """
    inside: dict[str, int] = {}
    for unit in found:
        parts = unit.name.split(".")
        for depth in range(len(parts) + 1):
            path = ".".join(parts[:depth])
            inside[path] = inside.get(path, 0) + 1
    modules = dict(model.named_modules(remove_duplicate=False))

    def repeated(path: str) -> bool:
        kinds = [
            own_class(child)
            for name, child in modules[path].named_modules()
            if name and inside.get(f"{path}.{name}" if path else name, 0) >= 2 and not isinstance(child, _CONTAINERS)
        ]
        return len(kinds) > len(set(kinds))

    def closed(path: str) -> list[str]:
        if path not in modules:  # a bare parameter
            return [path]
        children = [f"{path}.{n}" if path else n for n, _ in modules[path].named_children()]
        children = [child for child in children if inside.get(child)]
        plain = path == "" or own_class(modules[path]) in _CONTAINERS
        trunk = inside[path] > len(found) / 2
        if not children or not (plain or trunk or repeated(path)):
            return [path]
        return [block for child in children for block in closed(child)]

    return tuple(closed(""))


# -------------------------------------------------------------------------------------------------------------- names


def _listed(model: nn.Module, found: Sequence[Layer], patterns: Sequence[str]) -> list[Group]:
    """One group per name or regex; what none covers stays in groups of its own, never trained."""
    reaching = [name for layer in found for name in layer.unit.parameters]
    paths = list(dict.fromkeys([name for name, _ in model.named_modules(remove_duplicate=False) if name] + reaching))
    pattern_of: dict[str, str] = {}
    for pattern in patterns:
        matched = [path for path in paths if path == pattern or re.fullmatch(pattern, path)]
        if not matched:
            raise ValueError(f"granularity: '{pattern}' matches no module; there are {', '.join(paths[:20])} ...")
        for path in matched:
            pattern_of.setdefault(path, pattern)

    def asked_of(name: str) -> str | None:
        path = max((path for path in pattern_of if _within(name, path)), key=len, default=None)
        return None if path is None else pattern_of[path]

    parts = [part for layer in found for part in _parts(model, layer, asked_of)]
    apart = _renumbered(found, [len(list(_parts(model, layer, asked_of))) for layer in found])
    asked = [asked_of(unit.parameters[0]) for unit in parts]
    for pattern in patterns:
        if pattern not in asked:
            matched = [path for path, owner in pattern_of.items() if owner == pattern]
            raise ValueError(
                f"granularity: nothing is left for '{pattern}', which matches "
                f"{', '.join(matched[:5]) or 'only what a name before it matches'}: no parameter there reaches the "
                "explained output, or more exact names of the list cover all that do. Leave it out; there are "
                f"{', '.join(reaching[:20])} ..."
            )
    layers = [Layer(unit, above) for unit, above in zip(parts, apart, strict=True)]
    singles = {pattern: [p for p in pattern_of if pattern_of[p] == pattern] for pattern in patterns}
    return [
        replace(group, name=singles[group.name][0]) if len(singles.get(group.name, ())) == 1 else group
        for group in _grouped(layers, asked)
    ]


def _parts(model: nn.Module, layer: Layer, asked_of: Callable[[str], str | None]) -> list[Unit]:
    """A layer cut where a list of names cuts it, a normalisation from its convolution for example; last part first.

    What nobody asked for stays with the layer's weights.
    """
    unit = layer.unit
    own = asked_of((unit.weights or unit.parameters)[0])
    cut: dict[str | None, list[str]] = {own: []}
    for name in (*unit.parameters, *unit.statistics):
        cut.setdefault(asked_of(name) or own, []).append(name)
    return [
        Unit(
            unit.name if pattern == own else owner_of(model, names[0]) or names[0],
            tuple(name for name in names if name in unit.parameters),
            tuple(name for name in names if name in unit.statistics),
            tuple(name for name in names if name in unit.weights),
        )
        for pattern, names in reversed(cut.items())
        if any(name in unit.parameters for name in names)
    ]


def _renumbered(found: Sequence[Layer], counts: Sequence[int]) -> list[frozenset[int]]:
    """What is above each part: the part after it, or the first parts of the layers above."""
    starts = [sum(counts[:index]) for index in range(len(counts))]
    above: list[frozenset[int]] = []
    for layer, start, count in zip(found, starts, counts, strict=True):
        lowest = frozenset(starts[other] + counts[other] - 1 for other in layer.above)
        above += [lowest if k == 0 else frozenset((start + k - 1,)) for k in range(count)]
    return above
