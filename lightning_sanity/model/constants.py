"""Tensors that are constant by nature: what tells a table, a mask or a scale of the inputs from something trained.

Nobody can see from a tensor that it was trained, but much of what a network reads beside its parameters shows that it
was not: it only says which element to take, it takes two values, its lines follow a formula, it is one number. What
shows none of that counts as trained. How a tensor is used decides which signs are enough: what mixes channels (a
matrix product, a convolution) needs stronger ones than what is added to a value or scales it.
"""

from __future__ import annotations

import math
from collections.abc import Set
from enum import Enum

import torch
from torch import Tensor

_ROUNDING = 1e-4  # of a line's size, by which a formula may be missed: tables in half precision are not looked for
_LINE = 6  # values from which a line can show that it follows a formula
_SMALL = 4  # values of which two may be equal by chance, or be all there is
_LARGEST = 2**22  # values that are looked at


class Role(Enum):
    """What an operation does with a tensor that is neither data nor parameter."""

    MIXES = "mixes channels"
    SHIFTS = "is added or scales"
    SHIFTS_INPUT = "is added to the raw input or scales it"
    STATISTIC = "normalises"
    SELECTS = "says which element is taken"


def kind_of(value: Tensor, roles: Set[Role]) -> str | None:
    """Why a tensor is constant by nature, in a few words; None if nothing shows that it is.

    Args:
        value: The tensor.
        roles: Everything that a pass does with it.
    """
    if value.numel() == 1:
        return "one number"
    if roles <= {Role.SELECTS}:
        return "index table or mask"
    if roles <= {Role.SELECTS, Role.STATISTIC}:
        return "statistics"
    if value.numel() == 0 or value.dtype is torch.bool:
        return "mask"
    if value.is_complex():
        value = torch.view_as_real(value)
    if value.is_quantized or value.numel() > _LARGEST:
        return None
    value = value.detach().to("cpu", torch.float64)
    few = _few_values(value)
    if few is not None and len(few) == 1:
        return "one number"
    mixes = Role.MIXES in roles
    if few is not None and value.numel() > _SMALL and (not mixes or few[0] == 0):
        return "mask"
    if _by_formula(value):
        return "table of a formula"
    if value.ndim >= 3 and len(value) > 1 and value.shape[1] == 1 and bool((value == value[:1]).all()):
        return "one filter for all channels"
    if not mixes and Role.SHIFTS not in roles and sum(side > 1 for side in value.shape) <= 1:
        return "scale of the inputs"
    if not mixes and bool((value == value.round()).all()):
        return "whole numbers"
    return None


def _few_values(value: Tensor) -> list[float] | None:
    """Its one or two values in order; None if it has more."""
    for part in (value.reshape(-1)[:1024], value):  # most show at once that they have more
        distinct = part.unique()
        if len(distinct) > 2:
            return None
    found: list[float] = distinct.tolist()
    return found


def _by_formula(value: Tensor) -> bool:
    """Whether every line along some axis follows a formula: constant, or a linear recurrence of second order.

    That covers ramps, coordinates, sines and cosines, geometric series, also with a number added. Two axes of an image
    may lie flat in one, with or without a leading row for a class token.
    """
    shaped = value.squeeze()
    if shaped.ndim == 0:
        return False
    for table in _unrolled(shaped):
        lines = torch.zeros(table.shape[-1] if table.ndim > 1 else 1, dtype=torch.bool)
        for axis in range(max(table.ndim - 1, 1)):
            lines |= _regular(table, axis)
        if bool(lines.all()):
            return True
        if table.ndim == 2 and bool(_regular(table.T, 0).all()):
            return True
    return False


def _unrolled(value: Tensor) -> list[Tensor]:
    """The table as it is, and with a square's positions unrolled; channels last."""
    found = [value]
    for table in (value, value[1:]) if value.ndim == 2 else ():
        side = math.isqrt(len(table))
        if side >= _LINE and side * side == len(table):
            found.append(table.reshape(side, side, -1))
    return found


def _regular(table: Tensor, axis: int) -> Tensor:
    """Per channel (the last axis), whether all its lines along an axis are constant or follow a recurrence."""
    lines = table.movedim(axis, 0)  # (length, ..., channels)
    if table.ndim == 1:
        lines = table[:, None]
    length, channels = len(lines), lines.shape[-1]
    if length < 3 or (table.ndim == 1 and length < _LINE):
        return torch.zeros(channels, dtype=torch.bool)
    lines = lines.reshape(length, -1, channels)
    constant = (lines == lines[:1]).all(0).all(0) & torch.tensor(table.ndim > 1)
    if length < _LINE:
        return constant
    shifted = _recurs(lines.diff(dim=0)) if length > _LINE else constant.new_zeros(lines.shape[1:])
    return constant | (_recurs(lines) | shifted).all(0)


def _recurs(lines: Tensor) -> Tensor:
    """Per line ``(length, ...)``, whether it follows a linear recurrence of second order."""
    middle, around = lines[1:-1], lines[2:] + lines[:-2]
    factor = (middle * around).sum(0) / middle.square().sum(0).clamp_min(1e-300)
    missed = (around - factor * middle).abs().amax(0)
    found: Tensor = missed <= _ROUNDING * lines.abs().amax(0)
    return found
