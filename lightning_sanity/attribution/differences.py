"""DeepLift and DeepSHAP on whatever is nonlinear: modules, re-used modules, functional calls, in-place ones.

Providers hook activation modules. A functional relu is then treated as if it were linear at the input, and the method
silently equals input times gradient; a module that is used twice raises. Here the nonlinear calls themselves are
intercepted while the model runs on inputs and baselines stacked, first all inputs, then all baselines.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows, repeated, rows_of, target_of
from lightning_sanity.attribution.completeness import TOLERANCE, incomplete, relative_gap
from lightning_sanity.attribution.method import (
    AttributionFn,
    Method,
    Refusal,
    any_of,
    factory,
    first,
    leaf,
    not_differentiable,
    outputs_of,
    select,
)
from lightning_sanity.attribution.path import no_background, with_background
from lightning_sanity.attribution.rescale import RescaleRule


@factory
def deeplift(
    baseline: Baseline = 0.0,
    multiply_by_inputs: bool = True,
    tolerance: float = TOLERANCE,
    max_batch: int = ROWS,
) -> Method:
    """DeepLift, Rescale rule; Shrikumar et al. 2017 (arXiv:1704.02685).

    The rule also serves max pooling (the differences go where the maxima are), and is carried on to products of two
    activations, softmax, layer normalisation and scaled dot-product attention by the one rule that stays complete and
    treats both factors alike: each factor's difference times the mean of the other.

    Args:
        baseline: The reference input: a number in the units of the input, a tensor, or "blur", "min", "max", "mean".
        multiply_by_inputs: False for the multipliers alone.
        tolerance: Largest completeness gap of the median sample, as a share of the outputs' difference; more means
            that the network does something the rules do not know.
        max_batch: Most rows per pass through the model; a sample takes two, its baseline being the other.
    """
    name = "deeplift" if multiply_by_inputs else "deeplift_local"
    check_baseline(baseline, name)
    rows = Rows(max_batch, name, per_copy=2)

    def local(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        start = baseline_for(baseline, value)
        found = torch.zeros_like(value)
        for samples, _, block in rows.chunks(
            len(value), 1, lambda samples, copies: _multipliers(model, inputs, target, start[samples], samples, 1)
        ):
            found[samples] = block
        return found

    def whole(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        return (value - baseline_for(baseline, value)) * local(model, inputs, target)

    def gap(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        start = baseline_for(baseline, first(inputs))
        return relative_gap(whole(model, inputs, target), model, inputs, target, start)

    return Method(
        name,
        whole if multiply_by_inputs else local,
        passes=2.0,
        refuses=_refuses(gap, tolerance),
        completeness=gap,
    )


@factory
def deeplift_local(baseline: Baseline = 0.0, tolerance: float = TOLERANCE, max_batch: int = ROWS) -> Method:
    """``deeplift`` without the multiplication by the input's difference; Ancona et al. 2018 (arXiv:1711.06104)."""
    return deeplift(baseline, False, tolerance, max_batch)


@factory
def deepshap(
    baselines: Tensor | None = None,
    n_baselines: int = 8,
    multiply_by_inputs: bool = True,
    tolerance: float = TOLERANCE,
    max_batch: int = ROWS,
) -> Method:
    """DeepLift averaged over a set of baselines; Lundberg & Lee 2017 (arXiv:1705.07874).

    Args:
        baselines: The set ``(K, ...)``; samples of the probe, evenly spaced, if None.
        n_baselines: Most of them that are used.
        multiply_by_inputs: False for the mean multipliers alone.
        tolerance: See ``deeplift``.
        max_batch: See ``deeplift``.
    """
    name = "deepshap" if multiply_by_inputs else "deepshap_local"
    rows = Rows(max_batch, name, per_copy=2)
    if isinstance(n_baselines, bool) or not isinstance(n_baselines, int) or n_baselines < 1:
        raise ValueError(f"{name}: n_baselines must be an integer of at least 1, not {n_baselines!r}")

    def average(among: Tensor, multiply: bool) -> AttributionFn:
        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            value = first(inputs).detach()
            background = _thinned(among.to(value), n_baselines)

            def run(samples: slice, copies: range) -> Tensor:
                here = value[samples]
                start = background[copies.start : copies.stop].repeat_interleave(len(here), 0)
                found = _multipliers(model, inputs, target, start, samples, len(copies))
                found = found * (repeated(here, len(copies)) - start) if multiply else found
                return found.reshape(len(copies), *here.shape).sum(0)

            total = torch.zeros_like(value)
            for samples, _, found in rows.chunks(len(value), len(background), run):
                total[samples] += found
            return total / len(background)

        return attribute

    def gap(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        background = _thinned(value if baselines is None else baselines.to(value), n_baselines)
        found = average(background, True)(model, inputs, target)
        return relative_gap(found, model, inputs, target, background[:, None].expand(-1, *value.shape))

    attribute, prepare = with_background(baselines, lambda among: average(among, multiply_by_inputs), name)
    return Method(
        name,
        attribute,
        passes=2.0 * n_baselines,
        refuses=any_of(no_background(baselines), _refuses(gap, tolerance)),
        prepare=prepare,
        of_all=baselines is None,
        completeness=gap,
    )


@factory
def deepshap_local(
    baselines: Tensor | None = None, n_baselines: int = 8, tolerance: float = TOLERANCE, max_batch: int = ROWS
) -> Method:
    """``deepshap`` without the multiplication by the input's differences; Ancona et al. 2018 (arXiv:1711.06104)."""
    return deepshap(baselines, n_baselines, False, tolerance, max_batch)


def _thinned(background: Tensor, most: int) -> Tensor:
    if len(background) <= most:
        return background
    return background[[k * len(background) // most for k in range(most)]]


def _multipliers(
    model: nn.Module, inputs: Any, target: Tensor | None, start: Tensor, samples: slice, copies: int
) -> Tensor:
    """DeepLift's multipliers of ``copies`` stacked copies of some samples, each with its baseline in ``start``."""
    explained = leaf(repeated(first(inputs)[samples], copies))
    with torch.enable_grad(), RescaleRule(len(explained)):
        outputs = outputs_of(model, rows_of(inputs, samples, 2 * copies, torch.cat([explained, start.detach()])))
        chosen = select(outputs[: len(explained)], target_of(target, samples, copies))
        (found,) = torch.autograd.grad(chosen.sum(), explained)
    return found


def _refuses(gap: AttributionFn, tolerance: float) -> Refusal:
    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        value = first(inputs)
        stacked = rows_of(inputs, slice(0, len(value)), 2, torch.cat([value, torch.zeros_like(value)]))
        with torch.no_grad(), RescaleRule(len(value)) as rule:
            outputs_of(model, stacked)
        known = (
            f"DeepLift has no rule for {', '.join(rule.unknown)} here"
            if rule.unknown
            else "this network is beyond its rules, or ill-conditioned at this baseline: try another one"
        )
        return incomplete(gap, known, tolerance)(model, inputs, target)

    return any_of(not_differentiable, reason)
