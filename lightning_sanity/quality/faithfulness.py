"""Do the pixels that an attribution ranks highest matter to the output: removal and insertion of parts of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows
from lightning_sanity.attribution.method import first, select
from lightning_sanity.attribution.perturbation import perturbed_outputs, whole
from lightning_sanity.model.clone import evaluating
from lightning_sanity.resources.random_streams import generator
from lightning_sanity.similarity.normalization import wide


def _softmax(outputs: Tensor) -> Tensor:
    if outputs.ndim != 2:
        raise ValueError(f"a classifier returns (N, classes), not {tuple(outputs.shape)}; pass probability=")
    return outputs.softmax(dim=1)


def deletion_auc(
    model: nn.Module,
    inputs: Any,
    attributions: Tensor,
    target: Tensor | None = None,
    *,
    baseline: Baseline = 0.0,
    steps: int = 32,
    probability: Callable[[Tensor], Tensor] | None = _softmax,
    max_batch: int = ROWS,
) -> Tensor:
    """Area under the class probability while the most relevant pixels are removed first; lower is better.

    Args:
        model: A classifier ``-> (N, classes)``.
        inputs: ``(N, C, ...)`` or ``(N, F)``, or a tuple that starts with them; channels are removed together.
        attributions: Shaped like the inputs, then summed over channels, or maps ``(N, ...)`` without channels. Equal
            values take turns in a fixed scattered order.
        target: The class of every sample; may be None only where ``probability`` is.
        baseline: What takes a removed pixel's place: a number, a tensor, or "blur", "min", "max", "mean".
        steps: Points after the first; the number of pixels if that is smaller. Trapezoids over the removed share.
        probability: Makes probabilities of the model's outputs; None if the outputs are to be used as they are.
        max_batch: Most rows sent through the model at once.

    Returns:
        ``(N,)`` in ``[0, 1]`` for probabilities; NaN where a map is constant or not finite.

    Raises:
        ValueError: If an argument does not fit.

    Petsiuk et al., "RISE", BMVC 2018 (arXiv:1806.07421).
    """
    return _area(
        model,
        inputs,
        attributions,
        target,
        rows=Rows(max_batch, "deletion_auc"),
        baseline=baseline,
        steps=steps,
        probability=probability,
    )


def insertion_auc(
    model: nn.Module,
    inputs: Any,
    attributions: Tensor,
    target: Tensor | None = None,
    *,
    baseline: Baseline = "blur",
    steps: int = 32,
    probability: Callable[[Tensor], Tensor] | None = _softmax,
    max_batch: int = ROWS,
) -> Tensor:
    """Area under the class probability while the most relevant pixels are inserted first; higher is better.

    Starts from the baseline, by default the blurred input as in the paper, and ends at the input; the rest as in
    `deletion_auc`.
    """
    return _area(
        model,
        inputs,
        attributions,
        target,
        rows=Rows(max_batch, "insertion_auc"),
        baseline=baseline,
        steps=steps,
        probability=probability,
    )


@torch.no_grad()
def _area(
    model: nn.Module,
    inputs: Any,
    attributions: Tensor,
    target: Tensor | None,
    *,
    rows: Rows,
    baseline: Baseline,
    steps: int,
    probability: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    name = rows.name
    whole(name, 1, steps=steps)
    check_baseline(baseline, name)
    if target is None and probability is not None:
        raise ValueError(f"{name}: the probability of which class? Pass target, or probability=None")
    value = first(inputs).detach()
    relevance = _per_pixel(shaped(name, attributions, value))
    hidden = baseline_for(baseline, value)
    before, after = (hidden, value) if name == "insertion_auc" else (value, hidden)
    pixels = relevance.shape[1]
    counts = torch.linspace(0, pixels, min(steps, pixels) + 1, dtype=torch.float64).round().long().to(value.device)
    places = _places(relevance)

    def perturb(samples: slice, copies: range) -> Tensor:
        reached = places[samples] < counts[copies.start : copies.stop, None, None]  # (k, n, P)
        return torch.where(_over_channels(reached, value), after[samples], before[samples])

    def read(outputs: Tensor, classes: Tensor | None) -> Tensor:
        return select(outputs if probability is None else probability(outputs), classes)

    with evaluating(model):
        curve = wide(perturbed_outputs(model, inputs, target, len(counts), perturb, rows, read))  # (k, N)
    area = torch.trapezoid(curve, (counts / pixels).to(curve), dim=0)
    return area.to(value.dtype).masked_fill(_undefined(relevance), torch.nan)


@torch.no_grad()
def faithfulness_correlation(
    model: nn.Module,
    inputs: Any,
    attributions: Tensor,
    target: Tensor | None = None,
    *,
    subset_size: int | None = None,
    runs: int = 100,
    baseline: Baseline = 0.0,
    max_batch: int = ROWS,
) -> Tensor:
    """Correlation, over random subsets of pixels, of their summed attribution with the output lost without them.

    Args:
        model: What was explained.
        inputs: ``(N, C, ...)`` or ``(N, F)``, or a tuple that starts with them; channels are removed together.
        attributions: See `deletion_auc`.
        target: Explained classes ``(N,)``; None for the sum of the outputs.
        subset_size: Pixels per subset; the square root of their number if None, which is the 224 of the common
            implementation at 224 x 224 pixels.
        runs: Subsets, at least 2.
        baseline: What takes a removed pixel's place.
        max_batch: Most rows sent through the model at once.

    Returns:
        Pearson correlations ``(N,)`` in ``[-1, 1]``; NaN where the sums or the losses are the same for
        every subset, or not finite.

    Raises:
        ValueError: If an argument does not fit.

    Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020 (arXiv:2005.00631).
    """
    name = "faithfulness_correlation"
    whole(name, 2, runs=runs)
    whole(name, 1, subset_size=subset_size)
    check_baseline(baseline, name)
    value = first(inputs).detach()
    relevance = _per_pixel(shaped(name, attributions, value))
    pixels = relevance.shape[1]
    size = subset_size or max(1, round(pixels**0.5))
    if size >= pixels:
        raise ValueError(f"{name}: subset_size {size} must be smaller than the number of pixels, {pixels}")
    chosen = torch.rand(runs, pixels).argsort(dim=1)[:, :size]
    subsets = torch.zeros(runs + 1, pixels, dtype=torch.bool)  # the last one stays empty: nothing is removed
    subsets = subsets.scatter_(1, torch.cat([chosen, chosen[:1]]), True)
    subsets[-1] = False
    subsets = subsets.to(value.device)
    hidden = baseline_for(baseline, value)

    def perturb(samples: slice, copies: range) -> Tensor:
        removed = subsets[copies.start : copies.stop, None]  # (k, 1, P)
        return torch.where(_over_channels(removed, value), hidden[samples], value[samples])

    with evaluating(model):
        outputs = wide(perturbed_outputs(model, inputs, target, runs + 1, perturb, Rows(max_batch, name)))
    lost = outputs[-1:] - outputs[:-1]  # (runs, N)
    summed = subsets[:-1].to(relevance) @ relevance.T
    return _pearson(summed, lost, outputs, value.dtype).to(value.dtype)


def _pearson(a: Tensor, b: Tensor, outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Correlation ``(N,)`` of the columns of ``(runs, N)``; NaN where a column varies by no more than rounding."""
    correlation = torch.nn.functional.cosine_similarity(a - a.mean(0), b - b.mean(0), dim=0, eps=0)
    rounding = 10 * torch.finfo(dtype).eps
    still = (b.amax(0) - b.amin(0) <= rounding * outputs.abs().amax(0)) | (
        a.amax(0) - a.amin(0) <= 10 * torch.finfo(a.dtype).eps * a.abs().amax(0)
    )
    return correlation.masked_fill(still | ~correlation.isfinite(), torch.nan).clamp(-1, 1)


def shaped(name: str, attributions: Tensor, value: Tensor) -> Tensor:
    """Attributions shaped like the inputs; those with no or one channel are split equally among the channels.

    Raises:
        ValueError: If they fit in no such way; names the metric.
    """
    attributions = attributions.detach()
    if attributions.shape == value.shape:
        return attributions
    spatial = value.shape[2:]
    if spatial and attributions.shape in ((len(value), *spatial), (len(value), 1, *spatial)):
        return attributions.reshape(len(value), 1, *spatial).expand(value.shape) / value.shape[1]
    maps = f", or maps {(len(value), *spatial)}" if spatial else ""
    raise ValueError(
        f"{name}: attributions must be shaped like the inputs, {tuple(value.shape)}{maps}, not "
        f"{tuple(attributions.shape)}"
    )


def _per_pixel(attributions: Tensor) -> Tensor:
    """Attributions ``(N, C, ...)`` summed over channels, or ``(N, F)``; as ``(N, P)``."""
    return wide(attributions.sum(dim=1) if attributions.ndim > 2 else attributions).flatten(1)


def _over_channels(pixels: Tensor, value: Tensor) -> Tensor:
    """Flags ``(k, n, P)`` so that they broadcast over the channels of ``value``."""
    return pixels.unflatten(2, (1, *value.shape[2:])) if value.ndim > 2 else pixels


def _places(relevance: Tensor) -> Tensor:
    """Place of every pixel, 0 for the most relevant; equal ones follow a fixed order that favours no corner."""
    pixels = relevance.shape[1]
    scattered = torch.randperm(pixels, generator=generator("order of equal pixels", pixels)).to(relevance.device)
    order = scattered[relevance[:, scattered].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(pixels, device=relevance.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def _undefined(relevance: Tensor) -> Tensor:
    """Where there is no ranking, ``(N,)``: constant or not finite."""
    low, high = relevance.amin(dim=1), relevance.amax(dim=1)
    return ~(low.isfinite() & high.isfinite() & (low < high))
