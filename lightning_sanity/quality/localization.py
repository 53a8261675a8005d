"""Does relevance fall on the object: maps against masks or boxes of it, without a model.

Attributions are maps ``(N, H, W)``, or ``(N, C, H, W)`` and then summed over channels. A mask is True, or not 0, on the
object; ``(N, H, W)`` or ``(N, 1, H, W)``. Pixels of equal relevance share their place, wherever they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_sanity.similarity.normalization import wide


def pointing_game(attributions: Tensor, masks: Tensor, tolerance: int = 0) -> Tensor:
    """Whether the most relevant pixel lies on the object: 1 for a hit, 0 for a miss.

    Args:
        attributions: Maps or attributions, see the module.
        masks: The objects.
        tolerance: Pixels by which it may miss the object; 15 in the paper.

    Returns:
        ``(N,)``; where several pixels share the maximum, their share on the object. NaN where the map is constant or
        not finite, or the mask is empty.

    Raises:
        ValueError: If the shapes do not fit or the tolerance is negative.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 (arXiv:1608.00507).

    >>> heat, mask = torch.tensor([[[0.0, 3.0], [1.0, 2.0]]]), torch.tensor([[[False, True], [False, False]]])
    >>> pointing_game(heat, mask)
    tensor([1.])
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int) or tolerance < 0:
        raise ValueError(f"pointing_game: tolerance must be a whole number, at least 0, not {tolerance!r}")
    maps, inside = _together("pointing_game", attributions, masks)
    undefined = _undefined(maps, inside)
    if tolerance:
        steps = torch.arange(-tolerance, tolerance + 1, device=maps.device)
        disc = (steps[:, None] ** 2 + steps**2 <= tolerance**2).to(maps.dtype)
        inside = F.conv2d(inside[:, None].to(maps.dtype), disc[None, None], padding=tolerance)[:, 0] > 0.5
    top = maps == maps.amax(dim=(1, 2), keepdim=True)
    return _result((top & inside).sum(dim=(1, 2)) / top.sum(dim=(1, 2)), undefined, attributions)


def iou_at_equal_area(attributions: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the object and as many of the most relevant pixels as it has.

    The equal area leaves no threshold to choose. Pixels that tie at the edge of that area each count as the share of
    them that fits in. A mask of the whole image gives 1 to every map.

    Args:
        attributions: Maps or attributions, see the module.
        masks: The objects; fill a box to score a box.

    Returns:
        ``(N,)`` in ``[0, 1]``; NaN where the map is constant or not finite, or the mask is empty.

    Raises:
        ValueError: If the shapes do not fit.

    >>> heat = torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])
    >>> iou_at_equal_area(heat, torch.tensor([[[1, 0, 1, 0]]]))
    tensor([0.3333])
    """
    maps, inside = _together("iou_at_equal_area", attributions, masks)
    flat, object_ = maps.flatten(1), inside.flatten(1)
    area = object_.sum(dim=1, keepdim=True)
    edge = flat.sort(dim=1, descending=True).values.gather(1, (area - 1).clamp_min(0))
    above, tied = flat > edge, flat == edge
    left = (area - above.sum(dim=1, keepdim=True)) / tied.sum(dim=1, keepdim=True)
    overlap = ((above + tied * left.to(flat.dtype)) * object_).sum(dim=1)
    return _result(overlap / (2 * area[:, 0] - overlap), _undefined(maps, inside), attributions)


def relevance_mass(attributions: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive relevance that lies on the object; compare it with the object's share of the area.

    Args:
        attributions: Maps or attributions, see the module; relevance below 0 counts as 0.
        masks: The objects.

    Returns:
        ``(N,)`` in ``[0, 1]``; NaN where no relevance is positive, the map is not finite, or the mask is empty.

    Raises:
        ValueError: If the shapes do not fit.

    Arras et al., "CLEVR-XAI", Information Fusion 2022 (arXiv:2003.07258).

    >>> relevance_mass(torch.tensor([[[3.0, 1.0], [-5.0, 0.0]]]), torch.tensor([[[1, 0], [0, 0]]]))
    tensor([0.7500])
    """
    maps, inside = _together("relevance_mass", attributions, masks)
    positive = maps.clamp_min(0)
    positive = positive / positive.amax(dim=(1, 2), keepdim=True)  # the sum of huge values would overflow
    shares = (positive * inside).sum(dim=(1, 2)) / positive.sum(dim=(1, 2))
    undefined = ~maps.isfinite().all(dim=2).all(dim=1) | ~inside.flatten(1).any(dim=1)
    return _result(shares, undefined, attributions)


def _together(name: str, attributions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps ``(N, H, W)`` in the widest float, and where the objects are."""
    maps = wide(attributions.detach())
    maps = maps.sum(dim=1) if maps.ndim == 4 else maps
    objects = masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks
    if maps.ndim != 3 or objects.shape != maps.shape:
        raise ValueError(
            f"{name}: attributions are (N, H, W) or (N, C, H, W) and masks (N, H, W) of the same images, got "
            f"{tuple(attributions.shape)} and {tuple(masks.shape)}"
        )
    return maps, (objects != 0).to(maps.device)


def _undefined(maps: Tensor, inside: Tensor) -> Tensor:
    low, high = maps.amin(dim=(1, 2)), maps.amax(dim=(1, 2))
    return ~(low.isfinite() & high.isfinite() & (low < high)) | ~inside.flatten(1).any(dim=1)


def _result(values: Tensor, undefined: Tensor, like: Tensor) -> Tensor:
    return values.masked_fill(undefined, torch.nan).to(like.dtype if like.is_floating_point() else torch.float32)
