"""What is done to saliency maps before they are compared: ``(N, H, W)`` in and out, each sample on its own.

A map that is constant or not finite becomes NaN throughout, so that NaN flows into whatever is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Prepared = tuple[Tensor, ...]
"""Maps made ready for comparison; samples are on dim 0 of every tensor, so rolling dim 0 pairs them anew."""


def require_same_shape(a: Tensor, b: Tensor) -> None:
    """Raise a ValueError unless two batches of maps have one shape."""
    if a.shape != b.shape:
        raise ValueError(
            f"a similarity compares maps of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; resize one of them"
        )


def defined(maps: Tensor) -> Tensor:
    """Maps in float32 or float64, with NaN throughout each one that is constant or not finite.

    Raises:
        ValueError: If the maps are not ``(N, H, W)`` or have no pixels.
    """
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(
            f"a similarity compares maps of shape (N, H, W), got {tuple(maps.shape)}; reduce attributions over their "
            "channels first, for example attributions.abs().sum(dim=1)"
        )
    maps = maps.detach()
    maps = maps if maps.dtype in (torch.float32, torch.float64) else maps.float()
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return maps.masked_fill(~(low.isfinite() & high.isfinite() & (low < high)), torch.nan)


def wide(values: Tensor) -> Tensor:
    """Values in float64, or in float32 on MPS, which has no float64."""
    return values.float() if values.device.type == "mps" else values.double()


def min_max(maps: Tensor) -> Tensor:
    """Each map scaled to [0, 1]."""
    maps = defined(maps)
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)


def percentile_clipped(maps: Tensor) -> Tensor:
    """Each map as ``clip((v - min) / (P99 - min), 0, 1)``; NaN where the 99th percentile is the minimum.

    The "abs" post-processing of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018.
    """
    maps = defined(maps)
    low = maps.amin(dim=(1, 2), keepdim=True)
    span = _percentile_99(maps) - low
    return ((maps - low) / span.masked_fill(span == 0, torch.nan)).clamp(0, 1)


def diverging(maps: Tensor) -> Tensor:
    """Each map as ``clip((v + s) / (2 s), -1, 1)``, ``s = |P99(v)|``, so that 0 becomes 0.5; NaN where s is 0.

    The "diverging" post-processing of the same code as `percentile_clipped`; its lower bound of -1 is theirs.
    """
    maps = defined(maps)
    scale = _percentile_99(maps).abs()
    return ((maps + scale) / (2 * scale).masked_fill(scale == 0, torch.nan)).clamp(-1, 1)


def second_moment(maps: Tensor) -> Tensor:
    """Each map divided by ``sqrt(mean(v^2))``: the mean of its squares becomes 1.

    Binder et al., "Shortcomings of Top-Down Randomization-Based Sanity Checks", CVPR 2023.
    """
    maps = defined(maps)
    maps = maps / maps.abs().amax(dim=(1, 2), keepdim=True)  # squares of tiny gradients underflow
    return maps / maps.square().mean(dim=(1, 2), keepdim=True).sqrt()


def _percentile_99(maps: Tensor) -> Tensor:
    """Linearly interpolated as in NumPy; not `torch.quantile`, which refuses more than 16 million values."""
    flat = maps.flatten(1)
    below, fraction = divmod(0.99 * (flat.shape[1] - 1), 1)
    top = flat.topk(flat.shape[1] - int(below), dim=1).values
    percentile = top[:, -1] if top.shape[1] == 1 else torch.lerp(top[:, -1], top[:, -2], fraction)
    return percentile[:, None, None]


NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": defined,
    "abs": lambda maps: defined(defined(maps).abs()),  # a map of one magnitude and two signs becomes constant
    "min_max": min_max,
    "diverging": diverging,
    "percentile_clipped": percentile_clipped,
    "second_moment": second_moment,
}
OF_SIGNED = ("abs", "diverging")
"""Those that mean something for signed maps only."""
