"""A trial asks the device nothing: whoever asks waits until all that was queued is done, and the device then idles."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from measuring.waiting import ON_A_CPU_ONLY, Moves, Operations
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.parameter_randomization.cascade import Cascade

METHODS = ("gradient", "gradcam", "guided_backprop", "guided_gradcam", "smoothgrad", "integrated_gradients")
TRIALS, DEPTHS = 3, 3

# (module, function) -> how often in all trials together, at most
ONCE_PER_RUN = {("rounding", "relative"): len(METHODS), ("maps", "__call__"): 1}
"""The proof that a method's maps are the plain ones; counted per method, not per trial. A control that reads outputs
alone takes those of another one's pass, which must be known as one of the same samples."""
DRAWING = {("strategies", "_law"): 11}
"""Whether a tensor is constant, and thus has no spread to draw with, is asked of its values: once per run and tensor,
once more per constant one, and of the largest where a constant is 0."""
LISTENING = {("maps", "__call__"): DEPTHS * TRIALS}
"""Whether a pass that comes by is one of the probe itself, in the plain loop alone; it saves a pass."""


def network():
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def check(device, engine):
    inputs = torch.rand(5, 3, 16, 16, device=device)
    given = {"methods": METHODS, "trials": TRIALS, "repeats": 1, "reinitialize": "normal", "progress": False}
    result = parameter_randomization_test(network().to(device), inputs, torch.arange(5) % 4, engine=engine, **given)
    assert len(result.units) == DEPTHS
    assert {result.settings["engine"][name] for name in METHODS} == {"plain" if engine == "plain" else "two_stream"}


@pytest.fixture
def during_trials(monkeypatch):
    """Runs every trial inside the contexts that a test adds."""
    walk, contexts = Cascade._walk_trial, []

    def watched(self, *arguments):
        for context in contexts:
            context.__enter__()
        try:
            walk(self, *arguments)
        finally:
            for context in reversed(contexts):
                context.__exit__(None, None, None)

    monkeypatch.setattr(Cascade, "_walk_trial", watched)
    return contexts


ALLOWED = {"auto": ONCE_PER_RUN | DRAWING, "plain": DRAWING | LISTENING}


@pytest.mark.parametrize(("engine", "allowed"), ALLOWED.items(), ids=ALLOWED)
def test_no_trial_waits_for_a_value(engine, allowed, during_trials):
    found = Counter()
    during_trials += [Operations(found), Moves(found)]
    check("cpu", engine)
    asked = {place: times for place, times in found.items() if place not in ON_A_CPU_ONLY}
    assert asked.keys() <= allowed.keys()
    assert {place for place, times in asked.items() if times > allowed[place]} == set()


def test_the_watch_sees_what_waits():
    found, some = Counter(), torch.arange(3.0)
    with Operations(found), Moves(found):
        float(some[0])
        bool(some.sum() > 0)
        some[some > 1]
        some.cpu()
        some.tolist()
        torch.equal(some, some)
    assert found == {("?", "?"): 6}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("engine", "allowed"), ALLOWED.items(), ids=ALLOWED)
def test_no_trial_waits_for_a_gpu(engine, allowed, during_trials):
    class Debugging:  # CUDA's own watch, which sees every copy as well
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("warn")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    during_trials.append(Debugging())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check("cuda", engine)
    told = {Path(w.filename).stem for w in caught if "synchroniz" in str(w.message)}
    assert told <= {module for module, _ in allowed}
