"""Pairs of maps of three kinds: continuous, mostly zero, and upsampled from a coarse grid."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor


def continuous(side: int, seed: int) -> Tensor:
    return torch.randn(2, side, side, generator=torch.Generator().manual_seed(seed))


def rectified(side: int, seed: int) -> Tensor:
    return (continuous(side, seed) - 0.2533).relu()  # 60 % zeros


def upsampled(side: int, seed: int) -> Tensor:
    coarse = rectified(7, seed)[:, None]
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")[:, 0]


MAPS = [
    pytest.param(kind, side, id=f"{kind.__name__}-{side}")
    for kind, side in [
        (continuous, 28),
        (rectified, 28),
        (continuous, 7),
        (rectified, 7),
        (upsampled, 56),
        (continuous, 224),
        (rectified, 224),
        (upsampled, 224),
    ]
]


def pair(kind: Callable[[int, int], Tensor], side: int) -> tuple[Tensor, Tensor]:
    a = kind(side, 1)
    return a, 0.5 * a + kind(side, 2)


def loop(oracle: Callable[[np.ndarray, np.ndarray], float], a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor([oracle(x, y) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]).double()


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
