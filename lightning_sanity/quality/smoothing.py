"""A smooth sibling of a network: softplus for its rectifiers, LogSumExp for its maximum pools.

Explanations of the sibling can be compared with those of the network itself to see how much kinks contribute to an
attribution's infidelity and sensitivity. It is another model than the one that was trained: a diagnostic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_sanity.attribution.guided import rectifier_bounds
from lightning_sanity.model.clone import clone

_POOLS = {"max_pool1d": 1, "max_pool2d": 2, "max_pool3d": 3}
_ADAPTIVE = {f"adaptive_{name}": count for name, count in _POOLS.items()}
_POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def smooth(model: nn.Module, softplus_beta: float | None = 5.0, logsumexp: float | None = 5.0) -> Smoothed:
    """A clone that computes with softplus instead of rectifiers, and LogSumExp instead of maximum pooling.

    Both are replaced wherever they are called, as modules or as functions. ReLU6 and other bounded rectifiers become
    the difference of two softplus. The larger a parameter, the closer the clone is to ``model``, which it equals in the
    limit.

    Args:
        model: Any network; left as it is. The clone has its own parameters, in eval mode.
        softplus_beta: ``log(1 + exp(beta x)) / beta`` for ``max(x, 0)``; None keeps the rectifiers.
        logsumexp: ``log(sum(exp(t x))) / t`` over each pooling window for its maximum; None keeps the maxima.

    Raises:
        ValueError: If a parameter is not positive, both are None, or part of the model is scripted and its calls
            cannot be reached.
        CloneError: If the model cannot be copied.

    Kokhlikyan et al., "Investigating sanity checks for saliency maps with image and text classification", 2021
    (arXiv:2106.07475).
    """
    for name, value in (("softplus_beta", softplus_beta), ("logsumexp", logsumexp)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"smooth: {name} must be a positive number or None, not {value!r}")
    if softplus_beta is None and logsumexp is None:
        raise ValueError("smooth: nothing to replace; pass softplus_beta, logsumexp or both")
    for path, child in model.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            raise ValueError(
                f"smooth: '{path}' is scripted, so that its calls cannot be replaced; pass the module itself"
            )
    return Smoothed(clone(model), softplus_beta, logsumexp)


class Smoothed(nn.Module):
    """What ``smooth`` returns: ``model`` run with its kinks replaced.

    Attributes:
        model: The clone of the original network.
    """

    def __init__(self, model: nn.Module, softplus_beta: float | None, logsumexp: float | None) -> None:
        super().__init__()
        self.model, self.softplus_beta, self.logsumexp = model, softplus_beta, logsumexp

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the network returns, smoothly.

        Raises:
            ValueError: If no rectifier and no maximum pool was met, or a pool cannot be replaced.
        """
        with _SmoothCalls(self.softplus_beta, self.logsumexp) as calls:
            outputs = self.model(*inputs, **options)
        if calls.met == 0:
            raise ValueError(
                f"smooth: {type(self.model).__name__} calls neither a rectifier nor a maximum pool that was to be "
                "replaced; it computes what the original does"
            )
        return outputs


class _SmoothCalls(TorchFunctionMode):
    """While active, rectifiers and maximum pools are replaced; counts those it met."""

    def __init__(self, beta: float | None, sharpness: float | None) -> None:
        super().__init__()
        self.beta, self.sharpness, self.met = beta, sharpness, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.beta is not None and (bounds := rectifier_bounds(func, args, kwargs)) is not None:
            self.met += 1
            x = args[0] if args else kwargs["input"]
            y = _softplus(x, self.beta, bounds[0])
            return x.copy_(y) if bounds[1] else y
        kind = getattr(func, "__name__", "")
        if self.sharpness is not None and kind.removesuffix("_with_indices").removeprefix("adaptive_") in _POOLS:
            self.met += 1
            return _pooled(kind, self.sharpness, args, kwargs)
        return func(*args, **kwargs)


def _softplus(x: Tensor, beta: float, high: float) -> Tensor:
    y = F.softplus(x, beta)
    return y if math.isinf(high) else y - F.softplus(x - high, beta)


def _pooled(kind: str, sharpness: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if kind.endswith("_with_indices"):
        raise ValueError(f"smooth: {kind} returns the places of maxima, which LogSumExp does not have")
    x = args[0] if args else kwargs["input"]
    if kind in _ADAPTIVE:
        wanted = args[1] if len(args) > 1 else kwargs["output_size"]
        sizes = [size or full for size, full in zip(_each(wanted, _ADAPTIVE[kind]), _sides(x, kind), strict=True)]
        if any(full % size for full, size in zip(_sides(x, kind), sizes, strict=True)):
            raise ValueError(f"smooth: {kind} of {_sides(x, kind)} to {sizes} has windows of several sizes")
        kernel = [full // size for full, size in zip(_sides(x, kind), sizes, strict=True)]
        return log_sum_exp_pool(x, kernel, sharpness=sharpness)
    given = dict(zip(_POOL_ARGUMENTS, args[1:], strict=False)) | {k: kwargs[k] for k in _POOL_ARGUMENTS if k in kwargs}
    count = _POOLS[kind]
    return log_sum_exp_pool(
        x,
        _each(given["kernel_size"], count),
        _each(given.get("stride") or given["kernel_size"], count),
        _each(given.get("padding", 0), count),
        _each(given.get("dilation", 1), count),
        bool(given.get("ceil_mode", False)),
        sharpness,
    )


def log_sum_exp_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    ceil_mode: bool = False,
    sharpness: float = 1.0,
) -> Tensor:
    """``log(sum(exp(t x))) / t`` over windows: a smooth upper bound of maximum pooling with the same arguments.

    Args:
        x: ``(..., *sides)``; the last ``len(kernel)`` dimensions are pooled.
        kernel: Side of the window, per dimension.
        stride: Step; the kernel if None.
        padding: Places on either side that hold nothing, 0 if None.
        dilation: Distance of a window's places, 1 if None.
        ceil_mode: Whether a last window may reach over the end.
        sharpness: t. The result lies at most ``log(places) / t`` above the maximum.
    """
    count = len(kernel)
    stride, padding, dilation = stride or kernel, padding or [0] * count, dilation or [1] * count
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    after = [
        pad + (_overhang(size + 2 * pad, span, step, size + pad) if ceil_mode else 0)
        for size, pad, span, step in zip(x.shape[-count:], padding, spans, stride, strict=True)
    ]
    # Nothing is what -inf stands for: it adds exp(-inf) = 0 to a window.
    edges = [edge for pair in reversed(list(zip(padding, after, strict=True))) for edge in pair]
    windows = F.pad(x, edges, value=-math.inf)
    for dimension, (span, step, distance) in enumerate(zip(spans, stride, dilation, strict=True)):
        windows = windows.unfold(x.ndim - count + dimension, span, step)[..., ::distance]
    pooled: Tensor = torch.logsumexp(sharpness * windows, tuple(range(-count, 0))) / sharpness
    return pooled


def _overhang(length: int, span: int, step: int, last_start: int) -> int:
    """How far a last window reaches over the end; it must start before the padding on the right."""
    windows = -(-(length - span) // step)
    if windows * step >= last_start:
        windows -= 1
    return max(0, windows * step + span - length)


def _sides(x: Tensor, kind: str) -> list[int]:
    return list(x.shape[-_ADAPTIVE[kind] :])


def _each(value: Any, count: int) -> list[int]:
    """The same for every dimension unless one each is given."""
    given = list(value) if isinstance(value, (tuple, list)) else [value]
    return given * count if len(given) == 1 else given
