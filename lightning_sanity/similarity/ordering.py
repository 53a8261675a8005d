"""What two maps agree on in order: concordant pairs, and the pixels that are largest."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sanity.similarity.normalization import (
    Prepared,
    defined,
    require_same_shape,
    wide,
)
from lightning_sanity.similarity.ranks import average_ranks, inversions, sort_packed, tied_pairs


def kendall(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's tau-b, ``(N,)`` in [-1, 1], equal to ``scipy.stats.kendalltau``.

    Arguments, errors and NaN as in `spearman`. Every comparison sorts twice and counts inversions, O(P log P) for P
    pixels with O(N P) memory: ten to twenty times the cost of `spearman`.
    """
    require_same_shape(a, b)
    return tau_b(kendall_ranks(a), kendall_ranks(b))


def kendall_ranks(maps: Tensor) -> Prepared:
    """Ranks of the pixels of every map ``(N, P)``."""
    return (average_ranks(defined(maps).flatten(1)),)


def tau_b(a: Prepared, b: Prepared) -> Tensor:
    """Kendall's tau-b of ranks, from counts of discordant and tied pairs."""
    pixels = a[0].shape[1]
    doubled_a, doubled_b = (2 * a[0].nan_to_num()).long(), (2 * b[0].nan_to_num()).long()  # whole numbers
    span = 2 * pixels + 1
    joint_a, by_a = sort_packed(doubled_a * span + doubled_b, pixels.bit_length())
    joint_b, by_b = sort_packed(doubled_b * span + doubled_a, pixels.bit_length())
    place_in_b = torch.empty_like(by_b).scatter_(1, by_b, torch.arange(pixels, device=by_b.device).expand_as(by_b))
    discordant = inversions(place_in_b.gather(1, by_a))  # pairs tied in either map ascend in both orders
    tied_a, tied_b = tied_pairs(joint_a // span), tied_pairs(joint_b // span)
    pairs = pixels * (pixels - 1) // 2
    balance = pairs - tied_a - tied_b + tied_pairs(joint_a) - 2 * discordant
    tau = wide(balance) / (wide(pairs - tied_a).sqrt() * wide(pairs - tied_b).sqrt())
    return tau.clamp(-1, 1).masked_fill(a[0][:, 0].isnan() | b[0][:, 0].isnan(), torch.nan)


def top_k_overlap(a: Tensor, b: Tensor, k: float = 0.1) -> Tensor:
    """Share of the largest pixels that two maps have in common, ``(N,)`` in [0, 1].

    Pixels that tie for the last places share them equally, as fractions: no order of the pixels is preferred, and two
    sparse maps do not agree on zeros that happened to be picked. Arguments, errors and NaN as in `spearman`.

    Args:
        a: See `spearman`.
        b: See `spearman`.
        k: Which share of the pixels counts as largest, in (0, 1]; at least one pixel.

    Raises:
        ValueError: If ``k`` is outside (0, 1], or as in `spearman`.
    """
    if not 0 < k <= 1:
        raise ValueError(
            f"top_k_overlap compares a share of the pixels, got k={k}; choose k in (0, 1], for example 0.1"
        )
    require_same_shape(a, b)
    return overlap_of(top_k_membership(a, k), top_k_membership(b, k))


def top_k_membership(maps: Tensor, k: float = 0.1) -> Prepared:
    """How much of every pixel belongs to the largest share ``k``; sums to 1."""
    flat = defined(maps).flatten(1)
    places = max(1, int(k * flat.shape[1] + 0.5))
    threshold = flat.topk(places, dim=1).values[:, -1:]
    above, tied = flat > threshold, flat == threshold
    left = places - above.sum(dim=1, keepdim=True)
    membership = wide(above) + wide(tied) * wide(left) / tied.sum(dim=1, keepdim=True)
    return (membership.masked_fill(flat.isnan(), torch.nan) / places,)


def overlap_of(a: Prepared, b: Prepared) -> Tensor:
    """What two memberships have in common."""
    return torch.minimum(a[0], b[0]).sum(dim=1).clamp(max=1)
