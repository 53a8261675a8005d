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

from torch import Tensor

from lightning_sanity.resources.suggestions import unknown
from lightning_sanity.similarity.correlation import (
    correlate_on_support,
    direction_vectors,
    directions_within,
    from_distance,
    from_mse,
    inner_product,
    rank_vectors,
    support_ranks,
    value_vectors,
    values_within,
)
from lightning_sanity.similarity.histograms import hog_rank_vectors, hog_vectors
from lightning_sanity.similarity.normalization import NORMALIZATIONS, OF_SIGNED, Prepared, require_same_shape
from lightning_sanity.similarity.ordering import kendall_ranks, overlap_of, tau_b, top_k_membership
from lightning_sanity.similarity.structural import mean_ms_ssim, mean_ssim, scaled_moments, scaled_pyramid

LEAST_SIDE = 7
"""Pixels that a side of a map needs for structural similarity to mean something."""


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
        require_same_shape(a, b)
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
    if not isinstance(similarity, str):
        raise ValueError(f"a similarity is a name or a Similarity, not {similarity!r}")
    name, _, normalization = similarity.partition(".")
    if name not in _REGISTERED:
        raise ValueError(unknown("similarity", name, _REGISTERED))
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
        raise ValueError(unknown(f"normalization of '{similarity.name}':", normalization, NORMALIZATIONS))
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
        mask: ``(N, H, W)``, True for what counts; of the samples that will be compared, in their order. Maps of several
            models may be stacked: every ``N`` of them are of these samples.

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
        prepare=lambda maps, *_: prepare(maps, mask.to(maps.device).repeat(len(maps) // len(mask), 1, 1)),
        compare=compare or known.compare,
        on_support=False,
    )
    return normalized(bound, normalization) if normalization else bound


_LEGACY_SSIM = partial(mean_ssim, data_range=2.0, sample_covariance=True)  # scikit-image's defaults of 2018

_REGISTERED = {
    similarity.name: similarity
    for similarity in (
        Similarity("spearman", "magnitude", rank_vectors, inner_product, "none"),
        Similarity("spearman_signed", "signed", rank_vectors, inner_product, "none"),
        Similarity("spearman_support", "magnitude", support_ranks, correlate_on_support, "none", on_support=True),
        Similarity("pearson", "magnitude", value_vectors, inner_product, "none"),
        Similarity("cosine", "magnitude", direction_vectors, inner_product, "none"),
        Similarity("cosine_signed", "signed", direction_vectors, inner_product, "none"),
        Similarity("euclidean", "magnitude", direction_vectors, from_distance, "second_moment"),
        Similarity("euclidean_signed", "signed", direction_vectors, from_distance, "second_moment"),
        Similarity("mse", "magnitude", direction_vectors, from_mse, "second_moment"),
        Similarity("ssim", "magnitude", scaled_moments, mean_ssim, "min_max", spatial=True),
        Similarity("ssim_legacy", "signed", scaled_moments, _LEGACY_SSIM, "min_max", spatial=True),
        Similarity("ms_ssim", "magnitude", scaled_pyramid, mean_ms_ssim, "min_max", spatial=True),
        Similarity("hog", "magnitude", hog_vectors, inner_product, "min_max", spatial=True),
        Similarity("hog_spearman", "magnitude", hog_rank_vectors, inner_product, "min_max", spatial=True),
        Similarity("top_k_overlap", "magnitude", top_k_membership, overlap_of, "none"),
        Similarity("kendall", "magnitude", kendall_ranks, tau_b, "none"),
    )
}
_WITHIN: dict[Callable[..., Prepared], tuple[Callable[..., Prepared], Callable[..., Tensor] | None]] = {
    rank_vectors: (support_ranks, correlate_on_support),
    support_ranks: (support_ranks, correlate_on_support),
    value_vectors: (values_within, correlate_on_support),
    direction_vectors: (directions_within, None),
}
