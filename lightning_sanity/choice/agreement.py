"""Do the methods' maps agree with one another.

Practitioners see that methods contradict each other and choose by habit (Krishna et al., "The Disagreement Problem in
Explainable Machine Learning", arXiv:2202.01602, whose top-k and sign agreement these are). Agreement proves little:
methods of one family make the same mistakes, and two that copy the input agree perfectly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

MEASURES = ("top_k", "rank", "sign")
"""Share of the largest tenth in common, rank correlation of magnitudes, share of equal signs among common largest."""


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
        return ()


def agreement_of(
    magnitudes: Mapping[str, Tensor], signed: Mapping[str, Tensor] | None = None, *, k: float = 0.1
) -> Agreement:
    """Compare every two methods' maps of the same samples.

    Args:
        magnitudes: Per method ``(N, H, W)``, ``sum_c |a_c|``.
        signed: Per method whose sign means something ``(N, H, W)``, ``sum_c a_c``.
        k: Share of the pixels that counts as largest.
    """
