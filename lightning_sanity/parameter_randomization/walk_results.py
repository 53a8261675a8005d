"""What a cascade measured as a whole: a track per method, the outputs' change and the parameters' changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lightning_sanity.explanation.measurements import Track, Trials
from lightning_sanity.parameter_randomization.route import Route
from lightning_sanity.randomization.strategies import Change
from lightning_sanity.result.curve import MOST, step_for
from lightning_sanity.result.psi import depth_weights


@dataclass(frozen=True)
class Walk:
    """What a cascade measured: a track per method, the outputs' change, and the parameters' changes per trial.

    Attributes:
        tracks: Per method.
        route: Which steps were walked; a deadline may have thinned them.
        silent: Those, by their places, that left the outputs bitwise as they were in every trial.
        picture_depths: Depths that have pictures.
        thinned: What a deadline left out, in plain values.
        cost: What the trials were expected to take under a deadline, and took.
        memory: What was decided to keep a limit on memory, in plain values.
        notes: What a reader should know of that.
        agreement: Share of equal predictions ``(trials, depths)``.
        correlation: Correlation with the trained model's outputs ``(trials, depths)``.
        spread_ratio: Spread of the outputs over the trained model's ``(trials,)``.
        finite: Whether the trained model's outputs are.
        interrupted: Whether somebody ended it before all trials were walked.
        twins: Outputs of the models whose weights are all random ``(trials, N, ...)``; none where they would tell
            nothing of the draw.
        changes: Per parameter, one per trial.
        engines: Per method, how its depths were explained: "two_stream" (all at once; "two_stream, folded" on request),
            "full_batch" (many at once), or "plain".
    """

    tracks: dict[str, Track]
    route: Route
    silent: frozenset[int]
    picture_depths: tuple[int, ...]
    thinned: dict[str, Any]
    cost: dict[str, float]
    memory: dict[str, Any]
    notes: tuple[str, ...]
    agreement: Tensor
    correlation: Tensor
    spread_ratio: Tensor
    finite: bool
    interrupted: bool
    twins: Tensor
    changes: Mapping[str, Sequence[Change]]
    engines: Mapping[str, str]

    @property
    def weights(self) -> tuple[float, ...]:
        """How much each depth counts in an index."""
        return depth_weights(self.route.places, self.route.of, self.silent)

    @property
    def measured(self) -> dict[str, Trials]:
        """The trials of every method that was not given up."""
        tracks = self.tracks.items()
        return {name: track.trials for name, track in tracks if track.error is None and track.trials is not None}

    def rounded(self) -> Walk:
        """The walk with its similarities rounded, in place, where they are too many for a file; see ``result.curve``.

        What is judged afterwards is then what a file holds.
        """
        tables = [
            table for found in self.measured.values() for table in (*found.values.values(), *found.floor.values())
        ]
        size = sum(table.numel() for table in tables)
        step = step_for(size)
        if step is None:
            note = f"{size / 1e6:.0f} million similarities are more than a file may hold" if size > MOST else ""
            return replace(self, notes=(*self.notes, note)) if note else self
        for found in self.measured.values():
            found.round_(step)
        note = (
            f"{size / 1e6:.0f} million similarities are rounded to 1/{1 / step:.0f} up or down, with the mean at every "
            "depth as it was, so that their file can be read"
        )
        return replace(self, notes=(*self.notes, note))
