"""Walks a cascade: re-initialise a unit, explain again, compare; fills one ``(trials, depths, N)`` tensor per measure.

Everything stays on the model's device; what a step needs of the reference maps is prepared once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_sanity.attribution.derived import Derived, Reading
from lightning_sanity.attribution.method import first
from lightning_sanity.engine import ENGINES, Engine, Trial, engine_for
from lightning_sanity.explanation.explainer import Explainer
from lightning_sanity.explanation.maps import AttributionFailed, Explanation, Maps, reduced
from lightning_sanity.explanation.measurements import Track, Trials, agreement_of, correlation_of, spread_of
from lightning_sanity.model.weights import is_sharded, restore, snapshot
from lightning_sanity.parameter_randomization.complexity import efficient_mprt
from lightning_sanity.parameter_randomization.diagnostics import other_classes
from lightning_sanity.parameter_randomization.headroom import Room
from lightning_sanity.parameter_randomization.leftovers import Leftovers
from lightning_sanity.parameter_randomization.route import Route, leaves_outputs
from lightning_sanity.parameter_randomization.settings import Settings
from lightning_sanity.parameter_randomization.study import Study
from lightning_sanity.parameter_randomization.time_limit import TimeLimit
from lightning_sanity.parameter_randomization.timing import clock, drawn, shared_walks, steps_cost, timed
from lightning_sanity.parameter_randomization.trained_maps import TrainedModel, pictured
from lightning_sanity.parameter_randomization.walk_results import Walk
from lightning_sanity.parameter_randomization.work_sharing import Division, Part, SharedWalks, in_common
from lightning_sanity.randomization.strategies import Change
from lightning_sanity.randomization.twins import Reinitializer, TrialDraw, recalibrate_
from lightning_sanity.randomization.unit import Unit
from lightning_sanity.resources.budget import Cost, Shared
from lightning_sanity.resources.processes import Share
from lightning_sanity.resources.progress import Forecast, Progress
from lightning_sanity.resources.random_streams import stream_seed
from lightning_sanity.result.pictures import depths as picture_depths

_REFERENCE, _TRIALS = "trained model", "trials"  # kinds of work
_COMPARED = 0.1  # passes that comparing a map takes, roughly
_ASKED = 8  # trials from which even single scores of regions would not all rise together by chance
Compared = tuple[Maps, dict[str, tuple[Tensor, Tensor]]]
"""A depth's maps, and what they are like; see ``Reference.against``."""
_Asked = tuple[Explanation, Sequence[Tensor]]
"""An explanation, and the outputs of a pass of it, as soon as one has come by."""


class Cascade:
    """One walk: ``start``, then ``extend`` by trials as often as needed; ``walk`` says what was measured so far.

    Args:
        study: What is explained, of which model; the model is trained again at the end of every trial.
        route: Which units are random at each depth.
        reinitializer: Draws them.
        settings: How to walk.
        left: Watches what passes with random weights read.
        progress: Told after every step of a method, and within walks; it may raise to end the walk.
        deadline: Value of ``time.perf_counter()`` by which to be done: the walk is thinned to fit.
        share: This process's part of the work.

    Attributes:
        interrupted: Whether somebody ended it; the trials that were whole by then are kept.
    """

    def __init__(
        self,
        study: Study,
        route: Route,
        reinitializer: Reinitializer,
        settings: Settings,
        *,
        left: Leftovers | None = None,
        progress: Progress | None = None,
        deadline: float | None = None,
        share: Share | None = None,
    ) -> None:
        self.study, self.route, self.reinitializer = study, route, reinitializer
        self.settings, self.left = settings, left
        self.model, self.what, self.methods, self.samples = study.model, study.what, study.methods, study.samples
        self.trials = 0
        self.interrupted = False
        self.tracks: dict[str, Track] = {name: Track() for name in self.methods}
        self._forecast = Forecast(progress)
        self._share = share or Share()
        self._explain = Explainer(self.methods, settings.seed, deadline, settings.max_batch, self._share.alarm)
        if self.what.in_one:  # one altered copy of the batch at a time
            self._explain.rows = dict.fromkeys(self.methods, self.samples)
        self._clock = clock(first(self.what.inputs).device)
        self._trained_model = TrainedModel(study, settings, self._explain, self._share)
        self.references = self._trained_model.references
        self._time = TimeLimit(deadline, self._clock, self._share)
        self._walker: Engine | None = None
        self._ahead: dict[int, Trial] = {}
        self._room: Room | None = None
        self._wanted = 0
        self._outputs: list[Tensor] = []
        self._changes: dict[str, list[Change]] = {}
        self._engines: dict[str, str] = {}

    def start(self, trials: int) -> None:
        """Explain the trained model: reference maps and the noise guard.

        With a deadline, depths and methods are chosen so that this many trials fit.
        """
        if self.settings.max_memory is not None:
            limit, twin = self.settings.max_memory, self.reinitializer.twin is not None
            self._room = Room(limit, self.study, self.route.steps, twin, self.settings.repeats, trials)
            self._room.divide(self._explain)
        self._walker = in_common(self._share, self._engine(list(self.methods)))
        self._forecast.plan(_REFERENCE, sum(map(self._referring, self.methods)))
        self._forecast.plan(_TRIALS, trials * self._units(self._walker, list(self.methods)))
        sharing = self._walker if self._room is None else None
        shared = self._trained_model.share_passes(sharing, self._clock, self._time.left())
        self._forecast.did(_REFERENCE, sum(map(self._referring, shared)), "trained model")
        with self.what.overheard() as heard:
            for name in self.methods:
                self._guarded(name, self.tracks[name], (-1, 0), self._refer)
                units = 0.0 if name in shared else self._referring(name)
                self._forecast.did(_REFERENCE, units, f"trained model, {name}")
        seen = self._trained_model.outputs  # the same on every process, which what one of them heard is not
        self._trained_outputs = seen if seen is not None else heard[0] if heard else self.what.outputs()
        if "random_logit" in self.settings.diagnostics:
            others = other_classes(self.what.target, self._trained_outputs, self.settings.seed)
            for name in filter(self._trained_model.mine, self.methods):
                self._guarded(
                    name, self.tracks[name], (-1, 1), lambda key, track: self._trained_model.other(key, track, others)
                )
        self._trained_model.unite(self.tracks)
        if self._time.deadline is not None:
            self._thin(trials)
        self.picture_depths = picture_depths(len(self.route)) if self.settings.picture_samples else ()

    def extend(self, trials: int, methods: Iterable[str] | None = None) -> None:
        """Walk that many more trials with ``methods``, all by default; the clone is trained again afterwards.

        A trial's draws depend on its number alone: five trials and five more are ten trials.
        """
        self._wanted += trials
        trials = int(min(trials, self._time.trials - self.trials))
        following = [n for n in (self.methods if methods is None else methods) if self.tracks[n].error is None]
        part = Part({name: self._tables(name, trials) for name in following})
        engine = (
            self._walker.keep(following) if self._walker is not None and self._explain.whole(self.samples) else None
        )
        each = self._units(engine, following)
        saved = snapshot(self.model, self.study.trained)
        ahead, self._ahead = self._ahead, {}
        begun, walked, whole = self._clock(), 0, False
        try:
            walks = SharedWalks(
                self._share,
                engine,
                partial(self._divided, following, trials),
                lambda place: self.reinitializer.start_trial(self.trials + place),
                lambda engine, redraw, place: self._attempt(engine, redraw, saved, self.trials + place),
                ahead,
            )
            while walked < trials and self._time.fits(
                begun, walked, self.trials, following, len(self.route), walks.division
            ):
                once = engine.proof_passes() if engine is not None and self.trials + walked == 0 else 0.0
                self._forecast.plan(_TRIALS, (trials - walked) * each + once)
                self._walk_trial(walked, part, walks, saved)
                self._forecast.round(_TRIALS)
                walked += 1
            whole = True
        except KeyboardInterrupt:
            self.interrupted = self.settings.on_interrupt == "return" and self.trials + walked > 0
            if not self.interrupted or self._share.world > 1:  # others would wait for this process for ever
                raise
        finally:
            if not whole:  # else every trial has put back what it changed
                restore(self.model, saved)
        part.walked = walks.names()
        part = part.cpu()
        self._time.account(following, walked, self.trials, len(self.route), self._clock() - begun)
        walked = walks.division.unite(part, walked, self.picture_depths)
        for name, table in part.tables.items():
            self.tracks[name].append(table, walked)
        for trial in range(walked):
            self._outputs.append(torch.stack([part.outputs[trial, depth][1] for depth in range(len(self.route))]))
            for change in part.changes[trial]:
                self._changes.setdefault(change.parameter, []).append(change)
        self.trials += walked
        if self.left is not None:
            self.left.unite(self._share)
        if engine is not None and self._walker is not None:
            self._engines |= dict.fromkeys(part.walked, engine.path.name)
            given_up = engine.methods.keys() - set(part.walked)  # for good: who trusted them may walk them next
            self._walker = self._walker.keep([name for name in self._walker.methods if name not in given_up])

    def walk(self) -> Walk:
        """What was measured so far, on the CPU."""
        trained, outputs = self._trained_outputs.cpu(), torch.stack(self._outputs)  # (N, ...), (trials, depths, N, ...)
        if self.trials < self._wanted:
            self._time.thinned["trials"] = [self.trials, self._wanted]
        return Walk(
            tracks={name: track.cpu() for name, track in self.tracks.items()},
            route=self.route,
            silent=self.route.silent(trained, outputs, self._leaves_outputs),
            picture_depths=self.picture_depths,
            thinned=dict(self._time.thinned),
            cost=self._time.spent(),
            memory={} if self._room is None else self._room.settings(self._explain),
            notes=() if self._room is None else self._room.notes(),
            agreement=agreement_of(trained, outputs),
            correlation=correlation_of(trained, outputs),
            spread_ratio=(spread_of(outputs[:, -1]) / spread_of(trained[None])).float(),
            finite=bool(trained.isfinite().all()),
            interrupted=self.interrupted,
            twins=outputs[:, -1] if self._tells_twins() else outputs[:0, -1],
            changes=self._changes,
            engines={name: self._engines.get(name, "plain") for name in self.methods},
        )

    def _tells_twins(self) -> bool:
        """Whether outputs tell twins apart: what is asked of a sample, the size of a region say, may move all alike."""
        return self.what.question is None or self.trials >= _ASKED

    def _leaves_outputs(self, depth: int) -> bool:
        return self._share.apart and leaves_outputs(self.study, self.route, self.reinitializer, depth)

    def _tables(self, name: str, trials: int) -> Trials:
        """Room for what so many more trials will measure of a method."""
        like, picture = self.references[name].maps.magnitude, self.tracks[name].picture
        tables = Trials.empty(like, self.study.similarities, trials, len(self.route), self.settings.diagnostics)
        if self.trials == 0 and picture is not None:  # until it is drawn, a picture is the trained model's
            tables.pictures = picture[:, None].repeat(1, len(self.picture_depths), 1, 1)
        return tables

    def _passes(self, names: Iterable[str]) -> dict[str, float]:
        return {name: self.methods[name][0].passes for name in names}

    def _refer(self, name: str, track: Track) -> None:
        walked = self._walker is not None and name in self._walker.methods
        depths = len(self.route) if walked else 1
        self._trained_model.refer(name, track, self._clock, self._time.left(), depths)

    # ------------------------------------------------------------------------------------------------ limited in time

    def _thin(self, trials: int) -> None:
        """Keep of the walk what fits."""
        plan = self._time.thin(
            self._calibrated(trials),
            trials,
            len(self.route),
            controls=[name for name, (method, _) in self.methods.items() if method.control],
            whole=not self.route.nested,
            copies=(self._trained_model.fewest_copies(), self.settings.repeats),
        )
        for name in plan.dropped:
            self.tracks[name].error = "left out: max_time is too short for this method"
        self.route = self.route.only(plan.depths)
        self._walker = self._walker.only(plan.depths) if self._walker is not None else None
        self._ahead = {place: trial.only(plan.depths) for place, trial in self._ahead.items()}

    def _calibrated(self, trials: int) -> Cost:
        """What trials will take, by the trained model's explanations and, where there is an engine, by its walks.

        Of several processes each walks a trial of its own, and one proves for all.
        """
        saved = snapshot(self.model, self.study.trained)
        plain = {name: explaining for name, (explaining, _) in self._trained_model.seconds.items()}
        shared: tuple[Shared, ...] = ()
        workers = self._share.workers
        if self._walker is not None:  # what failed on the trained model is not followed
            followed = self._walker.keep(plain)
            self._walker = followed if followed.methods else None
        if self._walker is not None:
            left = self._time.left()
            assert left is not None
            place = self._share.rank % trials
            if place > 0 and self._trained_model.pass_seconds is None:  # else nobody walks, and nobody proves, yet
                self._walker.trust()
            found = shared_walks(
                self._walker,
                lambda engine: self._attempt(engine, self.reinitializer.start_trial(place), saved, place),
                plain,
                math.ceil(trials / workers),
                left,
                self._trained_model.pass_seconds,
            )
            self._walker = in_common(self._share, None if found is None else self._walker)
            if self._walker is not None and found is not None:
                common = [replace(walk, methods=walk.methods.intersection(self._walker.methods)) for walk in found[0]]
                shared = tuple(walk for walk in common if walk.methods)
                self._ahead = {} if found[1] is None else {place: found[1]}
        walked = frozenset[str]().union(*(walk.methods for walk in shared))
        asked = 0 if self.what.question is None else 1  # an unrelated sample is asked the same question
        again = "dependence" in self.settings.diagnostics
        passes = self._passes(self._trained_model.seconds)
        step, once = steps_cost(
            self._trained_model.seconds, passes, walked, asked=asked, again=again, workers=1 if walked else workers
        )
        drawing = restoring = outputs = 0.0
        if self._needs_weights(list(plain), walked):
            drawing, restoring = drawn(
                self.model, self.reinitializer, self.route.steps, lambda: restore(self.model, saved), self._clock
            )
        if self.settings.retarget or self.settings.norm_stats == "recalibrate":
            _, outputs = timed(self.what.outputs, self._clock, 0.0)
        looking = timed(self.left.look, self._clock, 0.0)[1] if self.left is not None and self._looks else 0.0
        return Cost(
            step,
            once,
            trial=drawing + restoring + looking,
            depth=outputs + (0.0 if self.route.nested else restoring),
            first=looking,
            shared=shared,
            ahead=len(self._ahead),
            workers=workers if walked else 1,
        )

    # -------------------------------------------------------------------------------------------------------- the walk

    def _walk_trial(self, place: int, part: Part, walks: SharedWalks, saved: Mapping[str, Tensor]) -> None:
        """What this process does of one trial, which is row ``place`` of the tables."""
        trial, tables, division = self.trials + place, part.tables, walks.division
        names = division.names(place)
        if not names and not division.tells(place):
            self._forecast.did(_TRIALS, 0.0, f"trial {trial + 1}")
            return
        redraw = self.reinitializer.start_trial(trial)
        ready = walks.trial(place, redraw)
        made = {} if ready is None else {name: self._compared(name, ready, trial) for name in ready.attributions}
        changes = [] if ready is None else [change for each in ready.changes.values() for change in each]
        looking = [name for name in names if self.methods[name][0].passes > 0]
        needs_weights = bool(looking) and self._needs_weights(looking, made)
        needs_weights |= ready is None and division.tells(place)
        random: list[Unit] = []
        for depth, step in enumerate(self.route.steps):
            if any(unit not in step for unit in random):
                restore(self.model, saved)
                random = []
            for unit in (unit for unit in step if needs_weights and unit not in random):
                changed = redraw(self.model, unit)
                changes += changed if ready is None else ()
            random = list(step)
            if needs_weights:
                self._watch(trial, depth)
            now = self.what
            if needs_weights and self.settings.norm_stats == "recalibrate":
                recalibrate_(self.model, random, self.what.outputs)
            if needs_weights and self.settings.retarget:
                now = self.what.retargeted()
            other = None if now.question is None else now.crossed(self._shift(trial, depth))
            with now.overheard() as heard, _overheard(other) as of_other:
                told: int | None = None
                crossed = None if other is None else (other, of_other)
                act = partial(self._step, now=(now, heard), crossed=crossed, place=place, depth=depth)
                for order, (name, table) in enumerate(tables.items()):
                    if division.mine(name, place, depth):
                        self._guarded(name, table, (trial, depth), partial(act, made=made.get(name)))
                    told = order if heard and told is None else told
                    units = self._step_units(name, name in made)
                    self._forecast.did(_TRIALS, units, f"trial {trial + 1}, {step[-1].name}, {name}")
            if ready is not None:
                part.outputs[place, depth] = -1, ready.outputs[depth]
            elif told is not None:
                part.outputs[place, depth] = told, heard[0]
            elif division.tell(place, depth):
                part.outputs[place, depth] = len(tables), now.outputs()
        if changes:
            part.changes[place] = changes
        if "dependence" in self.settings.diagnostics:
            for name, table in tables.items():
                if division.mine(name, place, len(self.route) - 1):
                    self._guarded(name, table, (trial, len(self.route)), partial(self._depend, place=place))
        if needs_weights:
            restore(self.model, saved)

    @property
    def follows(self) -> bool:
        """Whether shared walks can follow the network, which then chooses nothing by its values."""
        return self._walker is not None

    def _watch(self, trial: int, depth: int) -> None:
        """See what a pass with random weights reads: their values may lead it elsewhere than the trained ones did.

        Nothing of a network that shared walks can follow. Of others every depth is looked at once, and the last in
        every trial, where most is random.
        """
        if self.left is not None and self._looks and (trial == 0 or depth == len(self.route) - 1):
            self.left.look()

    @property
    def _looks(self) -> bool:
        return not self.follows and not is_sharded(self.model)

    def _divided(self, following: Sequence[str], trials: int, walked: Mapping[str, Hashable]) -> Division:
        """Who does what of so many more trials, given the methods that share walks, by their kinds."""
        passes = self._passes(following)
        in_step = self._time.deadline is not None and not walked
        return Division(self._share, passes, walked, trials, len(self.route), in_step)

    def _engine(self, following: Sequence[str]) -> Engine | None:
        """What explains all depths of a trial at once, where that is exact and this process may walk by itself."""
        alone = self._share.apart and self._explain.whole(self.samples)
        exact = not self.settings.retarget and self.settings.norm_stats != "recalibrate"
        if self.settings.engine == "plain" or not (alone and exact and following):
            return None
        if self._room is not None and not self._room.traces(self._explain):
            return None
        methods = {name: self.methods[name] for name in following}
        seed = stream_seed(self.settings.seed, "explainer")
        paths, known = ENGINES[self.settings.engine], self.study.known
        engine = engine_for(self.model, self.what, methods, self.route.steps, seed, paths, known)
        if engine is None or self._room is None or self._room.holds(engine, self._explain):
            return engine
        return None

    def _attempt(self, engine: Engine, redraw: TrialDraw, saved: Mapping[str, Tensor], trial: int) -> Trial | None:
        """All depths of a trial at once, where that is to be had."""
        crossed = None if self.what.question is None else self.what.crossed(self._shift(trial, 0))
        patience = self._time.patience(engine.methods, len(engine.steps))
        engine.told = lambda passes: self._forecast.did(_TRIALS, passes, "all steps at once")
        with self._explain.patience("a walk over all depths", patience):
            return engine.attempt(redraw, saved, self._time.clock(), crossed)

    def _needs_weights(self, names: Iterable[str], walked: Collection[str]) -> bool:
        """Whether something is still to be explained on the re-initialised clone itself."""
        if not walked or "dependence" in self.settings.diagnostics:
            return True
        return any(self.methods[name][0].passes > 0 and name not in walked for name in names)

    def _referring(self, name: str) -> float:
        """What explaining the trained model by a method takes, in passes of the batch."""
        method = self.methods[name][0]
        again = self.settings.repeats if method.stochastic else 0
        return (1 + self.settings.repeats + again) * (method.passes + _COMPARED)

    def _step_units(self, name: str, walked: bool) -> float:
        """What a depth of a trial takes for a method, in passes of the batch, beside the walks that it may share."""
        asked = 0 if walked else 1 if self.what.question is None else 2
        return asked * self.methods[name][0].passes + _COMPARED

    def _units(self, engine: Engine | None, following: Sequence[str]) -> float:
        """What a trial takes."""
        walked = () if engine is None else engine.methods
        steps = len(self.route) * sum(self._step_units(name, name in walked) for name in following)
        return steps + (0.0 if engine is None else engine.passes())

    def _guarded(self, name: str, table: Any, at: tuple[int, int], act: Callable[[str, Any], None]) -> None:
        """A method that fails is given up with its reason; the others go on."""
        if table.error is None:
            try:
                act(name, table)
            except AttributionFailed as error:
                table.error, table.failed_at = str(error), at

    # --------------------------------------------------------------------------------------------- randomised models

    def _compared(self, name: str, walked: Trial, trial: int) -> Iterator[Compared]:
        """What a walk over all depths made of a method, compared."""

        def maps(of: Mapping[str, list[Tensor]]) -> Iterator[Maps]:
            return (reduced(attribution, name, self.what) for attribution in of[name])

        shifts = (self._shift(trial, depth) for depth in range(len(self.route)))
        others = maps(walked.unrelated) if walked.unrelated else None
        return self.references[name].against_each(maps(walked.attributions), shifts, others)

    def _shift(self, trial: int, depth: int) -> int:
        """How far away the sample is that a map is compared with for the floor.

        It changes from step to step, so that the floor averages over pairs; only from trial to trial where samples are
        asked questions of their own, because a walk over all depths puts one question to a sample.
        """
        if self.samples < 2:
            return 0
        steps = trial if self.what.question is not None else trial * len(self.route) + depth
        return 1 + steps % (self.samples - 1)

    def _step(
        self,
        name: str,
        table: Trials,
        now: _Asked,
        crossed: _Asked | None,
        place: int,
        depth: int,
        made: Iterator[Compared] | None,
    ) -> None:
        method = self.methods[name][0]
        trial = self.trials + place
        if method.passes == 0 and depth > 0:  # never looks at the model, so one map per trial says all
            for rows in (*table.values.values(), *table.floor.values()):
                rows[place, depth] = rows[place, 0]
            if method.fresh and self._pictured(trial, depth):
                self._draw(table, depth, self._explain(name, now[0], trial, depth))
            return
        if made is not None:
            maps, found = next(made)
        else:
            maps = self._maps(name, now, trial, depth)
            unrelated = None if crossed is None else self._maps(name, crossed, trial, depth)
            found = self.references[name].against(maps, self._shift(trial, depth), unrelated)
        for key, (same, other) in found.items():
            table.values[key][place, depth] = same
            table.floor[key][place, depth] = other
        if depth == len(self.route) - 1 or method.passes == 0:
            self._end(name, table, maps, place)
        if self._pictured(trial, depth):
            self._draw(table, depth, maps)

    def _maps(self, name: str, asked: _Asked, *key: object) -> Maps:
        """A method's maps; of outputs that another method's pass returned, where it reads nothing else."""
        function, (now, heard) = self.methods[name][1], asked
        if heard and isinstance(function, Derived) and function.reads_outputs:
            return reduced(function.of(now.opened_inputs(), Reading({}, outputs=heard[0])), name, now)
        return self._explain(name, now, *key)

    def _end(self, name: str, table: Trials, maps: Maps, place: int) -> None:
        """What is measured at full randomization only."""
        table.norm[place] = torch.linalg.vector_norm(maps.magnitude)
        if table.entropy_rise is not None:
            table.entropy_rise[place] = efficient_mprt(self.references[name].maps.magnitude, maps.magnitude)

    def _depend(self, name: str, table: Trials, place: int) -> None:
        """Likeness to the trained map, at full randomization and under input noise."""
        key = stream_seed(self.settings.seed, "dependence", self.trials + place)
        maps = self._explain(name, self.what.with_noise([key]), "dependence", self.trials + place)
        one = self._trained_model.ranked(self.references[name].maps).against(maps, 0)["spearman"][0]
        table.dependence[place] = one  # type: ignore[index]

    def _pictured(self, trial: int, depth: int) -> bool:
        return trial == 0 and depth in self.picture_depths

    def _draw(self, table: Trials, depth: int, maps: Maps) -> None:
        table.pictures[:, self.picture_depths.index(depth)] = pictured(maps, self.settings)  # type: ignore[index]


def _overheard(what: Explanation | None) -> AbstractContextManager[list[Tensor]]:
    return nullcontext([]) if what is None else what.overheard()
