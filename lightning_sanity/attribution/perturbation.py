"""Methods that hide parts of the input and run the model forward: occlusion, RISE, and what their kin share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from captum.attr import FeatureAblation, Occlusion
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows, rows_of, target_of
from lightning_sanity.attribution.layers import LINEAR
from lightning_sanity.attribution.method import (
    AttributionFn,
    Method,
    Segmentation,
    factory,
    first,
    outputs_of,
    rest,
    select,
)
from lightning_sanity.attribution.segmentation import regions, unsegmented

FORWARD = 1 / 3
"""Cost of a forward pass, in forward-plus-backward passes."""


@factory
def occlusion(
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    baseline: Baseline = 0.0,
    max_batch: int = ROWS,
) -> Method:
    """Output lost when a sliding window is hidden; Zeiler & Fergus 2014 (arXiv:1311.2901).

    A pixel gets the mean loss over the windows that cover it. Signals and volumes have windows along their own sides;
    a spectrogram, whose sides are frequency and time, has a window of so many bands for so many frames.

    Args:
        window: Side of the window in pixels, or one for each side of the input, in its order; a quarter of each side if
            None, but one column of a table and one token of a text, whose neighbours have nothing in common.
        stride: Step between windows, or one for each side; an eighth of each side if None (half of a given window).
        baseline: What hides the pixels: a number, a tensor, or "blur", "min", "max", "mean".
        max_batch: Most rows sent through the model at once.
    """
    for name, given in (("window", window), ("stride", stride)):
        for each in given if isinstance(given, (list, tuple)) else (given,):
            whole("occlusion", 1, **{name: each})
    if isinstance(window, int) and isinstance(stride, int):
        _check_steps([window], [stride])
    check_baseline(baseline, "occlusion")
    rows = Rows(max_batch, "occlusion")

    @torch.no_grad()
    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        value = first(inputs).detach()
        channels, sides = (value.shape[1:2], value.shape[2:]) if value.ndim > 2 else ((), value.shape[1:])
        windows, strides = _sliding(window, stride, sides, table=not channels)
        hidden = baseline_for(baseline, value)

        def run(samples: slice, copies: range) -> Tensor:
            found: Tensor = Occlusion(explained(model, target)).attribute(
                value[samples],
                sliding_window_shapes=(*channels, *windows),
                strides=(*channels, *strides),
                baselines=hidden[samples],
                target=target_of(target, samples),
                additional_forward_args=rest(rows_of(inputs, samples)),
                perturbations_per_eval=max(1, rows.most // len(value[samples])),
            )
            return found.to(value.dtype)

        return torch.cat([found for _, _, found in rows.chunks(len(value), 1, run)])

    def over(segments: Segmentation) -> Method:
        prepare = ablation("occlusion", segments, baseline, rows)
        return replace(
            method, attribute=lambda m, inputs, target: prepare(m, inputs)(m, inputs, target), prepare=prepare
        )

    method = Method("occlusion", attribute, passes=50 * FORWARD, refuses=not_floating)
    return method if window is not None else replace(method, over=over)


def _sliding(
    window: int | Sequence[int] | None, stride: int | Sequence[int] | None, sides: Sequence[int], *, table: bool
) -> tuple[list[int], list[int]]:
    """Window and step along each side of an input."""
    wide, far = _each("window", window, sides), _each("stride", stride, sides)
    if wide is not None and any(one > side for one, side in zip(wide, sides, strict=True)):
        raise ValueError(f"occlusion: window {window} is larger than the input, whose sides are {tuple(sides)}")
    if wide is not None and far is not None:
        _check_steps(wide, far)
    windows = wide or [1 if table else max(1, side // 4) for side in sides]
    default = [max(1, side // 8) for side in sides] if wide is None else [max(1, one // 2) for one in wide]
    return windows, [min(step, one) for step, one in zip(far or default, windows, strict=True)]


def _each(name: str, given: int | Sequence[int] | None, sides: Sequence[int]) -> list[int] | None:
    """A number for each side."""
    if given is None or isinstance(given, int):
        return None if given is None else [given] * len(sides)
    if len(given) != len(sides):
        raise ValueError(
            f"occlusion: {name} {tuple(given)} has {len(given)} numbers, and the input has the sides {tuple(sides)}: "
            "give one number for all, or one for each side"
        )
    return list(given)


def _check_steps(windows: Sequence[int], strides: Sequence[int]) -> None:
    """Raise a ValueError if a step leaves out what lies between two windows."""
    for wide, far in zip(windows, strides, strict=True):
        if far > wide:
            raise ValueError(f"occlusion: stride {far} is larger than window {wide}: pixels between would be left out")


def ablation(
    name: str, segments: Segmentation, baseline: Baseline, rows: Rows
) -> Callable[[nn.Module, Any], AttributionFn]:
    """Output lost when one part is hidden: prepared for the parts of a batch; 0 where nothing is to be hidden."""

    def prepare(model: nn.Module, inputs: Any) -> AttributionFn:
        labels = segments(inputs)
        free = labels < 0
        parts = labels.where(~free, labels.amax() + 1)

        @torch.no_grad()
        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            value = first(inputs).detach()
            check_count(name, len(labels), value)
            hidden = baseline_for(baseline, value)

            def run(samples: slice, copies: range) -> Tensor:
                found: Tensor = FeatureAblation(explained(model, target)).attribute(
                    value[samples],
                    baselines=hidden[samples],
                    target=target_of(target, samples),
                    additional_forward_args=rest(rows_of(inputs, samples)),
                    feature_mask=parts[samples],
                    perturbations_per_eval=max(1, rows.most // len(value[samples])),
                )
                return found.to(value.dtype)

            lost = torch.cat([found for _, _, found in rows.chunks(len(value), 1, run)])
            return lost.masked_fill(free, 0)

        return attribute

    return prepare


@factory
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
    linearly along every side and shifted at random, so every pixel is kept with mean ``p`` and the estimate is
    unbiased. The columns of a table and the tokens of a text are kept or hidden whole. All samples share the masks.

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

    def on(draw: Callable[[Any], Masks]) -> Method:
        @torch.no_grad()
        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            value = first(inputs).detach()
            hidden = baseline_for(baseline, value)
            drawn = draw(inputs)
            held = drawn.masks(0, 1).shape[1:]
            weighted, shown = value.new_zeros(len(value), *held), value.new_zeros(held)
            total = value.new_zeros(len(value))
            for start in range(0, n_masks, max_batch):
                masks = drawn.masks(start, min(start + max_batch, n_masks)).to(value.device, value.dtype)  # (K, ...)

                def perturb(samples: slice, copies: range, masks: Tensor = masks) -> Tensor:
                    kept = drawn.laid(masks[copies.start : copies.stop], samples)
                    return torch.lerp(hidden[samples], value[samples], kept.to(value.dtype))

                outputs = perturbed_outputs(model, inputs, target, len(masks), perturb, rows).to(value.dtype)
                weighted += torch.einsum("kn,k...->n...", outputs, masks)
                shown += masks.sum(0)
                total += outputs.sum(0)
            if center:
                weighted -= (total / n_masks).reshape(-1, *[1] * shown.ndim) * shown
            found = drawn.painted(weighted / (n_masks * p))
            return found.expand_as(value).to(value.dtype).contiguous()

        return Method("rise", attribute, stochastic=True, passes=n_masks * FORWARD, refuses=unsegmented)

    def usual(inputs: Any) -> Masks:
        value = first(inputs)
        if value.ndim == 2:
            return CoinDraw.random(n_masks, p, regions(inputs, 1))
        return MaskDraw.random(n_masks, grid, p, tuple(value.shape[2:]))

    return replace(on(usual), over=lambda segments: on(lambda inputs: CoinDraw.random(n_masks, p, segments(inputs))))


class Masks(Protocol):
    """The random part of RISE: which share of what is shown in each of K altered copies."""

    def masks(self, start: int, stop: int) -> Tensor:
        """Masks ``(stop - start, ...)`` with values in [0, 1], the same for all samples."""

    def laid(self, masks: Tensor, samples: slice) -> Tensor:
        """Masks ``(K, ...)`` laid on these samples; ``(K, n or 1, ...)``, to be broadcast over their values."""

    def painted(self, scores: Tensor) -> Tensor:
        """Scores ``(N, ...)`` of what a mask holds, laid on the samples, to be broadcast over their values."""


@dataclass(frozen=True)
class MaskDraw:
    """Random grids: coarse cells ``(K, grid, ..., grid)``, one per side, and shifts ``(K, sides)`` in pixels."""

    cells: Tensor
    shifts: Tensor
    size: tuple[int, ...]

    @classmethod
    def random(cls, count: int, grid: int, p: float, size: tuple[int, ...]) -> MaskDraw:
        """Draw ``count`` masks for inputs with these sides from torch's global CPU stream."""
        cells = (torch.rand(count, *[grid] * len(size), dtype=torch.float32) < p).float()
        return cls(cells, torch.stack([torch.randint(side, (count,)) for side in cell_size(grid, size)], 1), size)

    def masks(self, start: int, stop: int) -> Tensor:
        """Masks ``(stop - start, *size)``."""
        cells, shifts = self.cells[start:stop], self.shifts[start:stop]
        sides = len(self.size)
        wide = [(cells.shape[1] + 1) * side for side in cell_size(cells.shape[1], self.size)]
        large = F.interpolate(cells[:, None], size=wide, mode=LINEAR[sides], align_corners=False)[:, 0]
        places = [torch.arange(len(cells)).reshape(-1, *[1] * sides)]
        for k, side in enumerate(self.size):
            along = shifts[:, k, None] + torch.arange(side)  # (K, side)
            places.append(along.reshape(len(cells), *[1] * k, side, *[1] * (sides - k - 1)))
        return large[tuple(places)]

    def laid(self, masks: Tensor, samples: slice) -> Tensor:
        """Masks ``(K, 1, 1, *size)``."""
        return masks[:, None, None]

    def painted(self, scores: Tensor) -> Tensor:
        """Scores ``(N, 1, *size)``."""
        return scores[:, None]


@dataclass(frozen=True)
class CoinDraw:
    """A coin per part of the input: coins ``(K, parts)`` and the parts' labels ``(N, 1, *sides)`` or ``(N, F)``."""

    coins: Tensor
    labels: Tensor

    @classmethod
    def random(cls, count: int, p: float, labels: Tensor) -> CoinDraw:
        """Toss ``count`` coins for each part, from torch's global CPU stream.

        Part after part: what a sample is asked must not depend on how many parts its neighbours have.
        """
        return cls((torch.rand(int(labels.amax().clamp_min(0)) + 1, count, dtype=torch.float32) < p).float().T, labels)

    def masks(self, start: int, stop: int) -> Tensor:
        """Masks ``(stop - start, parts)``."""
        return self.coins[start:stop]

    def laid(self, masks: Tensor, samples: slice) -> Tensor:
        """Masks ``(K, n, 1, *sides)`` or ``(K, n, F)``; what has no part is shown."""
        labels = self.labels[samples]
        return masks[:, labels.clamp_min(0)].masked_fill(labels < 0, 1)

    def painted(self, scores: Tensor) -> Tensor:
        """Scores ``(N, 1, *sides)`` or ``(N, F)``; 0 for what has no part."""
        found = scores.gather(1, self.labels.clamp_min(0).flatten(1)).reshape(self.labels.shape)
        return found.masked_fill(self.labels < 0, 0)


def cell_size(grid: int, size: Sequence[int]) -> tuple[int, ...]:
    """Pixels per cell along each side, rounded up."""
    return tuple(math.ceil(side / grid) for side in size)


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
