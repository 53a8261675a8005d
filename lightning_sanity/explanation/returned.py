"""What a method of somebody else's returned, as an attribution: numbers of any kind, maps of many shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sanity.attribution.layers import resized


class NoAttribution(ValueError):
    """What a guest returned is no attribution; the message goes on after the method's name."""


ADVICE = {
    list: ": torch.stack(maps) makes one of a list with a map per sample",
    tuple: ": torch.stack(maps) makes one of a tuple with a map per sample, or return its first entry",
    dict: ": return the entry that holds the maps",
    type(None): ": is its return missing? Where it takes x.grad, x must be a leaf: x = x.detach().requires_grad_()",
}
"""What to do about a value that is no tensor."""


def stacked(maps: Sequence[Any]) -> Any:
    """One tensor of a map per sample; what was given where that cannot be."""
    try:
        return torch.stack([torch.as_tensor(one).detach() for one in maps])
    except (RuntimeError, TypeError, ValueError):
        return maps


def turned(got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """How the axes have to be turned, if that is all there is to it."""
    last = len(wanted) - 1
    if len(got) == len(wanted) > 2 and got == (wanted[0], *wanted[2:], wanted[1]):
        return f": channels come last; return maps.movedim({last}, 1)"
    if got == wanted[1:]:
        return ": the batch dimension is missing"
    return ""


def attribution_of(returned: Any, value: Tensor) -> tuple[Tensor, str | None]:
    """What a guest returned as an attribution of ``value``, and what was made of it, if it was not one already.

    Args:
        returned: A tensor or array of floats of any width, integers or bool, alone or the only one of a list or tuple:
            shaped like ``value``; or maps of its positions ``(N, H, W)``, ``(N, K, H, W)`` with any number of
            channels, which are summed; or coarser maps, which are interpolated.
        value: The explained input ``(N, C, *sides)`` or ``(N, F)``.

    Returns:
        A tensor shaped like ``value`` or with one channel, which shares no memory with what was returned.

    Raises:
        NoAttribution: If it is none of these: with both shapes.
    """
    if isinstance(returned, (list, tuple)) and len(returned) == len(value):
        returned = stacked(returned)
    found, remark = _real(returned), None
    wanted, got = tuple(value.shape), tuple(found.shape)
    found = found.detach().to(value.device, _number(found.dtype), copy=True)
    if got == wanted:
        return found, None
    sides = wanted[2:]
    if not sides or got[:1] != wanted[:1] or len(got) not in (len(wanted), len(wanted) - 1):
        raise _no_shape(got, wanted)
    found = found[:, None] if len(got) < len(wanted) else found
    if found.shape[1] == 0 or not all(0 < ours <= theirs for ours, theirs in zip(found.shape[2:], sides, strict=True)):
        raise _no_shape(got, wanted)
    if found.shape[1] not in (1, wanted[1]):
        remark = f"returned {found.shape[1]} channels, which were summed"
    found = found if found.shape[2:] == sides and found.shape[1] == wanted[1] else found.sum(1, keepdim=True)
    if tuple(found.shape[2:]) != sides:
        coarse = " x ".join(map(str, found.shape[2:]))
        remark = f"returned maps of {coarse}, which were interpolated to {' x '.join(map(str, sides))}"
        found = resized(found, found.new_empty(()).expand(wanted))
    return found, remark


def _no_shape(got: tuple[int, ...], wanted: tuple[int, ...]) -> NoAttribution:
    return NoAttribution(
        f"returned shape {got} for an input of shape {wanted}: an attribution is shaped like the input, or is one map "
        f"per sample, no larger than the input{turned(got, wanted)}"
    )


def _real(returned: Any) -> Tensor:
    """The one dense tensor of real numbers that was returned."""
    if isinstance(returned, (list, tuple)) and len(returned) == 1:
        returned = returned[0]
    if not isinstance(returned, Tensor):
        if not hasattr(returned, "__array__"):
            raise NoAttribution(
                f"returned {type(returned).__name__} instead of a tensor{ADVICE.get(type(returned), '')}"
            )
        array = np.array(returned)
        if array.dtype.kind not in "biufc":
            raise NoAttribution(f"returned an array of {array.dtype} instead of numbers")
        returned = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    if returned.is_complex() or returned.layout is not torch.strided or returned.is_quantized:
        kind = "complex numbers" if returned.is_complex() else "a sparse or quantised tensor"
        raise NoAttribution(
            f"returned {kind} ({returned.dtype}, {returned.layout}) of shape {tuple(returned.shape)}: an attribution "
            "is a dense tensor of real numbers"
        )
    return returned


def _number(dtype: torch.dtype) -> torch.dtype:
    """In what an attribution of this type is exact."""
    if dtype.is_floating_point:
        return dtype if dtype.itemsize > 1 else torch.float32
    return torch.float32 if dtype.itemsize <= 2 else torch.float64
