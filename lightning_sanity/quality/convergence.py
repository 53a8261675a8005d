"""Cosine similarity convergence: does what is put in at an upper layer still matter further down?

A rule that multiplies by non-negative matrices turns every start into the same direction after enough layers. Its map
then cannot depend on the class or on the upper layers. No parameter is re-initialised to find that out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from lightning_sanity.attribution.gradients import gradient
from lightning_sanity.attribution.guided import deconvnet, guided_backprop
from lightning_sanity.attribution.layers import Layer, layer_named, maps_of, submodule
from lightning_sanity.attribution.method import Method, first, outputs_of
from lightning_sanity.attribution.relevance import lrp_z_plus
from lightning_sanity.model.clone import evaluating, launder
from lightning_sanity.model.graph import first_tensor
from lightning_sanity.resources.random_streams import generator
from lightning_sanity.similarity.normalization import wide

_RULES: dict[str, Callable[[], Method]] = {
    "gradient": gradient,
    "guided": guided_backprop,
    "deconvnet": deconvnet,
    "z_plus": lrp_z_plus,
}


@dataclass(frozen=True)
class Convergence:
    """How alike different starts have become, layer by layer.

    Attributes:
        start: The layer at whose output the random vectors were put in.
        rule: How they were propagated back.
        cosine: Per layer below the start, from top to bottom: the median over images, positions and pairs of vectors
            of ``|cos|`` between what arrives at its output, in ``[0, 1]``; NaN where nothing arrives.
        baseline: Per layer, the same median for independent Gaussian vectors with as many entries as the layer has
            channels. It is 1 for one channel and .5 for three, so read the cosine against it.
    """

    start: str
    rule: str
    cosine: dict[str, float]
    baseline: dict[str, float]


def cosine_similarity_convergence(
    model: nn.Module, inputs: Any, layer: str | None = None, rule: str = "gradient", *, vectors: int = 5, seed: int = 0
) -> Convergence:
    """How alike random relevances have become, layer by layer, after a rule has propagated them back.

    For every image, Gaussian vectors are put in at the output of one layer and propagated to the layers below. Values
    near 1 mean that a lower layer receives the same direction whatever was put in: what lies above the start only sets
    its scale. Values near ``baseline`` mean that the starts are still unrelated.

    Args:
        model: Any network with feature maps; left as it is, run in eval mode.
        inputs: Images ``(N, C, H, W)``, or a tuple that starts with them.
        layer: The module at whose output the vectors are put in; the last layer with a feature map if None.
        rule: "gradient", "guided" (Guided Backprop), "deconvnet", or "z_plus" (deep Taylor decomposition).
        vectors: Vectors per image, at least 2.
        seed: Decides the vectors; the global random streams are not touched.

    Returns:
        The medians of the layers with weights (convolutions, linear layers over positions) whose output is a feature
        map that the start depends on. A position where no relevance arrives for a vector does not count.

    Raises:
        ValueError: If the rule is unknown or means nothing on this model, the layer is no feature map, or there is no
            layer below it.

    Sixt et al., "When Explanations Lie: Why Many Modified BP Attributions Fail", ICML 2020 (arXiv:1912.09818).
    """
    method = _method(rule)
    if isinstance(vectors, bool) or not isinstance(vectors, int) or vectors < 2:
        raise ValueError(f"cosine_similarity_convergence: vectors must be a whole number, at least 2, not {vectors!r}")
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        inputs = launder(inputs)
        if first(inputs).ndim != 4:
            raise ValueError(f"convergence is measured on images (N, C, H, W), not {tuple(first(inputs).shape)}")
        reason = method.refuses(model, inputs, None) if method.refuses is not None else None
        if reason is not None:
            raise ValueError(f"rule '{rule}' means nothing on this model: {reason}")
        start, lower = _layers(model, inputs, layer)
        heads = [_Head(model, start, lower, generator(seed, "convergence", index)) for index in range(vectors)]
        for head in heads:
            method.attribute(head, inputs, None)
    reached = [below for below in reversed(lower) if all(below.name in head.received for head in heads)]
    if not reached:
        raise ValueError(f"no layer with a feature map lies below '{start.name}': choose a higher one")
    return Convergence(
        start.name,
        rule,
        {below.name: _median_cosine([below.layout.grid(h.received[below.name]) for h in heads]) for below in reached},
        {below.name: gaussian_baseline(below.channels) for below in reached},
    )


def gaussian_baseline(channels: int) -> float:
    """Median ``|cos|`` of two independent Gaussian vectors with that many entries; exact, from a beta distribution.

    >>> gaussian_baseline(1), round(gaussian_baseline(3), 6), round(gaussian_baseline(32), 2)
    (1.0, 0.5, 0.12)
    """
    if channels < 1:
        raise ValueError(f"a layer has at least 1 channel, not {channels}")
    return 1.0 if channels == 1 else float(stats.beta.ppf(0.5, 0.5, (channels - 1) / 2) ** 0.5)


def _method(rule: str) -> Method:
    if rule not in _RULES:
        raise ValueError(f"unknown rule '{rule}'; choose from: {', '.join(_RULES)}")
    return _RULES[rule]()


def _layers(model: nn.Module, inputs: Any, name: str | None) -> tuple[Layer, list[Layer]]:
    """The start, and the layers with weights that complete before it."""
    maps = maps_of(model, inputs)
    weighted = [layer for layer in maps if _has_weights(submodule(model, layer.name))]
    if name is None:
        if not weighted:
            raise ValueError("the model has no layer with weights whose output is a feature map of the input")
        return weighted[-1], weighted[:-1]
    start = layer_named(model, inputs, name)
    order = [layer.name for layer in maps]
    if start.name not in order:
        raise ValueError(f"the model's output does not depend on layer '{name}', or it runs several times")
    return start, [layer for layer in weighted if order.index(layer.name) < order.index(start.name)]


def _has_weights(module: nn.Module) -> bool:
    """Whether it mixes channels itself; normalisation layers and containers do not."""
    return not any(True for _ in module.children()) and any(weight.ndim > 1 for weight in module.parameters())


def _median_cosine(received: list[Tensor]) -> float:
    """Median ``|cos|`` over channels of every pair of ``(N, C, h, w)``, over images, positions and pairs."""
    directions = [
        nn.functional.normalize(wide(value), dim=1, eps=torch.finfo(torch.float32).tiny) for value in received
    ]
    alive = [(value != 0).any(dim=1) & value.isfinite().all(dim=1) for value in received]
    cosines = [
        (directions[a] * directions[b]).sum(dim=1).abs()[alive[a] & alive[b]]
        for a, b in combinations(range(len(received)), 2)
    ]
    return float(torch.cat(cosines).median())  # NaN if there is none


class _Head(nn.Module):
    """The model up to one layer, whose output is weighed at random into one number; notes what flows back.

    Attributes:
        received: Per lower layer that was reached, what arrived at its output, shaped like it.
    """

    def __init__(self, model: nn.Module, start: Layer, lower: list[Layer], draw: torch.Generator) -> None:
        super().__init__()
        self.model, self.start, self.lower, self.draw = model, start, lower, draw
        self.received: dict[str, Tensor] = {}

    def forward(self, *inputs: Any) -> Tensor:
        """The random projection of the start's output; ``(N, 1)``."""
        outputs: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            assert tensor is not None  # it has been a feature map before
            outputs.append(tensor)
            return tensor.clone() if isinstance(output, Tensor) else None  # what follows may work in place

        def listen(name: str) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                tensor = first_tensor(output)
                if tensor is not None and tensor.requires_grad:
                    tensor.register_hook(lambda slope: self.received.update({name: slope.detach()}))
                return tensor.clone() if isinstance(output, Tensor) and tensor is not None else None

            return hook

        # Registered only now: the hooks of a rule that works through modules must come first.
        handles = [submodule(self.model, self.start.name).register_forward_hook(keep)]
        handles += [submodule(self.model, below.name).register_forward_hook(listen(below.name)) for below in self.lower]
        try:
            outputs_of(self.model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        vector = torch.randn(outputs[0].shape, generator=self.draw).to(outputs[0])
        projected: Tensor = _Projected.apply(outputs[0], vector)
        return projected


class _Projected(torch.autograd.Function):
    """A projection that puts its vector in on the way back whatever rule watches the network's own calls."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, vector: Tensor) -> Tensor:
        ctx.vector = vector
        return (value * vector).flatten(1).sum(1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].reshape(-1, *[1] * (ctx.vector.ndim - 1)) * ctx.vector, None
