"""Who explains what of a walk that several processes share, and the whole put together from their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_sanity.shares import Share
from lightning_sanity.tracks import Track, Trials

Outputs = dict[tuple[int, int], tuple[int, Tensor]]
"""Per trial and depth the model's outputs, and the place in line of the method that told them."""
_COMPARING = 0.5  # of a pass: what comparing a map costs beside making it, roughly: more on a small network


class Division:
    """The steps of some trials, divided by what they are expected to cost.

    Args:
        share: Among whom.
        passes: What a step of each method costs, in forward-plus-backward passes.
        trials: How many trials.
        depths: Their depths.
        together: The method whose last steps one process must do for all trials, because it compares them.
    """

    def __init__(self, share: Share, passes: Mapping[str, float], trials: int, depths: int, together: str) -> None:
        self.share, self.depths = share, depths
        self._passes, self._together = passes, together
        costs: dict[tuple[str, int, int], float] = {}
        for trial in range(trials):
            for depth in range(depths):
                for name in passes:
                    group = self._group(name, trial, depth)
                    costs[group] = costs.get(group, 0.0) + passes[name] + _COMPARING
        self._owners = share.owners(costs)

    def _group(self, name: str, trial: int, depth: int) -> tuple[str, int, int]:
        """Steps of one group are done by one process."""
        if self._passes[name] == 0:
            return name, trial, 0  # it never looks at the model, so it is measured once per trial
        return name, 0 if name == self._together and depth == self.depths - 1 else trial, depth

    def mine(self, name: str, trial: int, depth: int) -> bool:
        """Whether this process explains a step."""
        return self.share.does(self._owner(name, trial, depth))

    def tell(self, trial: int, depth: int) -> bool:
        """Whether this process must tell the outputs of a depth, even if none of its methods lets it hear them."""
        looking = next((name for name, passes in self._passes.items() if passes > 0), None)
        owner = depth % self.share.world if looking is None else self._owner(looking, trial, depth)
        return self.share.does(owner)

    def _owner(self, name: str, trial: int, depth: int) -> int:
        return self._owners[self._group(name, trial, depth)]

    def unite(self, tables: Mapping[str, Trials], outputs: Outputs, walked: int, pictured: Sequence[int]) -> int:
        """Fill in, on every process, what the others measured.

        Args:
            tables: This process's part, on the CPU; completed in place.
            outputs: Likewise.
            walked: Trials that this process walked to their end.
            pictured: Depths that have pictures, in the first trial.

        Returns:
            The trials that every process walked.
        """
        if self.share.world == 1:
            return walked
        parts = self.share.exchange((tables, outputs, walked))
        walked = min(part[2] for part in parts)
        for name, table in tables.items():
            everyone: list[Trials] = [part[0][name] for part in parts]
            if _first_failure(table, everyone):
                continue
            table.twins = max((found.twins for found in everyone), key=len)
            for trial in range(walked):
                for depth in range(self.depths):
                    self._fill(table, everyone[self._owner(name, trial, depth)], trial, depth, pictured)
        for trial in range(walked):
            for depth in range(self.depths):
                heard = [part[1][trial, depth] for part in parts if (trial, depth) in part[1]]
                outputs[trial, depth] = min(heard, key=lambda pair: pair[0])
        return walked

    def _fill(self, table: Trials, owner: Trials, trial: int, depth: int, pictured: Sequence[int]) -> None:
        for mine, theirs in ((table.values, owner.values), (table.floor, owner.floor)):
            for key in mine:
                mine[key][trial, depth] = theirs[key][trial, depth]
        if depth == self.depths - 1:
            for name in ("norm", "dependence", "entropy_rise"):
                ours, measured = getattr(table, name), getattr(owner, name)
                if ours is not None and measured is not None:
                    ours[trial] = measured[trial]
        if trial == 0 and depth in pictured and table.pictures is not None and owner.pictures is not None:
            column = pictured.index(depth)
            table.pictures[:, column] = owner.pictures[:, column]


def unite_references(share: Share, tracks: Mapping[str, Track], guards: Mapping[str, int]) -> None:
    """Give every process each method's ceiling and noise guard from the process in ``guards`` that measured them."""
    if share.world == 1:
        return
    parts = share.exchange({name: track.cpu() for name, track in tracks.items()})
    for name, track in tracks.items():
        everyone: list[Track] = [part[name] for part in parts]
        if not _first_failure(track, everyone):
            guard = everyone[guards[name]]
            track.ceiling, track.noise, track.cross = guard.ceiling, guard.noise, guard.cross
            track.other_class = guard.other_class


def _first_failure(mine: Track | Trials, everyone: Sequence[Track] | Sequence[Trials]) -> bool:
    """Whether a process failed; if so, all take the failure that came first in the walk."""
    failed = [found for found in everyone if found.error is not None]
    if failed:
        first = min(failed, key=lambda found: found.failed_at)
        mine.error, mine.failed_at = first.error, first.failed_at
    return bool(failed)
