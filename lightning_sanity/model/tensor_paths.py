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
from dataclasses import dataclass, replace
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
        shared: Whether a copy of the model holds the very same: what functions and classes refer to is not copied.
    """

    name: str
    owner: nn.Module
    holder: Any
    key: Any
    item: bool = False
    shared: bool = False

    def below(self, name: str, holder: Any, key: Any, item: bool = False) -> Place:
        """A place inside what hangs here."""
        return Place(name, self.owner, holder, key, item, self.shared)


def places_of(model: nn.Module, wanted: Iterable[Tensor], further: Iterable[Any] = ()) -> dict[int, Place]:
    """Where tensors hang, by their address; those that are found nowhere are left out.

    Args:
        model: Where to search.
        wanted: The tensors.
        further: Functions that take part in a pass besides the model's own.
    """
    missing = {tensor.data_ptr() for tensor in wanted}
    found: dict[int, Place] = {}
    for value, place in _reachable(model, further):
        if not missing:
            break
        if isinstance(value, np.ndarray):
            here = value.ctypes.data
        else:
            here = value.data_ptr() if value.layout is torch.strided and not value.is_meta else 0
        if here in missing:
            missing.remove(here)
            found[here] = place
    return found


def _reachable(model: nn.Module, further: Iterable[Any]) -> Iterator[tuple[Any, Place]]:
    """Tensors and arrays that can be reached from a model, each with its place; what is near comes first."""
    registered = list(model.named_modules())
    seen = {id(module) for _, module in registered}
    waiting: deque[tuple[Any, Place, int]] = deque()
    for path, module in registered:
        waiting.extend((value, place, 0) for value, place in _held(module, Place(path, module, None, None)))
    for function in further:
        name = getattr(function, "__name__", type(function).__name__)
        waiting.append((function, Place(name, model, None, name, shared=True), 0))
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
            waiting.extend((inner, where, depth + 1) for inner, where in _inside(value, place))


def _held(module: nn.Module, at: Place) -> Iterator[tuple[Any, Place]]:
    """What a module holds: registered tensors first, then attributes, then what its code refers to."""
    for held in (module._buffers, module._parameters):
        for key, value in held.items():
            yield value, at.below(_dotted(at.name, key), module, key)
    for key, value in vars(module).items():
        if key not in _UNSEARCHED:
            yield value, at.below(_dotted(at.name, key), module, key)
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.") or kind is object:
            continue
        for key, value in vars(kind).items():
            where = replace(at.below(_dotted(at.name, key), kind, key), shared=True)
            if inspect.isfunction(value):
                yield from _referred(value, where)
            elif not key.startswith("__"):
                yield value, where


def _inside(value: Any, at: Place) -> Iterator[tuple[Any, Place]]:
    """What an object holds."""
    name = at.name
    if isinstance(value, nn.Module):
        for path, module in value.named_modules():
            yield from _held(module, replace(at, name=_dotted(name, path) if path else name))
    elif isinstance(value, Mapping):
        counted = str(at.key).endswith("_hooks")  # torch numbers hooks across all modules
        for index, (key, held) in enumerate(list(value.items())):
            yield held, at.below(f"{name}[{index if counted else key!r}]", value, key, item=True)
    elif isinstance(value, (list, tuple, deque, set, frozenset)):
        for index, held in enumerate(value):
            yield held, at.below(f"{name}[{index}]", value, index, item=True)
    elif isinstance(value, functools.partial):
        yield value.func, at.below(name, value, "func")
        yield value.args, at.below(f"{name}.args", value, "args")
        yield value.keywords, at.below(f"{name}.keywords", value, "keywords")
    elif inspect.ismethod(value):
        yield value.__self__, at.below(name, value, "__self__")
        yield from _referred(value.__func__, at)
    elif inspect.isfunction(value):
        yield from _referred(value, at)
    elif not (inspect.isclass(value) or inspect.ismodule(value) or inspect.isbuiltin(value)):
        for key, held in list(getattr(value, "__dict__", {}).items()):
            yield held, at.below(_dotted(name, key), value, key)
        for key in getattr(type(value), "__slots__", ()):
            if isinstance(key, str) and hasattr(value, key):
                yield getattr(value, key), at.below(_dotted(name, key), value, key)


def _referred(function: Any, at: Place) -> Iterator[tuple[Any, Place]]:
    """What a function refers to: its closure, its defaults, the globals that it names."""
    code, at = function.__code__, replace(at, shared=True)
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield cell.cell_contents, at.below(f"{at.name}: {key}", cell, "cell_contents")
        except ValueError:  # not bound yet
            continue
    for index, held in enumerate(function.__defaults__ or ()):
        yield held, at.below(f"{at.name}: default {index}", function, index)
    for key, held in (function.__kwdefaults__ or {}).items():
        yield held, at.below(f"{at.name}: {key}", function.__kwdefaults__, key, item=True)
    for key in code.co_names:
        held = function.__globals__.get(key)
        if isinstance(held, (Tensor, np.ndarray, list, tuple, dict, nn.Module, functools.partial)):
            yield held, at.below(f"{function.__module__}.{key}", function.__globals__, key, item=True)


def _dotted(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
