"""CAM in its original, exact form: global average pooling, then one linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sanity.attribution.layers import (
    Layer,
    activation_and_gradient,
    at_positions,
    maps_of,
    no_positions,
    over_positions,
    resized,
    submodule,
)
from lightning_sanity.attribution.method import AttributionFn, Method, Refusal, factory, first, outputs_of
from lightning_sanity.model.weights import gathered, own_class


@factory
def cam() -> Method:
    """Class activation map, exact; Zhou et al. 2016 (arXiv:1512.04150).

    The sum of a feature map's channels, weighted by the explained class's row of the linear layer; its mean over
    positions is the class's score but for the bias. Only for networks whose score is that: global average pooling of
    a feature map (or of its positive part), then one linear layer. That is verified on the probe.
    """

    def prepare(model: nn.Module, inputs: Any) -> AttributionFn:
        head, found = _head(model, inputs)
        if head is None:
            raise ValueError(_reason(found))

        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            linear = submodule(model, head.linear)
            assert isinstance(linear, nn.Linear)
            features = head.features(model, inputs)
            chosen = gathered(linear.weight.detach())[target if target is not None else [0] * len(features)]
            return resized((features * at_positions(chosen, features)).sum(1, keepdim=True), first(inputs))

        return attribute

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        return prepare(model, inputs)(model, inputs, target)

    return Method("cam", attribute, passes=0.5, refuses=_refuses(), prepare=prepare)


@dataclass(frozen=True)
class _Head:
    layer: Layer
    linear: str
    rectified: bool

    def features(self, model: nn.Module, inputs: Any) -> Tensor:
        """The pooled feature map ``(N, C, *sides)``."""
        found, _ = activation_and_gradient(model, inputs, None, self.layer, gradient=False)
        return found.clamp_min(0) if self.rectified else found


def _refuses() -> Refusal:
    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        if (shape := no_positions(first(inputs))) is not None:
            return shape
        head, found = _head(model, inputs)
        return _reason(found) if head is None else None

    return reason


def _reason(found: str) -> str:
    return f"CAM needs global average pooling followed by one linear layer; {found}"


@torch.no_grad()
def _head(model: nn.Module, inputs: Any) -> tuple[_Head | None, str]:
    """The verified head, or None and what was found instead."""
    maps = maps_of(model, inputs)
    if not maps:
        return None, "the network has no spatial feature map that its output depends on"
    ran = _leaves_in_order(model, inputs)
    outputs = outputs_of(model, inputs)
    last = next((name for name, module in reversed(ran) if isinstance(module, nn.Linear)), None)
    if last is not None and outputs.ndim == 2:
        linear = submodule(model, last)
        assert isinstance(linear, nn.Linear)
        # What is pooled is the last map; a module around it may have finished later.
        for layer in [layer for layer in maps if layer.channels == linear.in_features][:-3:-1]:
            for rectified in (False, True):
                head = _Head(layer, last, rectified)
                features = head.features(model, inputs)
                bias = None if linear.bias is None else gathered(linear.bias)
                scores = F.linear(features.mean(over_positions(features)), gathered(linear.weight), bias)
                if torch.allclose(scores, outputs, rtol=1e-3, atol=1e-4 * float(outputs.abs().max())):
                    return head, ""
    names = [name for name, _ in ran]
    inside = [k for k, name in enumerate(names) if name == maps[-1].name or name.startswith(f"{maps[-1].name}.")]
    after = [own_class(module).__name__ for _, module in ran[(inside[-1] + 1 if inside else -3) :]]
    listed = ", ".join(after if len(after) <= 8 else ["...", *after[-8:]])
    return None, f"after '{maps[-1].name}' this network has {listed or 'only function calls'}"


def _leaves_in_order(model: nn.Module, inputs: Any) -> list[tuple[str, nn.Module]]:
    ran: list[tuple[str, nn.Module]] = []
    leaves = [(name, module) for name, module in model.named_modules() if name and not list(module.children())]
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: ran.append((name, module)))
        for name, module in leaves
    ]
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return ran
