"""Pictures inside a page: inputs and maps as data URLs, no larger than they must be."""

from __future__ import annotations

import base64
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from lightning_sanity.report.palette import DARK, LIGHT

_SHADES = 7  # of each sign: with zero they fit the 16 colours of a PNG of four bits per pixel
_PHOTO = 64  # pixels along the longer side from which an input compresses better as JPEG


def of_input(picture: Tensor) -> str:
    """Data URL of an input ``(H, W, 3)`` uint8."""
    image = Image.fromarray(picture.numpy())
    if max(image.size) >= _PHOTO:
        return _url(image, "jpeg", quality=85)
    return _url(image, "png", optimize=True)


def of_map(values: Tensor, *, signed: bool) -> str | None:
    """Data URL of a map ``(H, W)`` int8 in ``[-127, 127]`` in few shades of grey; None if it is blank.

    Its colours come from the page, so that one picture serves light and dark paper, see ``colourings``.

    Args:
        values: The map.
        signed: Whether the scale diverges around zero, which is in the middle of the greys, or begins there, black.
    """
    if not bool(values.any()):
        return None
    if signed:
        shades = (values.float() * _SHADES / 127).round() + _SHADES  # 0 .. 14, zero at 7
    else:
        shades = (values.float().clamp_min(0) * 2 * _SHADES / 127).round()
    image = Image.fromarray(shades.to(torch.uint8).numpy())
    image.putpalette([round(255 * shade / (2 * _SHADES)) for shade in range(2 * _SHADES + 1) for _ in "rgb"])
    return _url(image, "png", bits=4, optimize=True)


def colourings() -> dict[str, tuple[str, str, str]]:
    """What turns greys into colours, by name: red, green and blue as tables for an SVG filter's transfer functions.

    A table's values are evenly spaced over the greys, with straight lines between, as colours are along a scale.
    """
    scales = {
        f"{kind}-{paper}": getattr(theme, kind)
        for paper, theme in (("light", LIGHT), ("dark", DARK))
        for kind in ("signed", "unsigned")
    }
    return {name: _tables(anchors) for name, anchors in scales.items()}


def _tables(anchors: tuple[str, ...]) -> tuple[str, str, str]:
    red, green, blue = (" ".join(f"{int(each[k : k + 2], 16) / 255:.4f}" for each in anchors) for k in (1, 3, 5))
    return red, green, blue


def _url(image: Image.Image, kind: str, **options: object) -> str:
    file = BytesIO()
    image.save(file, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
