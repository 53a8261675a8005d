"""Several depths of a cascade in one run of the module, for networks that cannot be taken apart.

The rows of all depths are stacked, and the module runs as it is. Only the modules that read weights of a unit are
stepped into: they run once with the rows of the depths at which these weights are trained, once with the others':

      d0 d0 d1 d1 d2 d2                       rows of two samples at three depths
             │
         the head        trained: none        random: d0 d1 d2
             │
         a block         trained: d0          random: d1 d2
             │
         the stem        trained: d0 d1       random: d2

That needs no graph, but it must be sure that nothing else happens to the rows. Two runs with other numbers of samples
tell where rows lie in all that such modules are given and return, which modules read which weights, and whether
anything looks at values or mixes samples (see ``recording``). Where a module's rows cannot be told, the module that
called it is stepped into in its place: it runs with rows of equal weights alone. What remains doubtful is refused.

Everything is computed that the plain loop computes, in larger batches: that pays as long as values are small.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_sanity.attribution.batching import repeated, rows_of
from lightning_sanity.attribution.guided import Steering
from lightning_sanity.attribution.input_gradients import InputGradients
from lightning_sanity.attribution.method import first, outputs_of, select
from lightning_sanity.engine.path import JOIN, UNLIMITED, NotTraceable, Observed, Path, Planned, Steps
from lightning_sanity.engine.plan import split
from lightning_sanity.engine.recording import (
    SIX,
    TWO,
    Call,
    CallRows,
    Lying,
    Recording,
    Trespass,
    calls_of,
    ranks,
    record,
    rows_of_call,
)
from lightning_sanity.model.structure import Known
from lightning_sanity.randomization.unit import Unit

_JOIN = 4 * JOIN
"""Bytes of the largest value up to which depths run together. Nothing is copied for that but at modules with weights,
so more of them pay than in two streams; beyond, the values of a run leave the cache."""


@dataclass(frozen=True)
class _Place:
    """Where a unit's tensor hangs.

    Attributes:
        holder: The module of the trained model that holds it.
        other: The same module of the random copy.
        name: Its name there.
        unit: Index of the unit.
    """

    holder: nn.Module
    other: nn.Module
    name: str
    unit: int

    def held(self, module: nn.Module) -> Tensor:
        """What hangs there now, in one of the two modules."""
        found = module._parameters.get(self.name)
        return found if found is not None else module._buffers[self.name]  # type: ignore[return-value]


class FullBatch(Path):
    """The path of one full batch.

    Args:
        model: See ``Path``.
        inputs: See ``Path``.
        units: See ``Path``.
        owner: See ``Path``.
        watched: See ``Path``.

    Attributes:
        divided: Modules that run apart for depths of different weights, with the weights.
        rows: Where rows lie in what these are given and return, for each way of calling them.
        per_sample: Bytes of all values of one sample.
        largest: Bytes of the largest.
    """

    name = "full_batch"

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        units: Sequence[Unit],
        owner: nn.Module,
        watched: Collection[str] = (),
        known: Known | None = None,
    ) -> None:
        super().__init__(model, inputs, units, owner, watched, known)
        self._names = {module: name for name, module in model.named_modules()}
        self._unit_of |= _companions(model, self._unit_of)
        places: dict[int, list[_Place]] = defaultdict(list)
        for module, path in self._names.items():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if id(tensor) in self._unit_of:
                    place = _Place(module, self.random.get_submodule(path), name, self._unit_of[id(tensor)])
                    places[id(tensor)].append(place)
        tensors = [found[0].held(found[0].holder) for found in places.values()]
        two = self._recorded(inputs, TWO, tensors, None)
        six = self._recorded(inputs, SIX, tensors, two)
        self.per_sample, self.largest = two.size // 2, two.largest // 2
        if [call.module for call in two.calls] != [call.module for call in six.calls]:
            raise NotTraceable("it calls other modules for another number of samples")
        self.rows: dict[nn.Module, list[CallRows]] = defaultdict(list)
        doubts = self._doubts(two.calls, six.calls)
        root = self.rows.get(model, [])
        if len(root) != 1 or model in doubts:
            raise NotTraceable(f"the model {doubts.get(model, 'does not run once')}")
        if not _returns_rows(two.calls[0], root[0]):
            raise NotTraceable("the output has no row per sample")
        self.divided = self._divided(two.calls, doubts, places)
        self._refuse_whole()
        self._check_reads(inputs, {self._name(found[0]): found[0].held(found[0].holder) for found in places.values()})
        calls = Counter(call.module for call in two.calls)
        self.layers = {
            self._names[call.module]: call.returned[0].nbytes // 2
            for call in two.calls
            if calls[call.module] == 1 and call.module not in doubts and _returns_rows(call, self.rows[call.module][0])
        }

    def _recorded(self, inputs: Any, samples: list[int], tensors: list[Tensor], before: Recording | None) -> Recording:
        some = _samples(inputs, samples)
        with self.out_of_place():
            return record(self.trained, lambda: outputs_of(self.trained, some), some, tensors, before)

    def _doubts(self, two: Sequence[Call], six: Sequence[Call]) -> dict[nn.Module, str]:
        """Modules whose rows cannot be told, and why; notes the others' rows."""
        doubts = {}
        for one, other in zip(two, six, strict=True):
            rows = rows_of_call(one, other)
            if isinstance(rows, str):
                doubts[one.module] = rows
                continue
            same = [seen for seen in self.rows[one.module] if (seen.given, seen.ranks) == (rows.given, rows.ranks)]
            if same and same[0] != rows:
                doubts[one.module] = "is called in several ways that look alike"
            elif not same:
                self.rows[one.module].append(rows)
        return doubts

    def _divided(
        self, calls: Sequence[Call], doubts: Mapping[nn.Module, str], places: Mapping[int, Sequence[_Place]]
    ) -> dict[nn.Module, tuple[_Place, ...]]:
        """For every tensor that a call reads, the innermost module around it that holds it and whose rows are told."""
        inside: dict[nn.Module, set[nn.Module]] = {}
        found: dict[nn.Module, dict[_Place, None]] = defaultdict(dict)
        for call in calls:
            for tensor in call.reads:
                at: Call | None = call
                while at is not None:
                    within = inside.setdefault(at.module, set(at.module.modules()))
                    here = [place for place in places[tensor] if place.holder in within]
                    if here and at.module not in doubts:
                        found[at.module].update(dict.fromkeys(here))
                        break
                    at = at.above
                else:
                    raise NotTraceable(f"'{self._name(places[tensor][0])}' is read where no module holds it")
        return {module: tuple(held) for module, held in found.items()}

    def _refuse_whole(self) -> None:
        everything = set(self._unit_of.values())
        for module, held in self.divided.items():
            if len(everything) > 1 and {place.unit for place in held} == everything:
                name = self._names[module] or type(module).__name__
                raise NotTraceable(f"'{name}' reads the weights of all units itself, so every depth would run alone")

    def _check_reads(self, inputs: Any, trained: Mapping[str, Tensor]) -> None:
        """With all units random nothing may read a trained weight, through an alias for example, now or later."""
        plan = _Plan(self, [frozenset(self._unit_of.values())], (0,))
        later = "it runs parts of itself again on the way down (checkpointed activations)"
        try:
            with self.out_of_place(), torch.enable_grad(), disable_saved_tensors_hooks(later), Trespass(trained):
                _Pass(plan, {}).run(_samples(inputs, TWO))
        except RuntimeError as error:
            raise NotTraceable(str(error)) from error

    def _name(self, place: _Place) -> str:
        return f"{self._names[place.holder]}.{place.name}".lstrip(".")

    def plan(
        self,
        steps: Sequence[frozenset[int]],
        chosen: Steps,
        layers: tuple[str, ...] = (),
        to_input: bool = True,
        reference: bool = False,
    ) -> Planned:
        """See ``Path``."""
        return _Plan(self, steps, chosen, layers, to_input)


class _Plan:
    """Some depths in one run; see ``Planned``."""

    def __init__(
        self,
        path: FullBatch,
        steps: Sequence[frozenset[int]],
        chosen: Steps,
        layers: tuple[str, ...] = (),
        to_input: bool = True,
    ) -> None:
        self.path, self.steps, self.chosen, self.layers, self.to_input = path, steps, chosen, layers, to_input
        self.together = _JOIN // max(1, path.largest * len(chosen))

    def bytes_per_sample(self) -> int:
        return self.path.per_sample * len(self.chosen)

    def least_per_sample(self) -> int:
        return self.bytes_per_sample()

    def together_within(self, room: int) -> Steps:
        return self.chosen

    def begin(self, inputs: Any, steering: Steering | None = None, room: int = UNLIMITED) -> _Begun:
        return _Begun(self, inputs, steering)


class _Begun:
    """Some samples, to be run at all depths of a plan; see ``Begun``."""

    def __init__(self, plan: _Plan, inputs: Any, steering: Steering | None) -> None:
        self.plan, self.inputs, self.steering = plan, inputs, steering

    def observe(
        self,
        target: Tensor | None,
        rules: Sequence[str] = ("gradient",),
        at_input: Collection[str] = ("gradient",),
    ) -> dict[str, Observed]:
        plan, value = self.plan, first(self.inputs)
        count = len(plan.chosen)
        rows = repeated(value.detach(), count)
        rows.requires_grad_(plan.to_input and value.is_floating_point())
        run = _Pass(plan, {plan.path.trained.get_submodule(layer): layer for layer in plan.layers})
        with (
            plan.path.out_of_place(),
            torch.enable_grad(),
            InputGradients(),
            self.steering or nullcontext(),
        ):
            outputs = run.run(rows_of(self.inputs, slice(0, len(value)), count, rows))
            score = select(outputs, None if target is None else target.repeat(count)).sum()
        found = {}
        for rule in rules:
            if self.steering is not None:
                self.steering.rule = rule
            watched = run.seen if rule == "gradient" else {}
            leaves = [rows] if rule in at_input else []
            leaves += [value for parts in watched.values() for _, value in parts]
            slopes = iter(_slopes(score, leaves, keep=rule != rules[-1]))
            found[rule] = Observed(
                outputs.detach(),
                next(slopes) if rule in at_input else None,
                {layer: _ordered(parts, plan.chosen).detach() for layer, parts in watched.items()},
                {
                    layer: _ordered([(depths, next(slopes)) for depths, _ in parts], plan.chosen)
                    for layer, parts in watched.items()
                },
            )
        return found

    def reference(self, target: Tensor | None, rules: Sequence[str] = (), at_input: Collection[str] = ()) -> None:
        return None


class _Pass:
    """One run of the module, the rows of all chosen depths stacked.

    Attributes:
        seen: What the watched layers returned, with the depths whose rows it holds.
    """

    def __init__(self, plan: _Plan, watched: Mapping[nn.Module, str]) -> None:
        self.plan, self.path, self.depths, self.samples = plan, plan.path, plan.chosen, 0
        self.watched = watched
        self.seen: dict[str, list[tuple[Steps, Tensor]]] = {layer: [] for layer in plan.layers}
        self.trained = {place: place.held(place.holder) for held in self.path.divided.values() for place in held}

    def run(self, inputs: Any) -> Tensor:
        """Its outputs."""
        self.samples = len(first(inputs)) // len(self.depths)
        with calls_of({**self.path.divided, **dict.fromkeys(self.watched)}, self._call):
            return outputs_of(self.path.trained, inputs)

    def _call(self, module: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = self._apart(module, run, args, kwargs) if module in self.path.divided else run(*args, **kwargs)
        if module in self.watched:
            result = result if result.requires_grad else result.detach().requires_grad_()
            self.seen[self.watched[module]].append((self.depths, result))
            result = result.clone()  # what follows may work in place
        return result

    def _apart(self, module: nn.Module, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module once for every set of depths at which it has the same weights."""
        held, steps, depths = self.path.divided[module], self.plan.steps, self.depths
        units = frozenset(place.unit for place in held)
        groups = split(depths, lambda depth: units & steps[depth])
        if len(groups) == 1:
            with self._lent(held, steps[depths[0]]):
                return run(*args, **kwargs)
        leaves, given = tree_flatten((args, kwargs))
        rows = self._rows(module, leaves, given)
        parts = []
        try:
            for group in groups:
                self.depths = group
                places = [depths.index(depth) for depth in group]
                some = [self._taken(*each, places, len(depths)) for each in zip(leaves, rows.taken, strict=True)]
                fewer, named = tree_unflatten(some, given)
                with self._lent(held, steps[group[0]]):
                    parts.append(tree_flatten(run(*fewer, **named)))
        finally:
            self.depths = depths
        joined = [
            parts[0][0][index] if lying is None else self._joined([found[index] for found, _ in parts], groups, lying)
            for index, lying in enumerate(rows.returned)
        ]
        return tree_unflatten(joined, parts[0][1])

    def _taken(self, leaf: Any, lying: Lying, places: Sequence[int], count: int) -> Any:
        """The rows of some of ``count`` depths."""
        if lying is None:
            return leaf
        dim, each = self._of_a_depth(leaf, lying, count)
        if places[-1] - places[0] + 1 == len(places):
            return leaf.narrow(dim, places[0] * each, len(places) * each)
        return torch.cat([leaf.narrow(dim, place * each, each) for place in places], dim)

    def _joined(self, values: Sequence[Tensor], groups: Sequence[Steps], lying: tuple[int, int]) -> Tensor:
        for value, group in zip(values, groups, strict=True):
            self._of_a_depth(value, lying, len(group))
        return _ordered(list(zip(groups, values, strict=True)), self.depths, lying[0])

    def _of_a_depth(self, value: Tensor, lying: tuple[int, int], count: int) -> tuple[int, int]:
        """The dimension of the rows of ``count`` depths, and how many each has."""
        dim, each = lying[0], lying[1] * self.samples
        if value.shape[dim] != each * count:  # a batch that is cut beyond some size, for example
            raise NotTraceable("a module is given or returns another number of rows than before")
        return dim, each

    def _rows(self, module: nn.Module, leaves: Sequence[Any], given: Any) -> CallRows:
        kind = given, ranks(leaves)
        for rows in self.path.rows[module]:
            if (rows.given, rows.ranks) == kind:
                return rows
        raise NotTraceable(f"'{self.path._names[module]}' is called in a way that was not seen before")

    @contextmanager
    def _lent(self, held: Sequence[_Place], random: frozenset[int]) -> Iterator[None]:
        """The module has the random weights of some units, and the trained ones of all others."""
        before = [(place, place.held(place.holder)) for place in held]
        try:
            for place in held:
                _hang(place, place.held(place.other) if place.unit in random else self.trained[place])
            yield
        finally:
            for place, tensor in before:
                _hang(place, tensor)


def _companions(model: nn.Module, unit_of: Mapping[int, int]) -> dict[int, int]:
    """What else a module holds beside one unit's tensors: it may be written when they are re-initialised."""
    found: dict[int, int] = {}
    for module in model.modules():
        parametrized = parametrize.is_parametrized(module)
        holders = [module, *(module.parametrizations.modules() if parametrized else ())]  # type: ignore[union-attr]
        held = [id(t) for holder in holders for t in (*holder._parameters.values(), *holder._buffers.values())]
        units = {unit_of[tensor] for tensor in held if tensor in unit_of}
        if len(units) == 1:
            found |= dict.fromkeys(set(held) - unit_of.keys() - {id(None)}, *units)
        elif units and parametrized:
            raise NotTraceable("a module mixes units and parametrised weights")
    return found


def _returns_rows(call: Call, rows: CallRows) -> bool:
    """Whether a call returns a tensor whose first dimension are the samples."""
    found = call.returned[0] if call.returned else None
    return isinstance(found, Tensor) and rows.returned == ((0, 1),) and call.result == tree_flatten(found)[1]


def _hang(place: _Place, tensor: Tensor) -> None:
    if place.held(place.holder) is not tensor:
        setattr(place.holder, place.name, tensor)  # which recurrent modules note in their own lists


def _samples(inputs: Any, index: list[int]) -> Any:
    """Some of the samples, as often as the batch must be gone round for them."""
    value = first(inputs)
    return rows_of(inputs, torch.tensor(index, device=value.device) % len(value))


def _ordered(parts: Sequence[tuple[Steps, Tensor]], depths: Steps, dim: int = 0) -> Tensor:
    """The rows of all depths, in their order."""
    if tuple(depth for steps, _ in parts for depth in steps) == depths:
        return torch.cat([value for _, value in parts], dim) if len(parts) > 1 else parts[0][1]
    blocks: dict[int, Tensor] = {}
    for steps, value in parts:
        blocks |= zip(steps, value.chunk(len(steps), dim), strict=True)
    return torch.cat([blocks[depth] for depth in depths], dim)


def _slopes(score: Tensor, leaves: Sequence[Tensor], keep: bool) -> list[Tensor]:
    if not leaves or not score.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    with torch.enable_grad():
        found = torch.autograd.grad(score, leaves, retain_graph=keep, allow_unused=True)
    return [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, found, strict=True)]
