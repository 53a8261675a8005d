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
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from lightning_sanity.attribution.guided import GuidedRectifiers
from lightning_sanity.attribution.method import first, select
from lightning_sanity.batch_norm import FixedNormalization
from lightning_sanity.network import Network, NotTraceable

JOIN = 4 * 2**20
"""Bytes up to which small groups of rows are joined before an operation with weights: a copy that a larger batch
repays. Above it the copy costs more than the batch gains."""

Steps = tuple[int, ...]


@dataclass(frozen=True)
class Observed:
    """What one walk saw of some samples, the rows of a depth together, depths as they were asked for.

    Attributes:
        outputs: ``(depths * n, ...)``.
        gradient: Of the explained outputs with respect to the explained input; None where it was not asked for.
        activation: Of the layer, per layer; as the module returns it.
        slope: The explained outputs' gradient there.
    """

    outputs: Tensor
    gradient: Tensor | None
    activation: Mapping[str, Tensor]
    slope: Mapping[str, Tensor]


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


class Plan:
    """Which depths differ from the trained model at which operation, and what a walk over them costs.

    Args:
        network: The network.
        steps: Indices of the random units at each depth.
        chosen: The depths to walk, as indices into ``steps``.
        layers: Modules whose activation and slope are wanted.
        to_input: Whether the gradient with respect to the input is.
    """

    def __init__(
        self,
        network: Network,
        steps: Sequence[frozenset[int]],
        chosen: Steps,
        layers: tuple[str, ...] = (),
        to_input: bool = True,
    ) -> None:
        self.network, self.steps, self.chosen, self.to_input = network, steps, chosen, to_input
        self.layers = {layer: network.returned[layer] for layer in layers}
        operations = network.operations
        self.active: dict[fx.Node, Steps] = {
            node: tuple(s for s in chosen if operation.above & steps[s]) if operation.of_data else ()
            for node, operation in operations.items()
        }
        self.born: dict[fx.Node, bool] = dict.fromkeys(operations, False)
        for node in operations:
            if node.op == "output":
                continue
            for argument in node.all_input_nodes:
                if operations[argument].of_data and set(self.active[node]) - set(self.active[argument]):
                    self.born[argument] = True
        for node in (network.output, *self.layers.values()):
            self.born[node] |= len(self.active[node]) < len(chosen)
        for node, born in self.born.items():
            if born and operations[node].dim is None and not operations[node].fixed and node.op == "call_module":
                raise NotTraceable(f"'{node}' returns several values where a depth begins")
        self.needed = self._needed()

    def _needed(self) -> set[fx.Node]:
        """What the trained stream must compute."""
        needed: set[fx.Node] = set()
        waiting = [node for node, born in self.born.items() if born]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += [a for a in node.all_input_nodes if self.network.operations[a].of_data]
        return needed

    def bytes_per_sample(self) -> int:
        """What a walk keeps of one sample, about."""
        return sum(
            operation.per_sample * (len(self.active[node]) + (node in self.needed))
            for node, operation in self.network.operations.items()
        )


@dataclass
class Walk:
    """One walk; see ``observe``."""

    plan: Plan
    inputs: Any
    samples: int
    trained: dict[fx.Node, Any] = field(default_factory=dict)
    above: dict[fx.Node, Any] = field(default_factory=dict)
    random: dict[fx.Node, list[_Group]] = field(default_factory=dict)
    births: list[_Birth] = field(default_factory=list)
    static: dict[tuple[fx.Node, frozenset[int]], Any] = field(default_factory=dict)

    def forward(self) -> None:
        """Up through both streams."""
        network, plan = self.plan.network, self.plan
        given = iter(
            [v for v in (self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)) if isinstance(v, Tensor)]
        )
        watched = set(plan.layers.values())
        kept = watched | {network.output, network.inputs[0]} | {node for node, born in plan.born.items() if born}
        for node, operation in network.operations.items():
            if node.op == "output":
                continue
            if node.op == "placeholder":
                value = next(given)
                self.trained[node] = value.detach().requires_grad_(
                    plan.to_input and node is network.inputs[0] and value.is_floating_point()
                )
                continue
            if not operation.of_data:
                continue
            if node in plan.needed:
                self._trained(node, node in watched)
            if plan.active[node]:
                self.random[node] = [
                    _Group(steps, self._random(node, steps, node in watched)) for steps in self._partition(node)
                ]
            for argument in node.all_input_nodes:
                if network.last_use[argument] is node and argument not in kept:
                    self.random.pop(argument, None)
                    self.trained.pop(argument, None)

    def _trained(self, node: fx.Node, watched: bool) -> None:
        value = self.plan.network.call(node, frozenset(), lambda a: self._known(a, frozenset()))
        if self.plan.born[node] and isinstance(value, Tensor) and (value.requires_grad or watched):
            # The stream goes on from a leaf: what reaches it from above is sent down by ``backward``.
            self.above[node] = value
            value = value.detach().requires_grad_()
        self.trained[node] = value

    def _known(self, node: fx.Node, key: frozenset[int]) -> Any:
        """A value of the trained stream, or one that depends on weights alone."""
        operation = self.plan.network.operations[node]
        if operation.of_data:
            return self.trained[node]
        key = key & operation.above
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

    def _partition(self, node: fx.Node) -> list[Steps]:
        """Groups of depths that go through a node together: equal weights, and no more copying than pays."""
        operations, plan = self.plan.network.operations, self.plan
        active = plan.active[node]
        parents = [a for a in node.all_input_nodes if operations[a].of_data]
        cuts = [[group.steps for group in self.random.get(a, [])] for a in parents]
        for argument, groups in zip(parents, cuts, strict=True):
            fresh = set(active).difference(plan.active[argument])
            groups += [(step,) for step in active if step in fresh]
        # A number of samples, for example, suits the very groups it was taken from.
        apart = [
            groups
            for a, groups in zip(parents, cuts, strict=True)
            if operations[a].dim is None and not operations[a].fixed
        ]
        reads = operations[node].reads
        if apart:
            pieces = apart[0]
            if any(set(map(frozenset, groups)) != set(map(frozenset, pieces)) for groups in apart):
                raise NotTraceable(f"'{node}' reads values that belong to different groups of depths")
        else:
            pieces = cuts[0] if len(cuts) == 1 else _coarsened(cuts)
        if not reads:
            return pieces
        if apart:
            if any(len({reads & plan.steps[s] for s in piece}) > 1 for piece in pieces):
                raise NotTraceable(f"'{node}' reads weights and the size of a group of depths")
            return pieces
        pieces = [part for piece in pieces for part in _split(piece, lambda s: reads & plan.steps[s])]
        bytes_each = self.samples * max((operations[a].per_sample for a in parents), default=0)
        return _joined(pieces, lambda s: reads & plan.steps[s], max(1, JOIN // max(1, bytes_each)))

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

    def backward(self, scores: Callable[[Tensor, int], Tensor]) -> Observed:
        """Down through the random stream, then from every birth down through the trained one."""
        plan, network = self.plan, self.plan.network
        chosen, output = plan.chosen, self.plan.network.output
        ends = [group.steps for group in self.random.get(output, [])]
        late = tuple(s for s in chosen if s not in plan.active[output])
        tops = [(steps, self.rows(output, steps)) for steps in (*ends, *([late] if late else []))]
        watched = [(name, group) for name, node in plan.layers.items() for group in self.random.get(node, [])]
        leaves = [*(birth.leaf for birth in self.births), *(group.value for _, group in watched)]
        totals = [scores(rows, len(steps)).sum() for steps, rows in tops if rows.requires_grad]
        found = torch.autograd.grad(totals, leaves, allow_unused=True) if totals and leaves else (None,) * len(leaves)
        outputs = self._ordered([(steps, rows.detach()) for steps, rows in tops], output)
        arrived: dict[fx.Node, dict[int, Tensor]] = defaultdict(dict)
        for birth, slope in zip(self.births, found[: len(self.births)], strict=True):
            if slope is not None:
                self._add(arrived[birth.node], birth.node, birth.steps, slope)
        slopes: dict[str, dict[int, Tensor]] = {name: {} for name in plan.layers}
        for (name, group), slope in zip(watched, found[len(self.births) :], strict=True):
            slope = torch.zeros_like(group.value) if slope is None else slope
            slopes[name].update(zip(group.steps, self._blocks(slope, plan.layers[name], len(group.steps)), strict=True))
        self.births.clear()
        del totals, tops, leaves, found
        activation = self._activations()
        self.random.clear()
        names = {node: name for name, node in plan.layers.items()}
        for node in reversed(list(self.above)):
            waiting = arrived.pop(node, {})
            if node in names:
                slopes[names[node]].update(waiting)
            self._descend(node, waiting, arrived)
        inputs = network.inputs[0]
        gradient = None
        if plan.to_input:
            gradient = self._filled(arrived.get(inputs, {}), self.trained[inputs])
        return Observed(
            outputs,
            gradient,
            activation,
            {name: self._filled(slopes[name], activation[name].tensor_split(len(chosen))[0]) for name in plan.layers},
        )

    def _activations(self) -> dict[str, Tensor]:
        found = {}
        for name, node in self.plan.layers.items():
            parts = [(group.steps, group.value.detach()) for group in self.random.get(node, [])]
            late = [s for s in self.plan.chosen if s not in self.plan.active[node]]
            parts += [((s,), self.trained[node].detach()) for s in late]
            found[name] = self._ordered(parts, node)
        return found

    def _descend(self, node: fx.Node, waiting: dict[int, Tensor], arrived: dict[fx.Node, dict[int, Tensor]]) -> None:
        """From a leaf of the trained stream to the leaves below it, all depths at once where that pays."""
        value = self.above.pop(node)
        if not waiting or not value.requires_grad:
            return
        below = list(self._leaves_below(node))
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

    def _leaves_below(self, node: fx.Node) -> list[fx.Node]:
        found: dict[fx.Node, None] = {}
        seen, waiting = set(), list(node.all_input_nodes)
        while waiting:
            below = waiting.pop()
            if below in seen or not self.plan.network.operations[below].of_data:
                continue
            seen.add(below)
            value = self.trained.get(below)
            if isinstance(value, Tensor) and value.is_leaf and value.requires_grad:
                found[below] = None
            else:
                waiting += below.all_input_nodes
        return list(found)

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


def observe(plan: Plan, inputs: Any, target: Tensor | None, rule: str | None = None) -> Observed:
    """Walk all depths of a plan for these samples.

    Args:
        plan: The depths.
        inputs: Some samples.
        target: The explained class of each.
        rule: How rectifiers send gradients down: None as usual, "guided" or "deconvnet".
    """
    value = first(inputs)
    walk = Walk(plan, inputs, len(value))
    guide = nullcontext() if rule is None else GuidedRectifiers(masked=rule == "guided")
    with ExitStack() as stack:
        stack.enter_context(plan.network.out_of_place())
        stack.enter_context(torch.enable_grad())
        with guide, FixedNormalization():
            walk.forward()

        def scores(rows: Tensor, depths: int) -> Tensor:
            return select(rows, target.repeat(depths) if target is not None else None)

        return walk.backward(scores)


# ------------------------------------------------------------------------------------------------------------ pieces


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


def _split(piece: Steps, key: Callable[[int], Any]) -> list[Steps]:
    kinds: dict[Any, list[int]] = {}
    for step in piece:
        kinds.setdefault(key(step), []).append(step)
    return [tuple(steps) for steps in kinds.values()]


def _joined(pieces: list[Steps], key: Callable[[int], Any], fit: int) -> list[Steps]:
    """Neighbours of equal key joined until ``fit`` depths are together."""
    found: list[Steps] = []
    for piece in pieces:
        last = next((i for i in range(len(found) - 1, -1, -1) if key(found[i][0]) == key(piece[0])), None)
        if last is not None and len(found[last]) < fit:
            found[last] += piece
        else:
            found.append(piece)
    return found


def _coarsened(cuts: list[list[Steps]]) -> list[Steps]:
    """The finest partition of which every given one is a refinement."""
    merged: list[Steps] = []
    for groups in sorted(cuts, key=len):
        for group in groups:
            touching = [other for other in merged if set(other) & set(group)]
            rest = [other for other in merged if not set(other) & set(group)]
            joined = tuple(step for other in touching for step in other)
            merged = [*rest, joined + tuple(s for s in group if s not in joined)]
    return merged
