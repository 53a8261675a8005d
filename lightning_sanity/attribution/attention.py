"""Attention as explanation: rollout, and attention weighted by its gradient; for vision transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.layers import resized, token_grid
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

_ARGUMENTS = list(inspect.signature(nn.MultiheadAttention.forward).parameters)[1:]


@factory
def attention_rollout(residual: float = 0.5) -> Method:
    """Attention rollout, the product of all layers' attention; Abnar & Zuidema 2020 (arXiv:2005.00928).

    What the class token (or, without one, the average token) attends to, whatever the explained class is: rollout
    does not ask. Heads are averaged.

    Args:
        residual: Share of each layer's residual connection, which passes every token on as it is.
    """
    if not 0 <= residual < 1:
        raise ValueError(f"attention_rollout: residual must be in [0, 1), not {residual!r}")

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        with torch.no_grad(), captured_attention(model) as weights:
            outputs_of(model, inputs)
        rollout: Tensor | None = None
        for layer in weights:
            mixed = (1 - residual) * layer.mean(1)
            mixed = mixed + residual * torch.eye(mixed.shape[-1], device=mixed.device, dtype=mixed.dtype)
            mixed = mixed / mixed.sum(-1, keepdim=True)
            rollout = mixed if rollout is None else mixed @ rollout
        return _on_grid(rollout, inputs)

    return Method("attention_rollout", attribute, signed=False, passes=0.5, refuses=_refuses)


@factory
def gradient_attention() -> Method:
    """Attention weighted by its positive gradient, accumulated over layers; Chefer et al. 2021 (arXiv:2103.15679)."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        with torch.enable_grad(), captured_attention(model) as weights:
            outputs = outputs_of(model, replaced(inputs, leaf(first(inputs))))
            # What the module returns is a view of what it went on with; only that has a gradient.
            used = [layer if layer._base is None else layer._base for layer in weights]
            slopes = torch.autograd.grad(select(outputs, target).sum(), used, allow_unused=True)
        if all(slope is None for slope in slopes):
            raise ValueError("the explained output does not follow from the attention weights that could be captured")
        relevance: Tensor | None = None
        for layer, slope in zip(weights, slopes, strict=True):
            gain = torch.zeros_like(layer) if slope is None else (layer * slope.reshape(layer.shape)).clamp_min(0)
            mixed = gain.mean(1).detach()
            if relevance is None:
                relevance = torch.eye(mixed.shape[-1], device=mixed.device, dtype=mixed.dtype).expand_as(mixed)
            relevance = relevance + mixed @ relevance
        return _on_grid(relevance, inputs, without_identity=True)

    return Method("gradient_attention", attribute, signed=False, refuses=any_of(not_differentiable, _refuses))


@contextmanager
def captured_attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the weights ``(N, heads, queries, keys)`` of every ``nn.MultiheadAttention`` that runs, in order.

    Weights are asked of each call whether the model wants them or not; what the model gets is what it asked for.
    """
    found: list[Tensor] = []
    wanted: list[tuple[bool, bool]] = []

    def ask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        wanted.append((bool(given.get("need_weights", True)), bool(given.get("average_attn_weights", True))))
        return (), {**given, "need_weights": True, "average_attn_weights": False}

    def take(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
        result, weights = output
        found.append(weights if weights.ndim == 4 else weights[None])
        needed, averaged = wanted.pop()
        return result, (weights.mean(-3) if averaged else weights) if needed else None

    modules = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    handles: list[Any] = []
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # The fused inference kernel would go past the attention modules.
        torch.backends.mha.set_fastpath_enabled(False)
        for module in modules:
            handles += [
                module.register_forward_pre_hook(ask, with_kwargs=True),
                module.register_forward_hook(take),
            ]
        yield found
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()


def _on_grid(relevance: Tensor | None, inputs: Any, *, without_identity: bool = False) -> Tensor:
    """What the class token, or all tokens on average, draw from each patch; ``(N, 1, H, W)``."""
    value = first(inputs)
    if relevance is None:
        raise ValueError(_NO_ATTENTION)
    prefix, (height, width) = _tokens(relevance.shape[-1], value)
    if without_identity:
        relevance = relevance - torch.eye(relevance.shape[-1], device=relevance.device, dtype=relevance.dtype)
    drawn = relevance[:, 0] if prefix else relevance.mean(1)
    return resized(drawn[:, prefix:].reshape(len(value), 1, height, width), value)


def _tokens(count: int, value: Tensor) -> tuple[int, tuple[int, int]]:
    image = (int(value.shape[-2]), int(value.shape[-1]))
    for prefix in (1, 0):
        grid = token_grid(count - prefix, image)
        if grid is not None:
            return prefix, grid
    raise ValueError(
        f"{count} tokens, one of them for the class or none, are no grid of patches of a {image[0]} x {image[1]} image"
    )


_NO_ATTENTION = (
    "no nn.MultiheadAttention ran, so no attention weights can be had (windowed attention, or function calls?)"
)


def _refuses(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
    value = first(inputs)
    if value.ndim != 4:
        return f"the input has shape {tuple(value.shape)}, not (N, C, H, W)"
    with torch.no_grad(), captured_attention(model) as weights:
        outputs_of(model, inputs)
    if not weights:
        return _NO_ATTENTION
    sizes = {tuple(layer.shape[-2:]) for layer in weights}
    if len(sizes) > 1 or any(queries != keys for queries, keys in sizes):
        return f"its layers attend over different tokens, {sorted(sizes)}: their attention cannot be multiplied"
    if any(len(layer) != len(value) for layer in weights):
        return "its attention runs over parts of the image, not over all its tokens"
    try:
        _tokens(weights[0].shape[-1], value)
    except ValueError as error:
        return str(error)
    return None
