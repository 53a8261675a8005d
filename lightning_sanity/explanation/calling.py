"""The model called on the probe, and what is said where that fails: our way out first, then the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lightning_sanity.model.outputs import OutputError
from lightning_sanity.model.weights import own_class
from lightning_sanity.resources.quoting import quoted

_FAILED = "calling it on the probe failed"
_OTHER_TYPE = (
    f"{_FAILED}, whose inputs are of another type than its weights: convert them as your own transforms do, as in "
    "inputs.float() / 255"
)
_HINTS = {
    **dict.fromkeys(("should be the same", "must have the same dtype", "expected scalar type"), _OTHER_TYPE),
    "not attached to a `Trainer`": "its forward needs a Trainer, which a clone does not have",
    "inference tensor": "it was run in inference mode, which gathered shards never leave; use "
    "Trainer(inference_mode=False)",
}


class TargetError(ValueError):
    """What was asked for cannot be taken of the model's outputs; the message says what to ask for."""


def as_arguments(values: Any) -> tuple[Any, ...]:
    """The positional arguments of a pass."""
    return values if isinstance(values, tuple) else (values,)


def call(model: nn.Module, values: Any, forward: Callable[..., Any] | None) -> Any:
    """What the model returns for these inputs.

    Args:
        model: The model.
        values: Its inputs: one, or a tuple.
        forward: ``(model, *inputs) -> outputs``; None where calling the model is enough.

    Raises:
        ValueError: If it fails; says how to have it called.
    """
    arguments = as_arguments(values)
    try:
        return forward(model, *arguments) if forward is not None else model(*arguments)
    except (OutputError, TargetError):  # which say what to do themselves
        raise
    except Exception as error:
        why = next((hint for words, hint in _HINTS.items() if words in str(error)), _FAILED)
        raise ValueError(
            f"{own_class(model).__name__} cannot be explained: {why}. Pass forward=, a function (model, *inputs) -> "
            f"scores (N, classes) that calls it as your own code does. It raised {quoted(error)}"
        ) from error
