"""Small copies of inputs and maps, for figures and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_sanity.result.sanity_result import Pictures

_SAMPLES = 3
_DEPTHS = 5
_SIDE = 112
_COARSE = 32


def samples(available: int) -> tuple[int, ...]:
    """Which samples are pictured."""
    return tuple(range(min(_SAMPLES, available)))


def depths(available: int) -> tuple[int, ...]:
    """Which depths are pictured: evenly spread, the last among them."""
    wanted = min(available, _DEPTHS)
    return tuple(sorted({round(k * (available - 1) / max(wanted - 1, 1)) for k in range(wanted)} | {available - 1}))


def small(images: Tensor, side: int = _SIDE) -> Tensor:
    """``(K, C, H, W)`` with no side longer than ``side``; as much as a picture needs by default."""
    longest = max(images.shape[-2:])
    if longest <= side:
        return images
    height, width = (max(1, round(length * side / longest)) for length in images.shape[-2:])
    return F.adaptive_avg_pool2d(images, (height, width))


def coarse(magnitude: Tensor) -> Tensor:
    """Maps ``(N, H, W)`` as uint8, at most 32 pixels a side, each scaled by its own largest value; blank if undefined.

    Small enough to be kept for every sample, so that a later model's maps can be compared with them.
    """
    pooled = small(magnitude.float()[:, None], _COARSE)[:, 0]
    pooled = pooled.nan_to_num(0.0, 0.0, 0.0)
    largest = pooled.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (255 * pooled / largest).round().to(torch.uint8)


def keep(value: Tensor, chosen: Sequence[int], at: Sequence[int], maps: Mapping[str, Tensor]) -> Pictures | None:
    """Pictures of the chosen samples; None where the input is no image.

    Args:
        value: The explained inputs ``(N, C, H, W)``.
        chosen: See ``samples``.
        at: See ``depths``.
        maps: Per method, signed maps ``(K, 1 + depths, h, w)``.
    """
    if value.ndim != 4 or value.shape[1] not in (1, 3):
        return None
    images = small(value[list(chosen)].detach().float()).cpu()
    flat = images.reshape(len(images), -1)
    low, high = flat.amin(1).reshape(-1, 1, 1, 1), flat.amax(1).reshape(-1, 1, 1, 1)
    rgb = (255 * (images - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8).expand(-1, 3, -1, -1)
    quantised = {name: _quantised(drawn) for name, drawn in maps.items()}
    return Pictures(rgb.permute(0, 2, 3, 1).contiguous(), tuple(depth + 1 for depth in at), quantised)


def _quantised(maps: Tensor) -> Tensor:
    """int8, each map scaled by the 99th percentile of its magnitudes; blank without finite values.

    Larger magnitudes are full. A few extreme pixels would otherwise leave the rest of the picture empty. Where less
    than one pixel in a hundred is not 0, the largest magnitude takes the percentile's place.
    """
    maps = maps.nan_to_num(0.0, 0.0, 0.0)
    magnitudes = maps.abs().flatten(2)
    most = magnitudes.quantile(0.99, dim=2)
    most = torch.where(most > 0, most, magnitudes.amax(2)).clamp_min(torch.finfo(torch.float32).tiny)
    return (127 * (maps / most[..., None, None]).clamp(-1, 1)).round().to(torch.int8)
