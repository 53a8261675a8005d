"""What a method hides together: superpixels of an image, windows of a signal, cubes of a volume, columns of a table.

The parts are found once per probe, from the inputs alone, so that every model is asked about the same ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sanity.attribution.method import Segmentation, first

_STIFFER = (1, 10, 100, 1000)
"""Factors of SLIC's compactness, tried in turn: on noisy images it joins its own fragments, often to a single one."""


def regions(inputs: Any, segments: int, given: Tensor | Segmentation | None = None) -> Tensor:
    """Labels 0, 1, ... of each sample's regions, to be broadcast over channels: ``(N, 1, *sides)``, or ``(N, F)``.

    Images are cut by SLIC (Achanta et al. 2012), each scaled to [0, 1] first; signals into windows and volumes into
    blocks, as equal as their sides allow; tables into their columns.

    Args:
        inputs: The batch; its explained input is ``(N, C, *sides)`` or a table ``(N, F)``.
        segments: About how many regions a sample is cut into; a table is cut into as many as it has columns.
        given: Labels to use instead, ``(*sides)`` for all or ``(N, *sides)``; or a function of the inputs that finds
            labels in the form that this one returns them, -1 = never to be hidden.

    Raises:
        ValueError: If the given labels do not fit the inputs.
    """
    if callable(given):
        return given(inputs)
    value = first(inputs).detach()
    if given is not None:
        return _numbered(given, value)
    return _CUTS[value.ndim](value, segments)


def unsegmented(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
    """Reason why there are no regions whose values could be replaced."""
    value = first(inputs)
    if value.ndim not in _CUTS:
        return f"the input has shape {tuple(value.shape)}, neither (N, C, ...) with one to three sides nor (N, F)"
    return None if value.is_floating_point() else f"the input holds {value.dtype} values, which cannot be masked"


def _numbered(given: Tensor, value: Tensor) -> Tensor:
    sides = value.shape[2:] if value.ndim > 2 else value.shape[1:]
    if given.shape not in (sides, (len(value), *sides)):
        raise ValueError(f"superpixels of shape {tuple(given.shape)} do not fit inputs of {tuple(value.shape)}")
    every = given.expand(len(value), *sides).cpu()
    labels = torch.stack([torch.unique(one, return_inverse=True)[1] for one in every]).to(value.device)
    return labels[:, None] if value.ndim > 2 else labels


def _columns(value: Tensor, segments: int) -> Tensor:
    return torch.arange(value.shape[1], device=value.device).expand(value.shape)


def _blocks(value: Tensor, segments: int) -> Tensor:
    """Equal blocks of a grid with about as many cells, each with the shape of the whole."""
    sides = value.shape[2:]
    scale = (segments / math.prod(sides)) ** (1 / len(sides))
    labels = torch.zeros((), dtype=torch.long, device=value.device)
    for side in sides:
        count = min(max(round(side * scale), 1), side)
        place = torch.arange(side, device=value.device) * count // side
        labels = labels[..., None] * count + place
    return labels.expand(len(value), 1, *sides)


def _superpixels(value: Tensor, segments: int) -> Tensor:
    return torch.stack([_slic(image, segments) for image in value.float().cpu()])[:, None].to(value.device)


def _slic(image: Tensor, segments: int) -> Tensor:
    from skimage.segmentation import slic  # a tenth of a second to import, for these methods alone

    pixels = image.permute(1, 2, 0).double().numpy()
    spread = pixels.max() - pixels.min()
    pixels = (pixels - pixels.min()) / (spread if spread > 0 else 1.0)
    colour = pixels.shape[2] == 3  # compactness is in units of the colour space: CIE Lab spans about 100
    labels = np.zeros(pixels.shape[:2], int)
    for stiffness in _STIFFER:
        compactness = stiffness * (10.0 if colour else 0.1)
        labels = slic(pixels, segments, compactness=compactness, convert2lab=colour, channel_axis=-1, start_label=0)
        labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
        if labels.max() + 1 >= segments / 2:
            break
    return torch.from_numpy(labels).long()


_CUTS = {2: _columns, 3: _blocks, 4: _superpixels, 5: _blocks}
