"""Small copies of inputs and maps, for figures and reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_sanity.result.sanity_result import Pictures

_SAMPLES = 3
_DEPTHS = 5
_SIDE = 112
_COARSE = 32
_ROW = 1024  # numbers of a signal, a table or a sentence that are kept one by one
_LEADS = 12  # channels of a signal


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


def of_maps(signed: Tensor, sides: Sequence[int] = ()) -> Tensor:
    """Pictures of maps ``(K, h, w)``: small copies; of volumes three slices side by side; of what is one row, the row.

    Args:
        signed: The maps; of a volume its first two sides are one.
        sides: Of the explained input.
    """
    if len(sides) == 3:
        signed = slices(signed.unflatten(1, tuple(sides[:2])))
    return _row(signed) if signed.shape[1] == 1 else small(signed[:, None])[:, 0]


def slices(volumes: Tensor) -> Tensor:
    """Slices ``(K, H, 3 W)`` of volumes ``(K, D, H, W)``, side by side: at a quarter, the half, three quarters."""
    depth = volumes.shape[1]
    return torch.cat([volumes[:, part * depth // 4] for part in (1, 2, 3)], -1)


def _row(values: Tensor) -> Tensor:
    """Rows ``(K, C, L)`` of at most ``_ROW`` numbers."""
    if values.shape[-1] <= _ROW:
        return values
    return F.adaptive_avg_pool1d(values.float(), _ROW)


def coarse(magnitude: Tensor) -> Tensor:
    """Maps ``(N, H, W)`` as uint8, at most 32 pixels a side, each scaled by its own largest value; blank if undefined.

    Small enough to be kept for every sample, so that a later model's maps can be compared with them.
    """
    pooled = small(magnitude.float()[:, None], _COARSE)[:, 0]
    pooled = pooled.nan_to_num(0.0, 0.0, 0.0)
    largest = pooled.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (255 * pooled / largest).round().to(torch.uint8)


def keep(
    value: Tensor,
    chosen: Sequence[int],
    at: Sequence[int],
    maps: Mapping[str, Tensor],
    *,
    kind: str = "image",
    words: Sequence[str] | Callable[[int], str] | None = None,
) -> Pictures | None:
    """Pictures of the chosen samples; None where an image is none ``(N, C, H, W)`` of one or three channels.

    Args:
        value: The explained inputs: images ``(N, C, H, W)`` of one or three channels, volumes ``(N, C, D, H, W)``,
            signals ``(N, C, L)``, tables ``(N, F)`` or token ids ``(N, T)``.
        chosen: See ``samples``.
        at: See ``depths``.
        maps: Per method, signed maps ``(K, 1 + depths, h, w)``.
        kind: Which of them: "image", "volume", "signal", "table" or "tokens".
        words: What a token id stands for; the id itself if None.
    """
    if kind == "image" and (value.ndim != 4 or value.shape[1] not in (1, 3)):
        return None
    images = _image_of(value[list(chosen)].detach().float().cpu(), kind)
    flat = images.reshape(len(images), -1)
    low, high = flat.amin(1).reshape(-1, 1, 1, 1), flat.amax(1).reshape(-1, 1, 1, 1)
    rgb = (255 * (images - low) / (high - low).clamp_min(1e-12)).round().to(torch.uint8).expand(-1, 3, -1, -1)
    quantised = {name: _quantised(drawn) for name, drawn in maps.items()}
    said = _words(value[list(chosen)], words) if kind == "tokens" else ()
    return Pictures(rgb.permute(0, 2, 3, 1).contiguous(), tuple(depth + 1 for depth in at), quantised, kind, said)


def _image_of(value: Tensor, kind: str) -> Tensor:
    """Inputs as images ``(K, C, H, W)`` of one or three channels; a signal has a row for each of its channels."""
    if kind == "volume":
        return small(slices(value.mean(1))[:, None])
    if kind == "image":
        return small(value)
    return _row(value[:, :_LEADS] if kind == "signal" else value[:, None])[:, None]


def _words(ids: Tensor, words: Sequence[str] | Callable[[int], str] | None) -> tuple[tuple[str, ...], ...]:
    named = words if callable(words) or words is None else words.__getitem__
    return tuple(tuple(str(id_) if named is None else str(named(int(id_))) for id_ in row) for row in ids.tolist())


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
