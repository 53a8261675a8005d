"""Controls: methods whose verdict is known beforehand. They show that the test itself works."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.method import Method, factory, first, output_gradient, outputs_of
from lightning_sanity.resources.random_streams import generator

_DIRECTIONS = 16  # of the outputs that are looked at, where there are more
_SLOWEST, _FASTEST = 0.5, 8.0  # radians per standard deviation of the outputs


@factory
def edge_detector() -> Method:
    """Sobel gradient magnitude of the input: ignores the model altogether, so it must not pass.

    For signals and volumes the magnitude of the differences between neighbours along each side; for tables those
    between neighbouring columns, whose order means nothing: a map that ignores the model all the same.
    """

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        image = _numbers(inputs)
        if image.ndim != 4:
            sides = range(2 if image.ndim > 2 else 1, image.ndim)
            return torch.stack([_steps(image, side) for side in sides]).square().sum(0).sqrt()
        padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
        across = padded[..., 2:] - padded[..., :-2]  # (N, C, H + 2, W)
        down = padded[..., 2:, :] - padded[..., :-2, :]  # (N, C, H, W + 2)
        horizontal = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
        vertical = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
        return torch.hypot(horizontal, vertical)

    return Method("edge_detector", attribute, control=True, signed=False, passes=0.0)


@factory
def input_copy() -> Method:
    """The input itself: ignores the model altogether, so it must not pass."""
    return Method("input_copy", lambda model, inputs, target: _numbers(inputs).clone(), control=True, passes=0.0)


@factory
def input_plus_gradient(weight: float = 0.1) -> Method:
    """The input plus a little gradient, each scaled to unit maximum: depends on the model, yet must not pass."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        image, gradient = _numbers(inputs), output_gradient(model, inputs, target)
        return _unit(image) + weight * _unit(gradient)

    return Method("input_plus_gradient", attribute, control=True)


@factory
def output_pattern(reference: Tensor | None = None) -> Method:
    """A pattern made of nothing but the model's outputs: changes exactly as far as they do, so it must pass.

    Every position of the input's grid shows ``1 + cos(w z + b)`` of the standardised outputs ``z``, with a frequency
    ``w`` and a phase ``b`` of its own, the same for all samples and models: random Fourier features, whose correlation
    over positions is a kernel of the distance between two outputs (Rahimi & Recht, "Random Features for Large-Scale
    Kernel Machines", NeurIPS 2007). Frequencies are spread over octaves, so that little and large changes both show.

    Args:
        reference: The trained model's outputs ``(N, ...)``, by whose mean and spread over samples outputs are
            standardised, one by one. If None they are taken as they are.
    """
    scores = None if reference is None else _scores(reference)
    centre, spread = (0.0, 1.0) if scores is None else _standard(scores)

    def pattern(value: Tensor, outputs: Tensor) -> Tensor:
        found = (_scores(outputs) - centre) / spread
        shape = (1, *value.shape[2:]) if value.ndim > 2 else value.shape[1:]
        waves, phases, directions = (t.to(found) for t in _waves(math.prod(shape), found.shape[1]))
        return (1 + torch.cos(found @ directions @ waves + phases)).reshape(len(value), *shape)

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        with torch.no_grad():
            return pattern(first(inputs), outputs_of(model, inputs))

    def combine(value: Tensor, seen: Any) -> Tensor:
        return pattern(value, seen.outputs)

    # The fastest wave takes rounding of an output to as much more of the map.
    function = Derived(attribute, combine, rules=(), tolerance=1e-3)
    return Method("output_pattern", function, control=True, signed=False, passes=0.5)


def _scores(outputs: Tensor) -> Tensor:
    """Outputs ``(N, scores)``, at least float32."""
    flat = outputs.detach().reshape(len(outputs), -1)
    return flat if flat.dtype == torch.float64 else flat.float()


def _standard(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over samples; a score that is the same for all of them is left at its scale."""
    spread = scores.std(0, correction=0)
    return scores.mean(0), torch.where(spread > 0, spread, torch.ones_like(spread))


@lru_cache(maxsize=8)
def _waves(positions: int, scores: int) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies ``(K, positions)``, phases ``(positions,)`` and the directions ``(scores, K)`` they are along."""
    draw = generator("output pattern", positions, scores)
    kept = min(scores, _DIRECTIONS)
    directions = torch.eye(scores)
    if scores > kept:
        directions = torch.randn(scores, kept, generator=draw) / math.sqrt(scores)
    octaves = _SLOWEST * (_FASTEST / _SLOWEST) ** torch.rand(positions, generator=draw)
    waves = octaves * torch.randn(kept, positions, generator=draw) / math.sqrt(kept)
    return waves, 2 * math.pi * torch.rand(positions, generator=draw), directions


@factory
def random() -> Method:
    """Noise: resembles nothing, so a similarity alone would wave it through; must be inconclusive."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        image = _numbers(inputs)
        return torch.randn(image.shape, dtype=torch.float32).to(image.device, image.dtype)

    return Method("random", attribute, stochastic=True, fresh=True, control=True, passes=0.0)


@factory
def constant() -> Method:
    """All ones: has no ranking and no contrast; must be inconclusive."""
    return Method(
        "constant",
        lambda model, inputs, target: torch.ones_like(_numbers(inputs)),
        control=True,
        signed=False,
        passes=0.0,
    )


def _numbers(inputs: Any) -> Tensor:
    """The explained input as floating-point numbers, which pixels in bytes are not: their differences wrap around."""
    value = first(inputs).detach()
    return value if value.is_floating_point() else value.float()


def _steps(value: Tensor, side: int) -> Tensor:
    """Differences to the neighbour before; 0 for the first."""
    before = value.narrow(side, 0, 1)
    return value.diff(dim=side, prepend=before)


def _unit(value: Tensor) -> Tensor:
    largest = value.reshape(len(value), -1).abs().amax(1).clamp_min(torch.finfo(value.dtype).tiny)
    return value / largest.reshape(-1, *[1] * (value.ndim - 1))
