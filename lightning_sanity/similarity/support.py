"""The support of an input: the pixels that stand out from a constant background."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sanity.similarity.ranks import runs


def support_of(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels that stand out from a constant background, and which samples have such a background.

    The background is a sample's most frequent pixel value, equal in all channels; the support is everything else.

    Args:
        inputs: Images ``(N, C, H, W)``.

    Returns:
        The support ``(N, H, W)``, bool; and ``(N,)``, bool: whether the background covers at least a fifth of the
        pixels and leaves at least eight.

    Raises:
        ValueError: If the inputs are not ``(N, C, H, W)``.

    >>> image = torch.zeros(1, 3, 8, 8)
    >>> image[:, 0, 2:5, 2:5] = 1.0
    >>> support, has_background = support_of(image)
    >>> int(support.sum()), has_background
    (9, tensor([True]))
    """
    if inputs.ndim != 4 or 0 in inputs.shape[1:]:
        raise ValueError(
            f"a support is found in images (N, C, H, W), got {tuple(inputs.shape)}; compare whole maps instead"
        )
    values = inputs.detach().flatten(2) if inputs.dtype == torch.float64 else inputs.detach().flatten(2).float()
    bits = (values + 0.0).view(torch.int64 if values.dtype == torch.float64 else torch.int32).long()  # -0.0 is 0.0
    # Integer hashes of all channels, because the modes of single channels need not meet in any pixel.
    pixels = torch.zeros_like(bits[:, 0])
    for channel in bits.unbind(dim=1):
        pixels = (pixels ^ channel) * 0x1E3779B97F4A7C15
        pixels = pixels ^ (pixels >> 29)
    ordered = pixels.sort(dim=1).values
    first, last = runs(ordered)
    longest = (last - first).argmax(dim=1, keepdim=True)
    support = pixels != ordered.gather(1, longest)
    remaining = support.sum(dim=1)
    total = pixels.shape[1]
    has_background = (5 * (total - remaining) >= total) & (remaining >= 8)
    return support.reshape(inputs.shape[0], *inputs.shape[2:]), has_background
