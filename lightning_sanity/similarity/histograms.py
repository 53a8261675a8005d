"""Histograms of oriented gradients of batches of saliency maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sanity.similarity.correlation import centred_unit, inner_product, unit
from lightning_sanity.similarity.normalization import (
    Prepared,
    min_max,
    require_same_shape,
    wide,
)
from lightning_sanity.similarity.ranks import average_ranks


def hog_descriptor(
    maps: Tensor,
    orientations: int = 9,
    pixels_per_cell: tuple[int, int] | None = None,
    cells_per_block: tuple[int, int] = (3, 3),
) -> Tensor:
    """Histogram of oriented gradients with L2-Hys blocks, one vector per sample.

    Equals ``skimage.feature.hog`` to 1e-6 (which adds up each cell in float32), for a whole batch and on its device.

    Args:
        maps: ``(N, H, W)`` float32 or float64; not scaled here.
        orientations: Bins over 180 degrees.
        pixels_per_cell: Rows and columns of a cell. ``None``: 16 where the shorter side has at least 128 pixels, as in
            the 2018 experiments; 8 from 24 pixels on; below that a third of the shorter side, so that one block fits.
        cells_per_block: Rows and columns of a block, in cells.

    Returns:
        Descriptors ``(N, D)`` in float64; NaN in every place for a map with a NaN or infinity.

    Raises:
        ValueError: If not one block fits into a map.

    Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005.

    >>> hog_descriptor(torch.rand(2, 64, 64)).shape
    torch.Size([2, 2916])
    """
    samples, height, width = maps.shape
    shorter = min(height, width)
    cell = 16 if shorter >= 128 else min(8, max(1, shorter // 3))
    cell_rows, cell_columns = pixels_per_cell or (cell, cell)
    rows, columns = height // cell_rows, width // cell_columns
    block_rows, block_columns = cells_per_block
    if rows < block_rows or columns < block_columns:
        raise ValueError(
            f"hog needs {block_rows * cell_rows} x {block_columns * cell_columns} pixels for one block of "
            f"{block_rows} x {block_columns} cells, got maps of {height} x {width}; "
            "resize the maps or choose another similarity"
        )
    maps = wide(maps)
    down, right = torch.zeros_like(maps), torch.zeros_like(maps)
    down[:, 1:-1] = maps[:, 2:] - maps[:, :-2]
    right[:, :, 1:-1] = maps[:, :, 2:] - maps[:, :, :-2]
    magnitude = torch.hypot(right, down)
    degrees = (torch.atan2(down, right) * (180 / math.pi)).remainder(180.0)

    def per_cell(values: Tensor) -> Tensor:
        cropped = values[:, : rows * cell_rows, : columns * cell_columns]
        return cropped.reshape(samples, rows, cell_rows, columns, cell_columns).sum(dim=(2, 4))

    # An angle just below 0 rounds to 180 and falls into no bin, as in scikit-image. A loop over the bins instead of
    # scatter_add keeps the sums deterministic on CUDA.
    step = 180.0 / orientations
    bins = [
        per_cell(magnitude * ((degrees >= step * i) & (degrees < step * (i + 1)))) / (cell_rows * cell_columns)
        for i in range(orientations)
    ]
    blocks = torch.stack(bins, dim=3).unfold(1, block_rows, 1).unfold(2, block_columns, 1)
    blocks = blocks.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (N, block row, block column, cells x bins)
    clipped = _unit_length(blocks).clamp(max=0.2)
    descriptor: Tensor = _unit_length(clipped).flatten(1)
    finite = maps.isfinite().flatten(1).all(dim=1, keepdim=True)
    return descriptor.masked_fill(~finite, torch.nan)


def _unit_length(blocks: Tensor) -> Tensor:
    return blocks / (blocks.square().sum(dim=-1, keepdim=True) + 1e-5**2).sqrt()


def hog(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of the maps' `hog_descriptor`, each map scaled to [0, 1] first; ``(N,)`` in [-1, 1].

    Arguments, errors and NaN as in `spearman`; NaN also where a descriptor is constant. The paper cited there reports
    Pearson, its code computes Spearman: that is the registered "hog_spearman".
    """
    require_same_shape(a, b)
    return inner_product(hog_vectors(a), hog_vectors(b))


def hog_vectors(maps: Tensor) -> Prepared:
    """Descriptors, centred and at unit length."""
    return centred_unit(hog_descriptor(min_max(wide(maps))))


def hog_rank_vectors(maps: Tensor) -> Prepared:
    """Ranks of the bins of descriptors, centred and at unit length."""
    # Bins that differ in the last bits of float64 only, by the order of a summation, must tie: rank them as float32.
    ranks = average_ranks(hog_descriptor(min_max(wide(maps))).float())
    return unit(wide(ranks) - (ranks.shape[1] + 1) / 2)
