"""Structural similarity of saliency maps, at one scale and at several."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from lightning_sanity.similarity.normalization import (
    Prepared,
    defined,
    min_max,
    require_same_shape,
    wide,
)

_RADIUS = 5  # scipy's: int(3.5 sigma + 0.5) at sigma 1.5
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ssim(a: Tensor, b: Tensor, *, data_range: float = 1.0, sample_covariance: bool = False) -> Tensor:
    """Structural similarity with an 11-pixel Gaussian window (sigma 1.5), ``(N,)`` in [-1, 1].

    Takes maps that are scaled already, see `min_max`; the registered "ssim" scales them itself. Equals
    ``skimage.metrics.structural_similarity(a, b, gaussian_weights=True, sigma=1.5, data_range=data_range,
    use_sample_covariance=sample_covariance)`` in float64. For maps with a side shorter than 11 pixels it equals the
    same call with ``win_size`` the largest odd number that fits.

    Args:
        a: Scaled maps ``(N, H, W)``, any float dtype, on any device.
        b: Maps to compare with; same shape and device.
        data_range: Width of the range of values; with 2 the stabilising constants are those of the 2018 experiments.
        sample_covariance: Divide by one pixel less than the window has, as those experiments did.

    Returns:
        Mean structural similarities ``(N,)``, float64; NaN where either map is constant or not finite.

    Raises:
        ValueError: If the shapes differ or are not ``(N, H, W)``.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004.

    >>> maps = torch.rand(2, 16, 16)
    >>> torch.allclose(ssim(maps, maps), torch.ones(2, dtype=torch.float64))
    True
    """
    require_same_shape(a, b)
    left, right = window_moments(wide(defined(a))), window_moments(wide(defined(b)))
    return mean_ssim(left, right, data_range=data_range, sample_covariance=sample_covariance)


def ms_ssim(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Multi-scale structural similarity, ``(N,)`` in [0, 1]; arguments, errors and NaN as in `ssim`.

    Contrast and structure at every scale, luminance at the coarsest; a negative mean at a scale counts as 0. Five
    scales need 176 pixels a side. Smaller maps use the scales at which the window still fits, at least one, with the
    weights of those scales rescaled to sum to 1.

    Wang, Simoncelli and Bovik, "Multiscale Structural Similarity for Image Quality Assessment", Asilomar 2003.
    """
    require_same_shape(a, b)
    left, right = pyramid(wide(defined(a))), pyramid(wide(defined(b)))
    return mean_ms_ssim(left, right, data_range=data_range)


def scaled_moments(maps: Tensor) -> Prepared:
    """Window moments of maps scaled to [0, 1]."""
    return window_moments(min_max(wide(maps)))


def scaled_pyramid(maps: Tensor) -> Prepared:
    """Window moments of scaled maps at every scale."""
    return pyramid(min_max(wide(maps)))


@lru_cache(maxsize=32)
def _window_matrix(size: int, margin: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The Gaussian window as a matrix ``(size - 2 margin, size)``; what leaves the map is reflected at its edge."""
    offsets = torch.arange(-_RADIUS, _RADIUS + 1)
    taps = torch.exp(-0.5 * (offsets.double() / 1.5) ** 2)
    source = (torch.arange(margin, size - margin)[:, None] + offsets) % (2 * size)
    source = torch.where(source < size, source, 2 * size - 1 - source)
    matrix = torch.zeros(source.shape[0], size, dtype=torch.float64)
    matrix.scatter_add_(1, source, (taps / taps.sum()).expand_as(source))
    return matrix.to(device=device, dtype=dtype)


def _window_means(maps: Tensor) -> Tensor:
    """Gaussian means at the pixels whose window fits, ``(N, h, w)``, as two products with banded matrices."""
    height, width = maps.shape[1:]
    margin = _margin(height, width)
    rows = _window_matrix(height, margin, maps.dtype, maps.device)
    columns = _window_matrix(width, margin, maps.dtype, maps.device).T
    if margin < _RADIUS or maps.device.type != "cpu":
        return rows @ (maps @ columns)
    # Only a band of the matrices is not 0: on a CPU, blocks along the band save two thirds of the work at 224 pixels.
    across = torch.cat(
        [
            maps[:, :, i : i + 32 + 2 * _RADIUS] @ columns[i : i + 32 + 2 * _RADIUS, i : i + 32]
            for i in range(0, columns.shape[1], 32)
        ],
        dim=2,
    )
    down = [
        rows[i : i + 32, i : i + 32 + 2 * _RADIUS] @ across[:, i : i + 32 + 2 * _RADIUS]
        for i in range(0, rows.shape[0], 32)
    ]
    return torch.cat(down, dim=1)


def _margin(height: int, width: int) -> int:
    return min(_RADIUS, (min(height, width) - 1) // 2)


def window_moments(maps: Tensor) -> tuple[Tensor, ...]:
    """Maps, their windowed means and their windowed variances."""
    mean = _window_means(maps)
    return maps, mean, _window_means(maps * maps) - mean * mean


def _ssim_terms(
    a: tuple[Tensor, ...], b: tuple[Tensor, ...], data_range: float, sample_covariance: bool = False
) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, at every pixel."""
    (maps_a, mean_a, variance_a), (maps_b, mean_b, variance_b) = a, b
    product = mean_a * mean_b
    pixels = (2 * _margin(*maps_a.shape[1:]) + 1) ** 2
    unbias = pixels / (pixels - 1) if sample_covariance and pixels > 1 else 1.0
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * product + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    covariance = _window_means(maps_a * maps_b).sub_(product)
    structure = covariance.mul_(2 * unbias).add_(c2).div_((variance_a + variance_b).mul_(unbias).add_(c2))
    return luminance, structure


def mean_ssim(
    a: tuple[Tensor, ...], b: tuple[Tensor, ...], *, data_range: float = 1.0, sample_covariance: bool = False
) -> Tensor:
    """Mean structural similarity ``(N,)`` of two `window_moments`; see `lightning_sanity.similarity.ssim`."""
    luminance, structure = _ssim_terms(a, b, data_range, sample_covariance)
    return luminance.mul_(structure).mean(dim=(1, 2))


def pyramid(maps: Tensor) -> tuple[Tensor, ...]:
    """The `window_moments` of the maps and of their halvings, one after the other."""
    levels = list(window_moments(maps))
    while len(levels) < 3 * len(_SCALE_WEIGHTS) and min(maps.shape[1:]) // 2 > 2 * _RADIUS:
        maps = torch.nn.functional.avg_pool2d(maps, 2)
        levels += window_moments(maps)
    return tuple(levels)


def mean_ms_ssim(a: tuple[Tensor, ...], b: tuple[Tensor, ...], *, data_range: float = 1.0) -> Tensor:
    """Multi-scale similarity ``(N,)`` of two `pyramid`; see `lightning_sanity.similarity.ms_ssim`."""
    weights = _SCALE_WEIGHTS[: len(a) // 3]
    result = torch.ones_like(a[0][:, 0, 0])
    for scale, weight in enumerate(weights):
        luminance, structure = _ssim_terms(a[3 * scale : 3 * scale + 3], b[3 * scale : 3 * scale + 3], data_range)
        term = structure if scale < len(weights) - 1 else luminance * structure
        result = result * term.mean(dim=(1, 2)).clamp(min=0) ** (weight / sum(weights))
    return result
