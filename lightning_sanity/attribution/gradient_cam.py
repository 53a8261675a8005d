"""Class activation maps: CAM, Grad-CAM and its relatives; each ``(N, 1, H, W)``, resized to the input.

Signals ``(N, C, L)`` and volumes ``(N, C, D, H, W)`` have maps of their own sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows, repeated, rows_of, target_of
from lightning_sanity.attribution.derived import Derived, Reading
from lightning_sanity.attribution.guided import guided_gradient, not_guidable
from lightning_sanity.attribution.layers import (
    Layer,
    activation_and_gradient,
    at_positions,
    last_map,
    layer_named,
    no_positions,
    over_positions,
    resized,
    submodule,
)
from lightning_sanity.attribution.method import (
    AttributionFn,
    Method,
    Refusal,
    any_of,
    at_least,
    factory,
    first,
    not_differentiable,
    outputs_of,
    select,
)
from lightning_sanity.attribution.path import gauss_legendre

# (model, inputs, target, layer) -> map (N, 1, h, w) of the layer's size
_OnLayer = Callable[[nn.Module, Any, Tensor | None, Layer], Tensor]


@factory
def gradcam(layer: str | None = None) -> Method:
    """Grad-CAM, rectified and resized to the input; Selvaraju et al. 2017 (arXiv:1610.02391).

    Args:
        layer: Name of the module whose output is weighted; if None the last feature map, of a segmenter the last of the
            coarsest (see ``layers.last_map``). Channels may come first or last, and a transformer's tokens are laid out
            as the grid they are, without the class token.
    """
    return _map_method("gradcam", layer, _BySlope(_gradcam))


def _gradcam(activation: Tensor, slope: Tensor) -> Tensor:
    return (activation * slope.mean(over_positions(slope), keepdim=True)).sum(1, keepdim=True).clamp_min(0)


@factory
def gradcam_plus_plus(layer: str | None = None) -> Method:
    """Grad-CAM++; Chattopadhay et al. 2018 (arXiv:1710.11063), in the closed form of an exponential score.

    Args:
        layer: See ``gradcam``.
    """

    def cam(activation: Tensor, slope: Tensor) -> Tensor:
        # With Y = exp(S) all derivatives of a piecewise linear S are powers of its slope; exp(S) itself only scales.
        above = slope.square()
        below = 2 * above + activation.sum(over_positions(slope), keepdim=True) * slope**3
        share = torch.where(below != 0, above / below.masked_fill(below == 0, 1.0), 0.0)
        weight = (share * slope.clamp_min(0)).sum(over_positions(slope), keepdim=True)
        return (activation * weight).sum(1, keepdim=True).clamp_min(0)

    return _map_method("gradcam_plus_plus", layer, _BySlope(cam))


@factory
def layercam(layer: str | None = None) -> Method:
    """LayerCAM, each position weighted by its own positive gradient; Jiang et al. 2021 (doi:10.1109/TIP.2021.3089943).

    Args:
        layer: See ``gradcam``.
    """

    def cam(activation: Tensor, slope: Tensor) -> Tensor:
        return (activation * slope.clamp_min(0)).sum(1, keepdim=True).clamp_min(0)

    return _map_method("layercam", layer, _BySlope(cam))


@factory
def scorecam(layer: str | None = None, max_channels: int | None = None, max_batch: int = ROWS) -> Method:
    """Score-CAM, each channel weighted by the score of the input it masks; Wang et al. 2020 (arXiv:1910.01279).

    A channel's map is resized to the input and scaled to [0, 1]; weights are the softmax over channels of the explained
    score. A channel that is constant on a sample masks nothing and has no weight there.

    Args:
        layer: See ``gradcam``.
        max_channels: Only so many channels of each sample, those with the largest range; all if None.
        max_batch: Most rows per pass through the model.
    """
    name = "scorecam"
    if max_channels is not None:
        at_least(1, name, max_channels=max_channels)
    rows = Rows(max_batch, name)

    def cam(model: nn.Module, inputs: Any, target: Tensor | None, at: Layer) -> Tensor:
        value = first(inputs).detach()
        activation, _ = activation_and_gradient(model, inputs, target, at, gradient=False)
        flat = activation.flatten(2)
        low, spread = flat.amin(2), flat.amax(2) - flat.amin(2)  # (N, C)
        channels = min(activation.shape[1], max_channels or activation.shape[1])
        chosen = spread.topk(channels, 1).indices if max_channels else torch.arange(channels).expand(len(value), -1)
        chosen = chosen.to(value.device)
        activation = activation.gather(1, at_positions(chosen, activation).expand(-1, -1, *activation.shape[2:]))
        low, spread = low.gather(1, chosen), spread.gather(1, chosen)

        @torch.no_grad()
        def run(samples: slice, copies: range) -> Tensor:
            block = (samples, slice(copies.start, copies.stop))
            maps = activation[block]  # (n, c, h, w)
            width = at_positions(spread[block], maps)
            mask = (maps - at_positions(low[block], maps)) / torch.where(width > 0, width, 1.0)
            mask = resized(mask, value).transpose(0, 1).reshape(-1, 1, *value.shape[2:])
            masked = repeated(value[samples], len(copies)) * mask
            outputs = outputs_of(model, rows_of(inputs, samples, len(copies), masked))
            return select(outputs, target_of(target, samples, len(copies))).reshape(len(copies), -1).T

        scores = torch.empty_like(spread)
        for samples, copies, found in rows.chunks(len(value), channels, run):
            scores[samples, copies.start : copies.stop] = found.to(scores.dtype)
        weights = scores.masked_fill(spread <= 0, -torch.inf).softmax(1).nan_to_num(0.0)
        return (activation * at_positions(weights, activation)).sum(1, keepdim=True).clamp_min(0)

    return _map_method(name, layer, cam, passes=100.0)


@factory
def guided_gradcam(layer: str | None = None) -> Method:
    """Guided Backprop times Grad-CAM; Selvaraju et al. 2017 (arXiv:1610.02391).

    Args:
        layer: See ``gradcam``.
    """

    def with_guidance(cam: AttributionFn) -> AttributionFn:
        def plain(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            return guided_gradient(model, inputs, target) * cam(model, inputs, target)

        if not isinstance(cam, Derived):
            return plain
        combine = cam.combine
        return Derived(plain, lambda value, seen: seen.mean["guided"] * combine(value, seen), ("guided",), cam.layer)

    return Method(
        "guided_gradcam",
        with_guidance(_attribute(layer, _BySlope(_gradcam))),
        passes=2.0,
        refuses=any_of(refuses_layer(layer), not_guidable),
        prepare=lambda model, inputs: with_guidance(_prepare(layer, _BySlope(_gradcam))(model, inputs)),
    )


@factory
def internal_influence(
    layer: str | None = None, n_steps: int = 32, baseline: Baseline = 0.0, max_batch: int = ROWS
) -> Method:
    """Internal influence, a layer's mean gradient on the path from a baseline; Leino et al. 2018 (arXiv:1802.03788).

    Summed over channels and resized to the input; signed.

    Args:
        layer: See ``gradcam``.
        n_steps: See ``integrated_gradients``.
        baseline: See ``integrated_gradients``.
        max_batch: Most rows per pass through the model.
    """
    name = "internal_influence"
    at_least(1, name, n_steps=n_steps)
    check_baseline(baseline, name)
    rows = Rows(max_batch, name)
    points, weights = gauss_legendre(n_steps)

    def influence(model: nn.Module, inputs: Any, target: Tensor | None, at: Layer) -> Tensor:
        value = first(inputs).detach()
        start = baseline_for(baseline, value)

        def run(samples: slice, copies: range) -> Tensor:
            here, there = value[samples], start[samples]
            between = torch.cat([there + points[k] * (here - there) for k in copies])
            _, slope = activation_and_gradient(
                model, rows_of(inputs, samples, len(copies), between), target_of(target, samples, len(copies)), at
            )
            summed = slope.sum(1).reshape(len(copies), len(here), 1, *slope.shape[2:])
            return torch.tensordot(summed.new_tensor([weights[k] for k in copies]), summed, 1)

        total = value.new_zeros(len(value), 1, *at.layout.sides)
        for samples, _, found in rows.chunks(len(value), n_steps, run):
            total[samples] += found
        return total

    return _map_method(name, layer, influence, passes=n_steps, signed=True)


@dataclass(frozen=True)
class _BySlope:
    """A map made of a layer's activation and the explained output's gradient there."""

    weigh: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, model: nn.Module, inputs: Any, target: Tensor | None, at: Layer) -> Tensor:
        return self.weigh(*activation_and_gradient(model, inputs, target, at))

    def combine(self, value: Tensor, seen: Reading) -> Tensor:
        assert seen.activation is not None
        assert seen.slope is not None
        return resized(self.weigh(seen.activation, seen.slope), value)


def _map_method(name: str, layer: str | None, cam: _OnLayer, *, passes: float = 1.0, signed: bool = False) -> Method:
    return Method(
        name,
        _attribute(layer, cam),
        signed=signed,
        passes=passes,
        refuses=refuses_layer(layer),
        prepare=_prepare(layer, cam),
    )


def _prepare(layer: str | None, cam: _OnLayer) -> Callable[[nn.Module, Any], AttributionFn]:
    def prepare(model: nn.Module, inputs: Any) -> AttributionFn:
        at = layer_named(model, inputs, layer) if layer is not None else last_map(model, inputs)
        if at is None:
            raise ValueError(_NO_MAP)

        attribute = _At(at, cam)
        # What a function makes of a module's output, or one of its calls, is no value that the engine knows by name.
        named = not at.activated and at.call is None
        return Derived(attribute, cam.combine, (), at) if isinstance(cam, _BySlope) and named else attribute

    return prepare


@dataclass(frozen=True)
class _At:
    """A map of one layer, at the input's size."""

    layer: Layer
    cam: _OnLayer

    def __call__(self, model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        return resized(self.cam(model, inputs, target, self.layer), first(inputs))


def _attribute(layer: str | None, cam: _OnLayer) -> AttributionFn:
    return lambda model, inputs, target: _prepare(layer, cam)(model, inputs)(model, inputs, target)


_NO_MAP = (
    "the network has no spatial feature map with more than one position that its output depends on, and that one call "
    "of one module makes"
)


def refuses_layer(layer: str | None) -> Refusal:
    """Refuses inputs without positions and networks without a feature map.

    Raises (when called):
        ValueError: If a layer is named and the model has none of that name: that is a mistake, not a limitation.
    """

    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        if (shape := no_positions(first(inputs))) is not None:
            return shape
        if layer is None:
            return _NO_MAP if last_map(model, inputs) is None else None
        submodule(model, layer)
        try:
            layer_named(model, inputs, layer)
        except ValueError as error:
            return str(error)
        return None

    return any_of(not_differentiable, reason)
