"""Ranks of the pixels of saliency maps: average ranks with exact ties, and inversions between two rankings."""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(flat: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ranks of every row's values, 1 for the smallest; tied values share the mean of their ranks.

    Ties are frequent in saliency maps (rectified or upsampled ones), and ranking them by position moves a rank
    correlation by several hundredths. ``-0.0`` ties with ``0.0``.

    Args:
        flat: Values ``(N, P)``, P below 2**23 so that every half rank is exact in float32; any float dtype.
        mask: Optional ``(N, P)`` bool; values outside it are not ranked.

    Returns:
        Ranks ``(N, P)`` in float32; 0 outside ``mask``, NaN in every place of a row that holds a NaN or infinity.

    >>> average_ranks(torch.tensor([[0.0, 5.0, -0.0, 7.0]]))
    tensor([[1.5000, 3.0000, 1.5000, 4.0000]])
    """
    flat = flat.detach() + 0.0  # -0.0 becomes 0.0
    if flat.dtype == torch.float64:  # too wide to be packed with a position into 64 bits
        kept = flat if mask is None else flat.masked_fill(~mask, torch.inf)
        ordered, order = kept.sort(dim=1)
    else:
        flat = flat.float()
        bits = flat.view(torch.int32)
        bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
        if mask is not None:
            bits = bits.masked_fill(~mask, 0x7FFFFFFF)
        ordered, order = sort_packed(bits, 32)
    ranks = torch.empty_like(flat, dtype=torch.float32)
    ranks.scatter_(1, order, _mean_positions(ordered))
    if mask is not None:
        ranks.masked_fill_(~mask, 0)
    # A row's sum is NaN or infinite if one of its values is, or if it overflows: only then look at each.
    doubtful = ~flat.sum(dim=1, keepdim=True).isfinite()
    if flat.device.type == "cpu" and not bool(doubtful.any()):
        return ranks
    return ranks.masked_fill_(~flat.isfinite().all(dim=1, keepdim=True), torch.nan)


def _mean_positions(ordered: Tensor) -> Tensor:
    """The rank of each place of a sorted ``(N, P)``: the mean position of its run, from 1."""
    if ordered.device.type != "cpu":  # asking where there are ties would wait for the device
        first, last = runs(ordered)
        return (first + last).float().div_(2).add_(1)
    rows, count = ordered.shape
    ranks = torch.arange(1, count + 1, dtype=torch.float32).repeat(rows, 1)
    tied = (ordered[:, 1:] == ordered[:, :-1]).flatten().nonzero().flatten()
    if len(tied):
        tied += tied.div(count - 1, rounding_mode="floor")  # places that equal the next one of their row
        begins = torch.cat([tied.new_zeros(1), (tied[1:] != tied[:-1] + 1).nonzero().flatten() + 1])
        lengths = torch.cat([begins, tied.new_tensor([len(tied)])]).diff() + 1
        starts = tied[begins]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)[:-1]])
        members = torch.repeat_interleave(starts - offsets, lengths) + torch.arange(int(lengths.sum()))
        means = (starts % count).float() + (lengths + 1).float() / 2
        ranks.view(-1)[members] = torch.repeat_interleave(means, lengths)
    return ranks


def sort_packed(keys: Tensor, position_bits: int) -> tuple[Tensor, Tensor]:
    """Sorted integer keys ``(N, P)`` and where each came from; equal keys stay in the order of their positions.

    Key and position share one int64, so that one sort of plain values does the work of a sort with indices.
    """
    positions = torch.arange(keys.shape[1], device=keys.device)
    packed = keys.to(torch.int64, copy=True).bitwise_left_shift_(position_bits).bitwise_or_(positions)
    if packed.device.type == "cpu":
        # NumPy sorts int64 with vector instructions, about ten times faster than torch; both share the memory.
        packed.numpy().sort(axis=1)
    else:
        packed = packed.sort(dim=1).values
    order = packed & ((1 << position_bits) - 1)
    return packed.bitwise_right_shift_(position_bits), order


def runs(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """First and last position of the run of equal values that each place of a sorted ``(N, P)`` belongs to, int32."""
    positions = torch.arange(ordered.shape[1], device=ordered.device, dtype=torch.int32).expand_as(ordered)
    differs = ordered[:, 1:] != ordered[:, :-1]
    starts, ends = torch.zeros_like(positions), torch.full_like(positions, ordered.shape[1] - 1)
    starts[:, 1:] = positions[:, 1:] * differs
    ends[:, :-1] = torch.where(differs, positions[:, :-1], ends[:, :-1])
    return starts.cummax(dim=1).values, ends.flip(1).cummin(dim=1).values.flip(1)


def tied_pairs(ordered: Tensor) -> Tensor:
    """How many pairs of places of a sorted ``(N, P)`` hold equal values, ``(N,)`` int64."""
    first, last = runs(ordered)
    return (last - first).sum(dim=1, dtype=torch.int64) // 2  # a run of t places counts t (t - 1), twice its pairs


def inversions(permutation: Tensor) -> Tensor:
    """How many pairs of places of each row are in descending order, ``(N,)`` int64.

    Splits the values bit by bit, highest first: the values that share their higher bits form one group of known size,
    in which every 1 that stands before a 0 is an inversion. O(P log P) time, O(N P) memory, no comparison sort.

    Args:
        permutation: ``(N, P)`` int64; every row holds 0 ... P - 1 once.
    """
    rows, count = permutation.shape
    levels = max(count - 1, 1).bit_length()
    padding = torch.arange(count, 1 << levels, device=permutation.device).expand(rows, -1)
    values = torch.cat([permutation, padding], dim=1)  # ascending and largest: adds no inversion
    total = torch.zeros(rows, dtype=torch.int64, device=permutation.device)
    for level in range(levels - 1, -1, -1):
        half = 1 << level
        groups = values.reshape(rows, values.shape[1] // (2 * half), 2 * half)
        high = (groups >> level) & 1
        ones = high.cumsum(dim=2)
        total += (ones * (1 - high)).sum(dim=(1, 2))
        places = torch.arange(2 * half, device=values.device)
        target = torch.where(high.bool(), half - 1 + ones, places - ones)
        values = torch.empty_like(groups).scatter_(2, target, groups).flatten(1)
    return total
