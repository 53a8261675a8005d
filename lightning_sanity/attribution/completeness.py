"""The check behind "the attributions add up": do they, on this model, with these settings?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.method import AttributionFn, Refusal, outputs_of, replaced, select

TOLERANCE = 0.1
"""Largest gap, as a share of the explained difference of outputs, with which the median sample is still explained."""


@torch.no_grad()
def relative_gap(attribution: Tensor, model: nn.Module, inputs: Any, target: Tensor | None, baseline: Tensor) -> Tensor:
    """``|sum a - (f(x) - f(x0))| / |f(x) - f(x0)|`` of every sample; ``(N,)``.

    Args:
        attribution: The global attribution, multiplied by the difference of input and baseline.
        model: What was explained.
        inputs: Its inputs.
        target: The explained class of every sample.
        baseline: Shaped like the explained input, or ``(K, N, ...)`` for the mean over K baselines.
    """
    several = baseline if baseline.ndim == attribution.ndim + 1 else baseline[None]
    here = select(outputs_of(model, inputs), target)
    there = torch.stack([select(outputs_of(model, replaced(inputs, one)), target) for one in several]).mean(0)
    difference = here - there
    missed = attribution.reshape(len(attribution), -1).sum(1) - difference
    # A difference that is all rounding cannot be explained, and is not held against anyone.
    rounding = 100 * torch.finfo(here.dtype).eps * (here.abs() + there.abs()) + torch.finfo(here.dtype).tiny
    return missed.abs() / difference.abs().clamp_min(rounding)


def median_gap(gap: AttributionFn, model: nn.Module, inputs: Any, target: Tensor | None) -> float:
    """The gap of the median sample; see ``relative_gap``."""
    return float(gap(model, inputs, target).float().quantile(0.5))


def missed(median: float, tolerance: float, advice: str) -> str:
    """That attributions do not add up, and what to do about it."""
    return (
        f"the attributions miss the difference of outputs they must add up to by {median:.0%} (median sample, "
        f"at most {tolerance:.0%} allowed): {advice}"
    )


def incomplete(gap: AttributionFn, advice: str, tolerance: float = TOLERANCE) -> Refusal:
    """Refuses where the median sample's gap is larger than ``tolerance``.

    Args:
        gap: ``(model, inputs, target) -> (N,)``, see ``relative_gap``.
        advice: What to do about it; ends the reason.
        tolerance: Largest gap.
    """

    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        median = median_gap(gap, model, inputs, target)
        return None if median <= tolerance else missed(median, tolerance, advice)

    return reason
