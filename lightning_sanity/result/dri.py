"""Data randomization index (DRI) of models trained on true and on permuted labels, and the exchange of their kinds.

Both kinds of models, and the samples, are random; an interval is for new ones of all three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from scipy.special import stdtrit
from torch import Tensor

from lightning_sanity.resources.random_streams import generator
from lightning_sanity.result.bootstrap import psi
from lightning_sanity.result.psi import LEVEL, Interval, Sensitivity
from lightning_sanity.result.sanity_result import Outcome, Verdict
from lightning_sanity.result.verdict import SIGNED, Criterion, Evidence, Wording, conclude

_NORMAL = 1.96
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
) -> Sensitivity:
    """DRI, the data randomization index: PSI of one step, permuted labels, with retrained models for the ceiling.

    ``DRI = (S_seed - S_perm) / (S_seed - U)``, S_seed between models that differ in their training seed only. Its
    interval is a jackknife's: leave out each true-label model, each random-label model and each sample in turn, add up
    the three variances, and take the quantile of Student's t at Satterthwaite's degrees of freedom. Of a kind with one
    model nothing can be left out: the interval then holds for this model.

    Args:
        values: Similarity of every true-label model's maps to every permuted-label model's, the latter changing
            fastest; ``(Ks * Kr, 1, N)``.
        floor: Similarity to unrelated samples' maps, same shape.
        ceiling: Similarity between true-label models, in the order of ``itertools.combinations``, ``(pairs, N)``; with
            one such model, similarity of repeats of its explanation ``(repeats, N)``.
        groups: Ks and Kr.
        absolute: See ``sensitivity``.

    Tukey 1958; Satterthwaite 1946. Resampling three models with replacement is too narrow: see
    ``benchmarks/label_findings.py``.
    """
    values, floor, ceiling = (t.double().abs() if absolute else t.double() for t in (values, floor, ceiling))
    sizes = (*groups, values.shape[-1])
    one, other = torch.triu_indices(groups[0], groups[0], 1)

    def estimate(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """DRI and separation for weights of true-label models, random-label models and samples, ``(B, size)`` each."""
        true, permuted, sample = weights
        pairs = (true[:, :, None] * permuted[:, None]).flatten(1)
        again = true[:, one] * true[:, other] if groups[0] > 1 else None
        if groups[0] == 2:  # without either of two there is no pair
            again = torch.ones_like(again)  # type: ignore[arg-type]
        return psi(values, floor, ceiling, pairs, sample, again)

    whole = [torch.ones(1, size, dtype=torch.float64) for size in sizes]
    point, separation = (float(each) for each in estimate(whole))
    spread: list[tuple[float, float]] = []  # variances of both, by models of either kind and by samples
    for factor, size in enumerate(sizes):
        weights = [each.expand(size, -1) for each in whole]
        weights[factor] = 1 - torch.eye(size, dtype=torch.float64)
        spread.append((0.0, 0.0) if size < 2 else tuple(map(_jackknifed, estimate(weights))))  # type: ignore[arg-type]
    variances = [index for index, _ in spread]
    total, apart = sum(variances), sum(each for _, each in spread)
    free = total**2 / max(sum(v**2 / max(size - 1, 1) for v, size in zip(variances, sizes, strict=True)), 1e-300)
    reach = float(stdtrit(free, (1 + LEVEL) / 2)) * math.sqrt(total) if total > 0 else total
    share = (total - variances[2]) / total if total > 0 else 0.0
    interval = Interval(point, point - reach, point + reach, share)
    return Sensitivity(interval, point, point, separation, separation - _NORMAL * math.sqrt(apart))


def _jackknifed(left_out: Tensor) -> float:
    """Variance of an estimate of which these are the values with one item left out; NaN if one is undefined."""
    return (len(left_out) - 1) * float(left_out.var(correction=0))


def judge_labels(evidence: Evidence, groups: tuple[int, int], criterion: Criterion, *, gated: bool = True) -> Verdict:
    """The verdict on one method; see ``verdict.conclude``.

    Args:
        evidence: What was measured, in the shapes of ``label_sensitivity``.
        groups: How many true-label and permuted-label models there are.
        criterion: What a method must show.
        gated: Whether the method counts.
    """
    if evidence.trivial is not None:
        return Verdict(Outcome.INCONCLUSIVE, evidence.trivial, gated=gated)
    found = {
        name: label_sensitivity(values, evidence.floor[name], evidence.ceiling[name], groups, absolute=name == SIGNED)
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
