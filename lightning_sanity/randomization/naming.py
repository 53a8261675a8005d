"""What a person would call layers that become random together."""

from __future__ import annotations

from collections.abc import Sequence


def step_names(levels: Sequence[Sequence[str]]) -> list[str]:
    """A name for every step, each different from the others.

    Args:
        levels: The names of what each step holds.
    """
    short = [joint_name(names) for names in levels]
    return [name if short.count(name) == 1 else _spelt_out(names) for name, names in zip(short, levels, strict=True)]


def joint_name(names: Sequence[str]) -> str:
    """One name for several.

    >>> joint_name(["fc"])
    'fc'
    >>> joint_name(["members.0.fc", "members.1.fc", "members.2.fc", "members.3.fc"])
    'members.*.fc'
    >>> joint_name(["layer2.0.conv2", "layer2.0.downsample.0"])
    'layer2.0.conv2 + downsample.0'
    >>> joint_name(["deep.fc", "wide"])
    'deep.fc + wide'
    >>> joint_name(["mixed.a.conv", "mixed.b_2.conv", "mixed.c_3.conv", "mixed.d"])
    'mixed (4 branches)'

    Args:
        names: Paths, all different.
    """
    families = _families(names)
    if len(families) <= _SPELT_OUT:
        return _spelt_out(families)
    prefix = _shared(families)
    return f"{prefix} ({len(families)} branches)" if prefix else f"{families[0]} + {len(families) - 1} more"


_SPELT_OUT = 3
"""Names that a reader takes in one by one."""


def _spelt_out(names: Sequence[str]) -> str:
    prefix = _shared(names)
    return " + ".join([names[0], *(name[len(prefix) + 1 :] if prefix else name for name in names[1:])])


def _shared(names: Sequence[str]) -> str:
    """The module that holds all of them."""
    found = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        found.append(parts[0])
    return ".".join(found)


def _families(names: Sequence[str]) -> list[str]:
    """Names that differ in one number alone, the members of a list, as one with a star there."""
    found = list(names)
    for place in range(max(name.count(".") for name in names) + 1):
        families: dict[tuple[str, ...], list[str]] = {}
        for name in found:
            parts = name.split(".")
            numbered = place < len(parts) and parts[place].isdigit()
            key = (*parts[:place], "*", *parts[place + 1 :]) if numbered else (name,)
            families.setdefault(key, []).append(name)
        found = [".".join(key) if len(members) > 1 else members[0] for key, members in families.items()]
    return found
