"""Inputs as users have them, as tensors that the rest can cut, stack and explain: arrays, lists, lists in tuples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Forward = Callable[..., Any]


def as_tensors(inputs: Any, forward: Forward | None) -> tuple[Any, Forward | None]:
    """Inputs whose entries are tensors, and how the model is called with them.

    Args:
        inputs: A tensor or NumPy array; a list of tensors of one shape, a sample each; a tuple of arguments or a
            mapping of keyword arguments, whose entries may be lists of tensors.
        forward: How the model is called with the inputs as they were given; None where it takes them as they are.

    Returns:
        A tensor, a tuple or a mapping of what is no list, and ``forward`` for these.

    Raises:
        ValueError: If the samples of a list differ in shape.
    """
    if isinstance(inputs, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(inputs)), forward
    if isinstance(inputs, list) and inputs and all(isinstance(each, (Tensor, np.ndarray)) for each in inputs):
        return _stacked([torch.as_tensor(each) for each in inputs]), forward
    if isinstance(inputs, Mapping) and any(isinstance(each, np.ndarray) for each in inputs.values()):
        return {key: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for key, v in inputs.items()}, forward
    if not isinstance(inputs, tuple) or not any(map(_holds_tensors, inputs)):
        return inputs, forward
    counts = [len(each) if _is_list(each) else None for each in inputs]
    flat = [one for each in inputs for one in (each if _is_list(each) else [each])]

    def regrouped(model: nn.Module, *values: Any) -> Any:
        left, given = list(values), []
        for count in counts:
            part, left = left[: count or 1], left[count or 1 :]
            given.append(part[0] if count is None else part)
        return model(*given) if forward is None else forward(model, *given)

    nested = any(map(_is_list, inputs))
    values = tuple(torch.as_tensor(each) if isinstance(each, np.ndarray) else each for each in flat)
    return values, regrouped if nested else forward


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, (Tensor, np.ndarray)) for each in value)


def _holds_tensors(value: Any) -> bool:
    return _is_list(value) or isinstance(value, np.ndarray)


def _stacked(samples: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(sample.shape) for sample in samples})
    if len(shapes) > 1:
        raise ValueError(
            f"the {len(samples)} samples of the list have different shapes, {', '.join(map(str, shapes[:3]))}: maps of "
            "unlike sides cannot be compared; crop, resize or pad them to one"
        )
    return torch.stack(samples)
