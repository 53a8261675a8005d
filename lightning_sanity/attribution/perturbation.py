"""Methods that hide parts of the input and run the model forward: occlusion, RISE, and what their kin share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import Occlusion
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows, rows_of, target_of
from lightning_sanity.attribution.method import Method, first, outputs_of, rest, select

FORWARD = 1 / 3
"""Cost of a forward pass, in forward-plus-backward passes."""


def occlusion(
    window: int | None = None, stride: int | None = None, baseline: Baseline = 0.0, max_batch: int = ROWS
) -> Method:
    """Output lost when a sliding window is hidden; Zeiler & Fergus 2014 (arXiv:1311.2901).

    A pixel gets the mean loss over the windows that cover it.

    Args:
        window: Side of the window in pixels; a quarter of each side of the input if None.
        stride: Step between windows; an eighth of each side if None (half of a given window).
        baseline: What hides the pixels: a number, a tensor, or "blur", "min", "max", "mean".
        max_batch: Most rows sent through the model at once.
    """
    whole("occlusion", 1, window=window, stride=stride)
    if window is not None and stride is not None and stride > window:
        raise ValueError(f"occlusion: stride {stride} is larger than window {window}: pixels between would be left out")
    check_baseline(baseline, "occlusion")
    rows = Rows(max_batch, "occlusion")

    @torch.no_grad()
    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        sides, channels = (value.shape[2:], value.shape[1:2]) if value.ndim > 2 else (value.shape[1:], value.shape[1:1])
        if window is not None and window > min(sides):
            raise ValueError(f"occlusion: window {window} is larger than the input, whose sides are {tuple(sides)}")
        windows = [window or max(1, side // 4) for side in sides]
        default = [max(1, side // 8) if window is None else max(1, window // 2) for side in sides]
        strides = [min(stride or wide, w) for wide, w in zip(default, windows, strict=True)]

        hidden = baseline_for(baseline, value)

        def run(samples: slice, copies: range) -> Tensor:
            found: Tensor = Occlusion(explained(model, target)).attribute(
                value[samples],
                sliding_window_shapes=(*channels, *windows),
                strides=(*channels, *strides),
                baselines=hidden[samples],
                target=target_of(target, samples),
                additional_forward_args=rest(rows_of(inputs, samples)),
                perturbations_per_eval=max(1, rows.limit // len(value[samples])),
            )
            return found.to(value.dtype)

        return torch.cat([found for _, _, found in rows.chunks(len(value), 1, run)])

    return Method("occlusion", attribute, passes=50 * FORWARD, refuses=not_floating)


def rise(
    n_masks: int = 512,
    grid: int = 7,
    p: float = 0.5,
    baseline: Baseline = 0.0,
    center: bool = False,
    max_batch: int = ROWS,
) -> Method:
    """Mean of random masks weighted by the output they leave, ``sum_k f(x * M_k) M_k / (K p)``; RISE.

    Petsiuk et al. 2018 (arXiv:1806.07421). A mask is a coarse grid of cells kept with probability ``p``, upsampled
    bilinearly and shifted at random, so every pixel is kept with mean ``p`` and the estimate is unbiased. All samples
    share the masks.

    Args:
        n_masks: Masks K.
        grid: Cells per side of the coarse grid.
        p: Probability that a cell is kept.
        baseline: What hides the pixels: a number, a tensor, or "blur", "min", "max", "mean".
        center: Subtract the mean output first. Without it, as in the paper, the map holds the mean output times how
            often each pixel was kept: noise of the masks, which is the same for every model.
        max_batch: Most rows sent through the model at once.
    """
    whole("rise", 1, n_masks=n_masks, grid=grid)
    if not 0 < p < 1:
        raise ValueError(f"rise: p must lie between 0 and 1, not {p}")
    check_baseline(baseline, "rise")
    rows = Rows(max_batch, "rise")

    @torch.no_grad()
    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        hidden = baseline_for(baseline, value)
        scatter = MaskDraw.random(n_masks, grid, p, (value.shape[2], value.shape[3]))
        weighted = value.new_zeros(len(value), *value.shape[2:])
        total, shown = value.new_zeros(len(value)), value.new_zeros(value.shape[2:])
        for start in range(0, n_masks, max_batch):
            masks = scatter.masks(start, min(start + max_batch, n_masks)).to(value.device, value.dtype)  # (K, H, W)

            def perturb(samples: slice, copies: range, masks: Tensor = masks) -> Tensor:
                return torch.lerp(hidden[samples], value[samples], masks[copies.start : copies.stop, None, None])

            outputs = perturbed_outputs(model, inputs, target, len(masks), perturb, rows).to(value.dtype)
            weighted += torch.einsum("kn,khw->nhw", outputs, masks)
            total += outputs.sum(0)
            shown += masks.sum(0)
        if center:
            weighted -= (total / n_masks)[:, None, None] * shown
        return spread(weighted / (n_masks * p), value)

    return Method("rise", attribute, stochastic=True, passes=n_masks * FORWARD, refuses=not_an_image)


@dataclass(frozen=True)
class MaskDraw:
    """The random part of RISE's masks: coarse cells ``(K, grid, grid)`` and shifts ``(K, 2)`` in pixels."""

    cells: Tensor
    shifts: Tensor
    size: tuple[int, int]

    @classmethod
    def random(cls, count: int, grid: int, p: float, size: tuple[int, int]) -> MaskDraw:
        """Draw ``count`` masks for images of that size from torch's global CPU stream."""
        cells = (torch.rand(count, grid, grid) < p).float()
        height, width = cell_size(grid, size)
        return cls(cells, torch.stack([torch.randint(height, (count,)), torch.randint(width, (count,))], 1), size)

    def masks(self, start: int, stop: int) -> Tensor:
        """Masks ``(stop - start, H, W)`` with values in [0, 1]."""
        cells, shifts = self.cells[start:stop], self.shifts[start:stop]
        grid = cells.shape[1]
        wide = [(grid + 1) * side for side in cell_size(grid, self.size)]
        large = F.interpolate(cells[:, None], size=wide, mode="bilinear", align_corners=False)[:, 0]
        rows = shifts[:, :1] + torch.arange(self.size[0])  # (K, H)
        columns = shifts[:, 1:] + torch.arange(self.size[1])  # (K, W)
        return large[torch.arange(len(cells))[:, None, None], rows[:, :, None], columns[:, None, :]]


def cell_size(grid: int, size: Sequence[int]) -> tuple[int, int]:
    """Pixels per cell, rounded up."""
    return math.ceil(size[0] / grid), math.ceil(size[1] / grid)


def perturbed_outputs(
    model: nn.Module,
    inputs: Any,
    target: Tensor | None,
    copies: int,
    perturb: Callable[[slice, range], Tensor],
    rows: Rows,
    read: Callable[[Tensor, Tensor | None], Tensor] = select,
) -> Tensor:
    """Explained outputs ``(copies, N)`` of perturbed copies of a batch.

    Args:
        model: What is explained.
        inputs: The batch.
        target: Explained classes ``(N,)``.
        copies: Perturbed copies of each sample.
        perturb: ``(samples, copies) -> values (copies, samples, ...)``: the explained input of these copies.
        rows: How many go through the model at once.
        read: ``(outputs, target) -> (rows, ...)``, what is kept of the outputs.
    """

    def run(samples: slice, block: range) -> Tensor:
        values = perturb(samples, block).flatten(0, 1)
        outputs = outputs_of(model, rows_of(inputs, samples, len(block), values))
        kept = read(outputs, target_of(target, samples, len(block)))
        return kept.reshape(len(block), -1, *kept.shape[1:])

    found: Tensor | None = None
    for samples, block, outputs in rows.chunks(len(first(inputs)), copies, run):
        if found is None:
            found = outputs.new_empty(copies, len(first(inputs)), *outputs.shape[2:])
        found[block.start : block.stop, samples] = outputs
    if found is None:
        raise ValueError("there are no samples to explain")
    return found


def explained(model: nn.Module, target: Tensor | None) -> Callable[..., Tensor]:
    """What captum is given: it selects the class itself; several outputs without a class are summed, as elsewhere."""
    return model if target is not None else lambda *inputs: select(outputs_of(model, inputs), None)


def whole(method: str, smallest: int, **values: int | None) -> None:
    """Raise a ValueError unless every given value is a whole number and large enough."""
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise ValueError(f"{method}: {name} must be a whole number, at least {smallest}, not {value!r}")


def check_count(name: str, prepared: int, value: Tensor) -> None:
    """Raise a ValueError if a prepared method is given another batch than the one it was prepared for."""
    if prepared != len(value):
        raise ValueError(f"{name}: prepared for {prepared} samples, got {len(value)}")


def spread(maps: Tensor, value: Tensor) -> Tensor:
    """Maps ``(N, H, W)`` shaped like the input: every channel carries the map."""
    return maps[:, None].expand_as(value).to(value.dtype).contiguous()


def not_floating(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
    """Reason why values cannot be replaced."""
    value = first(inputs)
    return None if value.is_floating_point() else f"the input holds {value.dtype} values, which cannot be masked"


def not_an_image(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
    """Reason why there is nothing spatial to mask."""
    if first(inputs).ndim != 4:
        return f"the input has shape {tuple(first(inputs).shape)}, not (N, C, H, W)"
    return not_floating(model, inputs, target)
