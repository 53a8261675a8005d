"""Who explains what of a walk that several processes share, and the whole put together from their parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from lightning_sanity.engine import Engine, Trial
from lightning_sanity.explanation.measurements import Track, Trials
from lightning_sanity.randomization.strategies import Change
from lightning_sanity.randomization.twins import TrialDraw
from lightning_sanity.resources.processes import Share

_COMPARING = 0.5  # of a pass: what comparing a map costs beside making it, roughly: more on a small network
_WALKED = 0.4  # of a pass: what a depth of a shared walk costs
_PROVEN = 0.5  # of a pass: what two samples explained by the plain path cost
_TRIAL = ""  # stands for all methods that one process does together
_MAPS = " "  # stands for the trained model's maps that come from shared passes
_Group = tuple[Hashable, int, int]  # what, of which trial, at which depth


@dataclass
class Part:
    """What one process measured of some trials.

    Attributes:
        tables: Per method.
        walked: Methods that shared walks explain, to the end.
        outputs: Per trial and depth the model's outputs, and the place in line of the method that told them.
        changes: Per trial, what re-initialisation changed.
    """

    tables: dict[str, Trials]
    walked: tuple[str, ...] = ()
    outputs: dict[tuple[int, int], tuple[int, Tensor]] = field(default_factory=dict)
    changes: dict[int, list[Change]] = field(default_factory=dict)

    def cpu(self) -> Part:
        """The same on the CPU, the changes apart."""
        return replace(
            self,
            tables={name: table.cpu() for name, table in self.tables.items()},
            outputs={key: (order, value.cpu()) for key, (order, value) in self.outputs.items()},
        )


class Division:
    """The steps of some trials, divided by what they are expected to cost.

    A whole trial goes to one process while the loads stay balanced; the others then skip its draws. What is left is
    dealt out in smaller parts. Methods that share a walk stay together on one process. The steps of every other method
    go, one by one, to the process that has the least to do.

    Args:
        share: Among whom.
        passes: What a step of each method costs, in forward-plus-backward passes.
        walked: Methods that shared walks explain, all depths at once, with the kind of walk that each needs.
        trials: How many trials.
        depths: Their depths.
        in_step: Whether all processes must get on at the same pace, so that every trial is divided.

    Attributes:
        loads: What every process has to do.
    """

    def __init__(
        self,
        share: Share,
        passes: Mapping[str, float],
        walked: Mapping[str, Hashable],
        trials: int,
        depths: int,
        in_step: bool = False,
    ) -> None:
        self.share, self.trials, self.depths = share, trials, depths
        self.loads = [0.0] * share.world
        self._passes, self._walked = passes, walked
        self._whole: set[int] = set()
        self._owners: dict[_Group, int] = {}
        each = sum(self._costs(0).values())
        fair = trials * each / share.world * (1 + 1e-9)
        divided: dict[_Group, float] = {}
        for trial in range(trials):
            if not in_step and min(self.loads) + each <= fair:
                self._whole.add(trial)
                self._owners |= share.owners({(_TRIAL, trial, 0): each}, self.loads)
            else:
                divided |= self._costs(trial)
        self._owners |= share.owners(divided, self.loads)

    def _costs(self, trial: int) -> dict[_Group, float]:
        """What each group of a trial's steps costs."""
        costs: dict[_Group, float] = {}
        for name, passes in self._passes.items():
            for depth in range(self.depths):
                group = self._group(name, trial, depth)
                once = passes == 0 and group in costs  # compared at the first depth only
                step = (_WALKED if name in self._walked else 1.0) * passes + _COMPARING
                costs[group] = costs.get(group, 0.0) + (0.0 if once else step)
        return costs

    def _group(self, name: str, trial: int, depth: int) -> _Group:
        """Steps of one group are done by one process."""
        if trial in self._whole:
            return _TRIAL, trial, 0
        if name in self._walked:
            return (_TRIAL, self._walked[name]), trial, 0
        return name, trial, 0 if self._passes[name] == 0 else depth  # what never looks at the model is measured once

    def _owner(self, name: str, trial: int, depth: int) -> int:
        return self._owners[self._group(name, trial, depth)]

    def mine(self, name: str, trial: int, depth: int) -> bool:
        """Whether this process explains a step."""
        return self.share.does(self._owner(name, trial, depth))

    def names(self, trial: int) -> list[str]:
        """Methods of which this process explains some step of a trial."""
        return [n for n in self._passes if any(self.mine(n, trial, depth) for depth in range(self.depths))]

    def concerns(self, trial: int) -> bool:
        """Whether this process does anything of a trial."""
        return bool(self.names(trial)) or self.tells(trial)

    def walked(self, trial: int) -> list[str]:
        """Methods of a trial that this process makes shared walks for."""
        return [name for name in self._walked if self.mine(name, trial, 0)]

    def tell(self, trial: int, depth: int) -> bool:
        """Whether this process must tell the outputs of a depth, even if none of its methods lets it hear them."""
        looking = (name for name, passes in self._passes.items() if passes > 0)
        name = next(iter([*self._walked, *looking, *self._passes]), None)
        return self.share.does(trial % self.share.world if name is None else self._owner(name, trial, depth))

    def tells(self, trial: int) -> bool:
        """Whether this process must tell the outputs of some depth of a trial."""
        return any(self.tell(trial, depth) for depth in range(self.depths))

    def unite(self, part: Part, walked: int, pictured: Sequence[int]) -> int:
        """Fill in, on every process, what the others measured.

        Args:
            part: This process's, on the CPU; completed in place.
            walked: Trials that this process came through.
            pictured: Depths that have pictures, in the first trial.

        Returns:
            The trials that every process came through.
        """
        if self.share.world == 1:
            return walked
        sent = {
            trial: [replace(change, relative=change.relative.cpu()) for change in changes]
            for trial, changes in part.changes.items()
        }
        found = self.share.exchange((replace(part, changes=sent), walked))
        parts, walked = [each for each, _ in found], min(count for _, count in found)
        part.walked = tuple(name for name in part.walked if all(name in each.walked for each in parts))
        for name, table in part.tables.items():
            everyone = [each.tables[name] for each in parts]
            if _first_failure(table, everyone):
                continue
            for trial in range(walked):
                for depth in range(self.depths):
                    self._fill(table, everyone[self._owner(name, trial, depth)], trial, depth, pictured)
        for trial in range(walked):
            part.changes[trial] = next(each.changes[trial] for each in parts if trial in each.changes)
            for depth in range(self.depths):
                heard = [each.outputs[trial, depth] for each in parts if (trial, depth) in each.outputs]
                part.outputs[trial, depth] = min(heard, key=lambda pair: pair[0])
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


def in_common(share: Share, engine: Engine | None) -> Engine | None:
    """The engine for the methods that every process can walk; None, on all of them, if there are none."""
    names = share.common(() if engine is None else engine.methods)
    return engine.keep(names) if engine is not None and names else None


class SharedWalks:
    """Who walks which trial, and the walks of this process.

    A result must not depend on who walked what. So each process walks its first trial before the work is divided for
    good. If a walk fails there, all processes give it up. If the process of the first trial cannot verify a method's
    fast path, all processes use the plain loop for that method. A walk that fails later concerns its own process alone,
    which goes on with the plain loop.

    Args:
        share: This process's part of the work.
        engine: Makes the walks, if they are to be had.
        divide: Divides the work, given the methods that are walked and the kind of walk that each needs.
        draw: How a trial, given by its place, re-initialises units.
        attempt: Walks a trial, given its draws and its place, for the methods of an engine; None if that fails.
        ready: A trial that was walked before, by its place.

    Attributes:
        division: Of the work.
    """

    def __init__(
        self,
        share: Share,
        engine: Engine | None,
        divide: Callable[[Mapping[str, Hashable]], Division],
        draw: Callable[[int], TrialDraw],
        attempt: Callable[[Engine, TrialDraw, int], Trial | None],
        ready: Mapping[int, Trial] | None = None,
    ) -> None:
        self._engine, self._attempt = in_common(share, engine), attempt
        self._ready: dict[int, Trial | None] = dict(ready or {})
        self.division = divide(self._kinds())
        if self._engine is None or share.world == 1:
            return
        place = next((place for place in range(self.division.trials) if self.division.walked(place)), None)
        if place != 0:
            self._engine.trust()
        if place is not None and place not in self._ready:
            self._ready[place] = self._walk(place, draw(place))
        self._engine = in_common(share, self._engine)
        self.division = divide(self._kinds())

    def _kinds(self) -> Mapping[str, Hashable]:
        return {} if self._engine is None else self._engine.kinds()

    def _walk(self, place: int, redraw: TrialDraw) -> Trial | None:
        """Walk a trial for this process's methods; those that fail are not tried again."""
        assert self._engine is not None
        names = self.division.walked(place)
        some = self._engine.keep(names)
        found = self._attempt(some, redraw, place)
        self._engine = self._engine.keep([n for n in self._engine.methods if n not in names or n in some.methods])
        return found

    def names(self) -> tuple[str, ...]:
        """Methods that are walked."""
        return () if self._engine is None else tuple(self._engine.methods)

    def trial(self, place: int, redraw: TrialDraw) -> Trial | None:
        """All depths of a trial, if it is this process's to walk, and if that succeeds."""
        names = self.division.walked(place)
        if self._engine is None or not names:
            return None
        found = self._ready.pop(place, None)
        if found is None or not found.attributions.keys() >= set(names):  # it was divided otherwise before
            found = self._walk(place, redraw)
        return None if found is None else found.keep(names)


def guards(
    share: Share, passes: Mapping[str, float], stochastic: Collection[str], together: Collection[str], repeats: int
) -> tuple[dict[str, int], int]:
    """Who guards each method's maps of the trained model, and who makes those that come from shared passes.

    Args:
        share: Among whom.
        passes: See ``Division``.
        stochastic: Methods whose explanations are repeated under other seeds.
        together: Methods whose noisy copies are explained in shared passes, by one process.
        repeats: How often.

    Returns:
        The process that guards each method, and the one that explains the batch itself for those in ``together``.
    """
    costs: dict[str, float] = {}
    for name, each in passes.items():
        shared = name in together
        cost = repeats * (each * (_WALKED if shared else 1.0) + _COMPARING)
        cost += repeats * (each + _COMPARING) if name in stochastic else 0.0
        costs[_TRIAL if shared else name] = costs.get(_TRIAL if shared else name, 0.0) + cost
    proof = sum(passes[name] * _PROVEN for name in together)
    owners = share.owners(costs | {_MAPS: proof + sum(passes[name] * _WALKED for name in together)})
    return {name: owners[_TRIAL if name in together else name] for name in passes}, owners[_MAPS]


def unite_references(share: Share, tracks: Mapping[str, Track], guards: Mapping[str, int]) -> None:
    """Give every process what a process in ``guards`` found of each method: its signal, and how far it comes again."""
    if share.world == 1:
        return
    parts = share.exchange({name: track.cpu() for name, track in tracks.items()})
    for name, track in tracks.items():
        everyone: list[Track] = [part[name] for part in parts]
        if not _first_failure(track, everyone):
            guard = everyone[guards[name]]
            track.again, track.noise, track.cross = guard.again, guard.noise, guard.cross
            track.other_class = guard.other_class


def _first_failure(mine: Track | Trials, everyone: Sequence[Track] | Sequence[Trials]) -> bool:
    """Whether a process failed; if so, all take the failure that came first in the walk."""
    failed = [found for found in everyone if found.error is not None]
    if failed:
        first = min(failed, key=lambda found: found.failed_at)
        mine.error, mine.failed_at = first.error, first.failed_at
    return bool(failed)
