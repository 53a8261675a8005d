"""Gradients along the path from a baseline: integrated gradients, their smoothed and their expected form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows, rows_of, target_of
from lightning_sanity.attribution.completeness import TOLERANCE, median_gap, missed, relative_gap
from lightning_sanity.attribution.derived import Copies, Derived, Reading
from lightning_sanity.attribution.gradients import over_noise
from lightning_sanity.attribution.method import (
    AttributionFn,
    Method,
    Refusal,
    any_of,
    at_least,
    factory,
    first,
    not_differentiable,
    output_gradient,
    outputs_of,
    replaced,
    select,
)

START, MOST = 32, 256
"""Points of a path with which "auto" begins, and at which it gives up; it doubles them in between."""


@factory
def integrated_gradients(
    n_steps: int | Literal["auto"] = "auto",
    baseline: Baseline = 0.0,
    multiply_by_inputs: bool = True,
    tolerance: float = TOLERANCE,
    max_batch: int = ROWS,
) -> Method:
    """Integrated gradients along the straight path from ``baseline``; Sundararajan et al. 2017 (arXiv:1703.01365).

    Args:
        n_steps: Gauss-Legendre points of the path; "auto" = 32, doubled until the attributions of the median sample
            add up, at most 256. A test decides it on the trained model, and keeps it for all others.
        baseline: Start of the path: a number in the units of the input, a tensor, or "blur", "min", "max", "mean".
        multiply_by_inputs: True for the global attribution, ``(x - baseline)`` times the mean gradient; False for the
            local one, the mean gradient alone (Kokhlikyan et al. 2021, arXiv:2106.07475).
        tolerance: Largest completeness gap of the median sample, as a share of the outputs' difference, with which
            these attributions are still integrated gradients.
        max_batch: Most rows per pass through the model.
    """
    name = "integrated_gradients" if multiply_by_inputs else "integrated_gradients_local"
    if n_steps == "auto":
        return _automatic(
            name,
            baseline,
            tolerance,
            lambda n: integrated_gradients(n, baseline, multiply_by_inputs, tolerance, max_batch),
        )
    mean = _mean_on_path(name, n_steps, baseline, max_batch)

    def whole(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        return (value - baseline_for(baseline, value)) * mean(model, inputs, target)

    def combine(value: Tensor, seen: Reading) -> Tensor:
        found = seen.mean["gradient"]
        return (value - baseline_for(baseline, value)) * found if multiply_by_inputs else found

    gap = _gap(whole, baseline)

    def refuses(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        median = median_gap(gap, model, inputs, target)
        if median <= tolerance:
            return None
        return missed(median, tolerance, _advice(model, inputs, target, {n_steps: median}, baseline, tolerance))

    return Method(
        name,
        Derived(whole if multiply_by_inputs else mean, combine, copies=_path(n_steps, baseline)),
        passes=n_steps,
        refuses=any_of(not_differentiable, refuses),
        completeness=gap,
    )


def _automatic(name: str, baseline: Baseline, tolerance: float, fixed: Callable[[int], Method]) -> Method:
    """A method over a path of as many points as the model it is settled on needs.

    Args:
        name: Of the method.
        baseline: Where its path starts.
        tolerance: Largest gap.
        fixed: The method with so many points; refuses where they do not do.
    """
    check_baseline(baseline, name)

    def settle(model: nn.Module, inputs: Any, target: Tensor | None) -> Method:
        n_steps, gaps = START, dict[int, float]()
        reason = not_differentiable(model, inputs, target)
        while reason is None:
            complete = fixed(n_steps).completeness
            assert complete is not None
            gaps[n_steps] = median_gap(complete, model, inputs, target)
            if gaps[n_steps] <= tolerance:
                break
            if n_steps >= MOST or _jumps(model, inputs, target, baseline, _AT_ONCE):
                reason = missed(gaps[n_steps], tolerance, _advice(model, inputs, target, gaps, baseline, tolerance))
            else:
                n_steps *= 2
        method = fixed(n_steps)
        asks = method.refuses
        assert asks is not None

        def refuses(other: nn.Module, others: Any, target: Tensor | None) -> str | None:
            known = other is model and others is inputs
            return reason if known else asks(other, others, target)

        return replace(method, refuses=refuses, settled={"n_steps": n_steps})

    def gap(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        complete = settle(model, inputs, target).completeness
        assert complete is not None
        return complete(model, inputs, target)

    def refuses(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        asks = settle(model, inputs, target).refuses
        assert asks is not None
        return asks(model, inputs, target)

    return Method(
        name,
        lambda model, inputs, target: settle(model, inputs, target).attribute(model, inputs, target),
        passes=START,
        refuses=refuses,
        completeness=gap,
        settle=settle,
    )


_NEAR, _AT_ONCE = 0.01, 1e-4  # of the path; what happens before the second, hardly a point of 256 sees


@torch.no_grad()
def _jumps(model: nn.Module, inputs: Any, target: Tensor | None, baseline: Baseline, share: float) -> bool:
    """Whether most outputs change in the first ``share`` of the path, and hardly on the way from there to the input."""
    value = first(inputs).detach()
    start = baseline_for(baseline, value)
    places = start, start + share * (value - start), value
    there, near, here = (select(outputs_of(model, replaced(inputs, place)), target) for place in places)
    whole = (here - there).abs()
    real = whole > 100 * torch.finfo(here.dtype).eps * (here.abs() + there.abs())
    return bool((real & ((here - near).abs() <= 0.1 * whole)).float().mean() >= 0.5)


_FURTHER, _HELPS = 4, 0.5
"""So many times the points bring the gap down to less than this share of itself; a kink's falls to a quarter."""
_OTHERS = ("blur", "mean", "max", "min", 1.0)


def _advice(
    model: nn.Module,
    inputs: Any,
    target: Tensor | None,
    gaps: Mapping[int, float],
    baseline: Baseline,
    tolerance: float,
) -> str:
    """What to do about a path over which the attributions do not add up.

    Args:
        model: What is explained.
        inputs: Its inputs.
        target: The explained class of every sample.
        gaps: The median sample's, by the number of points; the last number is the one in use.
        baseline: Where the path starts.
        tolerance: Largest gap.
    """
    n_steps = max(gaps)

    def gap(points: int, start: Baseline) -> float:
        complete = integrated_gradients(points, start, tolerance=tolerance).completeness
        assert complete is not None
        return median_gap(complete, model, inputs, target)

    share = _NEAR if n_steps >= MOST else _AT_ONCE
    if _jumps(model, inputs, target, baseline, share):
        why = (
            f"{share:.2%} of the way from the baseline the outputs are already those of the input (the network may not "
            "see the scale of its input), and no number of steps reaches a jump at the baseline itself"
        )
    else:
        few, many = (n_steps // _FURTHER, n_steps) if n_steps >= MOST else (n_steps, max(MOST, _FURTHER * n_steps))
        known = {points: gaps[points] if points in gaps else gap(points, baseline) for points in (few, many)}
        if known[many] <= _HELPS * known[few]:
            if n_steps < MOST:
                return f"raise n_steps, which is {n_steps}"
            return f"n_steps is {n_steps} already: pass another baseline=, nearer to the inputs, or still more steps"
        why = (
            f"more steps do not help ({known[few]:.0%} with {few}, {known[many]:.0%} with {many}): the outputs jump on "
            "the way, as at a baseline of 0 where a network normalises its input (RMSNorm, LayerNorm)"
        )
    move = f"{why}: pass another baseline= than {'this tensor' if isinstance(baseline, Tensor) else repr(baseline)}"
    for other in _OTHERS:
        if _differs(model, inputs, target, other) and (left := gap(n_steps, other)) <= tolerance:
            return f"{move}; {other!r} misses {left:.0%}"
    return f"{move}, a tensor of an input that means nothing, or use expected_gradients, which start at other samples"


@torch.no_grad()
def _differs(model: nn.Module, inputs: Any, target: Tensor | None, baseline: Baseline) -> bool:
    """Whether most outputs at a baseline are others than those of the input: there is something to explain."""
    value = first(inputs).detach()
    if baseline == "blur" and value.ndim != 4:
        return False
    here, there = (
        select(outputs_of(model, replaced(inputs, place)), target) for place in (value, baseline_for(baseline, value))
    )
    least = _NEAR * (here.abs() + there.abs())
    return bool(((here - there).abs() > least).float().mean() > 0.5)


@factory
def integrated_gradients_local(
    n_steps: int | Literal["auto"] = "auto",
    baseline: Baseline = 0.0,
    tolerance: float = TOLERANCE,
    max_batch: int = ROWS,
) -> Method:
    """``integrated_gradients`` without the multiplication by the input; Kokhlikyan et al. 2021 (arXiv:2106.07475)."""
    return integrated_gradients(n_steps, baseline, False, tolerance, max_batch)


@factory
def smooth_integrated_gradients(
    n_steps: int | Literal["auto"] = "auto",
    n_samples: int = 8,
    noise: float = 0.15,
    baseline: Baseline = 0.0,
    tolerance: float = TOLERANCE,
    max_batch: int = ROWS,
) -> Method:
    """Mean of the integrated gradients of noisy copies; Smilkov et al. 2017 (arXiv:1706.03825).

    Arguments: see ``integrated_gradients`` and ``smoothgrad``. A baseline by name is made from each noisy copy; a
    tensor holds one sample for all.
    """
    name = "smooth_integrated_gradients"
    at_least(1, name, n_samples=n_samples)
    at_least(0, name, noise=noise)
    if n_steps == "auto":
        settled = _automatic(
            name,
            baseline,
            tolerance,
            lambda n: smooth_integrated_gradients(n, n_samples, noise, baseline, tolerance, max_batch),
        )
        return replace(settled, stochastic=True, passes=settled.passes * n_samples)
    single = integrated_gradients(n_steps, baseline, True, tolerance, max_batch)
    over = over_noise(single.attribute, name, n_samples, noise, max_batch)
    return Method(
        name,
        lambda model, inputs, target: over(model, inputs, target)[0],
        stochastic=True,
        passes=n_steps * n_samples,
        refuses=single.refuses,
        completeness=single.completeness,
    )


def _mean_on_path(name: str, n_steps: int, baseline: Baseline, max_batch: int) -> AttributionFn:
    """The mean gradient between baseline and input."""
    at_least(1, name, n_steps=n_steps)
    check_baseline(baseline, name)
    rows = Rows(max_batch, name)
    points, weights = gauss_legendre(n_steps)

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        start = baseline_for(baseline, value)

        def run(samples: slice, copies: range) -> Tensor:
            here, there = value[samples], start[samples]
            between = torch.cat([there + points[k] * (here - there) for k in copies])
            found = output_gradient(
                model, rows_of(inputs, samples, len(copies), between), target_of(target, samples, len(copies))
            )
            weight = found.new_tensor([weights[k] for k in copies])
            return torch.tensordot(weight, found.reshape(len(copies), *here.shape), 1)

        total = torch.zeros_like(value)
        for samples, _, found in rows.chunks(len(value), n_steps, run):
            total[samples] += found
        return total

    return attribute


def _path(n_steps: int, baseline: Baseline) -> Copies:
    points, weights = gauss_legendre(n_steps)

    def make(value: Tensor) -> Callable[[int, slice], Tensor]:
        start = baseline_for(baseline, value)
        return lambda k, samples: start[samples] + points[k] * (value[samples] - start[samples])

    # A tensor is told by its identity: two methods share a path where they were given the same one.
    return Copies(("path", n_steps, id(baseline) if isinstance(baseline, Tensor) else baseline), tuple(weights), make)


def gauss_legendre(n_steps: int) -> tuple[list[float], list[float]]:
    """Points and weights of the integral from 0 to 1."""
    points, weights = np.polynomial.legendre.leggauss(n_steps)
    return (0.5 * (points + 1)).tolist(), (0.5 * weights).tolist()


def _gap(whole: AttributionFn, baseline: Baseline) -> AttributionFn:
    def gap(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        start = baseline_for(baseline, first(inputs))
        return relative_gap(whole(model, inputs, target), model, inputs, target, start)

    return gap


@factory
def expected_gradients(
    n_samples: int = 50, baselines: Tensor | None = None, multiply_by_inputs: bool = True, max_batch: int = ROWS
) -> Method:
    """Expected gradients (Gradient SHAP): paths from a set of baselines; Erion et al. 2021 (arXiv:1906.10670).

    Every draw is a baseline and a point between it and the input; baselines take turns and the points are spread
    evenly, which leaves the expectation and lowers the variance. All samples share the draws.

    Args:
        n_samples: Draws.
        baselines: The set ``(K, ...)``; the probe itself if None.
        multiply_by_inputs: False for the mean gradient alone.
        max_batch: Most rows per pass through the model.
    """
    name = "expected_gradients"
    at_least(1, name, n_samples=n_samples)
    rows = Rows(max_batch, name)

    def against(background: Tensor) -> AttributionFn:
        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            value = first(inputs).detach()
            among = background.to(value)
            turns = -(-n_samples // len(among))
            chosen = torch.cat([torch.randperm(len(among)) for _ in range(turns)])[:n_samples].tolist()
            points = ((torch.randperm(n_samples) + torch.rand(n_samples, dtype=torch.float32)) / n_samples).tolist()

            def run(samples: slice, copies: range) -> Tensor:
                here = value[samples]
                between = torch.cat([among[chosen[k]] + points[k] * (here - among[chosen[k]]) for k in copies])
                found = output_gradient(
                    model, rows_of(inputs, samples, len(copies), between), target_of(target, samples, len(copies))
                ).reshape(len(copies), *here.shape)
                if multiply_by_inputs:
                    found = found * (here - among[[chosen[k] for k in copies]][:, None])
                return found.sum(0)

            total = torch.zeros_like(value)
            for samples, _, found in rows.chunks(len(value), n_samples, run):
                total[samples] += found
            return total / n_samples

        return attribute

    attribute, prepare = with_background(baselines, against, name)
    return Method(
        name,
        attribute,
        stochastic=True,
        passes=n_samples,
        refuses=any_of(not_differentiable, no_background(baselines)),
        prepare=prepare,
        of_all=baselines is None,
    )


def with_background(baselines: Tensor | None, against: Any, name: str) -> tuple[AttributionFn, Any]:
    """``attribute`` and ``prepare`` of a method over a set of baselines, which is the probe where none is given."""
    if baselines is not None:
        if not isinstance(baselines, Tensor) or baselines.ndim < 2 or len(baselines) == 0:
            raise ValueError(f"{name}: baselines must be a tensor (K, ...) with a row per baseline, or None")
        fixed = against(baselines)
        return fixed, None

    def prepare(model: nn.Module, inputs: Any) -> AttributionFn:
        prepared: AttributionFn = against(first(inputs).detach().clone())
        return prepared

    return lambda model, inputs, target: prepare(model, inputs)(model, inputs, target), prepare


def no_background(baselines: Tensor | None) -> Refusal:
    """Refuses a single sample as its own set of baselines."""

    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        if baselines is None and len(first(inputs)) < 2:
            return "the probe is a single sample, which would be its own baseline: pass baselines="
        return None

    return reason
