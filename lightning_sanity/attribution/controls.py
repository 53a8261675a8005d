"""Controls: methods whose verdict is known beforehand. They show that the test itself works."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sanity.attribution.method import Method, first, output_gradient


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


def input_copy() -> Method:
    """The input itself: ignores the model altogether, so it must not pass."""
    return Method("input_copy", lambda model, inputs, target: _numbers(inputs).clone(), control=True, passes=0.0)


def input_plus_gradient(weight: float = 0.1) -> Method:
    """The input plus a little gradient, each scaled to unit maximum: depends on the model, yet must not pass."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        image, gradient = _numbers(inputs), output_gradient(model, inputs, target)
        return _unit(image) + weight * _unit(gradient)

    return Method("input_plus_gradient", attribute, control=True)


def random() -> Method:
    """Noise: resembles nothing, so a similarity alone would wave it through; must be inconclusive."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        image = _numbers(inputs)
        return torch.randn(image.shape, dtype=torch.float32).to(image.device, image.dtype)

    return Method("random", attribute, stochastic=True, fresh=True, control=True, passes=0.0)


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
