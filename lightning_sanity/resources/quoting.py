"""What our messages quote: errors of other libraries and lists of names, no longer than can be read."""

from __future__ import annotations

from collections.abc import Iterable

_MOST = 300


def quoted(error: BaseException) -> str:
    """The kind of an error and what it says, on one line of at most some 300 characters.

    An error within a symbolic trace carries the trace along; its first words say what is wrong.
    """
    said = " ".join(str(error).split())
    said = said if len(said) <= _MOST else said[:_MOST] + " ..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def listed(names: Iterable[str], most: int = 5) -> str:
    """Names in a row, and how many more there are.

    >>> listed(["a", "b", "c", "d"], 2)
    'a, b and 2 more'
    """
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
