"""How alike two saliency maps are: batches of maps in, one number per sample out, 1 = the same.

A similarity is a pair of pure functions, ``compare(prepare(a), prepare(b))``: a map that is compared many times is
prepared once. Everything runs on the device of the maps; sample i never depends on sample j. A map that is constant or
holds a NaN or infinity has no similarity to anything: its value is NaN, never 0 ("unrelated") or 1 ("the same").
Values are float64 (float32 on MPS, which has no float64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lightning_sanity.similarity.histograms import hog_descriptor
from lightning_sanity.similarity.normalization import (
    NORMALIZATIONS,
    OF_SIGNED,
    defined,
    diverging,
    min_max,
    percentile_clipped,
    second_moment,
    wide,
)
from lightning_sanity.similarity.ranks import average_ranks, inversions, sort_packed, tied_pairs
from lightning_sanity.similarity.structural import mean_ms_ssim, mean_ssim, pyramid, window_moments
from lightning_sanity.similarity.support import support_of

__all__ = [
    "Prepared",
    "Similarity",
    "available",
    "average_ranks",
    "cosine",
    "diverging",
    "euclidean",
    "hog",
    "hog_descriptor",
    "kendall",
    "min_max",
    "ms_ssim",
    "mse",
    "normalized",
    "pearson",
    "percentile_clipped",
    "resolve",
    "second_moment",
    "spearman",
    "ssim",
    "support_of",
    "top_k_overlap",
    "within",
]

LEAST_SIDE = 7
"""Pixels that a side of a map needs for structural similarity to mean something."""

Prepared = tuple[Tensor, ...]
"""Maps made ready for comparison; samples are on dim 0 of every tensor, so rolling dim 0 pairs them anew."""


@dataclass(frozen=True)
class Similarity:
    """One way of comparing two batches of saliency maps.

    Attributes:
        name: What results call it.
        maps: The reduction of the attribution that it looks at: ``sum_c |a_c|`` or ``sum_c a_c``.
        prepare: ``prepare(maps)``, or ``prepare(maps, support)`` if ``on_support``; both arguments ``(N, H, W)``.
        compare: Two prepared batches to similarities ``(N,)``; symmetric, 1 = the same, NaN = undefined.
        normalization: What ``prepare`` does to each map first.
        on_support: Whether it looks at the pixels of the input's support only.
        spatial: Whether it looks at windows of an image, and means nothing where there is none.
    """

    name: str
    maps: Literal["magnitude", "signed"]
    prepare: Callable[..., Prepared]
    compare: Callable[[Prepared, Prepared], Tensor]
    normalization: str
    on_support: bool = False
    spatial: bool = False

    def __call__(self, a: Tensor, b: Tensor, support: Tensor | None = None) -> Tensor:
        """Similarities ``(N,)`` of maps ``(N, H, W)``; ``support`` is used only if ``on_support``.

        Raises:
            ValueError: If the shapes differ or are not ``(N, H, W)``, or a support is needed and missing.
        """
        _require_same_shape(a, b)
        if not self.on_support:
            return self.compare(self.prepare(a), self.prepare(b))
        if support is None:
            raise ValueError(f"similarity '{self.name}' looks at a support; pass support=support_of(inputs)[0]")
        return self.compare(self.prepare(a, support), self.prepare(b, support))


def available() -> tuple[str, ...]:
    """Names that `resolve` knows."""
    return tuple(_REGISTERED)


def resolve(similarity: str | Similarity) -> Similarity:
    """The similarity of this name; a `Similarity` is returned as it is.

    A name may carry a normalisation, as in "spearman.percentile_clipped": see `normalized`.

    Raises:
        ValueError: If no similarity, or no normalisation, has this name.

    >>> resolve("spearman").maps
    'magnitude'
    >>> resolve("spearman.diverging").maps
    'signed'
    """
    if isinstance(similarity, Similarity):
        return similarity
    name, _, normalization = similarity.partition(".")
    if name not in _REGISTERED:
        raise ValueError(f"unknown similarity '{name}'; choose from: {', '.join(_REGISTERED)}")
    return normalized(_REGISTERED[name], normalization) if normalization else _REGISTERED[name]


def normalized(similarity: Similarity, normalization: str) -> Similarity:
    """A similarity that normalises the maps in this way before its own preparation, named "similarity.normalization".

    Args:
        similarity: The similarity.
        normalization: "none", "abs" (magnitudes of the summed channels), "min_max", "diverging", "percentile_clipped"
            or "second_moment"; "abs" and "diverging" look at signed maps, the others at what the similarity looks at.

    Raises:
        ValueError: If no normalisation has this name.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"unknown normalization '{normalization}' of '{similarity.name}'; choose from: {', '.join(NORMALIZATIONS)}"
        )
    normalize, prepare = NORMALIZATIONS[normalization], similarity.prepare
    return replace(
        similarity,
        name=f"{similarity.name}.{normalization}",
        maps="signed" if normalization in OF_SIGNED else similarity.maps,
        prepare=lambda maps, *support: prepare(normalize(maps), *support),
        normalization=normalization,
    )


def within(similarity: Similarity, mask: Tensor) -> Similarity:
    """The same similarity, by the same name, of what lies inside a mask: real tokens without padding, for example.

    Args:
        similarity: One of ranks (Spearman), directions (cosine, euclidean, mse) or values (Pearson).
        mask: ``(N, H, W)``, True for what counts; of the samples that will be compared, in their order.

    Raises:
        ValueError: If this similarity has no meaning on part of a map.
    """
    base, _, normalization = similarity.name.partition(".")
    known = _REGISTERED.get(base)
    if known is None or known.spatial or known.prepare not in _WITHIN:
        meaningful = ", ".join(name for name, other in _REGISTERED.items() if other.prepare in _WITHIN)
        raise ValueError(f"similarity '{similarity.name}' has no meaning on part of a map; choose from: {meaningful}")
    prepare, compare = _WITHIN[known.prepare]
    bound = replace(
        known,
        prepare=lambda maps, *_: prepare(maps, mask.to(maps.device)),
        compare=compare or known.compare,
        on_support=False,
    )
    return normalized(bound, normalization) if normalization else bound


def _require_same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"a similarity compares maps of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; resize one of them"
        )


# --- similarities that are an inner product, or a distance, of vectors of unit length


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
    return _REGISTERED["spearman"](a, b)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation, ``(N,)`` in [-1, 1]; arguments, errors and NaN as in `spearman`."""
    return _REGISTERED["pearson"](a, b)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between the maps as vectors, ``(N,)`` in [-1, 1]; arguments, errors and NaN as in `spearman`."""
    return _REGISTERED["cosine"](a, b)


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean similarity ``1 - d / sqrt(2)``, ``(N,)`` in [1 - sqrt(2), 1]; 0 for orthogonal maps.

    ``d`` is the root mean square distance after `second_moment`, in [0, 2] for every map size. Arguments, errors and
    NaN as in `spearman`.
    """
    return _REGISTERED["euclidean"](a, b)


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Similarity from the mean squared error, ``1 - mse / 2``, ``(N,)`` in [-1, 1]; 0 for orthogonal maps.

    The error is taken after `second_moment`, which makes this the uncentred correlation, equal to `cosine`. Arguments,
    errors and NaN as in `spearman`.

    The normalisation is that of Binder et al., CVPR 2023 (see `second_moment`).
    """
    return _REGISTERED["mse"](a, b)


def hog(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of the maps' `hog_descriptor`, each map scaled to [0, 1] first; ``(N,)`` in [-1, 1].

    Arguments, errors and NaN as in `spearman`; NaN also where a descriptor is constant. The paper cited there reports
    Pearson, its code computes Spearman: that is the registered "hog_spearman".
    """
    return _REGISTERED["hog"](a, b)


def _centred_unit(vectors: Tensor) -> Prepared:
    return _unit(vectors - vectors.mean(dim=1, keepdim=True))


def _unit(vectors: Tensor) -> Prepared:
    return (vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True),)


def _rank_vectors(maps: Tensor) -> Prepared:
    flat = defined(maps).flatten(1)
    return _unit(wide(average_ranks(flat)) - (flat.shape[1] + 1) / 2)  # exact: ranks are whole or half


def _value_vectors(maps: Tensor) -> Prepared:
    return _centred_unit(min_max(wide(maps)).flatten(1))  # scaled first: squares of tiny values underflow


def _direction_vectors(maps: Tensor) -> Prepared:
    return _unit(second_moment(wide(maps)).flatten(1))


def _hog_vectors(maps: Tensor) -> Prepared:
    return _centred_unit(hog_descriptor(min_max(wide(maps))))


def _hog_rank_vectors(maps: Tensor) -> Prepared:
    # Bins that differ in the last bits of float64 only, by the order of a summation, must tie: rank them as float32.
    ranks = average_ranks(hog_descriptor(min_max(wide(maps))).float())
    return _unit(wide(ranks) - (ranks.shape[1] + 1) / 2)


def _inner_product(a: Prepared, b: Prepared) -> Tensor:
    return (a[0] * b[0]).sum(dim=1).clamp(-1, 1)


def _half_squared_distance(a: Prepared, b: Prepared) -> Tensor:
    return (a[0] - b[0]).square().sum(dim=1) / 2


def _from_mse(a: Prepared, b: Prepared) -> Tensor:
    return 1 - _half_squared_distance(a, b)


def _from_distance(a: Prepared, b: Prepared) -> Tensor:
    return 1 - _half_squared_distance(a, b).sqrt()


# --- similarities of ranks that need more than an inner product


def _support_ranks(maps: Tensor, support: Tensor) -> Prepared:
    if support.shape != maps.shape:
        raise ValueError(
            f"the support marks pixels of the maps, got shape {tuple(support.shape)} for maps of {tuple(maps.shape)}; "
            "pass support_of(inputs)[0], resized like the maps"
        )
    inside = support.bool().flatten(1)
    return average_ranks(defined(maps).flatten(1), inside), inside


def _correlate_on_support(a: Prepared, b: Prepared) -> Tensor:
    """Pearson of the ranks over the pixels in both supports: Spearman where the supports are one, defined where not."""
    inside = a[1] & b[1]
    count = inside.sum(dim=1, keepdim=True)

    def centred(ranks: Tensor) -> Tensor:
        kept = wide(ranks).masked_fill(~inside, 0)
        return (kept - kept.sum(dim=1, keepdim=True) / count).masked_fill(~inside, 0)

    (left,), (right,) = _unit(centred(a[0])), _unit(centred(b[0]))
    return (left * right).sum(dim=1).clamp(-1, 1).masked_fill(count[:, 0] < 3, torch.nan)


def _values_within(maps: Tensor, mask: Tensor) -> Prepared:
    return min_max(wide(maps)).flatten(1), mask.flatten(1)


def _directions_within(maps: Tensor, mask: Tensor) -> Prepared:
    return _direction_vectors(maps * mask)  # what is 0 adds nothing to a product, nor to a length


def kendall(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's tau-b, ``(N,)`` in [-1, 1], equal to ``scipy.stats.kendalltau``.

    Arguments, errors and NaN as in `spearman`. Every comparison sorts twice and counts inversions, O(P log P) for P
    pixels with O(N P) memory: ten to twenty times the cost of `spearman`.
    """
    return _REGISTERED["kendall"](a, b)


def _kendall_ranks(maps: Tensor) -> Prepared:
    return (average_ranks(defined(maps).flatten(1)),)


def _tau_b(a: Prepared, b: Prepared) -> Tensor:
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
    _require_same_shape(a, b)
    return _overlap(_top_k_membership(a, k), _top_k_membership(b, k))


def _top_k_membership(maps: Tensor, k: float = 0.1) -> Prepared:
    flat = defined(maps).flatten(1)
    places = max(1, int(k * flat.shape[1] + 0.5))
    threshold = flat.topk(places, dim=1).values[:, -1:]
    above, tied = flat > threshold, flat == threshold
    left = places - above.sum(dim=1, keepdim=True)
    membership = wide(above) + wide(tied) * wide(left) / tied.sum(dim=1, keepdim=True)
    return (membership.masked_fill(flat.isnan(), torch.nan) / places,)


def _overlap(a: Prepared, b: Prepared) -> Tensor:
    return torch.minimum(a[0], b[0]).sum(dim=1).clamp(max=1)


# --- structural similarity


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
    _require_same_shape(a, b)
    left, right = window_moments(wide(defined(a))), window_moments(wide(defined(b)))
    return mean_ssim(left, right, data_range=data_range, sample_covariance=sample_covariance)


def ms_ssim(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Multi-scale structural similarity, ``(N,)`` in [0, 1]; arguments, errors and NaN as in `ssim`.

    Contrast and structure at every scale, luminance at the coarsest; a negative mean at a scale counts as 0. Five
    scales need 176 pixels a side. Smaller maps use the scales at which the window still fits, at least one, with the
    weights of those scales rescaled to sum to 1.

    Wang, Simoncelli and Bovik, "Multiscale Structural Similarity for Image Quality Assessment", Asilomar 2003.
    """
    _require_same_shape(a, b)
    left, right = pyramid(wide(defined(a))), pyramid(wide(defined(b)))
    return mean_ms_ssim(left, right, data_range=data_range)


def _scaled_moments(maps: Tensor) -> Prepared:
    return window_moments(min_max(wide(maps)))


def _scaled_pyramid(maps: Tensor) -> Prepared:
    return pyramid(min_max(wide(maps)))


_LEGACY_SSIM = partial(mean_ssim, data_range=2.0, sample_covariance=True)  # scikit-image's defaults of 2018

_REGISTERED = {
    similarity.name: similarity
    for similarity in (
        Similarity("spearman", "magnitude", _rank_vectors, _inner_product, "none"),
        Similarity("spearman_signed", "signed", _rank_vectors, _inner_product, "none"),
        Similarity("spearman_support", "magnitude", _support_ranks, _correlate_on_support, "none", on_support=True),
        Similarity("pearson", "magnitude", _value_vectors, _inner_product, "none"),
        Similarity("cosine", "magnitude", _direction_vectors, _inner_product, "none"),
        Similarity("cosine_signed", "signed", _direction_vectors, _inner_product, "none"),
        Similarity("euclidean", "magnitude", _direction_vectors, _from_distance, "second_moment"),
        Similarity("euclidean_signed", "signed", _direction_vectors, _from_distance, "second_moment"),
        Similarity("mse", "magnitude", _direction_vectors, _from_mse, "second_moment"),
        Similarity("ssim", "magnitude", _scaled_moments, mean_ssim, "min_max", spatial=True),
        Similarity("ssim_legacy", "signed", _scaled_moments, _LEGACY_SSIM, "min_max", spatial=True),
        Similarity("ms_ssim", "magnitude", _scaled_pyramid, mean_ms_ssim, "min_max", spatial=True),
        Similarity("hog", "magnitude", _hog_vectors, _inner_product, "min_max", spatial=True),
        Similarity("hog_spearman", "magnitude", _hog_rank_vectors, _inner_product, "min_max", spatial=True),
        Similarity("top_k_overlap", "magnitude", _top_k_membership, _overlap, "none"),
        Similarity("kendall", "magnitude", _kendall_ranks, _tau_b, "none"),
    )
}
_WITHIN: dict[Callable[..., Prepared], tuple[Callable[..., Prepared], Callable[..., Tensor] | None]] = {
    _rank_vectors: (_support_ranks, _correlate_on_support),
    _support_ranks: (_support_ranks, _correlate_on_support),
    _value_vectors: (_values_within, _correlate_on_support),
    _direction_vectors: (_directions_within, None),
}
