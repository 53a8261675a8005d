"""The parameter sensitivity index (PSI) of a result, taken apart: per depth, and per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sanity.report.wording import subject
from lightning_sanity.result.curve import Curve
from lightning_sanity.result.psi import sensitivity_curve, sensitivity_of_samples
from lightning_sanity.result.sanity_result import SanityResult
from lightning_sanity.result.verdict import SIGNED


def over_depth(result: SanityResult, method: str, measure: str | None = None) -> Tensor | None:
    """PSI after each step with its 95 % interval, ``(3, depths)``: value, low, high.

    Args:
        result: Where the curves are.
        method: Of which method.
        measure: By which similarity; the one that decided if None.

    Returns:
        None where the method has no such curve, or no PSI at all: relative to a ceiling that is none it means nothing.
    """
    curve, measure = _deciding(result, method, measure)
    if curve is None:
        return None
    if subject(result) == "labels":  # rows are pairs of models, whose interval the verdict knows
        interval = result.verdicts[method].psi_of.get(str(measure))
        return None if interval is None else torch.tensor([[end] for end in interval], dtype=torch.float64)
    return sensitivity_curve(
        curve.values, curve.floor, curve.ceiling, absolute=measure == SIGNED, weights=result.depth_weights
    )


def of_samples(result: SanityResult, method: str, measure: str | None = None) -> Tensor | None:
    """PSI of each sample over the cascade, ``(N,)``; arguments and None as in ``over_depth``."""
    curve, measure = _deciding(result, method, measure)
    if curve is None:
        return None
    return sensitivity_of_samples(
        curve.values, curve.floor, curve.ceiling, absolute=measure == SIGNED, weights=result.depth_weights
    )


def spread(values: Tensor) -> Tensor:
    """Mean of ``(trials, depths, N)`` and the middle 95 % of trials, or of the samples of one: ``(3, depths)``."""
    drawn = values.nanmean(2) if len(values) > 1 else values[0].T  # (trials or samples, depths)
    return torch.stack([values.nanmean((0, 2)), *(drawn.nanquantile(q, dim=0) for q in (0.025, 0.975))])


def threshold(result: SanityResult) -> float | None:
    """The PSI from which a method passes; None if the result does not say."""
    value = dict(result.settings.get("criterion") or {}).get("min_psi")
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _deciding(result: SanityResult, method: str, measure: str | None) -> tuple[Curve | None, str | None]:
    verdict = result.verdicts[method]
    measure = measure or verdict.measure
    curve = None if measure is None else result.curves.get((method, measure))
    known = curve is not None and math.isfinite(verdict.psi) and not bool(torch.isnan(curve.values).all())
    return (curve if known else None), measure
