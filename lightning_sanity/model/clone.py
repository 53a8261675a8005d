"""A live, detached copy of a module, and the proofs that it is one.

The test re-initialises a copy and never the module that is being trained: a signal handler or a background thread may
save the trained weights at any moment. A copy can be dead, though: it may still compute with the original's weights
(compiled or closed-over ``forward``), and every similarity would then read 1.0.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from lightning_sanity.model.detached import rebind_hooks, silence, strangers, users_hooks
from lightning_sanity.model.digest import state_digest
from lightning_sanity.model.outputs import logits
from lightning_sanity.model.weights import drop_gathered, zeroed
from lightning_sanity.resources.quoting import quoted

# Lightning writes compiled versions of these over the methods, closed over the module they were compiled for. A bound
# method in their place is fine: deepcopy binds it to the copy.
_PATCHED = ("forward", "training_step", "validation_step", "test_step", "predict_step")
_COMPILED = ("_compiler_ctx", "_compiled_call_impl")


_CLEARLY = 0.01
"""Share of the largest output by which outputs differ for other reasons than rounding."""


class CloneError(RuntimeError):
    """The module could not be copied, or its copy is not a live model of its own."""


def clone(module: nn.Module, clone_fn: Callable[[nn.Module], nn.Module] | None = None) -> nn.Module:
    """A detached copy of ``module`` in eval mode, fit for gradients even when made inside inference mode.

    Nothing that it does reaches a Trainer: see ``detached``.

    Args:
        module: The user's module; left as it is.
        clone_fn: Makes the copy instead of ``copy.deepcopy``, for modules that cannot be deep-copied.

    Raises:
        CloneError: If copying fails; names the attribute where that can be told.
    """
    module = getattr(module, "_orig_mod", module)  # torch.compile(model) hides the model itself there
    if clone_fn is None:
        refuse_fixed(module)
    with torch.inference_mode(False), torch.no_grad():
        try:
            made = clone_fn(module) if clone_fn is not None else _deepcopy(module)
        except Exception as error:
            raise CloneError(
                f"cannot copy {type(module).__name__}{_culprit(module)}: pass clone_fn=, a function of the module that "
                f"returns an independent copy. Copying raised {quoted(error)}"
            ) from error
        for parameter in made.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        silence(made)
    return made.eval()


def _deepcopy(module: nn.Module) -> nn.Module:
    memo = strangers(module)
    for holder in (*module.modules(), *(hook.function for hook in users_hooks(module))):
        for value in tree_leaves(dict(getattr(holder, "__dict__", {}))):
            # An activation or a derived weight cached on the module cannot be deep-copied while it has a history.
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    stale = [key for key in _PATCHED if key in vars(module) and not inspect.ismethod(vars(module)[key])]
    stale += [key for key in _COMPILED if vars(module).get(key) is not None]
    if not stale:
        made = copy.deepcopy(module, memo)
        rebind_hooks(made, memo)
        return made
    memo[id(module)] = made = module.__class__.__new__(module.__class__)
    state = module.__getstate__() if hasattr(module, "__getstate__") else vars(module)
    made.__dict__.update(copy.deepcopy({key: value for key, value in dict(state).items() if key not in stale}, memo))
    made.__dict__.update({key: None for key in _COMPILED if key in vars(module)})
    rebind_hooks(made, memo)
    return made


def _culprit(module: nn.Module) -> str:
    """The attribute that cannot be copied, for the message."""
    for path, child in module.named_modules():
        for key, value in vars(child).items():
            if key in ("_parameters", "_buffers", "_modules", "_trainer", "_fabric"):
                continue
            try:
                copy.deepcopy(value)
            except Exception:
                return f" (attribute '{path + '.' if path else ''}{key}')"
    return ""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside the block; afterwards every submodule has its own flag again, and what it held.

    A module's own ``train`` may do more than set a flag: empty a cache, merge weights. So it is not called on what is
    in eval mode already, and what it did on the way there is undone on the way back.
    """
    flags = [(child, child.training) for child in module.modules()]
    if not any(flag for _, flag in flags):
        yield module
        return
    own = [child for child, flag in flags if flag and type(child).train is not nn.Module.train]
    weights = [(weight, weight.detach().clone()) for child in own for weight in child.parameters(recurse=False)]
    with preserved(module):
        module.eval()
        try:
            yield module
        finally:
            for child in own:
                child.train()
            for weight, before in weights:  # adding and taking away again leaves rounding
                if not torch.equal(weight, before):
                    weight.data.copy_(before)
            for child, flag in flags:
                child.training = flag


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Whatever a forward pass inside the block writes to the module is undone: buffers, caches, counters, metrics.

    What hooks write elsewhere is not.
    """
    saved = [(child, dict(vars(child)), _contents(child)) for child in module.modules()]
    try:
        yield
    finally:
        for child, attributes, contents in saved:
            now = vars(child)  # put back one by one: a signal handler may look at the module at any moment
            for key in now.keys() - attributes.keys():
                del now[key]
            now.update({key: value for key, value in attributes.items() if now.get(key, _Plain) is not value})
            for held, before in contents:
                if isinstance(held, Tensor):
                    if not torch.equal(held, before):
                        held.copy_(before)
                elif isinstance(held, list):
                    held[:] = before
                else:
                    held.clear()
                    held.update(before)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """What a module holds that can be changed in place, each with a copy; not its parameters."""
    held = [value for key, value in vars(module).items() if key != "_parameters"] + list(module._buffers.values())
    found: list[tuple[Any, Any]] = []
    for value in held:
        if isinstance(value, Tensor) and not value.is_inference():
            found.append((value, value.detach().clone()))
        elif isinstance(value, (list, dict, set)):
            found.append((value, copy.copy(value)))
    return found


class _Plain:
    """Runs a checkpointed function as it is."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *arguments: Any) -> Any:
        return function(*arguments)


@contextmanager
def eager() -> Iterator[None]:
    """Nothing is compiled inside the block, and no checkpointed part refuses ``torch.autograd.grad``.

    A compiled module would be compiled again for the probe's shapes; the reentrant kind of activation checkpointing
    only supports ``backward()``. The results are the same.
    """
    reentrant = torch.utils.checkpoint.CheckpointFunction
    with torch.compiler.set_stance("force_eager"):
        torch.utils.checkpoint.CheckpointFunction = _Plain  # type: ignore[misc,assignment]
        try:
            yield
        finally:
            torch.utils.checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]


def launder(inputs: Any, device: torch.device | None = None) -> Any:
    """Copies of the tensors in ``inputs`` that can take part in autograd, wherever they were born.

    Call it inside ``torch.inference_mode(False)``: an inference tensor stays one under ``detach`` or ``to`` the same
    device, and only a copy made outside inference mode is free.
    """
    return tree_map(lambda t: t.detach().to(device or t.device, copy=True) if isinstance(t, Tensor) else t, inputs)


@torch.no_grad()
def check_fidelity(original: Tensor, copied: Tensor, run: Callable[[], Tensor]) -> None:
    """Raise ``CloneError`` unless the untouched copy reproduces the model's output; ``run`` is one more pass of it."""
    if _equal(original, copied):
        return
    again = run()
    if not _equal(copied, again):
        raise CloneError(
            f"the model's forward is random in eval mode: two passes differ by up to {_apart(copied, again):.2g}. A "
            "code that is drawn, as in a VAE, or dropout that stays on makes every map another one: pass forward= with "
            "a function of (model, inputs) that takes the mean instead of a draw."
        )
    raise CloneError(
        "the copy does not reproduce the model's output on the probe: its forward depends on state that a copy does "
        "not carry. Pass clone_fn=, or forward= with a function of (model, inputs) that does not."
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    close = partial(torch.allclose, rtol=1e-4, atol=1e-5, equal_nan=True)
    return one.shape == other.shape and close(one.float(), other.float())


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max()) if one.shape == other.shape else math.inf


def largest_finite(values: Tensor) -> float:
    """The largest magnitude among finite values; 0 where there are none."""
    return float(torch.where(values.isfinite(), values, 0).abs().amax()) if values.numel() else 0.0


@torch.no_grad()
def check_liveness(copied: nn.Module, before: Tensor, run: Callable[[], Tensor]) -> None:
    """Raise ``CloneError`` unless zeroing the copy's weights changes its output; they are restored.

    Args:
        copied: The copy.
        before: Its output on some samples, but for rounding: another batch may have held them.
        run: Runs it on these samples.
    """
    weights = any(parameter.is_floating_point() or parameter.is_complex() for parameter in copied.parameters())
    if not weights or not bool(before.any()):
        return  # nothing can become random, or a head of zeros answers 0 whatever lies below: other things to say
    with zeroed(copied):
        after = run()
    slack = _CLEARLY * largest_finite(before)
    if before.shape == after.shape and not torch.allclose(before, after, _CLEARLY, slack, equal_nan=True):
        return
    if torch.equal(run(), after):
        raise CloneError(
            "the copy is dead: zeroing all its weights did not change its output, so it still computes with the "
            "original's (a compiled or closed-over forward) or ignores its weights. Pass clone_fn= that returns an "
            "independent model, or test the module before compiling it."
        )


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over a module's ``state_dict``; see ``digest.state_digest``."""
    original = getattr(module, "_orig_mod", module)
    drop_gathered(original)  # whose memory could not be given back once its bytes were read
    return state_digest(original.state_dict())


def as_one_operation(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; where a model is traced symbolically it becomes one operation, free to look at its values."""
    proxy = next((leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Proxy)), None)
    return (
        function(*arguments) if proxy is None else proxy.tracer.create_proxy("call_function", function, arguments, {})
    )


def refuse_fixed(module: nn.Module) -> None:
    """Refuse a module whose computation is fixed in another form, or whose weights are not there yet.

    Raises:
        CloneError: Which, and what to pass instead.
    """
    fixed = "scripted or traced" if isinstance(module, torch.jit.ScriptModule) else None
    if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # which torch.export forbids there
        fixed = "exported"
    if fixed is not None:
        raise CloneError(
            f"{type(module).__name__} is {fixed}: no copy of it can be watched or re-initialised layer by layer. Pass "
            "the module that it was made from, with the same weights."
        )
    lazy = next((name for name, p in module.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise CloneError(
            f"'{lazy}' of {type(module).__name__} is lazy and has no shape yet: run the model on one batch first, or "
            "load its weights"
        )


class Adapted(nn.Module):
    """A module whose call returns the explained outputs ``(N, classes)`` alone.

    Args:
        model: The copy; reachable as ``.model``.
        forward: ``forward(model, *inputs) -> outputs``; ``model(*inputs)`` if None.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Outputs ``(N, classes)`` or ``(N,)``; all that the model itself returns, to who asks it with options."""
        if options:
            return self.model(*inputs, **options)
        return logits(self._forward(self.model, *inputs) if self._forward is not None else self.model(*inputs))

    def __getattr__(self, name: str) -> Any:
        """The model's own attributes, for methods that know it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def get_submodule(self, target: str) -> nn.Module:
        """A module by its name in the model."""
        try:
            return super().get_submodule(target)
        except AttributeError:
            return self.model.get_submodule(target)
