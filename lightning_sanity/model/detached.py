"""Passes that nobody hears: on a copy, or on a stand-in of the module in training, nothing reaches the Trainer.

``self.log`` does nothing there, loggers and callbacks swallow what they are told, and hooks that are the user's own
bookkeeping (they look, and change nothing that the model computes) are left out.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_sanity.resources.restored_state import put_back

_SPEAKING = ("log", "log_dict", "print")
_FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_ALL_HOOKS = (*_FORWARD_HOOKS, "_backward_pre_hooks", "_backward_hooks")
_LIBRARIES = ("torch", "lightning", "pytorch_lightning", "lightning_sanity", "accelerate", "peft")


def _silent(*arguments: Any, **named: Any) -> None:
    """Says nothing."""


class Nobody:
    """Takes every message and passes none on: stands for a logger or a callback."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **named: Any) -> None:
        """Nothing happens."""

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __enter__(self) -> Nobody:
        return self

    def __exit__(self, *error: Any) -> None:
        return None


class NoTrainer:
    """Stands for the Trainer: loggers say nothing, and whatever else a forward pass may need of it is not there."""

    logger = Nobody()
    loggers = callbacks = ()
    training = validating = testing = predicting = sanity_checking = is_global_zero = False

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"a copy is not attached to a `Trainer`, so that `trainer.{name}` is not there")


def strangers(module: nn.Module) -> dict[int, Any]:
    """What a copy may refer to and must not reach, by id, and what stands for it there."""
    found: dict[int, Any] = {}
    for child in module.modules():
        trainer = vars(child).get("_trainer")
        if trainer is not None and not isinstance(trainer, NoTrainer):
            found[id(trainer)] = NoTrainer()
            for name in ("callbacks", "loggers"):
                found |= {id(each): Nobody() for each in getattr(trainer, name, None) or ()}
    return found


def silence(module: nn.Module) -> None:
    """Make a copy's LightningModules speak to nobody."""
    for child in module.modules():
        if "_trainer" in vars(child):
            vars(child).update({"_trainer": NoTrainer(), "_fabric": None, **dict.fromkeys(_SPEAKING, _silent)})


def rebind_hooks(module: nn.Module, memo: Mapping[int, Any]) -> None:
    """Let the hooks of a copy refer to the copy, wherever they referred to what ``memo`` has another for, by id."""
    for child in module.modules():
        for name in _ALL_HOOKS:
            hooks = vars(child).get(name) or {}
            for key, hook in list(hooks.items()):
                hooks[key] = _rebound(hook, memo)


def _rebound(function: Any, memo: Mapping[int, Any]) -> Any:
    if isinstance(function, types.MethodType):
        return types.MethodType(function.__func__, memo.get(id(function.__self__), function.__self__))
    if isinstance(function, partial):
        arguments = [memo.get(id(each), each) for each in function.args]
        named = {key: memo.get(id(each), each) for key, each in function.keywords.items()}
        return partial(_rebound(function.func, memo), *arguments, **named)
    if not isinstance(function, types.FunctionType) or not function.__closure__:
        return function
    cells = tuple(_cell(cell, memo) for cell in function.__closure__)
    if all(one is other for one, other in zip(cells, function.__closure__, strict=True)):
        return function
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _cell(cell: types.CellType, memo: Mapping[int, Any]) -> types.CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # not filled yet
        return cell
    return types.CellType(memo[id(held)]) if id(held) in memo else cell


def stand_in_for(module: nn.Module) -> nn.Module:
    """The same module again, for a pass that nobody hears: weights, buffers and attributes are the very same objects.

    Only what speaks is its own. What is written in place is written to the module; see ``clone.preserved``.
    """
    module = getattr(module, "_orig_mod", module)
    memo: dict[int, Any] = strangers(module)
    for child in module.modules():
        if not isinstance(child, torch.jit.ScriptModule):
            made = object.__new__(type(child))
            made.__dict__.update(vars(child))
            memo[id(child)] = made
    for child in list(module.modules()):
        made = memo.get(id(child), child)
        if made is child:
            continue
        attributes = vars(made)
        compiled = attributes.get("_compiler_ctx") is not None
        for key, value in list(attributes.items()):
            if compiled and callable(value) and key in ("forward", *_STEPS):
                del attributes[key]
            elif isinstance(value, types.MethodType):
                attributes[key] = _rebound(value, memo)
            elif id(value) in memo:
                attributes[key] = memo[id(value)]
        attributes["_modules"] = {
            key: None if each is None else memo.get(id(each), each) for key, each in child._modules.items()
        }
        for name in _ALL_HOOKS:
            if isinstance(attributes.get(name), dict):
                attributes[name] = type(attributes[name])(attributes[name])
        attributes.update({key: None for key in ("_compiler_ctx", "_compiled_call_impl") if key in attributes})
    found: nn.Module = memo.get(id(module), module)
    rebind_hooks(found, memo)
    silence(found)
    return found


_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


# ------------------------------------------------------------------------------------------------------- bookkeeping


@dataclass(frozen=True, eq=False)
class Hook:
    """A hook of the user's: where it hangs, by the module's name, and what it is."""

    module: str
    kind: str
    key: int
    function: Any

    def __str__(self) -> str:
        named = getattr(self.function, "__qualname__", None) or type(self.function).__qualname__
        return f"{named} on '{self.module}'" if self.module else named


def users_hooks(module: nn.Module) -> tuple[Hook, ...]:
    """Hooks of the forward pass that neither a library nor a part of the model itself registered."""
    module = getattr(module, "_orig_mod", module)
    parts = set(map(id, module.modules()))
    return tuple(
        Hook(path, kind, key, hook)
        for path, child in module.named_modules()
        for kind in _FORWARD_HOOKS
        for key, hook in (vars(child).get(kind) or {}).items()
        if not _of_library(hook) and id(getattr(hook, "__self__", None)) not in parts
    )


def _of_library(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    hook = getattr(hook, "__self__", hook)
    where = hook.__module__ if isinstance(hook, types.FunctionType) else type(hook).__module__
    return str(where).split(".")[0] in _LIBRARIES


def leave_out(module: nn.Module, hooks: tuple[Hook, ...]) -> None:
    """Take hooks off a module."""
    for hook in hooks:
        vars(module.get_submodule(hook.module))[hook.kind].pop(hook.key, None)


@torch.no_grad()
def bookkeeping(copied: nn.Module, run: Callable[[], Tensor]) -> tuple[Hook, ...]:
    """Those hooks of the user's that only look: taken off ``copied``, whose output stays what it was.

    A hook only looks if it returns nothing, writes to no tensor that it is given and to no attribute of the model. What
    it writes elsewhere meanwhile is put back.

    Args:
        copied: The copy.
        run: A forward pass of it.
    """
    hooks = users_hooks(copied)
    if not hooks:
        return ()
    acting: set[Hook] = set()
    with put_back(*(hook.function for hook in hooks)):
        for hook in hooks:
            held = vars(copied.get_submodule(hook.module))[hook.kind]
            held[hook.key] = partial(_watched, copied, hook, acting)
        try:
            before = run()
        finally:
            for hook in hooks:
                vars(copied.get_submodule(hook.module))[hook.kind][hook.key] = hook.function
    looking = tuple(hook for hook in hooks if hook not in acting)
    kept = {hook: dict(vars(copied.get_submodule(hook.module))[hook.kind]) for hook in looking}
    leave_out(copied, looking)
    try:
        same = torch.equal(before, run())
    except Exception:  # something else in the model reads what a hook has seen
        same = False
    if not same:
        for hook, held in kept.items():
            now = vars(copied.get_submodule(hook.module))[hook.kind]
            now.clear()
            now.update(held)  # in their order
        return ()
    return looking


def _watched(copied: nn.Module, hook: Hook, acting: set[Hook], *given: Any, **named: Any) -> Any:
    tensors = [leaf for leaf in tree_leaves((given, named)) if isinstance(leaf, Tensor) and not leaf.is_inference()]
    versions = [tensor._version for tensor in tensors]
    attributes = [(child, dict(vars(child))) for child in copied.modules()]
    returned = hook.function(*given, **named)
    written = any(tensor._version != version for tensor, version in zip(tensors, versions, strict=True))
    set_ = any(
        vars(child).keys() != before.keys() or any(vars(child)[key] is not value for key, value in before.items())
        for child, before in attributes
    )
    if returned is not None or written or set_:
        acting.add(hook)
    return returned


def left_out(module: nn.Module, copied: nn.Module) -> tuple[str, ...]:
    """A note on the hooks that a copy lacks, if it lacks any."""
    there = {(hook.module, hook.kind, hook.key) for hook in users_hooks(copied)}
    names = [str(hook) for hook in users_hooks(module) if (hook.module, hook.kind, hook.key) not in there]
    if not names:
        return ()
    return (f"forward hooks that only look were left out on the copy: {', '.join(names[:5])}",)
