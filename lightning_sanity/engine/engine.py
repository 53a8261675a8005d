"""Which attributions a cascade gets from shared walks over the network, and the proof that they are the plain ones.

Methods say what they need (see ``attribution.derived``); equal needs are one walk, whatever the methods are called. A
walk serves many depths of a trial at once, by the first of two paths that the network allows (see ``streams`` and
``full_batch``). What cannot be had this way, a user's own function or a network that allows neither, stays with the
plain loop, which is also the reference: one depth of the first trial is explained both ways, for a few of its samples,
and a method whose maps differ goes back to the plain loop. Which depth and which samples the seed draws: a fixed choice
would be symmetric to some network.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.batching import Rows, at_once, rows_of, target_of
from lightning_sanity.attribution.derived import Copies, Derived
from lightning_sanity.attribution.guided import Steering
from lightning_sanity.attribution.layers import Layer
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.engine.folding import Folded
from lightning_sanity.engine.full_batch import FullBatch
from lightning_sanity.engine.opening import Opening
from lightning_sanity.engine.path import Begun, NotTraceable, Observed, Path, Planned
from lightning_sanity.engine.proof import SAMPLES, PlainPath, in_order, proof_depth
from lightning_sanity.engine.streams import TwoStream
from lightning_sanity.engine.sums import Sums
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.model.structure import Known
from lightning_sanity.model.weights import restore
from lightning_sanity.randomization.strategies import Change
from lightning_sanity.randomization.twins import TrialDraw
from lightning_sanity.randomization.unit import Unit
from lightning_sanity.resources.memory import Meter, bytes_of, free
from lightning_sanity.resources.random_streams import reseed

Paths = tuple[type[Path], ...]
ENGINES: Mapping[str, Paths] = {"auto": (TwoStream, FullBatch), "folded": (Folded, TwoStream, FullBatch), "plain": ()}
"""The paths that each choice of a user allows, the best first."""
BUDGET = 512 * 2**20
"""Bytes that a walk may keep."""
SHARE = 0.25
"""Of the memory that is free, if that is less."""
_UNSURE = 1.5
"""Factor by which a walk may keep more than its plan says."""

_OF_A_PASS = 0.75  # of the plain loop, that a depth takes in a walk, roughly, its part of the draws included
_TRAINED = (frozenset[int](),)
"""The one depth at which nothing is random."""

FAILURES = (RuntimeError, ValueError, TypeError, IndexError)
"""What a model raises that minds the batch's size, or gives no gradient."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """All depths of one trial.

    Attributes:
        outputs: Of the model, ``(depths, N, ...)``.
        attributions: Per method one per depth.
        unrelated: The same of the samples that each one's question was put to; empty where none is asked.
        changes: Per unit name, what its re-initialisation changed.
        seconds: What it took, the proof apart.
    """

    outputs: Tensor
    attributions: Mapping[str, list[Tensor]]
    unrelated: Mapping[str, list[Tensor]]
    changes: Mapping[str, tuple[Change, ...]]
    seconds: float = 0.0

    def only(self, depths: Sequence[int]) -> Trial:
        """Some of the depths."""
        found, others = (
            {name: [each[depth] for depth in depths] for name, each in maps.items()}
            for maps in (self.attributions, self.unrelated)
        )
        return replace(self, outputs=self.outputs[list(depths)], attributions=found, unrelated=others)

    def keep(self, names: Collection[str]) -> Trial:
        """The same for some of the methods."""
        found, others = (
            {name: each for name, each in maps.items() if name in names} for maps in (self.attributions, self.unrelated)
        )
        return replace(self, attributions=found, unrelated=others)


def engine_for(
    model: nn.Module,
    what: Explanation,
    methods: Mapping[str, tuple[Method, AttributionFn]],
    steps: Sequence[Sequence[Unit]],
    seed: int,
    paths: Paths,
    known: Known | None = None,
) -> Engine | None:
    """The engine of a cascade, or None, with a line in the debug log, where only the plain loop is to be had."""
    try:
        return Engine(model, what, methods, steps, seed, paths=paths, known=known)
    except (NotTraceable, *FAILURES) as error:
        _log.debug("plain loop: %s", error)
        return None


class Engine:
    """The walks of one cascade.

    Args:
        model: The clone whose units are re-initialised; back on its trained weights after every call.
        what: The explanation of the untouched clone.
        methods: Attribution functions by name; those that are not ``Derived`` are left alone.
        steps: Which units are random at each depth.
        seed: Of the explainers' draws, the same for every depth.
        budget: Bytes that a walk may keep; None = ``BUDGET``, and never more than ``SHARE`` of what is free.
        paths: Those to try.
        known: What was found of the model's structure before, to be added to; see ``structure``.

    Attributes:
        path: The one that is taken.
        told: Called whenever a part of a trial's walks is done, with how much of ``passes`` that is.

    Raises:
        NotTraceable: If nothing can be had this way; says why.
    """

    def __init__(
        self,
        model: nn.Module,
        what: Explanation,
        methods: Mapping[str, tuple[Method, AttributionFn]],
        steps: Sequence[Sequence[Unit]],
        seed: int,
        budget: int | None = None,
        paths: Paths = ENGINES["auto"],
        known: Known | None = None,
    ) -> None:
        self._known = {} if known is None else known
        self.what, self.seed = what, seed
        self.budget = min(BUDGET, int(SHARE * free(first(what.inputs).device))) if budget is None else budget
        self.model, self.samples = model, len(first(what.inputs))
        if what.in_one:
            raise NotTraceable("its samples depend on one another")
        self.methods: dict[str, Derived] = {
            name: function
            for name, (method, function) in methods.items()
            if isinstance(function, Derived) and not method.fresh
        }
        if not self.methods:
            raise NotTraceable("no method says what it needs")
        self.units = tuple(dict.fromkeys(unit for step in steps for unit in step))
        place = {unit: index for index, unit in enumerate(self.units)}
        self.steps = steps
        self._random = [frozenset(place[unit] for unit in step) for step in steps]
        self.opening = Opening(what)
        self.asked = self.opening.asked
        self.path = self._first(paths)
        self.opening.find_units(self.path)
        for name, derived in list(self.methods.items()):
            if derived.layer is not None and derived.layer.name not in self.path.layers:
                self._give_up(name, f"layer '{derived.layer.name}' is no single value of the network")
        self._proof_rows: dict[str, int] = {}
        self._proven: set[object] = set()
        self._planned: dict[tuple[object, ...], Planned] = {}
        self._kept: dict[tuple[object, ...], Begun] = {}
        self._kept_for: tuple[int, ...] = ()
        self._keeps = True
        self.told: Callable[[float], None] = lambda passes: None

    @property
    def walks(self) -> int:
        """How many walks over all depths a trial takes: another one where samples are asked questions of their own."""
        return 1 if self.what.question is None else 2

    def passes(self) -> float:
        """About how many passes of the plain loop a trial's walks take."""
        kinds = {(derived.copies, rule) for derived in self.methods.values() for rule in derived.rules or ("gradient",)}
        return self.walks * _OF_A_PASS * len(self.steps) * sum(_number(copies) for copies, _ in kinds)

    def proof_passes(self) -> float:
        """About how many the proof takes, which the first trial holds."""
        return sum(map(self._proof_of, self.methods))

    def _proof_of(self, name: str) -> float:
        copies = self.methods[name].copies
        return _number(copies) if copies is not None else min(1.0, SAMPLES / self.samples)

    def _first(self, paths: Paths) -> Path:
        """The first path that the network and these depths allow."""
        watched = [derived.layer.name for derived in self.methods.values() if derived.layer is not None]
        reasons = []
        for path in paths:
            try:
                made = path(self.asked.model, self.asked.inputs, self.units, self.model, watched, self._known)
                made.plan(self._random, tuple(range(len(self.steps))))
                return made
            except (NotTraceable, *FAILURES) as error:
                reasons.append(f"{path.name}: {error}")
        raise NotTraceable("; ".join(reasons))

    def _give_up(self, name: str, reason: str) -> None:
        _log.debug("%s: plain loop instead of shared walks: %s", name, reason)
        self._known.clear()  # it may be at fault
        self.methods.pop(name)

    def only(self, depths: Sequence[int]) -> Engine:
        """The same engine for some of the depths."""
        narrowed = copy.copy(self)
        narrowed.steps = [self.steps[depth] for depth in depths]
        narrowed._random = [self._random[depth] for depth in depths]
        narrowed._planned, narrowed._kept = {}, {}
        return narrowed

    def keep(self, names: Collection[str]) -> Engine:
        """The same engine for some of the methods."""
        narrowed = copy.copy(self)
        narrowed.methods = {name: derived for name, derived in self.methods.items() if name in names}
        return narrowed

    def fit(self, room: int, rows: Mapping[str, int]) -> int | None:
        """From now on let a walk take no more than so many bytes, beside ``kept_bytes``.

        Args:
            room: Bytes.
            rows: Per method, how many samples the proof explains at once.

        Returns:
            What a walk will take, going by one with one sample; None where not even one depth of it fits.
        """
        self._proof_rows, self._keeps = dict(rows), False
        layers, _, rules = _passes(self.methods.values())
        chosen = next(self._plans(self._random, tuple(layers), True, self.samples)).chosen
        while True:
            plan = self.path.plan(self._random, chosen, tuple(layers))
            if plan.least_per_sample() * _UNSURE <= room:
                break
            if len(chosen) == 1:
                return None
            chosen = chosen[: len(chosen) // 2]
        # The depths that go together where there is room say how much more is kept than planned; all take long to walk.
        most = plan.together_within(min(plan.bytes_per_sample(), int(room / _UNSURE)))
        few = self.path.plan(self._random, most, tuple(layers))
        one, planned = slice(0, 1), min(few.bytes_per_sample(), int(room / _UNSURE))
        with Meter() as meter:
            begun = few.begin(rows_of(self.asked.inputs, one), _steering(rules), planned)
            begun.observe(target_of(self.asked.target, one), rules, rules)
        takes = max(meter.peak / planned, 1e-9)  # of a byte that is planned
        self.budget = min(self.budget, int(room / takes))
        copies = max(_number(found.copies) for found in self.methods.values())
        together = at_once(self._rows(plan, self.samples), self.samples, copies)
        return int(takes * max(plan.least_per_sample(), min(self.budget, together * plan.bytes_per_sample())))

    def kept_bytes(self) -> int:
        """What is there beside the walks: the random copy, and what is kept of all depths of all samples."""
        copied = self.path.copied_bytes(self._random)
        each = bytes_of([first(self.asked.inputs)]) * len(self.steps)
        kept = self.walks * len(self.methods) * each
        sums = [0]
        for copies in {found.copies for found in self.methods.values()}:
            some = [found for found in self.methods.values() if found.copies == copies]
            rules = {rule for found in some for rule in found.rules}
            layers = {found.layer.name for found in some if found.layer is not None}
            shown = sum(2 * self.path.layers[layer] for layer in layers) * self.samples * len(self.steps)
            sums.append(len(rules) * each * (1 if copies is None else 2) + shown)
        return copied + kept + max(sums)

    def attempt(
        self,
        redraw: TrialDraw,
        saved: Mapping[str, Tensor],
        clock: Callable[[], float] = time.perf_counter,
        crossed: Explanation | None = None,
    ) -> Trial | None:
        """All depths of a trial for the methods that are left; None, now and from here on, where a walk fails."""
        if not self.methods:
            return None
        try:
            return self.trial(redraw, saved, clock, crossed)
        except NotTraceable as error:
            _log.debug("plain loop: %s", error)
            self.methods.clear()
            return None

    def trial(
        self,
        redraw: TrialDraw,
        saved: Mapping[str, Tensor],
        clock: Callable[[], float] = time.perf_counter,
        crossed: Explanation | None = None,
    ) -> Trial:
        """Explain all depths.

        Args:
            redraw: Re-initialises a unit of the clone for this trial.
            saved: The clone's trained weights, by name.
            clock: Of what it takes.
            crossed: The same batch with each sample's question put to another, to be explained as well.

        Raises:
            NotTraceable: If a walk fails, or no method is left.
        """
        begun = clock()
        try:
            self.path.start_trial()
            changes = {unit.name: redraw(self.path.twin, unit, self.model) for unit in self.units}
            outputs, found = self._walks(self.what, self._random, self.methods)
            _, others = (None, {}) if crossed is None else self._walks(crossed, self._random, self.methods)
            seconds = clock() - begun
            if any(self._needs(name) - self._proven for name in self.methods):
                self._prove(found, redraw, saved)
        except FAILURES as error:  # an operation that minds the batch's size
            raise NotTraceable(f"a walk failed ({type(error).__name__}: {error})") from error
        return Trial(outputs, found, others, changes, seconds).keep(self.methods)

    def trust(self) -> None:
        """Leave the proof to somebody else who walks for the same methods."""
        self._proven.update(*map(self._needs, self.methods))

    def _needs(self, name: str) -> set[object]:
        derived = self.methods[name]
        found: set[object] = {(derived.copies, rule) for rule in derived.rules}
        return found | {derived.layer} if derived.layer else found or {"outputs"}

    def _prove(self, found: Mapping[str, list[Tensor]], redraw: TrialDraw, saved: Mapping[str, Tensor]) -> None:
        """Explain one depth by the plain path as well; what differs is given up with all that shares its passes."""
        depth = proof_depth(self.seed, len(self.steps))
        with self._at(depth, redraw, saved):
            plain = self._plain_path(self.what)
            for name in in_order(self.methods):
                if name not in self.methods or not (needs := self._needs(name)) - self._proven:
                    continue
                tolerance = self._tolerance(name)
                difference = plain.difference(name, self.methods[name], found[name][depth], tolerance)
                self.told(self._proof_of(name))
                if difference <= tolerance:
                    self._proven |= needs
                    continue
                for other in [other for other in self.methods if self._needs(other) & needs]:
                    self._give_up(
                        other, f"the map of '{name}' at depth {depth} differs by {difference:.1e} of its norm"
                    )
        if not self.methods:
            raise NotTraceable("every map differs from the plain loop's")

    @contextmanager
    def _at(self, depth: int, redraw: TrialDraw, saved: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block the model has the trial's weights at a depth."""
        with self.path.random_lent(self._random[depth]) as lent:
            if lent:
                yield
                return
        try:
            for unit in self.steps[depth]:
                redraw(self.model, unit)
            yield
        finally:
            restore(self.model, saved)

    def proven(self, what: Explanation, found: Mapping[str, Tensor]) -> list[str]:
        """Methods whose attributions of the model as it is now are those of the plain path."""
        plain = self._plain_path(what)

        def same(name: str) -> bool:
            try:
                tolerance = self._tolerance(name)
                return plain.difference(name, self.methods[name], found[name], tolerance) <= tolerance
            except FAILURES:  # the plain loop will meet it again and say what it is
                return False

        return [name for name in in_order({name: self.methods[name] for name in found}) if same(name)]

    def _plain_path(self, what: Explanation) -> PlainPath:
        listens = any(derived.reads_outputs for derived in self.methods.values())
        return PlainPath(what, self.seed, self._proof_rows, listens)

    def _tolerance(self, name: str) -> float:
        return max(self.methods[name].tolerance, self.path.tolerance)

    def kinds(self) -> dict[str, tuple[Copies | None, tuple[str, ...]]]:
        """The kind of walk that each method needs: over which copies, down by which rules."""
        return {name: (derived.copies, derived.rules or ("gradient",)) for name, derived in self.methods.items()}

    def of_the_batch_itself(self) -> list[str]:
        """Methods that explain no altered copies."""
        return [name for name, derived in self.methods.items() if derived.copies is None]

    def explain(self, what: Explanation, names: Collection[str]) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        """Outputs of the trained model and attributions by some methods that explain no altered copies.

        They take as few passes as a walk does: none up, where the trained stream of the batch itself is kept for the
        walks. Nothing if that fails.
        """
        methods = {name: derived for name, derived in self.methods.items() if name in names}
        if not methods:
            return None, {}
        try:
            outputs, found = self._reference(what, methods) or self._walks(what, _TRAINED, methods)
        except (NotTraceable, *FAILURES) as error:
            _log.debug("the trained model is explained by one method after the other: %s", error)
            return None, {}
        return outputs[0], {name: each[0] for name, each in found.items()}

    def _walks(
        self, what: Explanation, steps: Sequence[frozenset[int]], methods: Mapping[str, Derived]
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Every pass that some method needs, once; and what the methods make of them, at all depths."""
        parts = [
            (depths, *self._walked(asked, [steps[depth] for depth in depths], methods))
            for asked, depths in self.opening.parts(what, steps, self.path)
        ]
        if len(parts) == 1:
            return parts[0][1:]
        place = {depth: at for at, depth in enumerate(depth for depths, *_ in parts for depth in depths)}
        order = [place[depth] for depth in range(len(steps))]
        joined = {name: [each for *_, found in parts for each in found[name]] for name in methods}
        outputs = torch.cat([outputs for _, outputs, _ in parts])[order]
        return outputs, {name: [each[at] for at in order] for name, each in joined.items()}

    def _walked(
        self, what: Explanation, steps: Sequence[frozenset[int]], methods: Mapping[str, Derived]
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """The same at depths at which the same is explained."""
        groups: dict[Copies | None, list[str]] = {}
        for name, derived in methods.items():
            groups.setdefault(derived.copies, []).append(name)
        outputs: Tensor | None = None
        found: dict[str, list[Tensor]] = {}
        for copies, names in groups.items():
            sums = self._pass(what, steps, copies, [methods[name] for name in names])
            outputs = sums.outputs["all"] if copies is None else outputs
            found |= sums.attributions({name: methods[name] for name in names})
        if outputs is None:  # only altered copies were explained
            outputs = self._pass(what, steps, None, []).outputs["all"]
        return outputs, found

    def _reference(
        self, what: Explanation, methods: Mapping[str, Derived]
    ) -> tuple[Tensor, dict[str, list[Tensor]]] | None:
        """The trained model's own, by the stream that the walks over all depths leave; None where none is kept."""
        layers, at_input, rules = _passes(methods.values())
        steps = self.opening.closed(self._random)
        if what is not self.what or not self._keeps or not steps:
            return None
        plan, what = next(self._plans(steps, tuple(layers), bool(at_input), self.samples, self._keeps)), self.asked
        if len(plan.chosen) < len(steps) or self._rows(plan, self.samples) < self.samples:
            return None
        begun = self._begun(plan, what.inputs, rules, keep=True)
        seen = begun.reference(what.target, rules, at_input)
        if seen is None:
            return None
        sums = Sums(1, what)
        for rule in rules:
            sums.add((0,), slice(0, self.samples), seen[rule], rule, None, layers if rule == "gradient" else {})
        return sums.outputs["all"], sums.attributions(methods)

    def _pass(
        self, what: Explanation, steps: Sequence[frozenset[int]], copies: Copies | None, methods: Sequence[Derived]
    ) -> Sums:
        """Walk all depths for all rows, as many at once as the budget holds."""
        inputs, target, total = what.inputs, what.target, len(first(what.inputs))
        sums = Sums(len(steps), what)
        layers, at_input, rules = _passes(methods)
        make = None
        if copies is not None:
            reseed(self.seed, first(inputs).device)
            make = copies.make(first(inputs).detach())
        kept = self._keeps and make is None and what is self.asked and steps == self.opening.closed(self._random)
        for plan in self._plans(steps, tuple(layers), bool(at_input), total, kept):

            def run(samples: slice, which: range, plan: Planned = plan) -> dict[str, Observed]:
                rows = torch.cat([make(k, samples) for k in which]) if make is not None else None
                stacked = rows_of(inputs, samples, len(which), rows)
                again = kept and samples == slice(0, total) and len(plan.chosen) == len(steps)
                begun = self._begun(plan, stacked, rules, again)
                return begun.observe(target_of(target, samples, len(which)), rules, at_input)

            room = Rows(self._rows(plan, total), "walk")
            for samples, which, seen in room.chunks(total, _number(copies), run):
                weights = [copies.weights[k] for k in which] if copies is not None else None
                for rule in rules:
                    sums.add(plan.chosen, samples, seen[rule], rule, weights, layers if rule == "gradient" else {})
                share = (samples.stop - samples.start) / total
                self.told(_OF_A_PASS * len(plan.chosen) * len(rules) * len(which) * share)
        return sums

    def _rows(self, plan: Planned, total: int) -> int:
        """How many samples of each depth go together: as many as the budget holds, and as pay, or the whole batch."""
        return max(1, min(self.budget // max(1, plan.bytes_per_sample()), max(plan.together, total)))

    def _begun(self, plan: Planned, inputs: Any, rules: Sequence[str], keep: bool) -> Begun:
        """What no trial changes: all of them share that of the batch itself, if a single walk has room for it."""
        versions = self.path.versions()
        if self._kept_for != versions:  # somebody wrote to the weights, be it the same values
            self._kept.clear()
            self._kept_for = versions
        key = (plan, *rules)
        if key in self._kept and keep:
            return self._kept[key]
        begun = plan.begin(inputs, _steering(rules), self.budget)
        if keep:
            self._kept[key] = begun
        return begun

    def _plans(
        self,
        steps: Sequence[frozenset[int]],
        layers: tuple[str, ...],
        to_input: bool,
        samples: int = 1,
        reference: bool = False,
    ) -> Iterator[Planned]:
        """The depths in as few walks as the budget allows for a single sample, and as pay for so many."""
        waiting = [tuple(range(len(steps)))]
        while waiting:
            chosen = waiting.pop()
            key = (tuple(steps), chosen, layers, to_input, reference)
            if key not in self._planned:
                self._planned[key] = self.path.plan(steps, chosen, layers, to_input, reference)
            plan = self._planned[key]
            large = plan.least_per_sample() > self.budget or plan.together < samples
            if large and len(chosen) > 1:
                waiting += [chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]]
            else:
                yield plan


def _passes(methods: Iterable[Derived]) -> tuple[dict[str, Layer], frozenset[str], list[str]]:
    """The layers that some methods look at, the rules whose gradients at the input they read, and all rules."""
    asked = list(methods)
    layers = {derived.layer.name: derived.layer for derived in asked if derived.layer is not None}
    at_input = frozenset(rule for derived in asked for rule in derived.rules)
    return layers, at_input, sorted(at_input if at_input and not layers else at_input | {"gradient"})


def _number(copies: Copies | None) -> int:
    return 1 if copies is None else len(copies.weights)


def _steering(rules: Sequence[str]) -> Steering | None:
    return None if list(rules) == ["gradient"] else Steering()
