"""Errors of other libraries, quoted in our messages: on one line, and no longer than can be read."""

from __future__ import annotations

_MOST = 300


def quoted(error: BaseException) -> str:
    """The kind of an error and what it says, on one line of at most some 300 characters.

    An error within a symbolic trace carries the trace along; its first words say what is wrong.
    """
    said = " ".join(str(error).split())
    said = said if len(said) <= _MOST else said[:_MOST] + " ..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
