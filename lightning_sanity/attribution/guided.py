"""Guided Backprop and the deconvnet on whatever rectifies: modules, functional calls, in-place and bounded ones.

Rectifiers that are written out, ``torch.where(x > 0, x, 0)`` and the like, are found as well.

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
from torch.utils._python_dispatch import TorchDispatchMode

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
    outputs_of,
    replaced,
)
from lightning_sanity.model.graph import trace
from lightning_sanity.model.operations import rectifies


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


class WrittenOut:
    """Finds rectifiers that are written out, such as ``torch.where(x > 0, x, 0)``, ``x * (x > 0)``, ``maximum(x, 0)``.

    What was compared with zero, and what is zero, is remembered as calls go by. All of it is kept alive meanwhile, so
    that an identity means one tensor.
    """

    def __init__(self) -> None:
        self._signs: dict[int, tuple[Tensor, Tensor, bool]] = {}  # a mask, what it is of, whether it marks what stays
        self._zeros: dict[int, Tensor] = {}

    def rectified(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What this call rectifies, if it does."""
        name, given = getattr(func, "__name__", ""), (*args, *kwargs.values())
        if name in _MULTIPLY and len(given) == 2:
            return next((x for x, mask in (given, given[::-1]) if self._marks(mask, x, True)), None)
        if name == "where" and len(given) == 3:
            mask, one, other = (
                given
                if isinstance(given[0], Tensor) and given[0].dtype == torch.bool
                else (given[1], given[0], given[2])
            )
            if self._marks(mask, one, True) and self._is_zero(other):
                return one
            return other if self._marks(mask, other, False) and self._is_zero(one) else None
        if name == "masked_fill" and len(given) == 3:
            return given[0] if self._marks(given[1], given[0], False) and self._is_zero(given[2]) else None
        if name in _MAXIMUM and len(given) == 2 and all(isinstance(each, Tensor) for each in given):
            return next((x for x, other in (given, given[::-1]) if self._is_zero(other)), None)
        return None

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
        """Remember what this call found out."""
        if not isinstance(made, Tensor):
            return
        name, given = getattr(func, "__name__", ""), (*args, *kwargs.values())
        if name in _ABOVE | _BELOW and len(given) == 2 and isinstance(given[0], Tensor) and self._is_zero(given[1]):
            self._signs[id(made)] = made, given[0], name in _ABOVE
        elif name in _CAST and given and id(given[0]) in self._signs:
            self._signs[id(made)] = (made, *self._signs[id(given[0])][1:])
        elif name in _ZEROS or (name in ("tensor", "scalar_tensor") and given and self._is_zero(given[0])):
            self._zeros[id(made)] = made

    def _marks(self, mask: Any, x: Any, stays: bool) -> bool:
        known = self._signs.get(id(mask))
        return known is not None and known[1] is x and known[2] is stays

    def _is_zero(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return id(value) in self._zeros
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


_MULTIPLY = {"mul", "multiply", "__mul__", "__rmul__"}
_MAXIMUM = {"maximum", "max", "fmax"}
_ABOVE = {"gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"}
_BELOW = {"lt", "le", "less", "less_equal", "__lt__", "__le__"}
_CAST = {"to", "float", "double", "half", "bfloat16", "type_as", "type"}
_ZEROS = {"zeros", "zeros_like", "new_zeros"}


class _Hidden(TorchDispatchMode):
    """Counts operations that no one would call a rectifier, but whose result is one's: by its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation and compare."""
        kwargs = kwargs or {}
        before = [x.clone() if func._schema.is_mutable else x for x in args if isinstance(x, Tensor)]
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and made.is_floating_point() and not rectifies(func, args, kwargs):
            candidates = [x for x in before if x.shape == made.shape and x.is_floating_point()]
            self.found += any(bool((x < 0).any()) and torch.equal(made, x.clamp_min(0)) for x in candidates)
        return made


def rectifiers_in(model: nn.Module, inputs: Any) -> int:
    """How many rectifiers run on these inputs, under whatever name."""
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad(), _Hidden() as hidden:
        model(*arguments)
    return trace(model, arguments).rectifiers + hidden.found


class GuidedRectifiers(TorchFunctionMode):
    """While active, every rectifier backpropagates only positive gradients; counts those it met.

    Args:
        masked: Whether they also stop what was inactive in the forward pass, as the gradient does: Guided Backprop does
            that, the deconvnet does not.
    """

    def __init__(self, masked: bool = True) -> None:
        super().__init__()
        self.met, self.masked = 0, masked
        self._written_out = WrittenOut()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace rectifying calls, pass on all others."""
        kwargs = kwargs or {}
        bounds, x = rectifier_bounds(func, args, kwargs), args[0] if args else kwargs.get("input")
        if bounds is None and (rectified := self._written_out.rectified(func, args, kwargs)) is not None:
            bounds, x = (math.inf, False), rectified
        if bounds is None or not torch.is_grad_enabled():  # as inside an autograd function, which has its own way down
            made = func(*args, **kwargs)
            self._written_out.see(func, args, kwargs, made)
            return made
        self.met += 1
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
        self._written_out = WrittenOut()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the call and hook its node in the graph if it rectified."""
        kwargs = kwargs or {}
        rectified = self._written_out.rectified(func, args, kwargs)
        made = func(*args, **kwargs) if rectified is None else torch.relu(rectified)
        self._written_out.see(func, args, kwargs, made)
        rectifies_now = rectified is not None or rectifier_bounds(func, args, kwargs) is not None
        if rectifies_now and made.grad_fn is not None:
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
    present = rectifiers_in(model, value)
    with GuidedRectifiers() as guided, torch.enable_grad():
        outputs_of(model, value)
    if present == 0:
        return "the network has no rectifier (ReLU, ReLU6, ...): nothing to guide, the map is the plain gradient"
    if guided.met < present:
        return (
            f"only {guided.met} of the network's {present} rectifiers can be guided (in an autograd function "
            "of its own, or scripted or compiled code?)"
        )
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
