"""Correlations and distances: an inner product, or a distance, of vectors of unit length."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sanity.similarity.normalization import (
    Prepared,
    defined,
    min_max,
    require_same_shape,
    second_moment,
    wide,
)
from lightning_sanity.similarity.ranks import average_ranks


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman rank correlation of two batches of saliency maps, one value per sample.

    Ties share their mean rank, so it equals ``scipy.stats.spearmanr``.

    Args:
        a: Maps ``(N, H, W)``, any float dtype, on any device.
        b: Maps to compare with; same shape and device.

    Returns:
        Correlations ``(N,)`` in [-1, 1], float64; NaN where either map is constant or not finite.

    Raises:
        ValueError: If the shapes differ or are not ``(N, H, W)``.

    Used by Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv:1810.03292).

    >>> up = torch.arange(4.0).reshape(1, 2, 2)
    >>> spearman(up, -up)
    tensor([-1.], dtype=torch.float64)
    """
    require_same_shape(a, b)
    return inner_product(rank_vectors(a), rank_vectors(b))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation, ``(N,)`` in [-1, 1]; arguments, errors and NaN as in `spearman`."""
    require_same_shape(a, b)
    return inner_product(value_vectors(a), value_vectors(b))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between the maps as vectors, ``(N,)`` in [-1, 1]; arguments, errors and NaN as in `spearman`."""
    require_same_shape(a, b)
    return inner_product(direction_vectors(a), direction_vectors(b))


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean similarity ``1 - d / sqrt(2)``, ``(N,)`` in [1 - sqrt(2), 1]; 0 for orthogonal maps.

    ``d`` is the root mean square distance after `second_moment`, in [0, 2] for every map size. Arguments, errors and
    NaN as in `spearman`.
    """
    require_same_shape(a, b)
    return from_distance(direction_vectors(a), direction_vectors(b))


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Similarity from the mean squared error, ``1 - mse / 2``, ``(N,)`` in [-1, 1]; 0 for orthogonal maps.

    The error is taken after `second_moment`, which makes this the uncentred correlation, equal to `cosine`. Arguments,
    errors and NaN as in `spearman`.

    The normalisation is that of Binder et al., CVPR 2023 (see `second_moment`).
    """
    require_same_shape(a, b)
    return from_mse(direction_vectors(a), direction_vectors(b))


def centred_unit(vectors: Tensor) -> Prepared:
    """Vectors less their mean, at unit length: their products are correlations."""
    return unit(vectors - vectors.mean(dim=1, keepdim=True))


def unit(vectors: Tensor) -> Prepared:
    """Vectors ``(N, P)`` at unit length; NaN where one is zero."""
    return (vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True),)


def rank_vectors(maps: Tensor) -> Prepared:
    """Ranks of every map, centred and at unit length."""
    flat = defined(maps).flatten(1)
    return unit(wide(average_ranks(flat)) - (flat.shape[1] + 1) / 2)  # exact: ranks are whole or half


def value_vectors(maps: Tensor) -> Prepared:
    """Values of every map, centred and at unit length."""
    return centred_unit(min_max(wide(maps)).flatten(1))  # scaled first: squares of tiny values underflow


def direction_vectors(maps: Tensor) -> Prepared:
    """Every map as a vector of unit length."""
    return unit(second_moment(wide(maps)).flatten(1))


def inner_product(a: Prepared, b: Prepared) -> Tensor:
    """Inner products ``(N,)`` of unit vectors, within [-1, 1]."""
    return (a[0] * b[0]).sum(dim=1).clamp(-1, 1)


def _half_squared_distance(a: Prepared, b: Prepared) -> Tensor:
    return (a[0] - b[0]).square().sum(dim=1) / 2


def from_mse(a: Prepared, b: Prepared) -> Tensor:
    """``1 - mse / 2`` of unit vectors."""
    return 1 - _half_squared_distance(a, b)


def from_distance(a: Prepared, b: Prepared) -> Tensor:
    """``1 - d / sqrt(2)`` of unit vectors at distance ``d``."""
    return 1 - _half_squared_distance(a, b).sqrt()


# --- on part of a map


def support_ranks(maps: Tensor, support: Tensor) -> Prepared:
    """Ranks among the pixels of a support ``(N, H, W)``, and which these are."""
    if support.shape != maps.shape:
        raise ValueError(
            f"the support marks pixels of the maps, got shape {tuple(support.shape)} for maps of {tuple(maps.shape)}; "
            "pass support_of(inputs)[0], resized like the maps"
        )
    inside = support.bool().flatten(1)
    return average_ranks(defined(maps).flatten(1), inside), inside


def correlate_on_support(a: Prepared, b: Prepared) -> Tensor:
    """Pearson of the ranks over the pixels in both supports: Spearman where the supports are one, defined where not."""
    inside = a[1] & b[1]
    count = inside.sum(dim=1, keepdim=True)

    def centred(ranks: Tensor) -> Tensor:
        kept = wide(ranks).masked_fill(~inside, 0)
        return (kept - kept.sum(dim=1, keepdim=True) / count).masked_fill(~inside, 0)

    (left,), (right,) = unit(centred(a[0])), unit(centred(b[0]))
    return (left * right).sum(dim=1).clamp(-1, 1).masked_fill(count[:, 0] < 3, torch.nan)


def values_within(maps: Tensor, mask: Tensor) -> Prepared:
    """Scaled values, and which pixels count."""
    return min_max(wide(maps)).flatten(1), mask.flatten(1)


def directions_within(maps: Tensor, mask: Tensor) -> Prepared:
    """Unit vectors of what lies inside a mask."""
    return direction_vectors(maps * mask)  # what is 0 adds nothing to a product, nor to a length
