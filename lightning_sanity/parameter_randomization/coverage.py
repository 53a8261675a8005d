"""The proof of what was re-initialised, and what a reader should know about the signal that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.model.graph import Graph
from lightning_sanity.parameter_randomization.leftovers import Leftovers
from lightning_sanity.parameter_randomization.walk_results import Walk
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import Plan, Unit
from lightning_sanity.result.controls import COMPARISON
from lightning_sanity.result.sanity_result import Coverage, UnitCoverage

_SIGNAL = 1e4  # factor by which a twin's signal may differ from the trained model's before the result says so


def coverage_of(
    planned: Plan,
    depths: Mapping[tuple[Unit, ...], str],
    drawer: Reinitializer,
    walk: Walk,
    model: nn.Module,
    graph: Graph,
    left: Leftovers,
    notes: tuple[str, ...],
) -> Coverage:
    """What every step's re-initialisation changed, smallest change over trials, in the order walked.

    Args:
        planned: The steps.
        depths: Their names, by the units that are random there.
        drawer: What drew them; its notes are kept.
        walk: The changes.
        model: The clone, for sizes.
        graph: Which tensors the forward pass read.
        left: What no step re-initialised.
        notes: Further notes.
    """
    entries: list[UnitCoverage] = []
    seen = set(planned.aside)
    for walked in walk.route.steps:
        fresh = [unit for unit in walked if unit not in seen]
        seen.update(fresh)
        late = () if entries else tuple(name for unit in planned.aside for name in unit.beside if name in left.late)
        parameters = [name for unit in fresh for name in unit.parameters]
        entries.append(_entry(depths[tuple(walked)], (*parameters, *late), walk, model))
    sizes = {name: model.get_parameter(name).numel() for entry in entries for name in entry.parameters}
    changed = sum(sizes[name] for entry in entries for name in entry.parameters if name not in entry.kept)
    notes = drawer.notes + planned.notes + notes + _kept_buffers(planned, model, graph, left) + left.notes
    aside = tuple(name for unit in planned.aside for name in unit.parameters)
    unwalked = [name for unit in planned.units if unit not in seen for name in unit.parameters]
    total = sum(sizes.values()) + sum(model.get_parameter(name).numel() for name in unwalked)
    total += sum(each.count for each in left.trained.values())
    unused = tuple(name for name in planned.unused if name not in left.late)
    return Coverage(changed / total, tuple(entries), unused, notes, aside, tuple(left.trained))


def _entry(name: str, parameters: Sequence[str], walk: Walk, model: nn.Module) -> UnitCoverage:
    """What happened to the parameters of one step."""
    relative = {
        name: float(torch.stack([change.relative for change in walk.changes[name]]).min()) for name in parameters
    }
    return UnitCoverage(
        name,
        tuple(parameters),
        sum(model.get_parameter(name).numel() for name in parameters),
        tuple(walk.changes[name][0].strategy for name in parameters),
        tuple(relative.values()),
        tuple(name for name, value in relative.items() if not value > 0),
    )


def _kept_buffers(planned: Plan, model: nn.Module, graph: Graph, left: Leftovers) -> tuple[str, ...]:
    """Buffers that the explained output comes from and that keep their values."""
    parameters = dict(model.named_parameters())
    statistics = {name for unit in planned.drawn for name in unit.statistics}
    buffers = [
        name
        for name in graph.uses
        if name not in parameters
        and name not in statistics
        and name not in left.constants
        and name not in left.trained
        and "parametrizations." not in name
        and model.get_buffer(name).is_floating_point()
        and graph.reaching(name)
    ]
    return (f"buffers that the forward pass reads and that were kept: {', '.join(buffers)}",) if buffers else ()


def gradient_ratio_of(walk: Walk) -> Tensor:
    """Norm of the plain gradient at full randomization over the trained model's; ``(trials,)``."""
    ratio = torch.full_like(walk.spread_ratio, torch.nan)
    track = walk.tracks.get(COMPARISON)
    if track is not None and track.norm is not None and track.trials is not None:
        ratio[: len(track.trials.norm)] = track.trials.norm / track.norm
    return ratio


def signal_notes(walk: Walk, gradient_ratio: Tensor) -> tuple[str, ...]:
    """A collapsed or exploding signal at full randomization, and what would avoid it."""
    notes = []
    for what, ratios in (("input gradients", gradient_ratio), ("the spread of the outputs", walk.spread_ratio)):
        known = ratios[~ratios.isnan()]
        ratio = float(known.median()) if known.numel() else 1.0
        if not 1 / _SIGNAL <= ratio <= _SIGNAL:
            state = "collapsed" if ratio < 1 else "exploded"
            notes.append(
                f"signal {state}: {what} at full randomization are {ratio:.1e} of the trained model's, which low "
                "precision would turn into zero or infinity; reinitialize='normal' with norm_stats='keep', or a twin "
                "factory, keeps the scale"
            )
    return tuple(notes)


def step_notes(walk: Walk, depths: Mapping[tuple[Unit, ...], str]) -> tuple[str, ...]:
    """Which steps were walked, if not all, and which of them are no evidence."""
    notes: tuple[str, ...] = ()
    route = walk.route
    if len(route.places) < route.of:
        walked = ", ".join(str(place + 1) for place in route.places)
        more = "" if "depths" in walk.thinned else " (max_steps=None walks all)"
        notes += (
            f"{len(route.places)} of {route.of} steps walked ({walked}); between them an index takes straight lines"
            f"{more}",
        )
    silent = [
        depths[tuple(step)] for step, place in zip(route.steps, route.places, strict=True) if place in walk.silent
    ]
    if silent:
        notes += (
            f"no evidence, because the explained outputs stayed bitwise the same in every trial, and left out of every "
            f"index: {', '.join(silent)}",
        )
    return notes


def thinning_note(thinned: Mapping[str, Any], seconds: float | None, interrupted: bool) -> tuple[str, ...]:
    """What a limit on time, or somebody who ended the test, left out."""
    if not thinned:
        return ()
    parts = [
        "{} of {} {}".format(*thinned[what], what) for what in ("trials", "depths", "noisy copies") if what in thinned
    ]
    if thinned.get("methods"):
        parts.append(f"without {', '.join(thinned['methods'])}")
    why = "interrupted" if interrupted else f"thinned to fit into {seconds:.3g} s"
    return (f"{why}: {', '.join(parts)}",)
