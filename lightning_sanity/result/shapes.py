"""Whether the tensors of a result that was read fit one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_sanity.result.sanity_result import Pictures, SanityResult


def check_shapes(result: SanityResult) -> None:
    """Raise ``ValueError`` unless the tensors of a file fit one another."""
    depths = len(result.units)
    weights = result.depth_weights
    if weights and not (len(weights) == depths and all(0 <= weight <= 1 for weight in weights)):
        raise ValueError(f"'depth_weights' does not hold one weight for each of {depths} steps")
    for method, again in result.reproducibility.items():
        if again.ndim != 2 or again.dtype != torch.float32:
            raise ValueError(f"'reproducibility' of {method} is no table of repeats and samples")
    for (method, similarity), curve in result.curves.items():
        shape = curve.values.shape
        fits = curve.values.ndim == 3 and shape[1] == depths and min(shape) > 0 and curve.floor.shape == shape
        fits &= curve.ceiling.ndim == 2 and curve.ceiling.shape[1:] == shape[2:]
        if not fits or {t.dtype for t in (curve.values, curve.floor, curve.ceiling)} != {torch.float32}:
            raise ValueError(f"the curve of {method} by {similarity} does not fit {depths} units")
        if method not in result.verdicts:
            raise ValueError(f"there is a curve of {method}, but no verdict")
    for method, grounds in result.grounds.items():
        tables = [table for table in (grounds.noise, grounds.cross) if table is not None]
        samples = {c.values.shape[2] for (name, _), c in result.curves.items() if name == method}
        fits = all(table.ndim == 2 and table.dtype == torch.float32 for table in tables)
        if not fits or len({table.shape[1] for table in tables} | samples) > 1:
            raise ValueError(f"what the verdict on {method} rests on does not fit its curves")
    change = result.output_change
    if (change.agreement.ndim, change.correlation.ndim, change.gradient_ratio.ndim, change.spread_ratio.ndim) != (
        2, 2, 1, 1,
    ):  # fmt: skip
        raise ValueError("'output_change' has tensors of wrong dimensions")
    if result.pictures is not None and not _fit(result.pictures):
        raise ValueError("'pictures' does not hold one map per input and depth")


def _fit(pictures: Pictures) -> bool:
    """Whether there is one map per input and depth, and a word for each of a sentence's tokens."""
    inputs, maps = pictures.inputs, pictures.maps.values()
    if inputs.ndim != 4 or inputs.shape[-1] != 3 or inputs.dtype != torch.uint8:
        return False
    shape, row = (len(inputs), 1 + len(pictures.depths)), (1, inputs.shape[2])
    fits = all(each.ndim == 4 and each.shape[:2] == shape and each.dtype == torch.int8 for each in maps)
    fits = fits and (not pictures.in_rows or all(each.shape[2:] == row for each in maps))
    fits = fits and all(len(line) >= inputs.shape[2] for line in pictures.words)
    return fits and (pictures.kind != "tokens" or len(pictures.words) == len(inputs))
