"""What may end a training from within a test: its user's wish and the system's, and nothing else."""

from __future__ import annotations

import signal
from typing import Any


def must_end(error: BaseException) -> bool:
    """Whether an error was raised to end the program: Ctrl-C, or ``SystemExit`` from the handler of a signal.

    ``SystemExit`` from anywhere else, such as a method that calls ``sys.exit``, is an error like any other.
    """
    if isinstance(error, Exception):
        return False
    if not isinstance(error, SystemExit) or type(error).__name__ == "SIGTERMException":
        return True
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {code for handler in handlers if (code := _code(handler)) is not None}
    place = error.__traceback__
    while place is not None:
        if place.tb_frame.f_code in codes:
            return True
        place = place.tb_next
    return False


def _code(handler: Any) -> Any:
    """The code that runs when a handler is called."""
    if not callable(handler):
        return None
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):
        function = getattr(type(handler).__call__, "__func__", type(handler).__call__)
    return getattr(function, "__code__", None)
