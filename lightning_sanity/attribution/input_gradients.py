"""Operations whose gradient at their input is cheaper than torch's own on a CPU, to rounding the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_FEW = 4
"""Channels up to which oneDNN computes the gradient at a convolution's input for far more channels than there are."""
_MANY = 32 * 32
"""Pixels from which that pays; below it, torch's own gradient is kept to the last bit."""
_BATCH_NORM = inspect.signature(F.batch_norm)
_CONVOLUTIONS: dict[Callable[..., Any], int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_CONVOLVED = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_POOLED = {"input": None, "kernel_size": None, "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
_POOLED |= {"return_indices": False}


class _Normalize(torch.autograd.Function):
    """Batch normalisation with fixed statistics, whose backward is two products.

    Torch's own takes six times as long, and one cotangent at a time. The roundings are torch's on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
        ctx.eps = eps
        ctx.save_for_backward(variance, *(() if weight is None else (weight,)))
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        variance, *weights = ctx.saved_tensors
        shape = (-1, *[1] * (gradients[0].ndim - 2))
        slope = gradients[0] * (1 / (variance.double() + ctx.eps).sqrt()).to(variance.dtype).reshape(shape)
        for weight in weights:
            slope.mul_(weight.reshape(shape))  # a second rounding, as torch has it; not a second tensor
        return (slope, *[None] * 5)


class _FirstConvolution(torch.autograd.Function):
    """A convolution of few channels, the first of nearly every network, with the gradient at its input alone.

    Without oneDNN torch multiplies matrices instead, in a half to a sixth of the time at up to ``_FEW`` channels.
    """

    @staticmethod
    def forward(ctx: Any, convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        ctx.rest = rest[1:]
        ctx.save_for_backward(x, weight)
        return convolve(x, weight, *rest)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.rest
        apart = [0] * len(stride), groups, [True, False, False]
        library = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            slope, *_ = torch.ops.aten.convolution_backward(
                gradients[0], x, weight, None, stride, padding, dilation, False, *apart
            )
        finally:
            torch._C._set_mkldnn_enabled(library)
        return (None, slope, *[None] * 6)


class _StridedPointwise(torch.autograd.Function):
    """A convolution of single pixels that leaves most out, as in a ResNet's shortcuts, with the gradient at its input.

    Only the pixels it takes have one, so it is computed without the stride, in a half to a fifth of oneDNN's time.
    """

    @staticmethod
    def forward(ctx: Any, convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        _, ctx.stride, *_, ctx.groups = rest
        ctx.shape = x.shape
        ctx.save_for_backward(weight)
        return convolve(x, weight, *rest)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (weight,), (samples, channels) = ctx.saved_tensors, ctx.shape[:2]
        taken = weight.new_empty(1).expand(samples, channels, *gradients[0].shape[2:])  # only its shape is read
        one, none = [1] * len(ctx.stride), [0] * len(ctx.stride)
        wanted = [True, False, False]
        slope, *_ = torch.ops.aten.convolution_backward(
            gradients[0], taken, weight, None, one, none, one, False, none, ctx.groups, wanted
        )
        spread = gradients[0].new_zeros(ctx.shape)
        spread[(..., *(slice(None, None, step) for step in ctx.stride))] = slope
        return (None, spread, *[None] * 6)


class _MaxPool(torch.autograd.Function):
    """Max pooling of images, whose backward adds each slope to its pixel.

    Torch's own takes up to twice as long, and expands the input for every cotangent. The sums are torch's to the last
    bit.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        pooled, indices = F.max_pool2d(x, *rest, return_indices=True)
        ctx.shape = x.shape
        ctx.save_for_backward(indices)
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (indices,) = ctx.saved_tensors
        *kept, height, width = ctx.shape
        slope = gradients[0].new_zeros(*kept, height * width)
        slope.scatter_add_(2, indices.flatten(2), gradients[0].flatten(2))
        return slope.reshape(ctx.shape), *[None] * 5


class InputGradients(TorchFunctionMode):
    """While active, normalisations with fixed statistics, some convolutions and max pooling have a cheaper way down."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace what is cheaper, pass on all other calls."""
        kwargs = kwargs or {}
        if torch._C._are_functorch_transforms_active():  # a model's own; they take no function without rules for them
            return func(*args, **kwargs)
        if func is F.batch_norm:
            bound = _BATCH_NORM.bind(*args, **kwargs)
            bound.apply_defaults()
            x, mean, variance, weight, bias, training, _, eps = bound.arguments.values()
            wide = x.dtype in (torch.float32, torch.float64) and variance is not None and x.dtype == variance.dtype
            if wide and x.requires_grad and not training:
                return _Normalize.apply(x, weight, bias, mean, variance, eps)
        elif func in _CONVOLUTIONS:
            given = {**_CONVOLVED, **dict(zip(_CONVOLVED, args, strict=False)), **kwargs}
            x, weight, bias, stride, padding, dilation, groups = given.values()
            dims = _CONVOLUTIONS[func]
            plain = x.device.type == "cpu" and x.dtype is weight.dtype is torch.float32 and not isinstance(padding, str)
            if plain and x.requires_grad and x.ndim == dims + 2:
                stride, padding, dilation = (_each(size, dims) for size in (stride, padding, dilation))
                pointwise = weight.shape[2:].numel() == 1 and not any(padding)
                if pointwise and max(stride) > 1:
                    return _StridedPointwise.apply(func, x, weight, bias, stride, padding, dilation, groups)
                if x.shape[1] <= _FEW and x.shape[2:].numel() >= _MANY:
                    return _FirstConvolution.apply(func, x, weight, bias, stride, padding, dilation, groups)
        elif func in (F.max_pool2d, torch.max_pool2d):
            given = {**_POOLED, **dict(zip(_POOLED, args, strict=False)), **kwargs}
            x, *rest, _ = given.values()
            if x.requires_grad and x.ndim == 4 and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
                return _MaxPool.apply(x, *rest)
        return func(*args, **kwargs)


def _each(size: int | Sequence[int], dims: int) -> list[int]:
    return [size] * dims if isinstance(size, int) else [*size] * (dims // len(size))
