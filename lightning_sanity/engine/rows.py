"""Where the rows of samples lie in a value, told from two runs with other numbers of samples."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor


def stretched(few: torch.Size, many: torch.Size, by: float | Fraction) -> int | None:
    """The one dimension in which two shapes differ, if it is ``by`` times as long in the second; else None."""
    if len(few) != len(many):
        return None
    dims = [dim for dim, (a, b) in enumerate(zip(few, many, strict=True)) if a != b]
    return dims[0] if len(dims) == 1 and by * few[dims[0]] == many[dims[0]] else None


def same(a: Any, b: Any) -> bool:
    """Whether two values that are no tensors are equal, as far as they can be compared."""
    try:
        return bool(a is b or a == b)
    except Exception:
        return False


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal but for the rounding of another batch."""
    if torch.equal(a, b):
        return True
    if a.dtype != b.dtype or not (a.is_floating_point() or a.is_complex()) or not a.numel():
        return False
    largest = float(torch.where(a.isfinite(), a, 0).abs().amax())
    return math.isfinite(largest) and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
