"""Do the methods' maps agree with one another.

Practitioners see that methods contradict each other and choose by habit (Krishna et al., "The Disagreement Problem in
Explainable Machine Learning", arXiv:2202.01602, whose top-k and sign agreement these are). Agreement proves little:
methods of one family make the same mistakes, and two that copy the input agree perfectly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from torch import Tensor

from lightning_sanity.similarity.correlation import inner_product, rank_vectors
from lightning_sanity.similarity.ordering import overlap_of, top_k_membership

MEASURES = ("top_k", "rank", "sign")
"""Share of the largest tenth in common, rank correlation of magnitudes, share of equal signs among common largest."""

ALIKE = 0.5
"""Mean rank correlation from which methods' maps count as one cluster."""


@dataclass(frozen=True)
class Agreement:
    """How alike the maps of several methods are, sample by sample.

    Attributes:
        names: The methods.
        by_sample: Per measure ``(methods, methods, N)``; 1 = the same, NaN where undefined (a constant map; the sign
            of a method that has none).
        clusters: Methods whose maps go together: average linkage of the mean rank correlation, cut at ``ALIKE``.
    """

    names: tuple[str, ...]
    by_sample: Mapping[str, Tensor]
    clusters: tuple[tuple[str, ...], ...]

    def matrix(self, measure: str = "rank") -> Tensor:
        """Mean over samples, ``(methods, methods)``."""
        return self.by_sample[measure].nanmean(-1)

    def most_different(self, a: str, b: str, count: int = 3, measure: str = "rank") -> tuple[int, ...]:
        """The samples on which two methods disagree most, the worst first; undefined ones are left out."""
        values = self.by_sample[measure][self.names.index(a), self.names.index(b)]
        order = values.nan_to_num(nan=torch.inf).argsort(stable=True)
        return tuple(int(place) for place in order[: int(values.isfinite().sum())][:count])


def agreement_of(
    magnitudes: Mapping[str, Tensor], signed: Mapping[str, Tensor] | None = None, *, k: float = 0.1
) -> Agreement:
    """Compare every two methods' maps of the same samples.

    Args:
        magnitudes: Per method ``(N, H, W)``, ``sum_c |a_c|``.
        signed: Per method whose sign means something ``(N, H, W)``, ``sum_c a_c``.
        k: Share of the pixels that counts as largest; by chance two maps have this share of it in common.

    Returns:
        Their agreement. Sign agreement is the share of equal signs among the pixels that are largest in both maps.

    Raises:
        ValueError: If maps have different shapes.
    """
    shapes = {name: tuple(maps.shape) for name, maps in magnitudes.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"maps of one shape are compared; resize those that differ: {shapes}")
    names, signed = tuple(magnitudes), signed or {}
    samples = next(iter(shapes.values()), (0,))[0]
    largest = {name: top_k_membership(maps, k) for name, maps in magnitudes.items()}
    ranked = {name: rank_vectors(maps) for name, maps in magnitudes.items()}
    signs = {name: maps.detach().flatten(1).sign() for name, maps in signed.items()}
    table = {measure: torch.full((len(names), len(names), samples), torch.nan) for measure in MEASURES}
    for i, a in enumerate(names):
        for j, b in enumerate(names[: i + 1]):
            found = {
                "top_k": overlap_of(largest[a], largest[b]),
                "rank": inner_product(ranked[a], ranked[b]),
            }
            if a in signs and b in signs:
                found["sign"] = _equal_signs(signs[a], signs[b], torch.minimum(largest[a][0], largest[b][0]))
            for measure, values in found.items():
                table[measure][i, j] = table[measure][j, i] = values.float().cpu()
    return Agreement(names, table, _clusters(names, table["rank"].nanmean(-1)))


def _equal_signs(a: Tensor, b: Tensor, common: Tensor) -> Tensor:
    """Share of equal signs ``(N,)``, of pixels weighted by how much they are among the largest of both maps."""
    weight = common.sum(1)
    return torch.where(weight > 0, ((a == b) * common).sum(1) / weight, torch.nan)


def _clusters(names: tuple[str, ...], alike: Tensor) -> tuple[tuple[str, ...], ...]:
    """Groups of methods by average linkage; one whose agreement with others is undefined stays alone."""
    if len(names) < 2:
        return (names,) if names else ()
    distance = (1 - alike.double().nan_to_num(nan=-1.0)).fill_diagonal_(0.0).clamp_min(0)
    tree = hierarchy.linkage(squareform(distance.numpy(), checks=False), "average")
    labels = hierarchy.fcluster(tree, 1 - ALIKE, "distance")
    together: dict[int, list[str]] = {}
    for name, label in zip(names, labels, strict=True):
        together.setdefault(int(label), []).append(name)
    return tuple(tuple(group) for group in together.values())
