"""Reads a pickle as data: an interpreter of its operations that imports nothing and calls nothing.

A pickle is a program for a stack machine, and some of its operations call what it names. Here they do not: plain values
are built, and in the place of every other object stands a ``Call``, which says what would have been called with what.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import IO, Any

MOST_OPERATIONS = 2_000_000
"""Operations of one pickle; a checkpoint has about thirty for each tensor and value."""

_MARK = object()
_DICTS = ("collections OrderedDict", "builtins dict", "__builtin__ dict")
_SETS = ("builtins set", "__builtin__ set", "builtins frozenset", "__builtin__ frozenset")


class UnreadableError(ValueError):
    """Not a pickle, or one that goes on for too long."""


class Global:
    """A name that a pickle asks for, ``"module name"``; never looked up."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Call:
    """An object that was not built: what would have been called, with what, and the state it would have been given."""

    __slots__ = ("arguments", "function", "state")

    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self.function = function.name if isinstance(function, Global) else ""
        self.arguments = arguments
        self.state: Any = None


class Persistent:
    """A reference to something outside the pickle, such as a storage."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key


def read(file: IO[bytes]) -> tuple[Any, list[Persistent]]:
    """The value of the pickle at a file's position, which is left at its end, and the references in it.

    Returns:
        Plain values with ``Call``, ``Global`` and ``Persistent`` in the place of everything else. A value may hold
        itself.

    Raises:
        UnreadableError: If it is no pickle, or has more than ``MOST_OPERATIONS``.
    """
    machine = _Machine()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if count >= MOST_OPERATIONS:
                raise UnreadableError(f"more than {MOST_OPERATIONS} operations")
            machine.run(operation.name, argument)
        return machine.pop(), machine.references
    except UnreadableError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise UnreadableError(f"not a pickle: {error}"[:200]) from error


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.references: list[Persistent] = []

    def run(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _SIMPLE:
            _SIMPLE[name](self, argument)
        else:
            raise UnreadableError(f"the operation {name} is not read")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise UnreadableError("not a pickle: a mark in the place of a value")
        return value

    def to_mark(self) -> list[Any]:
        found: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            found.append(value)
        return found[::-1]

    def top(self) -> Any:
        value = self.stack[-1]
        if value is _MARK:
            raise UnreadableError("not a pickle: a mark in the place of a value")
        return value

    def call(self, function: Any, given: Any) -> None:
        arguments = given if isinstance(given, tuple) else ()
        name = function.name if isinstance(function, Global) else ""
        if name in _DICTS and not any(arguments):
            self.stack.append({})
        elif name == "_codecs encode" and len(arguments) == 2 and type(arguments[0]) is str:
            self.stack.append(arguments[0].encode("latin1"))  # how bytes were pickled before there were any
        elif name in _SETS and len(arguments) <= 1:
            self.stack.append(_hashable_set(arguments))
        else:
            self.stack.append(Call(function, arguments))

    def set_items(self, flat: list[Any]) -> None:
        held = self.top()
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if type(held) is dict:
                held[_key(key)] = value

    def append(self, items: list[Any]) -> None:
        held = self.top()
        if type(held) is list:
            held.extend(items)

    def add(self, items: list[Any]) -> None:
        held = self.top()
        if type(held) is set:
            held.update(map(_key, items))

    def build(self) -> None:
        state, held = self.pop(), self.top()
        if type(held) is Call:
            held.state = state  # of a dictionary, its attributes: they are no part of its contents

    def refer(self, key: Any) -> None:
        self.references.append(Persistent(key))
        self.stack.append(self.references[-1])

    def remember(self, place: int) -> None:
        self.memory[place] = self.top()


def _key(value: Any) -> Any:
    """A key of a dictionary. Others than these could be made to collide by the thousand, and are not built."""
    plain = value is None or type(value) in (str, bytes, bool) or (type(value) is int and abs(value) < 1 << 32)
    return value if plain or isinstance(value, (Call, Global, Persistent)) else Call(None, (value,))


def _hashable_set(arguments: tuple[Any, ...]) -> set[Any]:
    items = arguments[0] if arguments else []
    return set(map(_key, items)) if isinstance(items, (list, tuple)) else set()


_VALUES = {
    "INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(Global(f"{module} {name}"[:500]))


def _instance(machine: _Machine, argument: Any) -> None:
    machine.call(Global(str(argument)[:500]), tuple(machine.to_mark()))


def _object(machine: _Machine, _: Any) -> None:
    function, *arguments = machine.to_mark()
    machine.call(function, tuple(arguments))


def _call(machine: _Machine, _: Any) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.call(function, arguments)


def _call_with_keywords(machine: _Machine, _: Any) -> None:
    machine.pop()
    _call(machine, None)


def _tuple(size: int) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, _: Any) -> None:
        machine.stack.append(tuple([machine.pop() for _ in range(size)][::-1]))

    return act


def _dictionary(machine: _Machine, _: Any) -> None:
    flat = machine.to_mark()
    machine.stack.append({})
    machine.set_items(flat)


def _item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


_SIMPLE: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "STOP": lambda m, a: None,
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "EMPTY_SET": lambda m, a: m.stack.append(set()),
    "MARK": lambda m, a: m.stack.append(_MARK),
    "POP": lambda m, a: m.stack.pop(),
    "POP_MARK": lambda m, a: m.to_mark(),
    "DUP": lambda m, a: m.stack.append(m.top()),
    "PUT": lambda m, a: m.remember(a),
    "BINPUT": lambda m, a: m.remember(a),
    "LONG_BINPUT": lambda m, a: m.remember(a),
    "MEMOIZE": lambda m, a: m.remember(len(m.memory)),
    "GET": lambda m, a: m.stack.append(m.memory[a]),
    "BINGET": lambda m, a: m.stack.append(m.memory[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memory[a]),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.to_mark())),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": lambda m, a: m.stack.append(m.to_mark()),
    "DICT": _dictionary,
    "FROZENSET": lambda m, a: m.stack.append(set(map(_key, m.to_mark()))),
    "APPEND": lambda m, a: m.append([m.pop()]),
    "APPENDS": lambda m, a: m.append(m.to_mark()),
    "SETITEM": _item,
    "SETITEMS": lambda m, a: m.set_items(m.to_mark()),
    "ADDITEMS": lambda m, a: m.add(m.to_mark()),
    "GLOBAL": lambda m, a: m.stack.append(Global(a[:500])),
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _object,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "NEWOBJ_EX": _call_with_keywords,
    "BUILD": lambda m, a: m.build(),
    "PERSID": lambda m, a: m.refer(a),
    "BINPERSID": lambda m, a: m.refer(m.pop()),
}
