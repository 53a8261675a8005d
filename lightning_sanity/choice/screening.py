"""Every candidate runs once on a sample or two: what raises, means nothing here or gives no map does not apply."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.method import Method
from lightning_sanity.choice.subject import Subject, blank, cost_of, value_of
from lightning_sanity.explanation.explainer import Explainer
from lightning_sanity.explanation.maps import AttributionFailed
from lightning_sanity.result.verdict import NOT_APPLICABLE

_PAIR = 2  # samples: some methods compare one with another


@dataclass(frozen=True)
class Screened:
    """What a run on a sample or two showed.

    Attributes:
        costs: Of every candidate that applies, passes of one explanation, the cheapest first.
        seconds: What one explanation of one sample took.
        refused: Why the others do not apply.
    """

    costs: Mapping[str, float]
    seconds: Mapping[str, float]
    refused: Mapping[str, str]


def installed(candidates: Mapping[str, object]) -> tuple[dict[str, Method], dict[str, str]]:
    """The candidates as methods, and those whose package is not installed, with what to do."""
    found, missing = {}, {}
    for name, given in candidates.items():
        try:
            found[name] = resolve(given)
        except ImportError as error:
            missing[name] = str(error)
    return found, missing


def screen(subject: Subject, names: list[str], tick: Callable[[str], None]) -> Screened:
    """Run every candidate on the first samples.

    Args:
        subject: What is explained.
        names: The candidates.
        tick: Told the name of each.
    """
    few = subject.few(_PAIR)
    refused, ready = subject.prepared(names, few)
    explain = Explainer(ready, subject.seed)
    costs, seconds = {}, {}
    for name, (method, _) in ready.items():
        tick(name)
        begun = time.perf_counter()
        try:
            maps = explain(name, few)
            took = time.perf_counter() - begun
            if bool(blank(maps.magnitude).all()):
                maps = next(found for _, found in subject.maps([name]))
        except AttributionFailed as error:
            refused[name] = str(error)
            continue
        except StopIteration:  # on the whole batch it means nothing, or it could not be prepared
            refused[name] = next(iter(subject.prepared([name], subject.what)[0].values()))
            continue
        undefined = blank(maps.magnitude)
        if bool(undefined.all()):
            refused[name] = f"its map is constant or not finite for all {len(undefined)} samples that it was run on"
            continue
        costs[name], seconds[name] = cost_of(method), took / len(value_of(few))
    order = sorted(costs, key=lambda name: (costs[name] != costs[name], costs[name], names.index(name)))
    reasons = {name: text.removeprefix(f"{NOT_APPLICABLE}: ") for name, text in refused.items()}
    return Screened({name: costs[name] for name in order}, seconds, reasons)
