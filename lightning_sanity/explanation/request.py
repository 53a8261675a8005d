"""What a test asks of a model: of which of its inputs, how it is called, and for which number per sample.

Everything behind this border sees a tuple of inputs whose first is explained and a function that calls the model with
it. What a target keeps fixed of every sample rides along as a last input, so that it is cut and repeated with its
sample wherever a method does so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.explanation.targets import Target
from lightning_sanity.model.clone import as_one_operation, evaluating, launder
from lightning_sanity.resources.random_streams import isolated_rng

Forward = Callable[..., Any]
_NAMES = ("input_ids", "image", "images", "input", "inputs", "pixel_values", "x")


@dataclass(frozen=True)
class Request:
    """A question to a model.

    Attributes:
        inputs: One tensor, or a tuple whose first is explained.
        forward: ``(model, *inputs) -> outputs``; None where calling the model is enough.
        target: A class index, or None where the outputs hold one number per sample.
        name: Of the explained input: its key or place, as text.
        target_name: Of the target.
        names: Of all inputs, in the order of ``inputs``.
        chosen: See ``explanation.Explanation``.
        place: Of the target's choice among the inputs, counted from the end; None if there is none.
    """

    inputs: Any
    forward: Forward | None
    target: Tensor | int | None
    name: str
    target_name: str
    names: tuple[int | str, ...]
    chosen: Callable[[nn.Module, Any], Any] | None = None
    place: int | None = None


def ask(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    *,
    explain: int | str | None = None,
    forward: Forward | None = None,
    seed: int = 0,
) -> Request:
    """The question that the arguments of a test mean.

    Args:
        model: Is run once, undisturbed, where a ``Target`` has to choose.
        inputs: A tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        target: A class index, one for all or ``(N,)``; None; a function ``outputs -> (N,)``; or a ``Target``.
        explain: Which input: its place or key. None = the first, or of a mapping the first of the usual names, else
            its first floating-point tensor, else its first tensor.
        forward: ``(model, *inputs)``, or ``(model, **inputs)`` for a mapping.
        seed: Of the streams for the target's choice.

    Raises:
        ValueError: If the explained input is not there or no tensor.
    """
    names, values = _listed(inputs)
    place = names.index(_chosen_name(names, values, explain))
    order = [place, *(k for k in range(len(names)) if k != place)]
    arranged = tuple(values[k] for k in order)
    if isinstance(inputs, Mapping) or order != sorted(order):
        forward = _called_by(tuple(names[k] for k in order), forward)
    asked = Request(
        arranged[0] if len(arranged) == 1 else arranged,
        forward,
        None if callable(target) or isinstance(target, Target) else target,
        str(names[place]),
        "class",
        tuple(names[k] for k in order),
    )
    if isinstance(target, Target):
        return _settled(asked, model, target, seed)
    if callable(target):
        return _with_score(asked, getattr(target, "__name__", "a function"), lambda outputs, *_: target(outputs))
    return asked


def explainable(inputs: Any) -> tuple[int | str, ...]:
    """Names of the inputs that could be explained: the floating-point tensors."""
    names, values = _listed(inputs)
    return tuple(
        n for n, value in zip(names, values, strict=True) if isinstance(value, Tensor) and value.is_floating_point()
    )


def _listed(inputs: Any) -> tuple[list[int | str], list[Any]]:
    if isinstance(inputs, Mapping):  # also what a Hugging Face tokenizer returns
        return list(inputs.keys()), list(inputs.values())
    values = list(inputs) if isinstance(inputs, tuple) else [inputs]
    return list(range(len(values))), values


def _chosen_name(names: list[int | str], values: list[Any], explain: int | str | None) -> int | str:
    tensors = {name: value for name, value in zip(names, values, strict=True) if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"there is no tensor among the inputs {names or 'that were given'}")
    if explain is not None:
        if explain not in tensors:
            raise ValueError(f"explain={explain!r} is no input tensor; there are {', '.join(map(repr, tensors))}")
        return explain
    usual = [name for name in _NAMES if name in tensors]
    if usual:
        return usual[0]
    if names == list(range(len(names))):
        return next(iter(tensors))
    return next((name for name, value in tensors.items() if value.is_floating_point()), next(iter(tensors)))


def _called_by(names: tuple[int | str, ...], forward: Forward | None) -> Forward:
    """Calls with values in the order of ``names``: by keyword, or each at its place."""

    def run(model: nn.Module, *values: Any) -> Any:
        named = dict(zip(names, values, strict=True))
        callee = model if forward is None else forward
        first = () if forward is None else (model,)
        if all(isinstance(name, str) for name in names):
            return callee(*first, **{str(name): value for name, value in named.items()})
        return callee(*first, *(named[place] for place in range(len(names))))

    return run


def _plainly(model: nn.Module, *values: Any) -> Any:
    return model(*values)


def _with_score(asked: Request, name: str, score: Callable[..., Any], **changes: Any) -> Request:
    """Ask for ``score(outputs, *values)``; the values are those that ``changes`` put behind the inputs."""
    run, total = asked.forward or _plainly, len(asked.names)

    def checked(outputs: Any, *values: Any) -> Tensor:
        found = score(outputs, *values)
        if not isinstance(found, Tensor) or found.ndim != 1 or not found.is_floating_point():
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"target '{name}' must return one floating-point number per sample (N,), not {shown}")
        return found

    def scored(model: nn.Module, *values: Any) -> Any:
        return as_one_operation(checked, run(model, *values[:total]), *values[total:])

    return replace(asked, forward=scored, target=None, target_name=name, **changes)


def _settled(asked: Request, model: nn.Module, target: Target, seed: int) -> Request:
    """The choice of a target made on the trained model and put behind the other inputs."""
    run, values = asked.forward or _plainly, asked.inputs if isinstance(asked.inputs, tuple) else (asked.inputs,)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with isolated_rng(seed, device), torch.inference_mode(False), torch.no_grad(), evaluating(model):
        choice = target.choose(run(model, *launder(values, device)))

    def chosen(explained: nn.Module, inputs: Any) -> Any:
        inner = getattr(explained, "model", explained)
        with torch.no_grad():
            return (*inputs[:-1], target.choose(run(inner, *inputs[:-1])))

    return _with_score(
        asked,
        target.name,
        target.score,
        inputs=(*values, choice),
        names=(*asked.names, "choice"),
        chosen=chosen,
        place=-1,
    )
