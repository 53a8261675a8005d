"""Masks found by gradient descent: meaningful and extremal perturbation.

Outputs are measured relative to what the whole image adds to its reference, so that the penalties weigh the same on
a trained model and on one with random weights, whose outputs hardly vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows, repeated, rows_of, target_of
from lightning_sanity.attribution.method import Method, factory, first, outputs_of, replaced, select
from lightning_sanity.attribution.perturbation import not_an_image, spread, whole

_GROWTH = 1000.0
"""By how much the area constraint tightens on the way: the mask first finds its place, then its size."""


@factory
def meaningful_perturbation(
    steps: int = 100,
    grid: int | None = None,
    area_weight: float = 1.0,
    tv_weight: float = 0.5,
    tv_power: float = 3.0,
    jitter: int | None = None,
    learning_rate: float = 0.1,
    baseline: Baseline = "blur",
    max_batch: int = ROWS,
) -> Method:
    """The smallest smooth region whose removal loses the output; Fong & Vedaldi 2017 (arXiv:1704.03296).

    Adam minimises ``f(x without r) + area_weight * mean(r) + tv_weight * mean(|grad r|^tv_power)`` over a coarse grid
    r in [0, 1], 1 = removed, which is the attribution. With ``area_weight`` 1, a cell is removed if its share of
    the output exceeds its share of the area.

    Args:
        steps: Steps of Adam.
        grid: Cells per side; about one per eight pixels if None, at least eight.
        area_weight: Weight of the mean of r, the L1 penalty.
        tv_weight: Weight of the total variation of r.
        tv_power: Power of its differences.
        jitter: Largest shift of the image per step, in pixels, against masks that fit the pixel grid; a 56th of the
            side if None.
        learning_rate: Of Adam.
        baseline: What is shown in place of what is removed: a number, a tensor, or "blur", "min", "max", "mean".
        max_batch: Most rows sent through the model at once.
    """
    name = "meaningful_perturbation"
    rows = _check(name, steps, grid, learning_rate, baseline, max_batch)
    if jitter is not None:
        whole(name, 0, jitter=jitter)
    if min(area_weight, tv_weight) < 0 or tv_power <= 0:
        raise ValueError(
            f"{name}: the weights must not be negative and tv_power must be positive, "
            f"not {area_weight}, {tv_weight} and {tv_power}"
        )

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs)
        most = min(value.shape[2:]) // 56 if jitter is None else jitter
        # Drawn before the batch is cut: the same shifts for all samples.
        shifts = torch.randint(-most, most + 1, (steps, 2)).tolist() if most else [[0, 0]] * steps
        cells = grid or grid_size(value)

        whole_hidden = baseline_for(baseline, value)

        def run(samples: slice, copies: range) -> Tensor:
            value, hidden = first(inputs)[samples].detach(), whole_hidden[samples]
            gain = relative_output(model, rows_of(inputs, samples), target_of(target, samples), hidden)

            def loss(removed: Tensor, step: int) -> Tensor:
                mask = enlarged(removed, value)
                lost = gain(torch.lerp(value, hidden, mask).roll(shifts[step], (2, 3)))
                rows, columns = removed.diff(dim=2).abs(), removed.diff(dim=3).abs()
                roughness = (rows**tv_power).mean((1, 2, 3)) + (columns**tv_power).mean((1, 2, 3))
                return lost + area_weight * removed.mean((1, 2, 3)) + tv_weight * roughness

            found = descend(loss, value.new_full((len(value), 1, cells, cells), 0.5), steps, learning_rate)
            return spread(enlarged(found, value)[:, 0], value)

        return torch.cat([found for _, _, found in rows.chunks(len(value), 1, run)])

    return Method(name, attribute, stochastic=jitter != 0, signed=False, passes=steps, refuses=not_an_image)


@factory
def extremal_perturbation(
    areas: float | Sequence[float] = (0.1, 0.2, 0.4),
    steps: int = 100,
    grid: int | None = None,
    smoothing: float = 1.0,
    constraint: float = 1000.0,
    learning_rate: float = 0.1,
    baseline: Baseline = "blur",
    max_batch: int = ROWS,
) -> Method:
    """The smooth regions of given areas that keep the most output, summed; Fong et al. 2019 (arXiv:1910.08485).

    For each area Adam maximises ``f(x inside m, reference outside) - constraint * mean((sort(m) - r)^2)`` over a coarse
    grid, where r holds that share of ones; the constraint grows thousandfold on the way. The mask m is the grid under a
    smooth maximum with a Gaussian, enlarged to the image.

    Args:
        areas: Shares of the image, each a mask; the attribution is their sum.
        steps: Steps of Adam.
        grid: Cells per side; about one per eight pixels if None, at least eight.
        smoothing: Standard deviation of the Gaussian, in cells.
        constraint: Weight of the area constraint at the end.
        learning_rate: Of Adam.
        baseline: What is shown outside the region: a number, a tensor, or "blur", "min", "max", "mean".
        max_batch: Most rows sent through the model at once.
    """
    name = "extremal_perturbation"
    rows = _check(name, steps, grid, learning_rate, baseline, max_batch)
    wanted = (areas,) if isinstance(areas, (int, float)) else tuple(areas)
    if not wanted or not all(0 < area < 1 for area in wanted):
        raise ValueError(f"{name}: areas must be shares between 0 and 1, not {areas}")
    if smoothing <= 0 or constraint <= 0:
        raise ValueError(f"{name}: smoothing and constraint must be positive, not {smoothing} and {constraint}")

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        cells, pixels = grid or grid_size(value), math.prod(value.shape[2:])
        kept = torch.tensor([round(area * pixels) for area in wanted], device=value.device)
        ideals = (torch.arange(pixels, device=value.device) >= pixels - kept[:, None]).to(value.dtype)  # (A, H * W)
        all_hidden = baseline_for(baseline, value)

        def run(samples: slice, copies: range) -> Tensor:
            count = len(value[samples])
            images, hidden = (repeated(part[samples], len(copies)) for part in (value, all_hidden))
            ideal = ideals[copies.start : copies.stop].repeat_interleave(count, 0)
            stacked = rows_of(inputs, samples, len(copies), images)
            gain = relative_output(model, stacked, target_of(target, samples, len(copies)), hidden)

            def masks(cells: Tensor) -> Tensor:
                return enlarged(smooth_maximum(cells, smoothing), images)

            def loss(cells: Tensor, step: int) -> Tensor:
                mask = masks(cells)
                excess = (mask.flatten(1).sort(1).values - ideal).square().mean(1)
                return constraint * math.pow(_GROWTH, step / steps - 1) * excess - gain(
                    torch.lerp(hidden, images, mask)
                )

            found = descend(loss, images.new_full((len(images), 1, cells, cells), 0.5), steps, learning_rate)
            every: Tensor = masks(found).reshape(len(copies), count, *value.shape[2:])
            return every.sum(0)

        total = torch.zeros_like(value[:, 0])
        for samples, _, found in rows.chunks(len(value), len(wanted), run):
            total[samples] += found
        return spread(total, value)

    return Method(name, attribute, signed=False, passes=steps * len(wanted), refuses=not_an_image)


def descend(loss: Callable[[Tensor, int], Tensor], start: Tensor, steps: int, learning_rate: float) -> Tensor:
    """The mask in [0, 1] that Adam reaches; ``loss(mask, step)`` gives one value per sample.

    Adam works element by element and the losses are summed, so samples do not influence each other. The gradient is
    taken of the mask alone: the model's own stay as they are.
    """
    mask = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([mask], lr=learning_rate)
    for step in range(steps):
        with torch.enable_grad():
            (mask.grad,) = torch.autograd.grad(loss(mask, step).sum(), mask)
        optimizer.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
    return mask.detach()


def relative_output(model: nn.Module, inputs: Any, target: Tensor | None, hidden: Tensor) -> Callable[[Tensor], Tensor]:
    """``values -> (N,)``: the explained output, 0 for the reference and 1 (or -1, if it falls) for the input."""

    def output(values: Tensor) -> Tensor:
        return select(outputs_of(model, replaced(inputs, values)), target)

    with torch.no_grad():
        nothing, everything = output(hidden), output(first(inputs).detach())
    scale = (everything - nothing).abs()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return lambda values: (output(values) - nothing) / scale


def smooth_maximum(cells: Tensor, sigma: float, temperature: float = 20.0) -> Tensor:
    """Each cell's softmax-weighted mean over its neighbours, a Gaussian apart; ``(N, 1, G, G)`` like the input."""
    radius = max(1, round(2 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=cells.device, dtype=cells.dtype)
    kernel = torch.exp(-0.5 * (offsets[:, None] ** 2 + offsets**2) / sigma**2).reshape(1, -1, 1)
    near = F.unfold(cells, 2 * radius + 1, padding=radius) * kernel  # (N, neighbours, G * G)
    return ((temperature * near).softmax(1) * near).sum(1).reshape(cells.shape)


def enlarged(cells: Tensor, value: Tensor) -> Tensor:
    """A coarse grid as a mask of the image, ``(N, 1, H, W)``."""
    return F.interpolate(cells, size=value.shape[2:], mode="bilinear", align_corners=False)


def grid_size(value: Tensor) -> int:
    """Cells per side: one per eight pixels, at least eight where there are as many pixels."""
    side = min(value.shape[2:])
    return max(min(8, side), side // 8)


def _check(name: str, steps: int, grid: int | None, learning_rate: float, baseline: Baseline, max_batch: int) -> Rows:
    whole(name, 1, steps=steps)
    whole(name, 2, grid=grid)
    check_baseline(baseline, name)
    if learning_rate <= 0:
        raise ValueError(f"{name}: learning_rate must be positive, not {learning_rate}")
    return Rows(max_batch, name)
