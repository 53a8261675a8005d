"""Objects of the user's that a test has to call: what the calls change in them is put back.

A data set that augments with a generator of its own, a hook that counts: both are asked by a test as well, and training
must not notice.
"""

from __future__ import annotations

import io
import random
import sysconfig
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MOST = 20_000  # objects that are looked at
_LONG = 1_000  # entries of a container beyond which it is data: neither looked into nor put back
_FOREIGN = ("torch", "numpy", "lightning", "pytorch_lightning", "logging", "threading", "multiprocessing", "concurrent")
_LIBRARY = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, types.BuiltinFunctionType)


@contextmanager
def put_back(*roots: Any) -> Iterator[None]:
    """Whatever plain state is reachable from some objects is afterwards what it was, also after an error.

    Covered are random generators (of Python, NumPy and torch), attributes, containers of up to 1,000 entries, small
    tensors and arrays, and what functions close over or find among their globals. Not covered: what ``streams`` names.
    """
    restore = [undo for undo, _ in _walk(roots) if undo is not None]
    try:
        yield
    finally:
        for undo in restore:
            undo()


def streams(*roots: Any) -> list[str]:
    """Kinds of what is reachable from some objects and cannot be put back once it was read: iterators, open files."""
    return list(dict.fromkeys(kind for _, kind in _walk(roots) if kind is not None))


def _walk(roots: tuple[Any, ...]) -> Iterator[tuple[Callable[[], Any] | None, str | None]]:
    """How to put each reachable object back, and the kind of those that cannot be."""
    seen: dict[int, Any] = {}
    queue = deque(roots)
    while queue and len(seen) < _MOST:
        held = queue.popleft()
        if id(held) in seen or isinstance(held, _PLAIN):
            continue
        seen[id(held)] = held
        if isinstance(held, (types.GeneratorType, io.IOBase)) or _is_iterator(held):
            yield None, type(held).__name__
            continue
        try:
            undo, inside = _state(held)
        except Exception:  # a dead reference, say: what cannot be looked at is left alone
            continue
        queue.extend(inside)
        if undo is not None:
            yield undo, None


def _is_iterator(held: Any) -> bool:
    return hasattr(type(held), "__next__") and not hasattr(held, "__dict__")


def _state(held: Any) -> tuple[Callable[[], Any] | None, list[Any]]:
    """How to put an object back, and what it refers to."""
    if isinstance(held, torch.Generator):
        return partial(held.set_state, held.get_state()), []
    if isinstance(held, np.random.Generator):
        return partial(setattr, held.bit_generator, "state", held.bit_generator.state), []
    if isinstance(held, np.random.RandomState):
        return partial(held.set_state, held.get_state()), []
    if isinstance(held, random.Random):
        return partial(held.setstate, held.getstate()), []
    if isinstance(held, (Tensor, np.ndarray)):
        return _of_array(held), []
    if isinstance(held, (list, dict, set, deque)):
        return _of_container(held)
    if isinstance(held, (tuple, frozenset)):
        return None, list(held) if len(held) <= _LONG else []
    if isinstance(held, types.FunctionType):
        return _of_function(held)
    if isinstance(held, types.MethodType):
        return None, [held.__self__, held.__func__]
    if isinstance(held, partial):
        return None, [held.func, *held.args, *held.keywords.values()]
    return _of_object(held)


def _of_array(held: Any) -> Callable[[], Any] | None:
    if isinstance(held, np.ndarray):
        if held.size > _LONG or not held.flags.writeable or held.dtype == object:
            return None
        return partial(np.copyto, held, held.copy())
    if type(held) is not Tensor or held.numel() > _LONG or held.is_inference() or held.layout != torch.strided:
        return None
    before = held.detach().clone()

    def undo() -> None:
        if not torch.equal(held, before):
            with torch.no_grad():
                held.copy_(before)

    return undo


def _of_container(held: Any) -> tuple[Callable[[], Any] | None, list[Any]]:
    if len(held) > _LONG:
        return None, []

    def entries() -> list[Any]:
        return [part for pair in held.items() for part in pair] if isinstance(held, dict) else list(held)

    before, whole = entries(), held.copy()

    def undo() -> None:
        if list(map(id, entries())) != list(map(id, before)):
            held.clear()
            held.extend(whole) if isinstance(held, (list, deque)) else held.update(whole)

    return undo, before


def _of_function(function: types.FunctionType) -> tuple[Callable[[], Any] | None, list[Any]]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append((cell, cell.cell_contents))
        except ValueError:  # not filled yet
            continue
    around = {} if function.__code__.co_filename.startswith(_LIBRARY) else function.__globals__
    known = {name: around[name] for name in function.__code__.co_names if name in around}

    def undo() -> None:
        for cell, value in cells:
            cell.cell_contents = value
        for name, value in known.items():
            if around.get(name) is not value:
                around[name] = value

    return undo, [value for _, value in cells] + list(known.values()) + list(function.__defaults__ or ())


def _of_object(held: Any) -> tuple[Callable[[], Any] | None, list[Any]]:
    """An object of a class of the user's: its attributes and its class's; not a network."""
    kind = type(held)
    root, *rest = kind.__module__.split(".")
    of_data = root == "torch" and rest[:2] == ["utils", "data"]
    attributes = getattr(held, "__dict__", None)
    network = isinstance(held, nn.Module) and next(held.parameters(), None) is not None
    if (root in _FOREIGN and not of_data) or not isinstance(attributes, dict) or "_trainer" in attributes or network:
        return None, []
    before = dict(attributes)

    def undo() -> None:
        for name in attributes.keys() - before.keys():
            del attributes[name]
        attributes.update(before)

    classes = [each for each in kind.__mro__ if each.__module__.split(".")[0] not in (*_FOREIGN, "builtins")]
    return undo, [*before.values(), *(value for each in classes for value in vars(each).values())]
