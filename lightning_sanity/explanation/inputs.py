"""Inputs as users have them, as tensors that the rest can cut, stack and explain: arrays, lists, lists in tuples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten

Forward = Callable[..., Any]
NAMES = ("input_ids", "image", "images", "input", "inputs", "pixel_values", "img", "x")
"""What the input that is explained is usually called."""


def as_tensors(inputs: Any, forward: Forward | None) -> tuple[Any, Forward | None]:
    """Inputs whose entries are tensors, and how the model is called with them.

    Args:
        inputs: A tensor or NumPy array; a list of tensors of one shape, a sample each; a mapping of keyword arguments;
            or a tuple of arguments, which may be lists, tuples or dictionaries of tensors and of anything else.
        forward: How the model is called with the inputs as they were given; None where it takes them as they are.

    Returns:
        A tensor, a tuple of tensors or a mapping, and ``forward`` for these.

    Raises:
        ValueError: If the samples of a list differ in shape.
    """
    if isinstance(inputs, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(inputs)), forward
    if isinstance(inputs, list) and inputs and all(isinstance(each, (Tensor, np.ndarray)) for each in inputs):
        return _stacked([torch.as_tensor(each) for each in inputs]), forward
    if isinstance(inputs, Mapping) and any(isinstance(each, np.ndarray) for each in inputs.values()):
        return {key: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for key, v in inputs.items()}, forward
    if not isinstance(inputs, tuple) or not any(isinstance(leaf, np.ndarray) or _nested(leaf) for leaf in inputs):
        return inputs, forward
    paths, structure = tree_flatten_with_path(inputs)
    leaves = [torch.as_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf for _, leaf in paths]
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    places.sort(key=lambda place: _rank(paths[place][0], leaves[place]))

    def regrouped(model: nn.Module, *values: Any) -> Any:
        given = list(leaves)
        for place, value in zip(places, values, strict=True):
            given[place] = value
        arguments = tree_unflatten(given, structure)
        return model(*arguments) if forward is None else forward(model, *arguments)

    return tuple(leaves[place] for place in places), regrouped


def _nested(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict)) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def _rank(path: Any, leaf: Tensor) -> tuple[bool, bool]:
    """What is explained comes first: what is called as inputs are, else what measures something."""
    return getattr(path[-1], "key", None) not in NAMES, not leaf.is_floating_point()


def _stacked(samples: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(sample.shape) for sample in samples})
    if len(shapes) > 1:
        raise ValueError(
            f"the {len(samples)} samples of the list have different shapes, {', '.join(map(str, shapes[:3]))}: maps of "
            "unlike sides cannot be compared; crop, resize or pad them to one"
        )
    return torch.stack(samples)
