"""When a test looks at its verdicts while trials are added, and who needs more of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from lightning_sanity.explanation.measurements import evidence_of
from lightning_sanity.parameter_randomization.walk_results import Walk
from lightning_sanity.result.verdict import Criterion, Evidence, Scope

Settles = Callable[[Evidence, Criterion, int], bool]
"""``(evidence, criterion, look)``: whether what was measured up to that look, from 0, settles a method's verdict."""


@dataclass(frozen=True)
class Looks:
    """A schedule that is fixed before anything is measured.

    Attributes:
        trials: How many trials are added before each look; at the last one every verdict is given.
        settles: Whether a method stops at an earlier look.
    """

    trials: tuple[int, ...]
    settles: Settles

    @property
    def total(self) -> int:
        """Trials of a method that no early look settles."""
        return sum(self.trials)

    def unsettled(self, walk: Walk, gated: Collection[str], criterion: Criterion, scope: Scope, look: int) -> list[str]:
        """The methods that go on: those that count, did not fail to run, and that this look does not settle."""
        return [
            name
            for name, track in walk.tracks.items()
            if name in gated
            and track.error is None
            and not self.settles(evidence_of(track, None, weights=walk.weights, scope=scope), criterion, look)
        ]
