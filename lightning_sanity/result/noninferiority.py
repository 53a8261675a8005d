"""Two results on the same probe: did a method get worse? A non-inferiority test on the change of its PSI."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_sanity.resources.random_streams import generator
from lightning_sanity.result.bootstrap import RESAMPLES, counts, percentiles, psi
from lightning_sanity.result.psi import Interval
from lightning_sanity.result.sanity_result import Outcome, SanityResult, Verdict
from lightning_sanity.result.verdict import SIGNED

_ALIKE = (
    "test",
    "model",
    "target",
    "explained",
    "order",
    "granularity",
    "max_steps",
    "reinitialize",
    "norm_stats",
    "retarget",
)
"""Settings that decide what a PSI means."""


@dataclass(frozen=True)
class Difference:
    """What became of one method.

    Attributes:
        outcome: ``PASS`` if its PSI is not worse by more than the margin, with the whole 95 % interval; ``FAIL`` if it
            is; else ``INCONCLUSIVE``.
        reason: One sentence.
        value: New PSI minus old, NaN if undefined; negative is worse.
        low: Lower end of its interval.
        high: Upper end.
    """

    outcome: Outcome
    reason: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


def incomparable(reference: SanityResult, candidate: SanityResult) -> str | None:
    """Why two results cannot be compared at all, or None."""
    for name, result in (("the baseline", reference), ("the result", candidate)):
        if not result.valid:
            return f"{name} is of an invalid run: {result.validity}"
    if reference.probe_digest != candidate.probe_digest:
        return "measured on another probe: test both models on the same samples"
    for key in _ALIKE:
        old, new = reference.settings.get(key), candidate.settings.get(key)
        if old != new:
            return f"measured differently: {key} was {old!r} and is {new!r}; test both models alike"
    return None


def compare(reference: SanityResult, candidate: SanityResult, method: str, max_drop: float = 0.1) -> Difference:
    """Whether the PSI of ``method`` is not worse in ``candidate`` than in ``reference``.

    Args:
        reference: Of the model that was accepted before.
        candidate: Of the new model.
        method: Name of the method in both.
        max_drop: By how much PSI may fall.
    """
    problem = incomparable(reference, candidate)
    for name, result in (("the baseline", reference), ("the result", candidate)):
        if problem is None and method not in result.verdicts:
            problem = f"{name} does not hold it"
        if problem is None and not math.isfinite(result.verdicts[method].psi):
            problem = f"its PSI is undefined in {name}: {result.verdicts[method].reason}"
    old, new = _tables(reference, method), _tables(candidate, method)
    if problem is None:
        problem = _not_paired(old, new)
    if problem is not None:
        return Difference(Outcome.INCONCLUSIVE, problem)
    found = change(old, new, weights=(reference.depth_weights, candidate.depth_weights))
    before, after = reference.verdicts[method].psi, candidate.verdicts[method].psi
    interval = f"[{found.low:+.2f}, {found.high:+.2f}]"
    numbers = f"PSI {before:.2f} before, {after:.2f} now, change {found.value:+.2f} {interval}"
    if found.low >= -max_drop:
        outcome, reason = Outcome.PASS, f"not worse by more than {max_drop:g}: {numbers}"
    elif found.high < -max_drop:
        outcome, reason = Outcome.FAIL, f"worse by more than {max_drop:g}: {numbers}"
    else:
        outcome = Outcome.INCONCLUSIVE
        reason = f"may be worse by more than {max_drop:g}: {numbers}; more trials or samples would tell"
    return Difference(outcome, reason, found.value, found.low, found.high)


def _not_paired(old: Sequence[Tables], new: Sequence[Tables]) -> str | None:
    """Why two sets of curves are not of the same samples, or None."""
    for name, tables in (("the baseline", old), ("the result", new)):
        if not tables:
            return f"its curves are missing from {name}"
    samples = [tables[0][0].shape[2] for tables in (old, new)]
    if samples[0] != samples[1]:
        return f"it was measured on {samples[0]} samples and on {samples[1]}: test both models on the same ones"
    return None


def against(result: SanityResult, baseline: SanityResult, max_drop: float = 0.1) -> SanityResult:
    """The result with verdicts that also ask for no loss: a PASS that is worse than the baseline's stands no more.

    Args:
        result: Of the new model.
        baseline: Of the model that was accepted before, on the same probe.
        max_drop: By how much PSI may fall.
    """
    verdicts = dict(result.verdicts)
    for name, verdict in result.verdicts.items():
        if verdict.gated and verdict.passed:
            change = compare(baseline, result, name, max_drop)
            if change.outcome is not Outcome.PASS:
                verdicts[name] = replace(
                    verdict, outcome=change.outcome, reason=f"{verdict.reason}; against the baseline: {change.reason}"
                )
    settings = {**result.settings, "baseline": baseline.weights_digest, "max_drop": max_drop}
    return replace(result, verdicts=verdicts, settings=settings)


def _tables(result: SanityResult, method: str) -> list[Tables]:
    """Values, floor and ceiling of every measure that the verdict rests on."""
    verdict = result.verdicts.get(method, Verdict(Outcome.INCONCLUSIVE, ""))
    curves = {name: result.curves[method, name] for name in verdict.psi_of if (method, name) in result.curves}
    return [
        (c.values.abs(), c.floor.abs(), c.ceiling.abs()) if name == SIGNED else (c.values, c.floor, c.ceiling)
        for name, c in curves.items()
    ]


Tables = tuple[Tensor, Tensor, Tensor]
"""Values, floor and ceiling of one measure, as ``sensitivity`` takes them."""


def change(
    reference: Sequence[Tables],
    candidate: Sequence[Tables],
    *,
    weights: tuple[Sequence[float], Sequence[float]] = ((), ()),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Smallest PSI of ``candidate`` minus smallest PSI of ``reference``, over the measures of each.

    Both were measured on the same samples, so that the bootstrap draws samples for both at once, and trials too where
    there are equally many: what moves both alike does not widen the interval.

    Args:
        reference: One entry per measure.
        candidate: One entry per measure, on the same ``N`` samples.
        weights: Of the depths of each, see ``psi.depth_weights``; none = all alike.
        seed: Of the resampling.
        resamples: Number of bootstrap resamples.
    """
    rng = generator(seed, "bootstrap")
    samples, trials = reference[0][0].shape[2], [tables[0][0].shape[0] for tables in (reference, candidate)]
    by_sample = counts(samples, resamples, rng)
    by_trial = [counts(trials[0], resamples, rng)]
    by_trial.append(by_trial[0] if trials[0] == trials[1] else counts(trials[1], resamples, rng))
    point = [
        _smallest(tables, by_sample.new_ones(1, n), by_sample.new_ones(1, samples), of_depths)
        for tables, n, of_depths in zip((reference, candidate), trials, weights, strict=True)
    ]
    drawn = [
        _smallest(tables, counts, by_sample, of_depths)
        for tables, counts, of_depths in zip((reference, candidate), by_trial, weights, strict=True)
    ]
    return Interval(float(point[1] - point[0]), *percentiles(drawn[1] - drawn[0]))


def _smallest(measures: Sequence[Tables], by_trial: Tensor, by_sample: Tensor, weights: Sequence[float]) -> Tensor:
    """The smallest of the measures' PSI in every resample, ``(B,)``."""
    found = [
        psi(values.double(), floor.double(), ceiling.double(), by_trial, by_sample, weights=weights)[0]
        for values, floor, ceiling in measures
    ]
    return torch.stack(found).amin(0)
