"""A user's composite of zennit as a method (the extra ``lightning-sanity[zennit]``).

zennit attaches its rules to modules. What a network does by function call between them would be propagated as a plain
gradient, so such networks are refused, with what was found.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sanity.attribution.method import (
    Method,
    Refusal,
    any_of,
    first,
    leaf,
    not_differentiable,
    outputs_of,
    replaced,
    select,
)
from lightning_sanity.model.weights import is_sharded
from lightning_sanity.resources.quoting import listed

_MakeComposite = Callable[[], Any]


def composite_method(composite: Any) -> Method:
    """A zennit composite as a method: its rules, started from the explained output alone."""
    return replace(_from_composite(type(composite).__name__, lambda: composite, probability=True), guarded=True)


def is_composite(method: Any) -> bool:
    """Whether this is a zennit composite; without importing zennit, which then is imported already."""
    core = sys.modules.get("zennit.core")
    return core is not None and isinstance(method, core.Composite)


def _zennit(name: str) -> Any:
    require("zennit", name)
    import zennit
    import zennit.canonizers
    import zennit.composites
    import zennit.layer
    import zennit.rules
    import zennit.torchvision
    import zennit.types

    return zennit


_MODULES = {"xrai": "saliency"}
"""What an extra's package is imported as, where that is not the extra's own name."""


def require(extra: str, method: str) -> None:
    """Raise an ImportError that says how to install an extra's package, if it is missing."""
    package = _MODULES.get(extra, extra)
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f"the attribution method '{method}' needs {package}, which is not installed: "
            f"pip install 'lightning-sanity[{extra}]'"
        )


def _from_composite(name: str, make: _MakeComposite, *, probability: bool, signed: bool = True) -> Method:
    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        composite, explained = make(), leaf(first(inputs))
        with torch.enable_grad(), _attached(composite, model):
            chosen = select(outputs_of(model, replaced(inputs, explained)), target)
            start = torch.ones_like(chosen) if probability else chosen.detach()
            (relevance,) = torch.autograd.grad(chosen, explained, start)
        return relevance

    return Method(
        name, attribute, needs="zennit", signed=signed, passes=2.0, refuses=any_of(not_differentiable, _refuses(make))
    )


@contextmanager
def _attached(composite: Any, model: nn.Module) -> Iterator[None]:
    """The composite's hooks and canonical forms, for a while; rectifiers must not overwrite what the hooks hold."""
    with _restoring(model):
        try:
            for module in model.modules():
                if getattr(module, "inplace", False) is True:
                    module.inplace = False  # type: ignore[assignment]
            composite.register(model)
            yield
        finally:
            composite.remove()


@contextmanager
def _restoring(model: nn.Module) -> Iterator[None]:
    """Put every parameter, buffer and attribute back; a canonizer that fails half-way undoes nothing itself."""
    modules = [
        (module, dict(module.__dict__), dict(module._parameters), dict(module._buffers)) for module in model.modules()
    ]
    data = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        for module, attributes, parameters, buffers in modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, values in data:
            tensor.data = values


def _refuses(make: _MakeComposite) -> Refusal:
    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        if is_sharded(model):
            return "its rules replace weights while passes run, which sharded weights do not stand"
        composite, zennit = make(), _zennit("lrp")
        bare = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and (module.running_mean is None or module.weight is None)
        ]
        if bare:
            return f"'{bare[0]}' normalises without running statistics or without weights, which cannot be merged"
        with torch.no_grad(), _restoring(model):
            before = outputs_of(model, inputs)
            try:
                for canonizer in composite.canonizers:
                    canonizer.apply(model)
                with _Between(model, zennit) as between:
                    after = outputs_of(model, inputs)
            except RuntimeError as error:
                return f"merging batch normalisation into the layer before it failed: {error}"
            loose = [
                name
                for name, module in model.named_modules()
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and not _is_identity(module)
            ]
        if between.operations:
            return f"it has no rule for what this network does outside of known modules: {listed(between.operations)}"
        again = [name for name, count in between.linear_calls.items() if count > 1]
        if again:
            return f"'{again[0]}' runs several times in one forward pass, and relevance keeps one input per module"
        if loose:
            return f"batch normalisation '{loose[0]}' does not follow a linear layer, so it cannot be merged into one"
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())):
            return "merging batch normalisation changed the outputs: it does not follow the layer it was merged into"
        return None

    return reason


def _is_identity(module: nn.Module) -> bool:
    return all(  # as attributes: from zennit 1.0 on the merged values lie in front of parameters and buffers
        bool((getattr(module, name) == value).all())
        for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1))
    )


_HARMLESS = frozenset(
    (
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "unflatten",
        "t",
        "transpose",
        "permute",
        "clone",
        "alias",
        "detach",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "cat",
        "stack",
        "contiguous",
        "lift_fresh",
        "_to_copy",
        "view_as",
    )
)


class _Between(TorchDispatchMode):
    """Notes the operations that no known module accounts for, and how often linear modules run."""

    def __init__(self, model: nn.Module, zennit: Any) -> None:
        super().__init__()
        self.operations: dict[str, None] = {}
        self.linear_calls: Counter[str] = Counter()
        self._inside = 0
        types = zennit.types
        known: tuple[Any, ...] = (types.Linear, types.BatchNorm, types.AvgPool, types.MaxPool, zennit.layer.Sum)
        known += (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            if isinstance(module, known):
                counted = isinstance(module, (types.Linear, types.AvgPool, zennit.layer.Sum))
                self._handles += [
                    module.register_forward_pre_hook(self._enter(name if counted else None)),
                    module.register_forward_hook(self._leave),
                ]

    def _enter(self, name: str | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._inside += 1
            if name is not None:
                self.linear_calls[name] += 1

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        if not self._inside and name not in _HARMLESS:
            self.operations[name] = None
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
