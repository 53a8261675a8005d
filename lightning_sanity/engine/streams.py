"""All depths of a cascade in one walk over the network: two streams of rows instead of one pass per depth.

At depth d of a cascade some units carry random weights and the others trained ones, so below its first random unit a
depth computes what the trained model computes. The network is therefore walked once, operation by operation, by a
trained stream that all depths share and a random stream that holds the rows of those depths which differ from it:

      forward, up                 trained stream         random stream           backward, down
                                                       d0   d1   d2  outputs
      unit 0 (head, first            :              ┌─[d0]─[d1]─[d2]            one pass through the random stream;
        to become random)            T3 ── born ────┘   │    │                  what arrives at a birth becomes the
                                     ^                  │    │                  cotangent of that depth in the
      unit 1                         T2 ── born ────────┘    │                  trained stream,
                                     ^                       │
      unit 2 (lowest)                T1 ── born ─────────────┘                  whose activations exist once: all
                                     ^                                          depths go down through them, stacked
                                   inputs                                       ──> gradient of every depth

A depth is *born* where it first differs: the trained rows are appended to the random stream there. Which depths differ
at an operation follows from the units that its ancestors read, so skip connections, branches, shared modules and the
other orders need no rule of their own. Nothing is computed that the plain loop would not compute, and each sample's
arithmetic is the same; only the batches differ.

All depths at once would keep the square of the network's depth: nearly every value, once for nearly every depth. So
the random stream is walked for a block of neighbouring depths after the other, each beside the same trained stream.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_sanity.attribution.guided import Steering
from lightning_sanity.attribution.input_gradients import InputGradients
from lightning_sanity.attribution.method import first, select
from lightning_sanity.engine.network import Network
from lightning_sanity.engine.path import JOIN, UNLIMITED, Observed, Planned, Steps
from lightning_sanity.engine.plan import Plan
from lightning_sanity.model.structure import Known
from lightning_sanity.randomization.unit import Unit

# --------------------------------------------------------------------------------------------------------- the walk


@dataclass
class _Group:
    """Rows of some depths, one depth after the other."""

    steps: Steps
    value: Any


@dataclass
class _Birth:
    """Where depths leave the trained stream: a leaf of the random stream's graph."""

    node: fx.Node
    steps: Steps
    leaf: Tensor


class Trained:
    """The trained stream of some samples: walked up once, sent down as often as asked, for any number of trials.

    Args:
        plan: The depths that leave it.
        inputs: Some samples.
        steering: How rectifiers of both streams send gradients down; None: as usual.
        room: Bytes that both streams may keep.

    Attributes:
        values: What is read of it later, by node.
        above: What each leaf of the stream was cut from: what reaches the leaf from above is sent on from there.
    """

    def __init__(self, plan: Plan, inputs: Any, steering: Steering | None = None, room: int = UNLIMITED) -> None:
        self.plan, self.steering, self.samples = plan, steering, len(first(inputs))
        self._blocks = plan.blocks(room // self.samples)
        self.values: dict[fx.Node, Any] = {}
        self.above: dict[fx.Node, Tensor] = {}
        self._static: dict[fx.Node, Any] = {}
        with self.conditions():
            self._up(iter([v for v in (inputs if isinstance(inputs, tuple) else (inputs,)) if isinstance(v, Tensor)]))

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """Under which both streams go up."""
        with (
            self.plan.network.out_of_place(),
            torch.enable_grad(),
            InputGradients(),
            self.steering or nullcontext(),
        ):
            yield

    def _up(self, given: Iterator[Tensor]) -> None:
        plan, network = self.plan, self.plan.network
        for node, operation in network.operations.items():
            if node.op == "placeholder":
                value = next(given)
                explained = plan.to_input and node is network.inputs[0] and value.is_floating_point()
                self.values[node] = value.detach().requires_grad_(explained)
            elif operation.of_data and node in plan.needed:
                value = network.call(node, frozenset(), self.known)
                watched = node in plan.layers.values()
                if plan.born[node] and isinstance(value, Tensor) and (value.requires_grad or watched):
                    self.above[node] = value
                    value = value.detach().requires_grad_()
                self.values[node] = value
            for argument in node.all_input_nodes:
                if network.last_use[argument] is node and argument not in plan.kept:
                    self.values.pop(argument, None)

    def known(self, node: fx.Node) -> Any:
        """A value of the stream, or one that depends on the trained weights alone."""
        if self.plan.network.operations[node].of_data:
            return self.values[node]
        if node not in self._static:
            self._static[node] = self.plan.network.call(node, frozenset(), self.known)
        return self._static[node]

    def observe(
        self,
        target: Tensor | None,
        rules: Sequence[str] = ("gradient",),
        at_input: Collection[str] = ("gradient",),
    ) -> dict[str, Observed]:
        """See ``Begun``."""
        parts = [self._descended(block, _scores(target), rules, at_input) for block in self._blocks]
        return {rule: Observed.together([part[rule] for part in parts]) for rule in rules}

    def reference(
        self,
        target: Tensor | None,
        rules: Sequence[str] = ("gradient",),
        at_input: Collection[str] = ("gradient",),
    ) -> dict[str, Observed]:
        """See ``Begun``: a depth at which nothing is random leaves the stream at its outputs."""
        trained = Plan(self.plan.network, (frozenset(),), (0,), tuple(self.plan.layers), self.plan.to_input)
        return self._descended(trained, _scores(target), rules, at_input)

    def _descended(
        self, plan: Plan, scores: Callable[[Tensor, int], Tensor], rules: Sequence[str], at_input: Collection[str]
    ) -> dict[str, Observed]:
        """What one block's walk saw, down by every rule."""
        walk, found = RandomStream(self, plan), {}
        for rule in rules:
            if self.steering is not None:
                self.steering.rule = rule
            layers = plan.layers if rule == "gradient" else {}
            with torch.enable_grad():
                found[rule] = walk.down(scores, layers, rule in at_input, last=rule == rules[-1])
        return found

    def leaves_below(self, node: fx.Node) -> list[fx.Node]:
        """The leaves of the stream that a node's value was computed from."""
        found: dict[fx.Node, None] = {}
        seen, waiting = set(), list(node.all_input_nodes)
        while waiting:
            below = waiting.pop()
            if below in seen or not self.plan.network.operations[below].of_data:
                continue
            seen.add(below)
            value = self.values.get(below)
            if isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
                found[below] = None
            else:
                waiting += below.all_input_nodes
        return list(found)


class RandomStream:
    """One walk of the random stream beside a trained one, for the depths of a plan that are among the stream's."""

    def __init__(self, trained: Trained, plan: Plan) -> None:
        self.stream, self.plan = trained, plan
        self.trained, self.samples = trained.values, trained.samples
        self.random: dict[fx.Node, list[_Group]] = {}
        self.births: list[_Birth] = []
        self.static: dict[tuple[fx.Node, frozenset[int]], Any] = {}
        with trained.conditions():
            self._up()

    def _up(self) -> None:
        plan, network = self.plan, self.plan.network
        for node in network.operations:
            if node.op == "output":
                continue
            if plan.active[node]:
                watched = node in plan.layers.values()
                self.random[node] = [
                    _Group(steps, self._random(node, steps, watched))
                    for steps in plan.groups(node, self._held(node), self.samples)
                ]
            for argument in node.all_input_nodes:
                if network.last_use[argument] is node and argument not in plan.kept:
                    self.random.pop(argument, None)

    def _known(self, node: fx.Node, key: frozenset[int]) -> Any:
        """A value of the trained stream, or one that depends on weights alone."""
        operation = self.plan.network.operations[node]
        key = key & operation.above
        if operation.of_data or not key:
            return self.stream.known(node)
        if (node, key) not in self.static:
            self.static[node, key] = self.plan.network.call(node, key, lambda a: self._known(a, key))
        return self.static[node, key]

    def _random(self, node: fx.Node, steps: Steps, watched: bool) -> Any:
        network = self.plan.network
        key = network.operations[node].reads & self.plan.steps[steps[0]]

        def value_of(argument: fx.Node) -> Any:
            operation = network.operations[argument]
            return self.rows(argument, steps) if operation.of_data else self._known(argument, key)

        value = network.call(node, key, value_of)
        if watched and not value.requires_grad:
            value = value.detach().requires_grad_()
        return value

    def _held(self, node: fx.Node) -> dict[fx.Node, list[Steps]]:
        return {argument: [group.steps for group in self.random.get(argument, [])] for argument in node.all_input_nodes}

    def rows(self, node: fx.Node, steps: Steps) -> Any:
        """A node's value for these depths, whole groups where possible; depths that are new here are born."""
        operation = self.plan.network.operations[node]
        groups = self.random.get(node, [])
        owner = {step: group for group in groups for step in group.steps}
        if operation.dim is None:
            return owner[steps[0]].value if steps[0] in owner else self.trained[node]
        blocks, at = [], 0
        while at < len(steps):
            group = owner.get(steps[at])
            if group is None:
                stop = at
                while stop < len(steps) and steps[stop] not in owner:
                    stop += 1
                blocks.append(self._born(node, steps[at:stop]))
            elif group.steps == steps[at : at + len(group.steps)]:
                stop = at + len(group.steps)
                blocks.append(group.value)
            else:
                stop = at + 1
                each = group.value.shape[operation.dim] // len(group.steps)
                blocks.append(group.value.narrow(operation.dim, group.steps.index(steps[at]) * each, each))
            at = stop
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, operation.dim)

    def _born(self, node: fx.Node, steps: Steps) -> Tensor:
        trained = self.trained[node]
        leaf = trained.detach()
        if len(steps) > 1:
            leaf = torch.cat([leaf] * len(steps), self.plan.network.operations[node].dim or 0)
        if trained.requires_grad:
            self.births.append(_Birth(node, steps, leaf.requires_grad_()))
        return leaf

    def down(
        self, scores: Callable[[Tensor, int], Tensor], layers: Mapping[str, fx.Node], to_input: bool, last: bool
    ) -> Observed:
        """Down through the random stream, then from every birth down through the trained one.

        Args:
            scores: What is explained of the outputs of so many depths.
            layers: Where slopes are wanted on the way.
            to_input: Whether the gradient at the input is.
            last: Whether the walk goes down for the last time.
        """
        plan, network = self.plan, self.plan.network
        chosen, output = plan.chosen, self.plan.network.output
        ends = [group.steps for group in self.random.get(output, [])]
        late = tuple(s for s in chosen if s not in plan.active[output])
        born = len(self.births)
        tops = [(steps, self.rows(output, steps)) for steps in (*ends, *([late] if late else []))]
        watched = [(name, group) for name, node in layers.items() for group in self.random.get(node, [])]
        leaves = [*(birth.leaf for birth in self.births), *(group.value for _, group in watched)]
        totals = [scores(rows, len(steps)).sum() for steps, rows in tops if rows.requires_grad]
        found: Sequence[Tensor | None] = (None,) * len(leaves)
        if totals and leaves:
            found = torch.autograd.grad(totals, leaves, retain_graph=not last, allow_unused=True)
        outputs = self._ordered([(steps, rows.detach()) for steps, rows in tops], output)
        arrived: dict[fx.Node, dict[int, Tensor]] = defaultdict(dict)
        for birth, slope in zip(self.births, found[: len(self.births)], strict=True):
            if slope is not None:
                self._add(arrived[birth.node], birth.node, birth.steps, slope)
        slopes: dict[str, dict[int, Tensor]] = {name: {} for name in layers}
        for (name, group), slope in zip(watched, found[len(self.births) :], strict=True):
            slope = torch.zeros_like(group.value) if slope is None else slope
            slopes[name].update(zip(group.steps, self._blocks(slope, layers[name], len(group.steps)), strict=True))
        del self.births[born:], totals, tops, leaves, found  # those of the outputs are born again with every descent
        activation = {name: self._activation(node) for name, node in layers.items()}
        if last:
            self.births.clear()
            self.random.clear()
        names = {node: name for name, node in layers.items() if node in self.stream.above}
        for node in reversed(list(self.stream.above)):
            if not names and not to_input:
                break
            waiting = arrived.pop(node, {})
            if node in names:
                slopes[names.pop(node)].update(waiting)
            self._descend(node, waiting, arrived)
        inputs = network.inputs[0]
        return Observed(
            outputs,
            self._filled(arrived.get(inputs, {}), self.trained[inputs]) if to_input else None,
            activation,
            {name: self._filled(slopes[name], activation[name].tensor_split(len(chosen))[0]) for name in layers},
        )

    def _activation(self, node: fx.Node) -> Tensor:
        parts = [(group.steps, group.value.detach()) for group in self.random.get(node, [])]
        late = [s for s in self.plan.chosen if s not in self.plan.active[node]]
        return self._ordered([*parts, *(((s,), self.trained[node].detach()) for s in late)], node)

    def _descend(self, node: fx.Node, waiting: dict[int, Tensor], arrived: dict[fx.Node, dict[int, Tensor]]) -> None:
        """From a leaf of the trained stream to the leaves below it, all depths at once where that pays."""
        value = self.stream.above[node]
        below = self.stream.leaves_below(node) if waiting and value.requires_grad else []
        if not below:
            return
        size = max(1, JOIN // max(1, value.numel() * value.element_size()))
        steps = list(waiting)
        for start in range(0, len(steps), size):
            some = steps[start : start + size]
            stacked = torch.stack([waiting.pop(s) for s in some]) if len(some) > 1 else waiting.pop(some[0])[None]
            slopes = _send_down(value, [self.trained[leaf] for leaf in below], stacked)
            for leaf, slope in zip(below, slopes, strict=True):
                if slope is not None:
                    for index, step in enumerate(some):
                        _accumulate(arrived[leaf], step, slope[index])

    def _blocks(self, value: Tensor, node: fx.Node, count: int) -> Sequence[Tensor]:
        dim = self.plan.network.operations[node].dim
        assert dim is not None
        return value.chunk(count, dim)

    def _add(self, into: dict[int, Tensor], node: fx.Node, steps: Steps, slope: Tensor) -> None:
        for step, block in zip(steps, self._blocks(slope, node, len(steps)), strict=True):
            _accumulate(into, step, block)

    def _ordered(self, parts: list[tuple[Steps, Tensor]], node: fx.Node) -> Tensor:
        """Rows of all chosen depths, in their order."""
        found = {
            step: block
            for steps, value in parts
            for step, block in zip(steps, self._blocks(value, node, len(steps)), strict=True)
        }
        return torch.cat([found[step] for step in self.plan.chosen])

    def _filled(self, found: dict[int, Tensor], like: Tensor) -> Tensor:
        return torch.cat([found[s] if s in found else torch.zeros_like(like) for s in self.plan.chosen])


class TwoStream(Network):
    """The path of two streams, for networks that can be taken apart; see ``Network``."""

    name = "two_stream"

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
        self.layers = {layer: self.operations[node].per_sample for layer, node in self.returned.items()}

    def plan(
        self,
        steps: Sequence[frozenset[int]],
        chosen: Steps,
        layers: tuple[str, ...] = (),
        to_input: bool = True,
        reference: bool = False,
    ) -> Planned:
        """See ``Path``."""
        return _Planned(self, steps, chosen, layers, to_input, reference)


class _Planned(Plan):
    together = 2**62

    def begin(self, inputs: Any, steering: Steering | None = None, room: int = UNLIMITED) -> Trained:
        return Trained(self, inputs, steering, room)


# ------------------------------------------------------------------------------------------------------------ pieces


def _scores(target: Tensor | None) -> Callable[[Tensor, int], Tensor]:
    """What is explained of the outputs of so many depths."""
    return lambda rows, depths: select(rows, target.repeat(depths) if target is not None else None)


def _send_down(value: Tensor, leaves: list[Tensor], stacked: Tensor) -> tuple[Tensor | None, ...]:
    """Vector-Jacobian products of one graph with several cotangents, ``(depths, ...)`` each."""

    def product(cotangent: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(value, leaves, cotangent, retain_graph=True, allow_unused=True))

    if len(stacked) > 1:
        used: list[int] = []

        def batched(cotangent: Tensor) -> list[Tensor]:
            found = product(cotangent)
            used[:] = [index for index, slope in enumerate(found) if slope is not None]
            return [slope for slope in found if slope is not None]

        try:
            # Not ``is_grads_batched``, whose batching rules run convolutions one cotangent after the other.
            with warnings.catch_warnings():  # some operations are run one cotangent at a time after all, as in the loop
                warnings.filterwarnings("ignore", "There is a performance drop")
                found = torch.func.vmap(batched)(stacked)
            several = dict(zip(used, found, strict=True))
        except RuntimeError:  # an operation without a batching rule
            pass
        else:
            return tuple(several.get(index) for index in range(len(leaves)))
    rows = [product(cotangent) for cotangent in stacked]
    return tuple(None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True))


def _accumulate(into: dict[int, Tensor], step: int, slope: Tensor) -> None:
    into[step] = into[step] + slope if step in into else slope
