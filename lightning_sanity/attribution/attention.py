"""Attention as explanation: of the last layer, rolled out over all layers, or weighted by its gradient.

Attention is found where it is computed, whoever wrote the layer: in ``F.scaled_dot_product_attention``, in
``F.multi_head_attention_forward``, and where weights that a softmax made are multiplied with values.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_sanity.attribution.layers import resized, sides_of, token_grid
from lightning_sanity.attribution.method import (
    Method,
    any_of,
    factory,
    first,
    leaf,
    not_differentiable,
    outputs_of,
    replaced,
    select,
)

_MOST_PREFIX = 9
"""Tokens that may stand before the patches: the class token, one of distillation, registers."""


@factory
def last_attention() -> Method:
    """What the tokens that the outputs are read from attend to in the last layer, on average over its heads.

    It is the map that is shown most and claims least: it asks neither what the class is nor what earlier layers mixed.
    """

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        weights, readers = attention_of(model, inputs)
        return _on_positions(weights[-1].mean(1), readers, inputs)

    return Method("last_attention", attribute, signed=False, refuses=_refuses)


@factory
def attention_rollout(residual: float = 0.5) -> Method:
    """Attention rollout, the product of all layers' attention; Abnar & Zuidema 2020 (arXiv:2005.00928).

    What the tokens that the outputs are read from (the class token, the last one, or all) attend to, whatever the
    explained class is: rollout does not ask. Heads are averaged.

    Args:
        residual: Share of each layer's residual connection, which passes every token on as it is.
    """
    if not 0 <= residual < 1:
        raise ValueError(f"attention_rollout: residual must be in [0, 1), not {residual!r}")

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        weights, readers = attention_of(model, inputs)
        rollout: Tensor | None = None
        for layer in weights:
            mixed = (1 - residual) * layer.mean(1)
            mixed = mixed + residual * torch.eye(mixed.shape[-1], device=mixed.device, dtype=mixed.dtype)
            mixed = mixed / mixed.sum(-1, keepdim=True)
            rollout = mixed if rollout is None else mixed @ rollout
        assert rollout is not None
        return _on_positions(rollout, readers, inputs)

    return Method("attention_rollout", attribute, signed=False, refuses=_refuses)


@factory
def gradient_attention() -> Method:
    """Attention weighted by its positive gradient, accumulated over layers; Chefer et al. 2021 (arXiv:2103.15679)."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        with torch.enable_grad(), captured_attention(model) as weights:
            outputs = outputs_of(model, replaced(inputs, leaf(first(inputs))))
            _some(weights)
            slopes = torch.autograd.grad(select(outputs, target).sum(), weights, allow_unused=True)
        readers = _rows_read(slopes[-1], len(first(inputs)))
        relevance: Tensor | None = None
        for layer, slope in zip(weights, slopes, strict=True):
            gain = torch.zeros_like(layer) if slope is None else (layer * slope).clamp_min(0)
            mixed = _by_heads(gain, len(first(inputs))).mean(1).detach()
            if relevance is None:
                relevance = torch.eye(mixed.shape[-1], device=mixed.device, dtype=mixed.dtype).expand_as(mixed)
            relevance = relevance + mixed @ relevance
        assert relevance is not None
        drawn = relevance - torch.eye(relevance.shape[-1], device=relevance.device, dtype=relevance.dtype)
        return _on_positions(drawn, readers, inputs)

    return Method("gradient_attention", attribute, signed=False, refuses=any_of(not_differentiable, _refuses))


def attention_of(model: nn.Module, inputs: Any) -> tuple[list[Tensor], Tensor]:
    """Attention of all layers, ``(N, heads, tokens, tokens)`` each, and the tokens whose last state is read.

    Returns:
        The weights, without a graph, and bool ``(N, tokens)``: the class token, the last token, or all that are
        averaged, by what of the last layer's attention the outputs follow from.

    Raises:
        ValueError: If no attention ran, or the outputs do not follow from the last layer's.
    """
    value = first(inputs)
    given = replaced(inputs, leaf(value)) if value.is_floating_point() else inputs
    with torch.enable_grad(), captured_attention(model) as weights:
        outputs = outputs_of(model, given)
        _some(weights)
        # Every class weighs differently: the plain sum of probabilities would not depend on anything.
        scale = torch.linspace(1, 2, outputs[0].numel(), device=outputs.device, dtype=outputs.dtype)
        asked = (outputs.reshape(len(outputs), -1) * scale).sum()
        slope = torch.autograd.grad(asked, weights[-1], allow_unused=True)[0] if asked.requires_grad else None
    return [_by_heads(layer.detach(), len(value)) for layer in weights], _rows_read(slope, len(value))


def _some(weights: list[Tensor]) -> None:
    if not weights:
        raise ValueError(_NO_ATTENTION)


def _rows_read(slope: Tensor | None, samples: int) -> Tensor:
    """Tokens ``(N, queries)`` whose attention has any effect; a row without any is that of a saturated sample: all."""
    if slope is None:
        raise ValueError("the explained output does not follow from the attention of the last layer that attends")
    read = (_by_heads(slope, samples) != 0).any(3).any(1)
    return read | ~read.any(1, keepdim=True)


def _by_heads(weights: Tensor, samples: int) -> Tensor:
    """Weights as ``(N, heads, queries, keys)``, where heads were folded into the samples as well."""
    if weights.ndim == 4:
        return weights
    heads = len(weights) // samples if len(weights) % samples == 0 else 1
    return weights.unflatten(0, (-1, heads))


# ---------------------------------------------------------------------------------------------------- what is computed


class _Attention(TorchFunctionMode):
    """While active, keeps the weights by which values are mixed; computes them where a fused kernel would not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self._made: dict[int, Tensor] = {}  # by a softmax, by their identity; held, so that none is given away

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a call, and look at it if it attends."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(func, args, kwargs)
        name, inputs = getattr(func, "__name__", ""), (*args, *kwargs.values())
        mixing = name in _PRODUCTS and self._mixer(func, inputs)
        if isinstance(mixing, Tensor):
            self._kept(mixing)
        made = func(*args, **kwargs)
        softmax = name == "softmax" and isinstance(made, Tensor) and made.ndim in (3, 4)
        passed_on = name in _PASSES_ON and any(id(each) in self._made for each in inputs[:1])
        if passed_on or (softmax and _axis(args, kwargs) in (-1, made.ndim - 1)):
            self._made[id(made)] = made
        return made

    def _mixer(self, func: Any, inputs: tuple[Any, ...]) -> Tensor | None:
        """The weights, if this multiplies values with some that a softmax made."""
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        if len(tensors) == 2 and id(tensors[0]) in self._made and tensors[1].ndim == tensors[0].ndim:
            return tensors[0]
        return None

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        # A token that may attend to nothing draws nothing, as from the fused kernel.
        nothing = (scores == -math.inf).all(-1, keepdim=True)
        weights = scores.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)
        weights = self._kept(F.dropout(weights, dropout_p) if dropout_p > 0 else weights)
        return weights @ value

    def _kept(self, weights: Tensor) -> Tensor:
        """The weights, to be differentiated by, also where nothing before them can be."""
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()
        self.found.append(weights)
        return weights

    def _multi_head(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Weights are asked for, whether the model wants them or not; it gets what it asked for."""
        given = inspect.signature(func).bind(*args, **kwargs).arguments
        wanted, averaged = given.get("need_weights", True), given.get("average_attn_weights", True)
        result, weights = func(**{**given, "need_weights": True, "average_attn_weights": False})
        # What is returned is a view of what it went on with; only that has a gradient.
        used = weights if weights._base is None else weights._base
        self.found.append(used if used.ndim == 3 and weights.ndim == 4 else weights)
        return result, (weights.mean(-3) if averaged else weights) if wanted else None


_PRODUCTS = {"matmul", "__matmul__", "bmm", "einsum"}
_PASSES_ON = {"dropout", "to", "type_as", "contiguous", "view", "reshape", "half", "float", "bfloat16"}


def _axis(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs["dim"] if "dim" in kwargs else args[1] if len(args) > 1 else None


@contextmanager
def captured_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention weights of all layers that run, in order, as they were multiplied with the values.

    ``(N, heads, queries, keys)``, or ``(N * heads, queries, keys)`` where a layer folds its heads into the samples.
    The outputs stay what they are, but for the rounding of a fused kernel.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # The fused inference kernel of a whole layer would go past its attention.
        torch.backends.mha.set_fastpath_enabled(False)
        with _Attention() as capture:
            yield capture.found
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


# --------------------------------------------------------------------------------------------------- on the input


def _on_positions(drawn: Tensor, readers: Tensor, inputs: Any) -> Tensor:
    """What the tokens that are read draw from each patch, or each token, on average; ``(N, 1, *sides)``."""
    value = first(inputs)
    prefix, sides = _tokens(drawn.shape[-1], value)
    share = readers.to(drawn.dtype) / readers.sum(1, keepdim=True)
    rows = (share[:, None] @ drawn)[:, 0]
    return resized(rows[:, prefix:].reshape(len(value), 1, *sides), value)


def _tokens(count: int, value: Tensor) -> tuple[int, tuple[int, ...]]:
    """How many tokens stand before those of the positions, and how these lie on the input."""
    sides = sides_of(value)
    if len(sides) == 1:
        return (count - sides[0], sides) if 0 <= count - sides[0] < _MOST_PREFIX else (0, (count,))
    image = (int(sides[-2]), int(sides[-1]))
    grids = {prefix: token_grid(count - prefix, image) for prefix in (1, 0, *range(2, _MOST_PREFIX))}
    # A grid of exactly the image's shape is likelier than one that is nearly so.
    for exact in (True, False):
        for prefix, grid in grids.items():
            if grid is not None and (not exact or grid[0] * image[1] == grid[1] * image[0]):
                return prefix, grid
    raise ValueError(f"{count} tokens, some of them for the class or none, are no grid of patches of a {image} image")


_NO_ATTENTION = "no attention weights can be had: nothing attends, or in a kernel of its own that forms none"
_OTHER_KINDS = re.compile(r"linear_?att|lite_?mla|performer|nystrom|xca|cross_?covariance|separable_?self_?att", re.I)
_WINDOWED = re.compile(r"window|swin|neighbou?rhood", re.I)


def _refuses(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
    value = first(inputs)
    if value.ndim not in (3, 4):
        return f"the input has shape {tuple(value.shape)}, neither an image (N, C, H, W) nor a sequence (N, C, T)"
    kinds = dict.fromkeys(type(module).__name__ for module in model.modules())
    other = next((kind for kind in kinds if _OTHER_KINDS.search(kind)), None)
    if other is not None:
        return f"linear attention ({other}) never forms weights from token to token"
    with torch.no_grad(), captured_attention(model) as weights:
        outputs_of(model, inputs)
    if not weights:
        return _NO_ATTENTION
    windowed = next((kind for kind in kinds if _WINDOWED.search(kind)), None)
    samples = len(value)
    sizes = {tuple(layer.shape[-2:]) for layer in weights}
    if any(len(layer) % samples or (layer.ndim == 4 and len(layer) != samples) for layer in weights) or windowed:
        of = f"windowed attention ({windowed}): " if windowed else ""
        return f"{of}its attention runs over parts of the input, not over all its tokens"
    if len(sizes) > 1 or any(queries != keys for queries, keys in sizes):
        return f"its layers attend over different tokens, {sorted(sizes)}: their attention cannot be multiplied"
    try:
        _tokens(weights[0].shape[-1], value)
        attention_of(model, inputs)
    except ValueError as error:
        return str(error)
    return None
