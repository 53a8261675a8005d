"""Whether maps carry signal: the noise guard, and rank tests for dependence on the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

LEAST_EFFECT = 0.05
"""By how much a map must resemble its noisy repeat more than another sample's map, on average, to carry signal.

Significance decides; this only keeps a large probe from calling a trace of signal one. A deep network's gradient may
be at 0.2, noise is at 0.
"""


@dataclass(frozen=True)
class Signal:
    """Whether the trained model's maps carry signal.

    Attributes:
        separation: Mean similarity under a little input noise minus mean similarity to other samples' maps.
        p: Probability of ranks this good if a map resembled its noisy repeat no more than another sample's map.
    """

    separation: float
    p: float

    def found(self, alpha: float) -> bool:
        """Whether there is some, at the level ``alpha``."""
        return self.p <= alpha and self.separation >= LEAST_EFFECT


def signal(noise: Tensor, cross: Tensor) -> Signal:
    """The noise guard: per-sample ranks of ``noise`` among ``cross``, combined over samples.

    Args:
        noise: Similarity to the map of the slightly noisy input, ``(repeats, N)``.
        cross: Similarity to the maps of other samples, ``(K, N)``.
    """
    repeated = noise.double().nanmean(0)
    known = repeated.isfinite() & cross.isfinite().all(0)
    return Signal(float(repeated[known].mean() - cross.double()[:, known].mean()), rank_p(repeated, cross))


def dependence(kept: Tensor, randomised: Tensor) -> float:
    """Probability of maps this different if the method did not depend on the weights at all.

    Under that null, the similarity of a trained map to the map of the same model on a noisy input, and to the maps
    of re-initialised models on inputs with noise of their own, are exchangeable for each sample. Dependence is needed,
    but not enough: a copy of the input to which a little gradient is added depends on the weights as well.

    Args:
        kept: Similarity of the trained model's maps to its maps under input noise, ``(N,)``.
        randomised: The same for the re-initialised models, each trial with noise of its own, ``(trials, N)``.

    Besag & Clifford, "Generalized Monte Carlo significance tests", Biometrika 1989, per sample.
    """
    return rank_p(kept, randomised)


def rank_p(one: Tensor, others: Tensor) -> float:
    """One-sided probability that ``one`` ``(N,)`` exceeds its exchangeable ``others`` ``(K, N)`` by chance.

    The rank of each sample's value is uniform on ``{1/(K+1), ..., 1}`` and the samples are independent, so that the
    mean rank is close to normal with known moments. NaN without a single defined sample.
    """
    known = one.isfinite() & others.isfinite().all(0)
    if not bool(known.any()) or len(others) == 0:
        return math.nan
    one, others = one.double()[known], others.double()[:, known]
    count, samples = others.shape
    ranks = (1 + (others >= one).sum(0)) / (count + 1)
    mean, variance = (count + 2) / (2 * (count + 1)), ((count + 1) ** 2 - 1) / (12 * (count + 1) ** 2 * samples)
    z = (float(ranks.mean()) - mean) / math.sqrt(variance)
    return 0.5 * math.erfc(-z / math.sqrt(2))


def holm(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Probabilities adjusted for their number, so that at most ``alpha`` of such families holds a false rejection.

    NaN entries stay NaN and do not count. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    known = sorted((p, name) for name, p in probabilities.items() if not math.isnan(p))
    adjusted, largest = dict(probabilities), 0.0
    for place, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - place) * p))
        adjusted[name] = largest
    return adjusted
