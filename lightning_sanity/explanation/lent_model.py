"""A model that is lent to a guest: its tensors are copies meanwhile, its modules are put back as they were."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.utils._pytree import tree_leaves

_PARTS = {"_parameters": "parameters", "_buffers": "buffers", "_modules": "submodules", "training": "the mode"}
_REGISTERED = {"_parameters", "_buffers", "_modules"}
_CONTAINERS = (dict, list, set)
Named = Sequence[tuple[str, nn.Module]]
"""Every module of a model with its name, the model first."""


@contextmanager
def tensors_lent(modules: Named, left: list[str], *, thorough: bool) -> Iterator[None]:
    """The model's tensors are copies inside the block, which share memory among themselves as the originals do.

    A write to ``.data`` shows in no version counter: ``thorough`` compares the values as well, to be able to say what
    was changed. It is always undone.
    """
    originals = [(where, tensor, tensor.data, tensor.grad, tensor.requires_grad) for where, tensor in _held(modules)]
    _copy(originals)
    versions = [tensor._version for _, tensor, *_ in originals]
    try:
        yield
    finally:
        changed: dict[str, str] = {}
        for (where, tensor, data, grad, flag), version in zip(originals, versions, strict=True):
            if tensor._version != version or (thorough and not _same(tensor.data, data)):
                changed.setdefault("values", where)
            if tensor.grad is not grad:
                changed.setdefault("the gradient", where)
                tensor.grad = None  # the old one fits the old data only
            if tensor._backward_hooks:
                changed.setdefault("tensor hooks", where)
                tensor._backward_hooks = None
            tensor.data = data
            if grad is not None:
                tensor.grad = grad
            if tensor.requires_grad != flag and tensor.is_leaf:
                changed.setdefault("requires_grad", where)
                tensor.requires_grad_(flag)
        left += [f"{what} of '{where}'" for what, where in changed.items()]


def _copy(originals: Iterable[tuple[str, Tensor, Tensor, Tensor | None, bool]]) -> None:
    """Put a copy in the place of every tensor's data; what lies in one memory lies in one copy of it."""
    # Memories go by their handle, not by their address, which torch tells no one without making a due copy.
    placed = [(tensor, data, data.untyped_storage()) for _, tensor, data, *_ in originals]
    several = Counter(storage._cdata for *_, storage in placed)
    copies: dict[int, torch.UntypedStorage] = {}
    for tensor, data, storage in placed:
        key = storage._cdata
        if several[key] == 1 and data.is_contiguous() and data.nbytes == storage.nbytes():
            tensor.data = _due(data)
            continue
        if key not in copies:
            copies[key] = _due(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)).untyped_storage()
        view = torch.empty(0, dtype=data.dtype, device=data.device)
        tensor.data = view.set_(copies[key], data.storage_offset(), data.shape, data.stride())


def _due(whole: Tensor) -> Tensor:
    """A copy that is made when one of the two is first written to, where torch can do that, and now elsewhere."""
    try:
        copied: Tensor = torch._lazy_clone(whole)
    except (AttributeError, RuntimeError):
        return whole.clone()
    return copied


def _held(modules: Named) -> list[tuple[str, Tensor]]:
    """Parameters, buffers and bare tensors of a model, each once, with a name."""
    found: dict[int, tuple[str, Tensor]] = {}
    for path, module in modules:
        prefix = f"{path}." if path else ""
        for key, value in vars(module).items():
            if type(value) in _NUMBERS or key in _REGISTERED:
                continue
            if isinstance(value, Tensor) or _filled(value):
                for leaf in tree_leaves(value):
                    if isinstance(leaf, Tensor):
                        found.setdefault(id(leaf), (prefix + key, leaf))
        for key, leaf in (*module._parameters.items(), *module._buffers.items()):
            if leaf is not None:
                found[id(leaf)] = prefix + key, leaf
    return [(name, tensor) for name, tensor in found.values() if _plain(tensor)]


def _filled(value: Any) -> bool:
    """Whether it may hold tensors, unlike the sizes and strides that most modules keep."""
    if not isinstance(value, (dict, list, tuple)):
        return False
    return any(type(each) not in _NUMBERS for each in (value.values() if isinstance(value, dict) else value))


_NUMBERS = {int, float, bool, str, type(None)}


def _plain(tensor: Tensor) -> bool:
    """Whether its values lie in a memory of its own: no shard, no result, no placeholder."""
    return (
        tensor.grad_fn is None
        and not tensor.is_inference()
        and tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and not tensor.is_quantized
        and not hasattr(tensor, "to_local")
    )


def _same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    same = torch.equal(one, other)
    return same or bool(((one == other) | ((one != one) & (other != other))).all())  # NaN is as it was


@contextmanager
def modules_kept(modules: Named, left: list[str]) -> Iterator[None]:
    """Attributes, hooks, modes and classes of all modules, and torch's hooks on every module, as they were before."""
    state = [(path, module, type(module), _attributes(vars(module))) for path, module in modules]
    everywhere = _attributes({key: value for key, value in vars(torch_modules).items() if key.startswith("_global")})
    code = _code_of({kind for _, _, kind, _ in state})
    try:
        yield
    finally:
        changed: dict[str, str] = {}
        for path, module, kind, before in state:
            where = f"'{path or kind.__name__}'"
            if type(module) is not kind:
                changed.setdefault("the class", where)
                module.__class__ = kind
            for key in _put_back(vars(module), before):
                changed.setdefault(_PARTS.get(key) or ("hooks" if "hooks" in key else f"attribute {key}"), where)
        if _put_back(vars(torch_modules), everywhere, whole=False):
            left.append("torch's hooks on all modules")
        left += [f"{key} of {where.__name__}" for where, before in code for key in _rewritten(where, before)]
        left += [f"{what} of {where}" for what, where in changed.items()]


def _code_of(kinds: Iterable[type[nn.Module]]) -> list[tuple[Any, dict[str, Any]]]:
    """Classes of modules, the files that they come from and torch's functions, with what stands in them.

    Some libraries explain by replacing methods of classes, or functions of a file, for the rest of the process.
    """
    classes = dict.fromkeys(base for kind in kinds for base in kind.__mro__[:-1])
    files = dict.fromkeys(sys.modules.get(kind.__module__) for kind in classes)
    return [(where, dict(vars(where))) for where in (*classes, *files, nn.functional) if where is not None]


def _rewritten(where: Any, before: Mapping[str, Any]) -> list[str]:
    """Functions and classes that were replaced, put back; what is merely new, as a late import is, stays."""
    now = vars(where)
    changed = [key for key, value in before.items() if now.get(key) is not value and _is_code(value)]
    for key in changed:
        setattr(where, key, before[key])
    return changed


def _is_code(value: Any) -> bool:
    return callable(value) or isinstance(value, (staticmethod, classmethod, property))


_Attributes = dict[str, tuple[Any, Any]]


def _attributes(values: Mapping[str, Any]) -> _Attributes:
    """Every value, and what it holds if that can be changed."""
    return {key: (value, value.copy() if isinstance(value, _CONTAINERS) else None) for key, value in values.items()}


def _put_back(now: dict[str, Any], before: _Attributes, *, whole: bool = True) -> list[str]:
    """Make attributes what they were, one by one; returns the names of those that were not."""
    changed = [key for key in now if key not in before] if whole else []
    for key in changed:
        del now[key]
    for key, (value, held) in before.items():
        same = now.get(key, now) is value and (held is None or _holds(value, held))
        if same:
            continue
        changed.append(key)
        now[key] = value
        if isinstance(value, list):
            value[:] = held
        elif held is not None:
            value.clear()
            value.update(held)
    return changed


def _holds(value: Any, held: Any) -> bool:
    if not held:
        return not value
    if isinstance(value, dict):
        pairs = zip(value.items(), held.items(), strict=False)
        return len(value) == len(held) and all(a is b and x is y for (a, x), (b, y) in pairs)
    if isinstance(value, list):
        return len(value) == len(held) and all(x is y for x, y in zip(value, held, strict=True))
    return bool(value == held)
