"""Batch normalisation folded into the convolution or linear layer before it: less work, equal to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lightning_sanity.attribution.method import first
from lightning_sanity.engine.path import NotTraceable, named_tensors
from lightning_sanity.engine.streams import TwoStream
from lightning_sanity.model.structure import Known
from lightning_sanity.randomization.unit import Unit
from lightning_sanity.resources.memory import bytes_of

TOLERANCE = 0.05
"""Share of a map's norm by which folding may move it. Most maps move by 1e-6; but where rounding carries a rectifier's
input across zero, another gradient passes, and on a ResNet-18 single maps moved by up to 0.03. A fold that is wrong
moves all of them by more."""
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Folded(TwoStream):
    """Two streams whose normalisations with fixed statistics run within the convolutions and linear layers before them.

    Such a pair reads the units of both at its first operation; its second gives on what it is given. One of a pair may
    be random while the other is trained: each such mixture has folded weights of its own, made once per trial, those of
    the trained weights once for all. Where making them would take longer than normalising, nothing is folded.

    Args:
        model: See ``Path``.
        inputs: See ``Path``.
        units: See ``Path``.
        owner: See ``Path``.
        watched: See ``Path``; a convolution among them is left as it is.

    Raises:
        NotTraceable: If there is nothing to fold, too.
    """

    name, tolerance = "two_stream, folded", TOLERANCE

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        units: Sequence[Unit],
        owner: nn.Module,
        watched: Collection[str] = (),
        known: Known | None = None,
    ) -> None:
        self._norm_of: dict[fx.Node, fx.Node] = {}
        self._identities: set[fx.Node] = set()
        self._folded: dict[tuple[fx.Node, frozenset[int]], tuple[tuple[int, ...], nn.Module]] = {}
        super().__init__(model, inputs, units, owner, watched, known)
        kept = {self.returned[name] for name in watched if name in self.returned}
        rows = len(first(inputs)) * len(units)
        self._norm_of = {node: norm for node, norm in self._pairs(rows) if node not in kept}
        if not self._norm_of:
            raise NotTraceable("there is no normalisation that is worth folding")
        self._identities = set(self._norm_of.values())
        for node, norm in self._norm_of.items():
            both, after = self.operations[node], self.operations[norm]
            both.reads, both.above, after.reads = both.reads | after.reads, after.above, frozenset()
            both.per_sample = 0  # one value, counted where it is read

    def _pairs(self, rows: int) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Each operation that a normalisation of so many rows is worth folding into, with that normalisation."""
        for norm in self.operations:
            node = norm.args[0] if norm.op == "call_module" and len(norm.args) == 1 and not norm.kwargs else None
            if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) > 1:
                continue
            operation = self.operations[node]
            one, two = (self.trained.get_submodule(str(each.target)) for each in (node, norm))
            worth = rows * operation.per_sample >= bytes_of(one.parameters())  # each is read and written about as often
            if operation.of_data and operation.dim == 0 and worth and _go_together(one, two, operation.ndim):
                yield node, norm

    def start_trial(self) -> None:
        """See ``Path``; what was folded of the trained weights stays."""
        super().start_trial()
        self._folded = {place: made for place, made in self._folded.items() if not place[1]}

    def copied_bytes(self, steps: Sequence[frozenset[int]]) -> int:
        """See ``Path``; each pair has folded weights per mixture of random and trained ones."""
        folded = 0
        for node in self._norm_of:
            module, reads = self.trained.get_submodule(str(node.target)), self.operations[node].reads
            folded += bytes_of(module.parameters()) * len({frozenset(), *(reads & step for step in steps)})
        return super().copied_bytes(steps) + folded

    def call(self, node: fx.Node, key: frozenset[int], value_of: Callable[[fx.Node], Any]) -> Any:
        """See ``Path``."""
        if node in self._identities:
            return value_of(node.all_input_nodes[0])
        if node in self._norm_of:
            return self._fold(node, key)(value_of(node.all_input_nodes[0]))
        return super().call(node, key, value_of)

    def _fold(self, node: fx.Node, key: frozenset[int]) -> nn.Module:
        one, two = (self._module(str(each.target), key) for each in (node, self._norm_of[node]))
        versions = tuple(tensor._version for module in (one, two) for _, tensor in named_tensors(module))
        known = self._folded.get((node, key))
        if known is None or known[0] != versions:
            known = self._folded[node, key] = versions, folded(one, two)
        return known[1]


@torch.no_grad()
def folded(module: Any, norm: Any) -> nn.Module:
    """A convolution or linear layer that does what it and the normalisation after it do."""
    statistics = norm.running_mean, norm.running_var, norm.eps
    weight, bias = fuse_conv_bn_weights(module.weight, module.bias, *statistics, norm.weight, norm.bias)
    made = copy.deepcopy(module, {id(module.weight): weight})  # all but the weight, which is the larger part
    made.bias = bias
    return made


def _go_together(module: Any, norm: Any, ndim: int) -> bool:
    """Whether the two are one affine map of a value with so many dimensions, its channels the second."""
    # Exactly these classes: one derived from them, as a parametrised module is, may do anything.
    if type(module) not in _WEIGHTED or type(norm) not in _NORMS or _altered(module) or _altered(norm):
        return False
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    tensors = [tensor for each in (module, norm) for _, tensor in named_tensors(each)]
    alike = len({tensor.dtype for tensor in tensors if tensor.is_floating_point()}) == 1
    wide = module.weight.dtype in (torch.float32, torch.float64)
    channels_second = module.weight.ndim == ndim and len(module.weight) == norm.num_features
    return alike and wide and channels_second


def _altered(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
