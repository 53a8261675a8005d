"""One similarity along a cascade, and how very many of them stay in a file of bounded size.

A test of 200 steps, 20 methods, 256 samples and 20 trials holds 120 million similarities. As float32 they would take
half a gigabyte that hardly compresses. Beyond ``WHOLE`` of them they are therefore rounded to a multiple of 1/64 or
1/16, one byte each, before anything is judged: so that what is judged is what the file holds. Each is rounded up or
down, never further, so that at every depth the sum over trials and samples stays as it was. An index, which is a mean
over far more of them than there are steps of rounding, moves by less than a thousandth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

WHOLE = 1 << 23
"""Similarities up to which a result holds them as they were measured."""
STEPS = ((1 << 26, 1 / 64), (1 << 27, 1 / 16))
"""Similarities up to which they are rounded to a multiple of this; more than that no file holds."""
MOST = STEPS[-1][0]
_UNDEFINED = -128
_LARGEST = 127
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Curve:
    """One similarity of one method along a cascade.

    Attributes:
        values: Trained model's map against the map at each depth, same sample; float32 ``(trials, depths, N)``.
        floor: The same against the map of another sample: unrelated model and unrelated input; ``(trials, depths, N)``.
        ceiling: What the same model gives ``(R, N)``: ones, because all models are explained under one seed; between
            models of other training seeds in the data randomization test.
        step: Of a very large result, what ``values`` and ``floor`` are rounded to a multiple of; None = nothing.

    NaN marks a pair in which a map was constant or not finite.
    """

    values: Tensor
    floor: Tensor
    ceiling: Tensor
    step: float | None = None

    @property
    def mean(self) -> Tensor:
        """Mean over trials and samples at each depth, NaN pairs left out; ``(depths,)``."""
        return self.values.nanmean(dim=(0, 2))

    @property
    def size(self) -> int:
        """How many similarities it holds."""
        return self.values.numel() + self.floor.numel()


def step_for(similarities: int) -> float | None:
    """What so many similarities of one result are rounded to; None where they stay as they are."""
    if similarities <= WHOLE:
        return None
    return next((step for most, step in STEPS if similarities <= most), None)


def fits(table: Tensor, step: float) -> bool:
    """Whether every value can be one byte: similarities and distances within ``127 * step``, or NaN."""
    known = table[~table.isnan()]
    return not len(known) or float(known.abs().amax()) <= _LARGEST * step


def rounded(table: Tensor, step: float, absolute: bool = False) -> Tensor:
    """Every value as the next multiple of ``step`` below or above, so that the sum at each depth stays as it was.

    A value that is a multiple keeps it, and NaN stays NaN.

    Args:
        table: ``(trials, depths, N)``.
        step: A power of two.
        absolute: Keep the sum of magnitudes instead, where those are what is judged.
    """
    flat = table.movedim(1, 0).flatten(1).double() / step  # (depths, trials * N)
    wanted = (flat.abs() if absolute else flat).nan_to_num(0.0)
    # Equal tables would all be rounded up at the same places; a beginning of its own for every depth prevents it.
    begun = (_GOLDEN * torch.arange(1, len(flat) + 1, dtype=torch.float64) % 1)[:, None]
    found = (wanted.cumsum(1) + begun).floor_().diff(prepend=torch.zeros_like(begun))
    found = torch.minimum(torch.maximum(found, wanted.floor()), wanted.ceil())
    found = torch.where(flat.isnan(), torch.nan, found.copysign(flat) if absolute else found) * step
    trials, depths, samples = table.shape
    return found.reshape(depths, trials, samples).movedim(0, 1).float().contiguous()


def packed(curve: Curve) -> Curve:
    """The curve as its file holds it: one byte for each rounded similarity."""
    if curve.step is None:
        return curve
    step = curve.step

    def codes(table: Tensor) -> Tensor:
        return (table / step).nan_to_num(_UNDEFINED).round_().to(torch.int8)

    return replace(curve, values=codes(curve.values), floor=codes(curve.floor))


def unpacked(curve: Curve) -> Curve:
    """The inverse of ``packed``.

    Raises:
        ValueError: If it is no curve that ``packed`` made.
    """
    if curve.step is None:
        return curve
    step = curve.step
    if step not in _known_steps() or {curve.values.dtype, curve.floor.dtype} != {torch.int8}:
        raise ValueError(f"similarities are not rounded to a multiple of {step!r}")

    def table(codes: Tensor) -> Tensor:
        return (codes.float() * step).masked_fill_(codes == _UNDEFINED, torch.nan)

    return replace(curve, values=table(curve.values), floor=table(curve.floor))


def _known_steps() -> Sequence[float]:
    return [step for _, step in STEPS]
