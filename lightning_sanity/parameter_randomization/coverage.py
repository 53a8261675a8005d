"""The proof of what was re-initialised, and what a reader should know about the signal that is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.model.graph import Graph
from lightning_sanity.parameter_randomization.leftovers import Leftovers
from lightning_sanity.parameter_randomization.walk import Walk
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import Plan
from lightning_sanity.result.controls import POSITIVE_CONTROL
from lightning_sanity.result.sanity_result import Coverage, UnitCoverage

_SIGNAL = 1e4  # factor by which a twin's signal may differ from the trained model's before the result says so


def coverage_of(
    planned: Plan,
    drawer: Reinitializer,
    walk: Walk,
    model: nn.Module,
    graph: Graph,
    left: Leftovers,
    notes: tuple[str, ...],
) -> Coverage:
    """What every unit's re-initialisation changed, smallest change over trials.

    Args:
        planned: The units.
        drawer: What drew them; its notes are kept.
        walk: The changes.
        model: The clone, for sizes.
        graph: Which tensors the forward pass read.
        left: What no step re-initialised.
        notes: Further notes.
    """
    entries = []
    changed = total = 0
    for unit in planned.units:
        parameters = unit.parameters + tuple(name for name in unit.beside if name in left.late)
        relative = {
            name: float(torch.stack([change.relative for change in walk.changes[name]]).min()) for name in parameters
        }
        kept = tuple(name for name, value in relative.items() if not value > 0)
        sizes = {name: model.get_parameter(name).numel() for name in parameters}
        total += sum(sizes.values())
        changed += sum(size for name, size in sizes.items() if name not in kept)
        entries.append(
            UnitCoverage(
                unit.name,
                parameters,
                sum(sizes.values()),
                tuple(walk.changes[name][0].strategy for name in parameters),
                tuple(relative.values()),
                kept,
            )
        )
    statistics = {name for unit in planned.units for name in unit.statistics}
    registered = dict(model.named_parameters())
    buffers = [
        name
        for name in graph.uses
        if name not in registered
        and name not in statistics
        and name not in left.constants
        and name not in left.trained
        and "parametrizations." not in name
        and model.get_buffer(name).is_floating_point()
    ]
    notes = drawer.notes + planned.notes + notes
    if buffers:
        notes += (f"buffers that the forward pass reads and that were kept: {', '.join(buffers)}",)
    total += sum(each.count for each in left.trained.values())
    unused = tuple(name for name in planned.unused if name not in left.late)
    return Coverage(changed / total, tuple(entries), unused, notes + left.notes, tuple(left.trained))


def gradient_ratio_of(walk: Walk) -> Tensor:
    """Norm of the plain gradient at full randomization over the trained model's; ``(trials,)``."""
    ratio = torch.full_like(walk.spread_ratio, torch.nan)
    track = walk.tracks.get(POSITIVE_CONTROL)
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


def thinning_note(thinned: Mapping[str, Any], seconds: float | None) -> tuple[str, ...]:
    """What a limit on time left out."""
    if not thinned:
        return ()
    parts = [
        "{} of {} {}".format(*thinned[what], what) for what in ("trials", "depths", "noisy copies") if what in thinned
    ]
    if thinned.get("methods"):
        parts.append(f"without {', '.join(thinned['methods'])}")
    return (f"thinned to fit into {seconds:.3g} s: {', '.join(parts)}",)
