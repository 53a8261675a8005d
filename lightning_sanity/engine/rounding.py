"""What rounding does to a map: how far the plain path's own map is from the one in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.explanation.maps import Explanation

_AS_FAR = 4.0  # times its own distance from the exact map, that the plain map may be from another
_MOST = 0.25  # of its norm, beyond which no rounding excuses a difference


def relative(ours: Tensor, plain: Tensor) -> float:
    """The norm of a difference as a share of the plain map's norm."""
    norm = torch.linalg.vector_norm
    return float(norm((ours - plain).double()) / norm(plain.double()).clamp_min(1e-300))


def rounding_explains(off: float, plain: Tensor, exact: Callable[[], Tensor]) -> bool:
    """Whether two ways of rounding may part maps so far.

    Args:
        off: How far another map is from the plain one, as a share of its norm.
        plain: The plain map.
        exact: Makes the plain map in double precision.
    """
    if not off <= _MOST:
        return False
    try:
        return off <= _AS_FAR * relative(exact(), plain)
    except Exception:  # a device or a module without double precision
        return False


def in_double(what: Explanation) -> Explanation:
    """The explanation by a copy of the model that computes in double precision, of the same inputs."""
    return replace(what, model=_Double(what.model).eval())


class _Double(nn.Module):
    """Takes and returns what the model does, whose random draws then stay the same."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).double()

    def forward(self, *arguments: Any) -> Any:
        """Scores in the precision of the inputs."""
        kind = next(each.dtype for each in arguments if isinstance(each, Tensor) and each.is_floating_point())
        wide = [each.double() if isinstance(each, Tensor) and each.is_floating_point() else each for each in arguments]
        return self.model(*wide).to(kind)
