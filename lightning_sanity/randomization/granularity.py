"""How coarse a step is: each layer, each block, or what a list of names asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from lightning_sanity.model.weights import own_class
from lightning_sanity.randomization.layers import Layer, Unit, owner_of
from lightning_sanity.resources.suggestions import alike

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


def no_module(pattern: str, paths: Sequence[str]) -> str:
    """The sentence that refuses a name or regular expression that nothing in the model has."""
    close = alike(pattern, paths)
    meant = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(paths[:20])} ..."
    return f"granularity: '{pattern}' matches no module; {meant}"


def _listed(model: nn.Module, found: Sequence[Layer], patterns: Sequence[str]) -> list[Group]:
    """One group per name or regex; what none covers stays in groups of its own, never trained."""
    reaching = [name for layer in found for name in layer.unit.parameters]
    paths = list(dict.fromkeys([name for name, _ in model.named_modules(remove_duplicate=False) if name] + reaching))
    matched = {p: [path for path in paths if path == p or re.fullmatch(p, path)] for p in patterns}
    for pattern, those in matched.items():
        if not those:
            raise ValueError(no_module(pattern, paths))
    pattern_of = {path: pattern for pattern in reversed(patterns) for path in matched[pattern]}
    cut = [_cut(model, layer.unit, pattern_of) for layer in found]
    asked = [pattern for parts in cut for pattern, _ in parts]
    for pattern, those in matched.items():
        if pattern not in asked:
            raise ValueError(
                f"granularity: nothing is left for '{pattern}', which matches {', '.join(those[:5])}: no parameter "
                "there reaches the explained output, or more exact names of the list cover all that do. Leave it out; "
                f"there are {', '.join(reaching[:20])} ..."
            )
    units = [unit for parts in cut for _, unit in parts]
    above = _renumbered(found, [len(parts) for parts in cut])
    made = _grouped([Layer(*each) for each in zip(units, above, strict=True)], asked)
    return [
        replace(group, name=matched[group.name][0]) if len(matched.get(group.name, ())) == 1 else group
        for group in made
    ]


def _cut(model: nn.Module, unit: Unit, pattern_of: Mapping[str, str]) -> list[tuple[str | None, Unit]]:
    """A layer as a list of names cuts it, a normalisation from its convolution for example, from the output down.

    What no name covers that leaves the layer's weights out stays with these.
    """
    main = (unit.weights or unit.parameters)[0]
    path_of = {
        name: max((path for path in pattern_of if _within(name, path)), key=len, default="")
        for name in (*unit.parameters, *unit.statistics)
    }
    own = pattern_of.get(path_of[main])
    parts: dict[str | None, list[str]] = {}
    for name, path in path_of.items():  # by pattern: one that matches a module matches its parameters, too
        parts.setdefault(pattern_of[path] if path and not _within(main, path) else own, []).append(name)
    return [
        (
            pattern,
            Unit(
                unit.name if pattern == own else _part_name(model, unit, names),
                tuple(name for name in names if name in unit.parameters),
                tuple(name for name in names if name in unit.statistics),
                tuple(name for name in names if name in unit.weights),
                scoring=tuple(name for name in names if name in unit.scoring),
            ),
        )
        for pattern, names in reversed(parts.items())
        if any(name in unit.parameters for name in names)
    ]


def _part_name(model: nn.Module, unit: Unit, names: Sequence[str]) -> str:
    """Of the module if the part is all of it, else of its first parameter: no two parts share a name."""
    owner = owner_of(model, names[0])
    whole = all(name in names for name in unit.parameters if owner_of(model, name) == owner)
    return owner if owner and whole else names[0]


def _renumbered(found: Sequence[Layer], counts: Sequence[int]) -> list[frozenset[int]]:
    """What is above each part: the part after it, or the first parts of the layers above."""
    starts = [sum(counts[:index]) for index in range(len(counts))]
    above: list[frozenset[int]] = []
    for layer, start, count in zip(found, starts, counts, strict=True):
        lowest = frozenset(starts[other] + counts[other] - 1 for other in layer.above)
        above += [lowest if k == 0 else frozenset((start + k - 1,)) for k in range(count)]
    return above
