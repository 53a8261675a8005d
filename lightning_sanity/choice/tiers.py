"""Which candidates are tried and tested together, in which order, and until when."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

CHEAP = 40.0
"""Passes of one explanation up to which methods are tested together, before the dearer ones."""
_ONE, _TWO = 1.0, 2.0
_BY_COST = ((_TWO, 0.4), (CHEAP, 0.65), (math.inf, 0.8))
_IN_TIME = ((_ONE, 0.55), (_TWO, 0.6), (CHEAP, 0.65), (math.inf, 0.7))
_SHARED = 0.5
"""What a map takes of its own price where the pass that it is made of is run for another method anyway."""


@dataclass(frozen=True)
class Tier:
    """Candidates that are tried and tested together.

    Attributes:
        names: Which.
        until: Part of all seconds by whose end their test is to be done.
    """

    names: tuple[str, ...]
    until: float


def tiers(costs: Mapping[str, float], barred: Collection[str], in_time: bool) -> list[Tier]:
    """The candidates, tier after tier, the cheapest first; what nobody knows the cost of is with the cheaper ones.

    Where seconds are limited, those of a single pass come first, because one walk serves them together, and those that
    would not be recommended whatever they showed come after all others of two passes.

    Args:
        costs: Passes of one explanation of every candidate, NaN where nobody knows.
        barred: Candidates that are never recommended.
        in_time: Whether seconds are limited.
    """
    known = {name: cost if cost == cost else CHEAP for name, cost in costs.items()}
    last = [name for name, cost in known.items() if in_time and name in barred and cost <= _TWO]
    found, least = [], -math.inf
    for most, until in _IN_TIME if in_time else _BY_COST:
        found.append(Tier(tuple(n for n, cost in known.items() if least < cost <= most and n not in last), until))
        if most == _TWO and last:
            found.append(Tier(tuple(last), until))
        least = most
    return found


def price(names: Sequence[str], seconds: Mapping[str, float], sharing: Collection[str]) -> dict[str, float]:
    """Seconds of one map of every method, if they are tested together in this order.

    Args:
        names: The methods.
        seconds: Of one map of each by itself.
        sharing: Those that one pass serves together.
    """
    found: dict[str, float] = {}
    for name in names:
        again = name in sharing and any(other in sharing for other in found)
        found[name] = seconds[name] * (_SHARED if again else 1.0)
    return found
