import os
import signal
import sys

import pytest

from lightning_sanity.resources.fatal_errors import must_end


def caught(act):
    try:
        act()
    except BaseException as error:
        return error
    return None


def leaving(*arguments):
    sys.exit(1)


class Handler:
    def __call__(self, number, frame):
        raise SystemExit(number)

    def method(self, number, frame):
        raise SystemExit(number)


@pytest.mark.parametrize("handler", [leaving, Handler(), Handler().method], ids=["function", "object", "method"])
def test_leaving_by_a_signal_ends_training(handler):
    before = signal.signal(signal.SIGUSR2, handler)
    try:
        error = caught(lambda: os.kill(os.getpid(), signal.SIGUSR2))
    finally:
        assert isinstance(error, SystemExit)
        assert must_end(error)
        signal.signal(signal.SIGUSR2, before)


def test_ctrl_c_ends_training():
    assert must_end(KeyboardInterrupt())


def test_lightnings_own_termination_ends_training():
    utilities = pytest.importorskip("lightning.pytorch.utilities.exceptions")
    assert must_end(utilities.SIGTERMException())


@pytest.mark.parametrize("act", [leaving, lambda: [][0], lambda: int("x")])
def test_any_other_error_does_not(act):
    assert not must_end(caught(act))
