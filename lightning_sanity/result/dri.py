"""Data randomization index (DRI) of models trained on true and on permuted labels, and the exchange of their kinds.

With three models of a kind, an interval by Student's t would span everything; these resample models and samples.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from lightning_sanity.resources.random_streams import generator
from lightning_sanity.result.bootstrap import RESAMPLES, counts, percentiles, psi, variance
from lightning_sanity.result.psi import Interval, Sensitivity
from lightning_sanity.result.sanity_result import Outcome, Verdict
from lightning_sanity.result.verdict import SIGNED, Criterion, Evidence, Wording, conclude

_GROUPINGS = 20_000

LABELS = Wording(
    index="DRI",
    kept="the map keeps too much of itself in a model that learned random labels",
    same="the map is the same whatever labels the model was trained on: it does not look at what was learned",
    changed="the map changes with the labels",
    unit="models of each kind",
    least=3,
    too_few="too few models to tell labels from chance: {}; train three of each kind with different seeds",
)


def label_sensitivity(
    values: Tensor,
    floor: Tensor,
    ceiling: Tensor,
    groups: tuple[int, int],
    *,
    absolute: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Sensitivity:
    """DRI, the data randomization index: PSI of one step, permuted labels, with retrained models for the ceiling.

    ``DRI = (S_seed - S_perm) / (S_seed - U)``, S_seed between models that differ in their training seed only. Its
    interval resamples the models of either kind and the samples; a draw of one true-label model alone has no S_seed and
    is left out. With three models of a kind such an interval is rough, and rather too narrow.

    Args:
        values: Similarity of every true-label model's maps to every permuted-label model's, the latter changing
            fastest; ``(Ks * Kr, 1, N)``.
        floor: Similarity to unrelated samples' maps, same shape.
        ceiling: Similarity between true-label models, in the order of ``itertools.combinations``, ``(pairs, N)``; with
            one such model, similarity of repeats of its explanation ``(repeats, N)``.
        groups: Ks and Kr.
        absolute: See ``sensitivity``.
        seed: Of the resampling.
        resamples: Number of bootstrap resamples.
    """
    values, floor, ceiling = (t.double().abs() if absolute else t.double() for t in (values, floor, ceiling))
    samples, rng = values.shape[-1], generator(seed, "bootstrap")
    by_true, by_permuted, by_sample = (counts(size, resamples, rng) for size in (*groups, samples))

    def estimate(true: Tensor, permuted: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        pairs = (true[:, :, None] * permuted[:, None]).flatten(1)
        one, other = torch.triu_indices(groups[0], groups[0], 1)
        return psi(values, floor, ceiling, pairs, sample, true[:, one] * true[:, other] if groups[0] > 1 else None)

    alone = [torch.ones(1, size, dtype=torch.float64) for size in (*groups, samples)]
    point, separation = estimate(*alone)
    both, apart = estimate(by_true, by_permuted, by_sample)
    by_models = estimate(by_true, by_permuted, alone[2].expand(resamples, -1))[0]
    low, high = percentiles(both)
    interval = Interval(float(point), low, high, min(1.0, variance(by_models) / max(variance(both), 1e-12)))
    return Sensitivity(interval, float(point), float(point), float(separation), percentiles(apart)[0])


def judge_labels(
    evidence: Evidence, groups: tuple[int, int], criterion: Criterion, *, gated: bool = True, seed: int = 0
) -> Verdict:
    """The verdict on one method; see ``verdict.conclude``.

    Args:
        evidence: What was measured, in the shapes of ``label_sensitivity``.
        groups: How many true-label and permuted-label models there are.
        criterion: What a method must show.
        gated: Whether the method counts.
        seed: Of the resampling.
    """
    if evidence.trivial is not None:
        return Verdict(Outcome.INCONCLUSIVE, evidence.trivial, gated=gated)
    found = {
        name: label_sensitivity(
            values, evidence.floor[name], evidence.ceiling[name], groups, absolute=name == SIGNED, seed=seed
        )
        for name, values in evidence.values.items()
        if not bool(values.isnan().all())
    }
    # Where training again leaves no more likeness than chance does, permuting the labels cannot take any away.
    telling = {name: each for name, each in found.items() if each.separation_low > 0}
    flat = None if telling else "training again changes these maps as much as another image does: labels cannot be seen"
    return conclude(telling or found, evidence, criterion, LABELS, min(groups), flat, gated=gated)


def label_permutation(likeness: Tensor, true: int) -> float:
    """Probability of a group of true-label models this much alike, were the kinds of labels exchanged at random.

    Every way to call ``true`` of the models true-label ones is enumerated, so that the least possible value is one over
    their number: 1/20 for three and three. Of more than 20,000 ways, so many are drawn. A small value says that the
    maps depend on the labels at all, which a copy of the input with a little gradient does as well.

    Args:
        likeness: Mean similarity between the maps of every two models, true-label ones first; ``(K, K)``, symmetric.
        true: How many of them saw the true labels, at least 2.
    """
    count = len(likeness)
    if math.comb(count, true) <= _GROUPINGS:
        chosen = torch.tensor(list(combinations(range(count), true)))  # the actual grouping comes first
    else:
        chosen = torch.rand(_GROUPINGS, count, generator=generator("groupings")).argsort(1)[:, :true]
        chosen[0] = torch.arange(true)
    member = torch.zeros(len(chosen), count, dtype=torch.float64).scatter_(1, chosen, 1.0)
    known = (likeness.isfinite() & ~torch.eye(count, dtype=torch.bool)).double()
    table = likeness.double().nan_to_num(0.0, 0.0, 0.0) * known

    def mean(other: Tensor) -> Tensor:
        return ((member @ table) * other).sum(1) / ((member @ known) * other).sum(1)

    gap = mean(member) - mean(1 - member)
    return float((gap >= gap[0] - 1e-9).double().mean()) if bool(gap[0].isfinite()) else math.nan
