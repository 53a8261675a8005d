"""Where a tensor hangs: the path by which a person finds it, whatever holds it.

A tensor that a pass reads need not be registered. It may lie in a list, a dictionary, a partial, a closure, a global
of the file that defines the module, an array of numpy. The search follows what Python lets be followed, from the
modules outward, and gives each tensor the first path by which it is reached.
"""

from __future__ import annotations

import functools
import inspect
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_UNSEARCHED = ("_trainer", "_fabric", "_parameters", "_buffers", "_modules")
_DEEPEST = 8  # steps from a module
_MOST = 20_000  # objects that are looked at
_LEAVES = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, range, slice)


@dataclass(frozen=True)
class Place:
    """Where something hangs.

    Attributes:
        name: The path from the model, as in ``experts[2].weight``.
        owner: The module that it is found through.
        holder: The very object that holds it.
        key: Its name or index there.
        item: Whether it is had by ``holder[key]`` rather than as an attribute.
    """

    name: str
    owner: nn.Module
    holder: Any
    key: Any
    item: bool = False


def storage_of(tensor: Tensor) -> int:
    """What tells whether two tensors share memory."""
    return tensor.untyped_storage()._cdata


def places_of(model: nn.Module, wanted: Iterable[Tensor], further: Iterable[Any] = ()) -> dict[int, Place]:
    """Where tensors hang, by their storage; those that are found nowhere are left out.

    Args:
        model: Where to search.
        wanted: The tensors.
        further: Functions that take part in a pass besides the model's own.
    """
    missing = {storage_of(tensor): tensor.data_ptr() for tensor in wanted}
    found: dict[int, Place] = {}
    for value, place in _reachable(model, further):
        if not missing:
            break
        if isinstance(value, Tensor):
            here = [storage_of(value)] if value.layout is torch.strided and not value.is_meta else []
        else:
            here = [key for key, pointer in missing.items() if pointer == value.ctypes.data]
        for key in here:
            if missing.pop(key, None) is not None:
                found[key] = place
    return found


def _reachable(model: nn.Module, further: Iterable[Any]) -> Iterator[tuple[Any, Place]]:
    """Tensors and arrays that can be reached from a model, each with its place; what is near comes first."""
    registered = list(model.named_modules())
    seen = {id(module) for _, module in registered}
    waiting: deque[tuple[Any, Place, int]] = deque()
    for path, module in registered:
        waiting.extend(_held(module, path, module, 0))
    for function in further:
        name = getattr(function, "__name__", type(function).__name__)
        waiting.append((function, Place(name, model, None, name), 0))
    looked_at = 0
    while waiting and looked_at < _MOST:
        value, place, depth = waiting.popleft()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        looked_at += 1
        seen.add(id(value))
        if isinstance(value, (Tensor, np.ndarray)):
            yield value, place
        elif depth < _DEEPEST:
            waiting.extend(_inside(value, place, depth + 1))


def _held(module: nn.Module, path: str, owner: nn.Module, depth: int) -> Iterator[tuple[Any, Place, int]]:
    """What a module holds: registered tensors first, then attributes, then what its code refers to."""
    for held in (module._buffers, module._parameters):
        for key, value in held.items():
            yield value, Place(_dotted(path, key), owner, module, key), depth
    for key, value in vars(module).items():
        if key not in _UNSEARCHED:
            yield value, Place(_dotted(path, key), owner, module, key), depth
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.") or kind is object:
            continue
        for key, value in vars(kind).items():
            if inspect.isfunction(value):
                yield from _referred(value, _dotted(path, key), owner, depth)
            elif not key.startswith("__"):
                yield value, Place(_dotted(path, key), owner, kind, key), depth


def _inside(value: Any, place: Place, depth: int) -> Iterator[tuple[Any, Place, int]]:
    """What an object holds."""
    name, owner = place.name, place.owner
    if isinstance(value, nn.Module):
        for path, module in value.named_modules():
            yield from _held(module, _dotted(name, path) if path else name, owner, depth)
    elif isinstance(value, Mapping):
        for key, held in list(value.items()):
            yield held, Place(f"{name}[{key!r}]", owner, value, key, item=True), depth
    elif isinstance(value, (list, tuple, deque)):
        for index, held in enumerate(value):
            yield held, Place(f"{name}[{index}]", owner, value, index, item=True), depth
    elif isinstance(value, (set, frozenset)):
        for held in value:
            yield held, Place(name, owner, value, held, item=True), depth
    elif isinstance(value, functools.partial):
        yield value.func, Place(name, owner, value, "func"), depth
        for index, held in enumerate(value.args):
            yield held, Place(f"{name}.args[{index}]", owner, value, index), depth
        for key, held in value.keywords.items():
            yield held, Place(f"{name}.keywords[{key!r}]", owner, value.keywords, key, item=True), depth
    elif inspect.ismethod(value):
        yield value.__self__, Place(name, owner, value, "__self__"), depth
        yield from _referred(value.__func__, name, owner, depth)
    elif inspect.isfunction(value):
        yield from _referred(value, name, owner, depth)
    elif not (inspect.isclass(value) or inspect.ismodule(value) or inspect.isbuiltin(value)):
        for key, held in list(getattr(value, "__dict__", {}).items()):
            yield held, Place(_dotted(name, key), owner, value, key), depth
        for key in getattr(type(value), "__slots__", ()):
            if isinstance(key, str) and hasattr(value, key):
                yield getattr(value, key), Place(_dotted(name, key), owner, value, key), depth


def _referred(function: Any, name: str, owner: nn.Module, depth: int) -> Iterator[tuple[Any, Place, int]]:
    """What a function refers to: its closure, its defaults, the globals that it names."""
    code = function.__code__
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield cell.cell_contents, Place(f"{name}: {key}", owner, cell, "cell_contents"), depth + 1
        except ValueError:  # not bound yet
            continue
    for index, held in enumerate(function.__defaults__ or ()):
        yield held, Place(f"{name}: default {index}", owner, function, index), depth + 1
    for key, held in (function.__kwdefaults__ or {}).items():
        yield held, Place(f"{name}: {key}", owner, function.__kwdefaults__, key, item=True), depth + 1
    for key in code.co_names:
        held = function.__globals__.get(key)
        if isinstance(held, (Tensor, np.ndarray, list, tuple, dict, nn.Module, functools.partial)):
            where = f"{function.__module__}.{key}"
            yield held, Place(where, owner, function.__globals__, key, item=True), depth + 1


def _dotted(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
