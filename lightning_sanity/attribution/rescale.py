"""DeepLift's rules, applied to nonlinear calls while they run.

Each rule returns the plain call's value; what differs is how a difference at the output reaches the input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class RescaleRule(TorchFunctionMode):
    """While active, nonlinear calls backpropagate differences from the baseline instead of derivatives.

    Args:
        samples: Inputs in the batch; as many baselines follow them.

    Attributes:
        unknown: Names of the nonlinear calls it met and has no rule for.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.unknown: dict[str, None] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace nonlinear calls, pass on all others."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        kind = name.strip("_") if name.endswith("_") and not name.startswith("__") else name
        if kind in _WITHOUT_RULE:
            self.unknown[kind] = None
        rule = _rule_for(kind, func)
        x = args[0] if args else kwargs.get("input")
        if rule is None or x is None or not self._is_data(x):
            return func(*args, **kwargs)
        if args:
            args = args[1:]
        else:
            kwargs = {key: value for key, value in kwargs.items() if key != "input"}
        if in_place(func, name, args, kwargs):
            return x.copy_(rule(self, func, x.clone(), args, kwargs))
        return rule(self, func, x, args, kwargs)

    def _is_data(self, value: Any) -> bool:
        """Whether this is an activation of inputs and baselines; several rows may belong to one (windows, heads)."""
        return (
            isinstance(value, Tensor)
            and not isinstance(value, nn.Parameter)
            and value.is_floating_point()
            and value.ndim > 0
            and len(value) > 0
            and len(value) % (2 * self.samples) == 0
        )

    def elementwise(self, func: Any, x: Tensor, args: Any = (), kwargs: Any = None) -> Tensor:
        """The slope between baseline and input in the place of the derivative."""

        def plain(value: Tensor) -> Tensor:
            result: Tensor = func(value.clone(), *args, **(kwargs or {}))
            return result

        with torch.no_grad():
            y = plain(x)
            (x1, x0), (y1, y0) = x.chunk(2), y.chunk(2)
            same = _close(x1, x0)
            slope = (y1 - y0) / (x1 - x0).masked_fill(same, 1.0)
        if bool(same.any()):
            with torch.enable_grad():
                at = x1.detach().clone().requires_grad_()
                (derivative,) = torch.autograd.grad(plain(at).sum(), at)
            slope = torch.where(same, derivative, slope)
        return _Valued.apply(x * torch.cat([slope, slope]), y)

    def product(self, func: Any, a: Tensor, b: Tensor) -> Tensor:
        """Each factor's difference times the mean of the other's two values."""
        value = func(a, b).detach()
        return _Valued.apply(func(a, _middle(b)) + func(_middle(a), b), value)

    def multiplied(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """A product, where the other factor is an activation too; else linear."""
        other = args[0] if args else kwargs.get("other", kwargs.get("mat2"))
        plain = _OUT_OF_PLACE.get(getattr(func, "__name__", ""), func)
        if not self._is_data(other) or other.ndim != x.ndim or len(other) != len(x):
            result: Tensor = plain(x, *args, **kwargs)
            return result
        return self.product(plain, x, other)

    def divided(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """A product with the other's reciprocal, where the other is an activation too; else linear."""
        other = args[0] if args else kwargs.get("other")
        if kwargs.get("rounding_mode") or not self._is_data(other) or other.ndim != x.ndim or len(other) != len(x):
            result: Tensor = _OUT_OF_PLACE.get(getattr(func, "__name__", ""), func)(x, *args, **kwargs)
            return result
        return self.product(torch.mul, x, self.elementwise(torch.reciprocal, other))

    def powered(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Elementwise for a fixed exponent."""
        exponent = args[0] if args else kwargs.get("exponent")
        if isinstance(exponent, Tensor):
            self.unknown["pow"] = None
            result: Tensor = torch.pow(x, exponent)
            return result
        return self.elementwise(torch.pow, x, (exponent,))

    def softmax(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Exponential, sum, reciprocal, product."""
        dim = args[0] if args else kwargs.get("dim")
        if dim is None:
            result: Tensor = func(x, *args, **kwargs)
            return result
        # The shift must be the same for an input and its baseline, or it would be part of their difference.
        shift = torch.maximum(*x.detach().amax(dim, keepdim=True).chunk(2))
        powers = self.elementwise(torch.exp, x - torch.cat([shift, shift]))
        whole = self.elementwise(torch.reciprocal, powers.sum(dim, keepdim=True))
        return self.product(torch.mul, powers, whole)

    def layer_norm(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Deviation from the mean times the reciprocal standard deviation."""
        bound = inspect.signature(F.layer_norm).bind(x, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        dims = tuple(range(-len(given["normalized_shape"]), 0))
        deviation = x - x.mean(dims, keepdim=True)
        variance = self.elementwise(torch.square, deviation).mean(dims, keepdim=True)
        scale = self.elementwise(lambda v: torch.rsqrt(v + given["eps"]), variance)
        found = self.product(torch.mul, deviation, scale)
        found = found if given["weight"] is None else found * given["weight"]
        return found if given["bias"] is None else found + given["bias"]

    def attention(self, func: Any, query: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Products and a softmax."""
        names = ("key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        key, value, mask = given["key"], given["value"], given.get("attn_mask")
        if not (self._is_data(key) and self._is_data(value)) or given.get("is_causal") or given.get("enable_gqa"):
            self.unknown["scaled_dot_product_attention"] = None
            result: Tensor = func(query, *args, **kwargs)
            return result
        scale = given.get("scale") or query.shape[-1] ** -0.5
        scores = self.product(torch.matmul, query * scale, key.transpose(-2, -1))
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return self.product(torch.matmul, self.softmax(F.softmax, scores, (-1,), {}), value)

    def max_pool(self, func: Any, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        """What a maximum gains over the baseline's goes to the input's winner, what it loses to the baseline's."""
        count = _POOLS[getattr(func, "__name__", "").removeprefix("adaptive_")]
        if x.ndim != count + 2 or kwargs.pop("return_indices", False):
            self.unknown["max_pool with indices"] = None
            result: Tensor = func(x, *args, **kwargs)
            return result
        pool = getattr(F, f"{func.__name__}_with_indices")
        y, indices = pool(x.detach(), *args, **kwargs)
        (x1, x0), (y1, y0), (at1, at0) = x.detach().chunk(2), y.chunk(2), indices.flatten(2).chunk(2)
        same = _close(x1, x0)
        inverse = (1.0 / (x1 - x0).masked_fill(same, 1.0)).masked_fill(same, 0.0)
        highest = torch.maximum(y1, y0)
        first_half = x.chunk(2)[0]
        relative = (first_half * inverse).flatten(2)
        carrier = (highest - y0).flatten(2) * relative.gather(2, at1)
        carrier = carrier + (y1 - highest).flatten(2) * relative.gather(2, at0)
        carrier = carrier + (first_half * same).flatten(2).gather(2, at1)
        carrier = carrier.reshape(y1.shape)
        return _Valued.apply(torch.cat([carrier, carrier]), y)


class _Valued(torch.autograd.Function):
    """The second argument's value with the first one's gradient."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def _close(x1: Tensor, x0: Tensor) -> Tensor:
    """Where the difference is all rounding, and the derivative is the better slope."""
    return (x1 - x0).abs() <= torch.finfo(x1.dtype).eps ** 0.5 * torch.maximum(x1.abs(), x0.abs())


def _middle(value: Tensor) -> Tensor:
    x1, x0 = value.detach().chunk(2)
    middle = (x1 + x0) / 2
    return torch.cat([middle, middle])


def in_place(func: Any, name: str, args: Any, kwargs: Any) -> bool:
    """Whether a call of that name writes its result over its first argument."""
    if name.endswith("_") and not name.startswith("__"):
        return True
    if "inplace" in kwargs:
        return bool(kwargs["inplace"])
    if getattr(func, "__module__", None) != "torch.nn.functional" or not args:
        return False
    names = list(inspect.signature(func).parameters)[1:]
    return "inplace" in names[: len(args)] and bool(args[names.index("inplace")])


ELEMENTWISE = frozenset(
    (
        "relu",
        "relu6",
        "hardtanh",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "rrelu",
        "prelu",
        "silu",
        "mish",
        "hardswish",
        "hardsigmoid",
        "gelu",
        "softplus",
        "softsign",
        "tanhshrink",
        "softshrink",
        "hardshrink",
        "tanh",
        "sigmoid",
        "logsigmoid",
        "threshold",
        "clamp",
        "clamp_min",
        "clamp_max",
        "clip",
        "abs",
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "sqrt",
        "rsqrt",
        "square",
        "reciprocal",
        "sin",
        "cos",
        "erf",
        "sinh",
        "cosh",
        "atan",
    )
)
_PRODUCTS = {"mul", "multiply", "matmul", "bmm", "__matmul__"}
_QUOTIENTS = {"div", "divide", "true_divide"}
_POOLS = {"max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3}
_WITHOUT_RULE = frozenset(
    (
        "multi_head_attention_forward",
        "group_norm",
        "instance_norm",
        "normalize",
        "log_softmax",
        "local_response_norm",
        "einsum",
        "norm",
        "vector_norm",
        "cumprod",
        "prod",
        "amax",
        "amin",
        "max",
        "min",
        "maximum",
        "minimum",
        "std",
        "var",
        "baddbmm",
        "bilinear",
        "grid_sample",
        "rms_norm",
        "glu",
    )
)
_OUT_OF_PLACE = {"mul_": torch.mul, "multiply_": torch.mul, "div_": torch.div, "divide_": torch.div}


def _rule_for(kind: str, func: Any) -> Any:
    """The rule that serves this call, or None; called as ``rule(self, func, x, args, kwargs)``."""
    if kind in ELEMENTWISE:
        return RescaleRule.elementwise
    if kind in _PRODUCTS:
        return RescaleRule.multiplied
    if kind in _QUOTIENTS:
        return RescaleRule.divided
    if kind.removeprefix("adaptive_") in _POOLS:
        return RescaleRule.max_pool
    return {
        "pow": RescaleRule.powered,
        "softmax": RescaleRule.softmax,
        "layer_norm": RescaleRule.layer_norm,
        "scaled_dot_product_attention": RescaleRule.attention,
    }.get(kind)
