"""Where the gradient of a model's output is lost on its way to the explained input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_sanity.attribution.method import first, leaf, outputs_of, replaced


def lost_gradient(model: nn.Module, inputs: Any) -> str | None:
    """The first module behind which no gradient flows back, and why; None if the output has one, or the model fails.

    Args:
        model: Is run once.
        inputs: A tensor, or a tuple whose first is explained.

    Three causes can be told apart: the module runs where gradients are switched off, its output is whole numbers or
    truth values (a hard step), or it detaches.
    """
    if not first(inputs).is_floating_point():
        return None
    ends: list[tuple[str, str]] = []
    handles = [
        module.register_forward_hook(_watch(name, ends)) for name, module in model.named_modules(remove_duplicate=True)
    ]
    try:
        with torch.enable_grad():
            outputs = outputs_of(model, replaced(inputs, leaf(first(inputs))))
    except Exception:  # what is wrong with the model itself is told elsewhere
        return None
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(outputs, Tensor) or outputs.requires_grad:
        return None
    name, why = ends[0] if ends else ("", "")
    if not name:
        return (
            "the model's output has no gradient: its forward switches gradients off, detaches, or ends in a hard step"
        )
    return f"no gradient reaches the input through '{name}', which {why}"


def _watch(name: str, ends: list[tuple[str, str]]) -> Callable[..., None]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        given = any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(arguments))
        made = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if not given or not made or any(t.requires_grad for t in made):
            return
        if not torch.is_grad_enabled():
            why = "runs with gradients switched off (torch.no_grad)"
        elif not any(t.is_floating_point() for t in made):
            kind = str(made[0].dtype).removeprefix("torch.")
            why = f"is a hard step: it gives {kind}, which has no gradient"
        else:
            why = "detaches its output, or makes it by a hard step such as argmax or a comparison"
        ends.append((name, why))

    return hook
