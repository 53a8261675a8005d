"""Pictures inside a page: inputs and maps as data URLs, no larger than they must be."""

from __future__ import annotations

import base64
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from lightning_sanity.report.palette import Theme

_SHADES = 7  # of each sign: with zero they fit the 16 colours of a PNG of four bits per pixel
_PHOTO = 64  # pixels along the longer side from which an input compresses better as JPEG


def of_input(picture: Tensor) -> str:
    """Data URL of an input ``(H, W, 3)`` uint8."""
    image = Image.fromarray(picture.numpy())
    if max(image.size) >= _PHOTO:
        return _url(image, "jpeg", quality=85)
    return _url(image, "png", optimize=True)


def of_map(values: Tensor, theme: Theme, *, signed: bool) -> str | None:
    """Data URL of a map ``(H, W)`` int8 in ``[-127, 127]`` on a scale of few shades; None if it is blank.

    Args:
        values: The map.
        theme: Whose colours it has; zero is that of the paper.
        signed: Whether the scale diverges around zero, or begins there.
    """
    if not bool(values.any()):
        return None
    if signed:
        shades = (values.float() * _SHADES / 127).round() + _SHADES  # 0 .. 14, zero at 7
    else:
        shades = (values.float().clamp_min(0) * 2 * _SHADES / 127).round()
    image = Image.fromarray(shades.to(torch.uint8).numpy())
    image.putpalette(_palette(theme.signed if signed else theme.unsigned))
    return _url(image, "png", bits=4, optimize=True)


def _palette(anchors: tuple[str, ...]) -> list[int]:
    """Colours evenly spaced along ``anchors``, one per shade."""
    colours = torch.tensor([[int(anchor[k : k + 2], 16) for k in (1, 3, 5)] for anchor in anchors]).float()
    places = torch.linspace(0, len(anchors) - 1, 2 * _SHADES + 1)
    left = places.floor().long().clamp_max(len(anchors) - 2)
    part = (places - left)[:, None]
    mixed = (1 - part) * colours[left] + part * colours[left + 1]
    return [int(value) for value in mixed.round().flatten().tolist()]


def _url(image: Image.Image, kind: str, **options: object) -> str:
    file = BytesIO()
    image.save(file, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
