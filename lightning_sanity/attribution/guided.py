"""Guided Backprop and the deconvnet on whatever rectifies: modules, functional calls, in-place and bounded ones.

Hooks on ``nn.ReLU`` modules miss ``F.relu`` and ``ReLU6``, and the method then silently equals the plain gradient. Here
the rectifying calls themselves are intercepted while the model runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_sanity.attribution.batching import of_few
from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.method import (
    Method,
    any_of,
    factory,
    first,
    leaf,
    not_differentiable,
    output_gradient,
    replaced,
)
from lightning_sanity.model.graph import trace


class _Rectify(torch.autograd.Function):
    """``clamp(x, 0, high)`` whose backward lets only positive gradients through; where x is active, or everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float, inplace: bool, masked: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
            y = x.clamp_(0, None if math.isinf(high) else high)
        else:
            y = x.clamp(0, None if math.isinf(high) else high)
        ctx.save_for_backward(*((y,) if masked else ()))
        ctx.high = high
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        positive = gradients[0].clamp_min(0)
        for y in ctx.saved_tensors:
            positive = torch.ops.aten.threshold_backward(positive, y, 0)  # one kernel for "where y > 0"
            if not math.isinf(ctx.high):
                positive = positive * (y < ctx.high)
        return positive, None, None, None


def rectifier_bounds(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float, bool] | None:
    """``(upper bound, in place)`` if this call rectifies, else None."""

    def argument(position: int, names: tuple[str, ...], default: Any) -> Any:
        return next((kwargs[n] for n in names if n in kwargs), args[position] if len(args) > position else default)

    if func in _RELU:
        return math.inf, bool(argument(1, ("inplace",), False))
    if func in _RELU_:
        return math.inf, True
    if func is F.relu6:
        return 6.0, bool(argument(1, ("inplace",), False))
    if func in (F.hardtanh, F.hardtanh_):
        low, high = argument(1, ("min_val",), -1.0), argument(2, ("max_val",), 1.0)
        return (float(high), func is F.hardtanh_ or bool(argument(3, ("inplace",), False))) if low == 0 else None
    if func in _THRESHOLD or func in _THRESHOLD_:
        at_zero = argument(1, ("threshold",), None) == 0 and argument(2, ("value",), None) == 0
        in_place = func in _THRESHOLD_ or bool(argument(3, ("inplace",), False))
        return (math.inf, in_place) if at_zero else None
    if func in _CLAMP or func in _CLAMP_:
        low, high = argument(1, ("min",), None), argument(2, ("max",), None)
        if isinstance(low, (int, float)) and low == 0 and (high is None or isinstance(high, (int, float))):
            return (math.inf if high is None else float(high)), func in _CLAMP_
    return None


_THRESHOLD = {F.threshold, torch.threshold}
_THRESHOLD_ = {F.threshold_, torch.threshold_}  # type: ignore[attr-defined]
_RELU = {F.relu, torch.relu, Tensor.relu}
_RELU_ = {F.relu_, torch.relu_, Tensor.relu_}
_CLAMP = {torch.clamp, Tensor.clamp, torch.clamp_min, Tensor.clamp_min}
_CLAMP_ = {torch.clamp_, Tensor.clamp_, torch.clamp_min_, Tensor.clamp_min_}


class GuidedRectifiers(TorchFunctionMode):
    """While active, every rectifier backpropagates only positive gradients; counts those it met.

    Args:
        masked: Whether they also stop what was inactive in the forward pass, as the gradient does: Guided Backprop does
            that, the deconvnet does not.
    """

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.met, self.masked = 0, masked

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace rectifying calls, pass on all others."""
        kwargs = kwargs or {}
        bounds = rectifier_bounds(func, args, kwargs)
        if bounds is None:
            return func(*args, **kwargs)
        self.met += 1
        x = args[0] if args else kwargs.get("input")
        return _Rectify.apply(x, *bounds, self.masked)


class Steering(TorchFunctionMode):
    """While active, rectifiers are met whose gradients can be told later which rule to follow.

    The forward pass is the network's own, so that one serves the gradient, Guided Backprop and the deconvnet.

    Attributes:
        rule: What every rectifier that was met follows: "gradient" (its own), "guided" (only positive gradients, where
            it was active) or "deconvnet" (only positive gradients, everywhere).
    """

    def __init__(self) -> None:
        super().__init__()
        self.rule = "gradient"

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call and hook its node in the graph if it rectified."""
        made = func(*args, **(kwargs or {}))
        if rectifier_bounds(func, args, kwargs or {}) is not None and made.grad_fn is not None:
            made.grad_fn.register_prehook(self._above)
            made.grad_fn.register_hook(self._below)
        return made

    def _above(self, gradients: Any) -> Any:
        return gradients if self.rule == "gradient" else (gradients[0].clamp_min(0),)

    def _below(self, made: Any, arrived: Any) -> Any:
        return (arrived[0], *made[1:]) if self.rule == "deconvnet" else made


def guided_gradient(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
    """The guided gradient of the explained output; shaped like the explained input."""
    with GuidedRectifiers():
        return output_gradient(model, inputs, target)


def not_guidable(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
    """Why Guided Backprop and the deconvnet mean nothing on this model, or None if every rectifier can be guided."""
    return of_few(lambda few: _not_guidable(model, few), inputs)


def _not_guidable(model: nn.Module, inputs: Any) -> str | None:
    value = replaced(inputs, leaf(first(inputs)))
    arguments = value if isinstance(value, tuple) else (value,)
    present = trace(model, arguments).rectifiers
    with GuidedRectifiers() as guided, torch.no_grad():
        model(*arguments)
    if present == 0:
        return "the network has no rectifier (ReLU, ReLU6, ...): nothing to guide, the map is the plain gradient"
    if guided.met < present:
        return f"only {guided.met} of the network's {present} rectifiers can be guided (scripted or compiled code?)"
    return None


@factory
def guided_backprop() -> Method:
    """Guided Backprop; Springenberg et al. 2014 (arXiv:1412.6806)."""
    derived = Derived(guided_gradient, lambda value, seen: seen.mean["guided"], rules=("guided",))
    return Method("guided_backprop", derived, refuses=any_of(not_differentiable, not_guidable))


@factory
def deconvnet() -> Method:
    """Deconvnet: positive gradients pass every rectifier, active or not; Zeiler & Fergus 2013 (arXiv:1311.2901)."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        with GuidedRectifiers(masked=False):
            return output_gradient(model, inputs, target)

    derived = Derived(attribute, lambda value, seen: seen.mean["deconvnet"], rules=("deconvnet",))
    return Method("deconvnet", derived, refuses=any_of(not_differentiable, not_guidable))
