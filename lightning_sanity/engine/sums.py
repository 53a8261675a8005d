"""What the chunks of a pass, its samples and its altered copies, add up to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_sanity.attribution.derived import Derived, Reading
from lightning_sanity.attribution.layers import Layer
from lightning_sanity.attribution.method import first
from lightning_sanity.engine.path import Observed
from lightning_sanity.explanation.maps import Explanation


class Sums:
    """What the chunks of a pass add up to, all depths and samples; on their device."""

    def __init__(self, depths: int, what: Explanation) -> None:
        self.depths, self.inputs, self.value = depths, what.inputs, first(what.inputs)
        self.outputs: dict[str, Tensor] = {}
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}
        self.activation: dict[str, Tensor] = {}
        self.slope: dict[str, Tensor] = {}

    def add(
        self,
        chosen: tuple[int, ...],
        samples: slice,
        seen: Observed,
        rule: str,
        weights: list[float] | None,
        layers: Mapping[str, Layer],
    ) -> None:
        """One walk's share; ``weights`` of its copies, None for the batch itself."""
        copies, count = len(weights or [1]), len(chosen)

        def rows(value: Tensor) -> Tensor:
            return value.reshape(count, copies, -1, *value.shape[1:])

        def room(among: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
            if name not in among:
                among[name] = like.new_zeros(self.depths, len(self.value), *like.shape[1:])
            return among[name]

        where = torch.tensor(chosen, device=self.value.device), samples
        if weights is None:
            room(self.outputs, "all", seen.outputs)[where] = rows(seen.outputs)[:, 0]
        if seen.gradient is not None:
            slope = rows(seen.gradient)
            mean = room(self.mean, rule, seen.gradient)
            if weights is None:
                mean[where] = slope[:, 0]
            else:
                weight = slope.new_tensor(weights)
                mean[where] += torch.tensordot(slope, weight, ([1], [0]))
                square = room(self.square, rule, seen.gradient)
                square[where] += torch.tensordot(slope.square(), weight, ([1], [0]))
        for name, layer in layers.items():
            for total, tensor in ((self.activation, seen.activation), (self.slope, seen.slope)):
                grid = layer.layout.grid(tensor[name])
                room(total, name, grid)[where] = rows(grid)[:, 0]

    def evidence(self, depth: int, layer: Layer | None) -> Reading:
        """What was seen of one depth."""
        activation, slope = (
            None if layer is None else total[layer.name][depth] for total in (self.activation, self.slope)
        )
        mean, square = ({rule: total[depth] for rule, total in each.items()} for each in (self.mean, self.square))
        outputs = self.outputs["all"][depth] if "all" in self.outputs else None
        return Reading(mean, square, activation, slope, outputs)

    def attributions(self, methods: Mapping[str, Derived]) -> dict[str, list[Tensor]]:
        """What methods make of it, per depth."""
        return {
            name: [method.of(self.inputs, self.evidence(depth, method.layer)) for depth in range(self.depths)]
            for name, method in methods.items()
        }
