"""Methods on superpixels and on what stands for them elsewhere: feature ablation, LIME and KernelSHAP."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows
from lightning_sanity.attribution.method import AttributionFn, Method, Segmentation, factory, first
from lightning_sanity.attribution.perturbation import FORWARD, ablation, check_count, perturbed_outputs, whole
from lightning_sanity.attribution.segmentation import regions, unsegmented

Superpixels = Tensor | Segmentation | None


@factory
def feature_ablation(
    segments: int = 50, superpixels: Superpixels = None, baseline: Baseline = 0.0, max_batch: int = ROWS
) -> Method:
    """Output lost when one superpixel is hidden; after Zeiler & Fergus 2014 (arXiv:1311.2901).

    Args:
        segments: About how many superpixels to cut each image into, windows a signal, or blocks a volume; a table is
            cut into its columns and a text into its tokens.
        superpixels: Labels to use instead, ``(*sides)`` for all or ``(N, *sides)``, or a function of the inputs; see
            ``segmentation.regions``.
        baseline: What hides a superpixel: a number, a tensor, or "blur", "min", "max", "mean". Of a text's embeddings
            ``(N, E, T)``: ``(E, 1)`` is one embedding in the place of every token, such as that of the padding.
        max_batch: Most rows sent through the model at once.
    """
    rows = _check("feature_ablation", segments, superpixels, baseline, max_batch)

    def on(superpixels: Superpixels) -> Method:
        prepare = ablation("feature_ablation", lambda inputs: regions(inputs, segments, superpixels), baseline, rows)
        return _on_regions("feature_ablation", prepare, stochastic=False, passes=(segments + 1) * FORWARD)

    return _movable(on, superpixels)


@factory
def lime(
    segments: int = 50,
    n_samples: int | None = None,
    kernel_width: float = 0.25,
    ridge: float = 1.0,
    superpixels: Superpixels = None,
    baseline: Baseline = 0.0,
    max_batch: int = ROWS,
) -> Method:
    """Weights of a linear model of the output in the superpixels shown; LIME, Ribeiro et al. 2016 (arXiv:1602.04938).

    Superpixels are shown or hidden by fair coins; a draw counts ``exp(-d^2 / kernel_width^2)`` with d its cosine
    distance to showing all; the weights are those of a ridge regression with intercept. Not captum's ``Lime``: it needs
    scikit-learn, leaves the device and takes the samples one by one. With the same draws it gives the same map.

    Args:
        segments: See ``feature_ablation``.
        n_samples: Draws per sample; ``4 * segments + 50`` if None.
        kernel_width: Width of the kernel.
        ridge: Penalty on the squared weights; 0 for least squares.
        superpixels: See ``feature_ablation``.
        baseline: See ``feature_ablation``.
        max_batch: Most rows sent through the model at once.
    """
    rows = _check("lime", segments, superpixels, baseline, max_batch)
    count = 4 * segments + 50 if n_samples is None else n_samples
    whole("lime", 2, n_samples=count)
    if not kernel_width > 0:
        raise ValueError(f"lime: kernel_width must be positive, not {kernel_width}")
    if not ridge >= 0:
        raise ValueError(f"lime: ridge must not be negative, not {ridge}")

    def draws(regions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shown = (torch.rand(count, regions, generator=generator, dtype=torch.float32) < 0.5).double()
        distance = 1 - shown.mean(1).sqrt()  # cosine distance of a 0/1 vector to all ones
        return shown, torch.exp(-((distance / kernel_width) ** 2))

    def fit(shown: Tensor, weights: Tensor, outputs: Tensor, ends: Tensor, exists: Tensor) -> Tensor:
        share = weights / weights.sum(1, keepdim=True)  # (N, K)
        design = shown - (share[..., None] * shown).sum(1, keepdim=True)
        centered = outputs - (share * outputs).sum(1, keepdim=True)
        gram = design.mT @ (weights[..., None] * design)
        moment = design.mT @ (weights * centered)[..., None]
        penalty = ridge * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        weight: Tensor = (torch.linalg.pinv(gram + penalty, hermitian=True) @ moment)[..., 0]
        return weight

    def on(superpixels: Superpixels) -> Method:
        prepare = _surrogate("lime", segments, superpixels, baseline, rows, draws, fit)
        return _on_regions("lime", prepare, stochastic=True, passes=count * FORWARD)

    return _movable(on, superpixels)


@factory
def kernel_shap(
    segments: int = 50,
    n_samples: int | None = None,
    superpixels: Superpixels = None,
    baseline: Baseline = 0.0,
    max_batch: int = ROWS,
) -> Method:
    """Shapley values of superpixels by weighted least squares; KernelSHAP, Lundberg & Lee 2017 (arXiv:1705.07874).

    Coalitions are drawn by the Shapley kernel, each with its complement; where ``n_samples`` covers all coalitions,
    all are used and the values are exact. They always sum to the output minus that of the baseline. Not captum's
    ``KernelShap``, for the reasons given at ``lime``.

    Args:
        segments: See ``feature_ablation``.
        n_samples: Coalitions per sample; ``10 * segments + 100`` if None. All models are asked about the same ones, so
            with too few the error they share looks like a map that survives randomization.
        superpixels: See ``feature_ablation``.
        baseline: See ``feature_ablation``.
        max_batch: Most rows sent through the model at once.
    """
    rows = _check("kernel_shap", segments, superpixels, baseline, max_batch)
    count = 10 * segments + 100 if n_samples is None else n_samples
    whole("kernel_shap", 2, n_samples=count)

    def draws(regions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if regions < 64 and 2**regions - 2 <= count:
            return _all_coalitions(regions)
        sizes = torch.arange(1, regions, dtype=torch.double)
        size = torch.multinomial(1 / (sizes * (regions - sizes)), (count + 1) // 2, True, generator=generator) + 1
        order = torch.rand(len(size), regions, generator=generator, dtype=torch.float32).argsort(1).argsort(1)
        shown = (order < size[:, None]).double()
        shown = torch.cat([shown, 1 - shown])[:count]
        return shown, torch.ones(count, dtype=torch.double)

    def on(superpixels: Superpixels) -> Method:
        prepare = _surrogate("kernel_shap", segments, superpixels, baseline, rows, draws, _shapley)
        return _on_regions("kernel_shap", prepare, stochastic=True, passes=(count + 2) * FORWARD)

    return _movable(on, superpixels)


def _all_coalitions(regions: int) -> tuple[Tensor, Tensor]:
    """Every coalition but none and all, with its Shapley kernel."""
    codes = torch.arange(1, 2**regions - 1)
    shown = (codes[:, None] >> torch.arange(regions)) & 1
    sizes = [int(size) for size in shown.sum(1)]
    kernel = [(regions - 1) / (math.comb(regions, size) * size * (regions - size)) for size in sizes]
    return shown.double().reshape(-1, regions), torch.tensor(kernel, dtype=torch.double)


def _shapley(shown: Tensor, weights: Tensor, outputs: Tensor, ends: Tensor, exists: Tensor) -> Tensor:
    """Least squares under the constraint that the values sum to all minus none.

    An equal split meets the constraint; what remains is solved among vectors that sum to zero.
    """
    count = exists.sum(1, keepdim=True)
    equal = (ends[:, 1:] - ends[:, :1]) / count * exists  # (N, M)
    among = torch.diag_embed(exists) - exists[:, :, None] * exists[:, None, :] / count[..., None]
    left = outputs - ends[:, :1] - (shown @ equal[..., None])[..., 0]
    design = shown @ among
    gram = design.mT @ (weights[..., None] * design)
    moment = design.mT @ (weights * left)[..., None]
    values: Tensor = equal + (among @ torch.linalg.pinv(gram, hermitian=True) @ moment)[..., 0]
    return values


def _surrogate(
    name: str,
    segments: int,
    superpixels: Superpixels,
    baseline: Baseline,
    rows: Rows,
    draws: Callable[[int, torch.Generator], tuple[Tensor, Tensor]],
    fit: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Callable[[nn.Module, Any], AttributionFn]:
    """A linear model of the output in which superpixels are shown.

    Args:
        name: Of the method, for errors.
        segments: See ``feature_ablation``.
        superpixels: See ``feature_ablation``.
        baseline: See ``feature_ablation``.
        rows: How many go through the model at once.
        draws: ``(regions, generator) -> (shown (K, regions), weights (K,))``.
        fit: ``(shown, weights, outputs, ends, exists) -> values (N, M)``: what was shown ``(N, K, M)``, the weight and
            the output of each draw ``(N, K)``, the outputs of none and of all ``(N, 2)``, and which regions exist
            ``(N, M)``, 0 where a sample has fewer than its neighbours.
    """

    def prepare(model: nn.Module, inputs: Any) -> AttributionFn:
        labels = regions(inputs, segments, superpixels)
        free, place = labels < 0, labels.clamp_min(0).flatten(1)  # what is never hidden, and the label of the rest
        counts = [int(count) + 1 for count in place.amax(1)]

        @torch.no_grad()
        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            value = first(inputs).detach()
            check_count(name, len(labels), value)
            # One seed for all samples: what one is asked does not depend on how many went before it.
            seed = int(torch.randint(2**62, (1,)))
            by_count = {count: draws(count, torch.Generator().manual_seed(seed)) for count in set(counts)}
            most = max(len(shown) for shown, _ in by_count.values())
            shown = torch.zeros(len(value), 2 + most, max(counts), dtype=torch.double)
            weights = torch.zeros(len(value), most, dtype=torch.double)
            for i, count in enumerate(counts):
                some, weight = by_count[count]
                shown[i, 1, :count] = 1
                shown[i, 2 : 2 + len(some), :count], weights[i, : len(some)] = some, weight
            shown, weights = shown.to(value.device), weights.to(value.device)
            hidden = baseline_for(baseline, value)

            def perturb(samples: slice, copies: range) -> Tensor:
                on = shown[samples, copies.start : copies.stop].transpose(0, 1) > 0  # (K, N, M)
                where = place[samples].expand(len(copies), -1, -1)
                seen = on.gather(2, where).reshape(*where.shape[:2], *labels.shape[1:])
                return torch.where(seen | free[samples], value[samples], hidden[samples])

            outputs = perturbed_outputs(model, inputs, target, 2 + most, perturb, rows).double().T
            found = fit(shown[:, 2:], weights, outputs[:, 2:], outputs[:, :2], shown[:, 1])
            on_pixels = found.gather(1, place).reshape(labels.shape).masked_fill(free, 0)
            return on_pixels.expand_as(value).to(value.dtype).contiguous()

        return attribute

    return prepare


def _on_regions(
    name: str, prepare: Callable[[nn.Module, Any], AttributionFn], stochastic: bool, passes: float
) -> Method:
    return Method(
        name,
        lambda model, inputs, target: prepare(model, inputs)(model, inputs, target),
        stochastic=stochastic,
        passes=passes,
        refuses=unsegmented,
        prepare=prepare,
    )


def _movable(on: Callable[[Superpixels], Method], superpixels: Superpixels) -> Method:
    """The method on these superpixels; on those of a segmentation that knows better, if none are given."""
    return replace(on(superpixels), over=on if superpixels is None else None)


def _check(name: str, segments: int, superpixels: Superpixels, baseline: Baseline, max_batch: int) -> Rows:
    whole(name, 2, segments=segments)
    check_baseline(baseline, name)
    if isinstance(superpixels, Tensor) and superpixels.is_floating_point():
        raise ValueError(f"{name}: superpixels are labels, whole numbers, not {superpixels.dtype}")
    return Rows(max_batch, name)
