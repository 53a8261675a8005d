"""Which depths differ from the trained model at which operation, and which of them go through it together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from lightning_sanity.engine.network import Network
from lightning_sanity.engine.path import JOIN, NotTraceable, Steps

_PASSES = 5
"""Plain passes over the whole network whose values the depths of one block may keep at once. More gain nothing, and the
depths of a network, each as deep as the others on the average, would keep the square of its depth."""


class Plan:
    """Which depths differ from the trained model at which operation, and what a walk over them costs.

    Args:
        network: The network.
        steps: Indices of the random units at each depth.
        chosen: The depths to walk, as indices into ``steps``.
        layers: Modules whose activation and slope are wanted.
        to_input: Whether the gradient with respect to the input is.
        reference: Whether the trained stream is explained itself, up to its outputs.
    """

    def __init__(
        self,
        network: Network,
        steps: Sequence[frozenset[int]],
        chosen: Steps,
        layers: tuple[str, ...] = (),
        to_input: bool = True,
        reference: bool = False,
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
            self.born[node] |= reference or len(self.active[node]) < len(chosen)
        for node, born in self.born.items():
            if not born or operations[node].dim is not None or operations[node].fixed:
                continue
            if operations[node].several or node.op == "call_module":  # no leaf that a gradient could arrive at
                raise NotTraceable(f"'{node}' returns several values where a depth begins")
        self.needed = self._needed()
        self.kept = {node for node, born in self.born.items() if born}
        self.kept |= {network.output, network.inputs[0], *self.layers.values()}
        sizes = {node: operation.per_sample for node, operation in operations.items()}
        self._trained_bytes = sum(size for node, size in sizes.items() if node in self.needed)
        self._pass_bytes = sum(size for node, size in sizes.items() if operations[node].of_data)
        self._depth_bytes = dict.fromkeys(chosen, 0)
        for node, steps_here in self.active.items():
            for step in steps_here:
                self._depth_bytes[step] += sizes[node]
        self._blocks: dict[int, list[Plan]] = {}

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
        """See ``Planned``."""
        return self._trained_bytes + min(sum(self._depth_bytes.values()), _PASSES * self._pass_bytes)

    def least_per_sample(self) -> int:
        """See ``Planned``."""
        return self._trained_bytes + max(self._depth_bytes.values())

    def blocks(self, room: int) -> list[Plan]:
        """The chosen depths in blocks that leave one trained stream one after the other, neighbours together.

        Args:
            room: Bytes that a block and the trained stream may keep of a sample; a single depth always goes.
        """
        most = min(room - self._trained_bytes, _PASSES * self._pass_bytes)
        if most not in self._blocks:
            parts: list[list[int]] = []
            held = 0
            for step in self.chosen:
                held += self._depth_bytes[step]
                if not parts or held > most:
                    parts.append([])
                    held = self._depth_bytes[step]
                parts[-1].append(step)
            self._blocks[most] = [self] if len(parts) == 1 else [self._of(tuple(part)) for part in parts]
        return self._blocks[most]

    def together_within(self, room: int) -> Steps:
        """See ``Planned``."""
        return max((block.chosen for block in self.blocks(room)), key=len)

    def _of(self, chosen: Steps) -> Plan:
        """The same for some of the depths."""
        return Plan(self.network, self.steps, chosen, tuple(self.layers), self.to_input)

    def groups(self, node: fx.Node, held: Mapping[fx.Node, Sequence[Steps]], samples: int) -> list[Steps]:
        """Depths that go through a node together: equal weights, and no more copying than pays.

        Args:
            node: The node.
            held: The groups in which the rows of each of its arguments lie.
            samples: Of each depth.

        Raises:
            NotTraceable: If its arguments' groups do not go together.
        """
        operations, active = self.network.operations, self.active[node]
        parents = [a for a in node.all_input_nodes if operations[a].of_data]
        cuts = [list(held[a]) for a in parents]
        for argument, groups in zip(parents, cuts, strict=True):
            fresh = set(active).difference(self.active[argument])
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
            if any(len({reads & self.steps[s] for s in piece}) > 1 for piece in pieces):
                raise NotTraceable(f"'{node}' reads weights and the size of a group of depths")
            return pieces
        pieces = [part for piece in pieces for part in split(piece, lambda s: reads & self.steps[s])]
        bytes_each = samples * max((operations[a].per_sample for a in parents), default=0)
        return _joined(pieces, lambda s: reads & self.steps[s], max(1, JOIN // max(1, bytes_each)))


def split(piece: Steps, key: Callable[[int], Any]) -> list[Steps]:
    """The depths of a group, those of equal key together."""
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
