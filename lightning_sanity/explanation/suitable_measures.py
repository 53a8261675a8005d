"""Which similarities mean something on which inputs, and what a verdict on them rests on.

A rank correlation compares any two maps. Structural similarity and histograms of gradients look at windows: they need
an image, of some size. Volumes are left to the ranks: slices would give another answer for every axis they are cut
along, and an empty slice has none. A support needs positions and a constant background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_sanity.attribution.method import first
from lightning_sanity.explanation.kinds import TOKENS, Kind, positions, unsuited
from lightning_sanity.result.verdict import MEASURES
from lightning_sanity.similarity import Similarity, resolve, support_of, within

OF_TOKENS = ("cosine_signed", "euclidean_signed")
"""Beside the verdict's measures, what Kokhlikyan et al. 2021 (arXiv:2106.07475) compare the scores of tokens by."""


def measures_of(similarities: str | Similarity | Sequence[str | Similarity] | None) -> tuple[Similarity, ...]:
    """The verdict's measures and the user's, each once.

    Raises:
        ValueError: If a name is unknown.
    """
    resolved = [resolve(name) for name in (*MEASURES, *_asked(similarities))]
    return tuple({measure.name: measure for measure in resolved}.values())


def suited(
    similarities: str | Similarity | Sequence[str | Similarity] | None,
    value: Tensor,
    support: Tensor | None,
    mask: Tensor | None = None,
    *,
    kind: Kind,
) -> tuple[Similarity, ...]:
    """The verdict's measures as far as they mean something on these inputs, and all of the user's.

    Args:
        similarities: What the user asked for; None for nothing in particular.
        value: The explained input, its channels first.
        support: See ``support_in``.
        mask: What counts of each map ``(N, H, W)``; all of it if None.
        kind: Of the explained input.

    Raises:
        ValueError: If the user asked for what means nothing on these inputs.
    """
    asked = [resolve(name) for name in _asked(similarities)]
    for measure in asked:
        reason = unsuited(measure, value, support, kind)
        if reason is not None:
            named = ", ".join(m.name for m in measures_of(None) if fits(m, value, support, kind))
            raise ValueError(f"similarity '{measure.name}' means nothing here: {reason}; for these inputs: {named}")
    extra = [resolve(name) for name in OF_TOKENS] if kind is TOKENS else []
    usual = [m for m in measures_of(None) if fits(m, value, support, kind) and not (m.spatial and mask is not None)]
    found = {measure.name: measure for measure in (*usual, *extra, *asked)}.values()
    if mask is None:
        return tuple(found)
    inside = mask if support is None else mask & support
    return tuple(within(measure, inside if measure.on_support else mask) for measure in found)


def _asked(similarities: str | Similarity | Sequence[str | Similarity] | None) -> Sequence[str | Similarity]:
    if similarities is None:
        return ()
    return [similarities] if isinstance(similarities, (str, Similarity)) else similarities


def fits(measure: Similarity, value: Tensor, support: Tensor | None, kind: Kind) -> bool:
    """Whether a measure means something on this input."""
    return unsuited(measure, value, support, kind) is None


def support_in(values: Any) -> Tensor | None:
    """Positions that are not background, laid out like maps ``(N, H, W)``; None if most samples have no background."""
    placed = positions(first(values))
    if placed is None:
        return None
    support, has_background = support_of(placed)
    if not bool(has_background.float().mean() >= 0.5):
        return None
    return support & has_background[:, None, None]
