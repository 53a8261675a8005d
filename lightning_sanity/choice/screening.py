"""Every candidate runs once on a sample or two: what raises, means nothing here or gives no map does not apply."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.method import Method
from lightning_sanity.choice.subject import Subject, blank, cost_of, value_of
from lightning_sanity.explanation.explainer import Explainer
from lightning_sanity.explanation.maps import AttributionFailed, Explanation
from lightning_sanity.result.verdict import NOT_APPLICABLE

_PAIR = 2  # samples: some methods compare one with another


@dataclass(frozen=True)
class Screened:
    """What a run on a sample or two showed.

    Attributes:
        costs: Of every candidate that applies, passes of one explanation, the cheapest first.
        seconds: What one explanation of one sample took.
        refused: Why the others do not apply.
        untried: Those that there was no time to try, and what they would have taken.
        sharing: Those that follow from passes which others need as well.
    """

    costs: Mapping[str, float]
    seconds: Mapping[str, float]
    refused: Mapping[str, str]
    untried: Mapping[str, str] = field(default_factory=dict)
    sharing: frozenset[str] = frozenset()


def screen(
    subject: Subject, names: list[str], tick: Callable[[str], None], affords: Callable[[float], bool] = lambda _: True
) -> Screened:
    """Run every candidate on the first samples, the cheapest first.

    Args:
        subject: What is explained.
        names: The candidates.
        tick: Told the name of each.
        affords: Whether there are so many seconds for one.
    """
    few = subject.few(_PAIR)
    costs, seconds, refused, untried, sharing = {}, {}, {}, {}, set()
    per_pass = 0.0
    for name in sorted(names, key=lambda name: _rank(cost_of(subject.methods[name]))):
        expected = per_pass * (subject.methods[name].passes if subject.methods[name].passes > _CHEAP else 0.0)
        if not affords(expected):
            untried[name] = f"not tried: the budget has no time for it{_about(expected, len(value_of(few)))}"
            continue
        tick(name)
        found = _tried(subject, name, few)
        if isinstance(found, str):
            refused[name] = found.removeprefix(f"{NOT_APPLICABLE}: ")
            continue
        costs[name], seconds[name] = cost_of(found.method), found.seconds / len(value_of(few))
        sharing |= {name} if found.shares else set()
        if found.method.passes >= 1:
            per_pass = min(per_pass or math.inf, found.seconds / found.method.passes)
    order = sorted(costs, key=lambda name: (_rank(costs[name]), names.index(name)))
    return Screened({name: costs[name] for name in order}, seconds, refused, untried, frozenset(sharing))


_CHEAP = 2.0  # passes that are always affordable: of a method of one or two nothing is known before it ran


def _about(seconds: float, samples: int) -> str:
    """What a first map would have taken, where that is worth a word."""
    return f" (a map of {samples} samples takes about {seconds:.2g} s)" if seconds >= 0.1 else ""


def _rank(cost: float) -> float:
    """Cost for sorting: what nobody knows comes last."""
    return cost if cost == cost else math.inf


@dataclass(frozen=True)
class _Ran:
    """A method as it ran, with nothing left open; what one map of the samples took; whether others share its passes."""

    method: Method
    seconds: float
    shares: bool


def _tried(subject: Subject, name: str, few: Explanation) -> _Ran | str:
    """How the method ran, or why it does not apply."""
    refused, ready = subject.prepared([name], few)
    if name in refused:
        return refused[name]
    explain = Explainer(ready, subject.seed)
    begun = time.perf_counter()
    try:
        maps = explain(name, few)
        took = time.perf_counter() - begun
        if ready[name][0].passes <= _CHEAP:  # what the first pass of all sets up should not count
            begun = time.perf_counter()
            explain(name, few)
            took = min(took, time.perf_counter() - begun)
        if bool(blank(maps.magnitude).all()):
            maps = next(found for _, found in subject.maps([name]))
    except AttributionFailed as error:
        return str(error)
    except StopIteration:  # on the whole batch it means nothing, or it could not be prepared
        return next(iter(subject.prepared([name], subject.what)[0].values()))
    undefined = blank(maps.magnitude)
    if bool(undefined.all()):
        return f"its map is constant or not finite for all {len(undefined)} samples that it was run on"
    method, function = ready[name]
    return _Ran(method, took, isinstance(function, Derived) and function.copies is None)
