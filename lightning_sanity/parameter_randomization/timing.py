"""What trials will take, measured on the walk itself before it is thinned to its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from lightning_sanity.attribution.derived import Copies
from lightning_sanity.engine import Engine, Trial
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import Unit
from lightning_sanity.resources.budget import Shared, spread

_AGAIN = 3  # explanations that are timed, where they are quick
_FEW = 2  # depths that say what the others will take
_OF_A_PASS = 0.75  # that a depth of a walk takes, at most on the networks that were measured
_DRAWN = 2e-8  # seconds that drawing one parameter takes, roughly
_Result = TypeVar("_Result")


def clock(device: torch.device) -> Callable[[], float]:
    """A clock that waits for the device: only then it says what the work on it took."""

    def read() -> float:
        if device.type not in ("cpu", "meta"):
            torch.get_device_module(device).synchronize(device)
        return time.perf_counter()

    return read


def timed(
    act: Callable[[], _Result],
    now: Callable[[], float],
    patience: float,
    agreed: Callable[[bool], bool] = bool,
) -> tuple[_Result, float]:
    """What an act returns and how long it takes.

    Its first call may also pay for what is set up once, so it is made again, as often as ``patience``, in seconds,
    allows; the repetitions count then. Whether to go on is ``agreed`` among processes that must act together.
    """
    begun = now()
    result = act()
    first = now() - begun
    again: list[float] = []
    while len(again) < _AGAIN and agreed((len(again) + 1) * first <= patience):
        begun = now()
        act()
        again.append(now() - begun)
    return result, statistics.fmean(again) if again else first


def steps_cost(
    seconds: Mapping[str, tuple[float, float]],
    passes: Mapping[str, float],
    walked: Collection[str],
    *,
    asked: int,
    again: bool,
    workers: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """What each method takes per depth of a trial, and once per trial.

    Args:
        seconds: Of each method's explanation, and of comparing it.
        passes: See ``Method``; without any, a map is made once per trial.
        walked: Methods that a shared walk explains.
        asked: Further explanations per depth, which shared walks hold.
        again: Whether a trial explains its last depth once more.
        workers: Processes that the work is divided among.
    """
    step, once = {}, {}
    for name, (explaining, comparing) in seconds.items():
        whole = (explaining + comparing) / workers
        looks = passes[name] > 0
        explained = 0 if name in walked else 1 + asked
        step[name] = (explained * explaining + comparing) / workers if looks else 0.0
        once[name] = (0.0 if looks else whole) + (whole if again else 0.0)
    return step, once


def drawn(
    model: nn.Module,
    reinitializer: Reinitializer,
    steps: Sequence[Sequence[Unit]],
    restore: Callable[[], None],
    now: Callable[[], float],
) -> tuple[float, float]:
    """What re-initialising all units takes, and putting the trained weights back."""
    begun = now()
    try:
        redraw = reinitializer.start_trial(0)
        for unit in dict.fromkeys(unit for step in steps for unit in step):
            redraw(model, unit)
    finally:
        done = now()
        restore()
    return done - begun, now() - done


def shared_walks(
    engine: Engine,
    attempt: Callable[[Engine], Trial | None],
    plain: Mapping[str, float],
    trials: int,
    seconds: float,
    single: float | None = None,
) -> tuple[tuple[Shared, ...], Trial | None] | None:
    """What the engine's walks cost, found by walking.

    The whole first trial is walked where it surely takes but a part of the time, and kept. Else two of its depths say
    what the others will take.

    Args:
        engine: For all depths.
        attempt: Walks the first trial.
        plain: Seconds that one explanation of each method takes by itself.
        trials: Wanted trials.
        seconds: Time there is.
        single: Seconds that a pass over the trained model took, where time is so short that this has to do.

    Returns:
        The walks, and the first trial if it was walked whole; methods that the engine gave up meanwhile are in neither.
        None where there is no time even for that, or the engine gave up.
    """
    drawing = _DRAWN * sum(parameter.numel() for parameter in engine.model.parameters())
    if single is not None:
        return tuple(_guessed(engine, single, drawing)), None
    depths = len(engine.steps)
    proof = sum(_limits(engine, plain).values())  # one depth by the plain loop, once
    expected, few = engine.walks * depths * proof, None
    if trials * expected > seconds and depths > _FEW:
        if (1 + _FEW) * proof > seconds / 4:
            return None
        few = attempt(engine.only(spread(_FEW, depths)))
        expected = few.seconds * (1 + depths) / (1 + _FEW) if few is not None else 0.0
    trial = attempt(engine) if expected <= seconds / 2 else None
    limits = _limits(engine, plain)
    if not limits or (few is None and trial is None):
        return None
    if trial is None:
        assert few is not None
        each = (few.seconds - min(drawing, few.seconds / 2)) / (1 + _FEW)
        once = few.seconds - _FEW * each
    elif few is not None and trial.seconds > few.seconds:
        each = min((trial.seconds - few.seconds) / (depths - _FEW), trial.seconds / depths)
        once = trial.seconds - depths * each
    else:
        once = each = trial.seconds / (1 + depths)  # the trained stream's pass, and one per depth
    total = sum(limits.values())
    walks = []
    for copies, names in _together(engine).items():
        part = sum(limit for key, limit in limits.items() if key[0] == copies) / total
        walks.append(Shared(names, once * part, each * part))
    return tuple(walks), trial


def _guessed(engine: Engine, single: float, drawing: float) -> Iterator[Shared]:
    """What walks take, going by a pass over the trained model: depths share some of their work; the proof is more."""
    for copies, names in _together(engine).items():
        each = engine.walks * single * (1 if copies is None else len(copies.weights))
        yield Shared(names, 2 * each + drawing, _OF_A_PASS * each)


def _together(engine: Engine) -> dict[Copies | None, frozenset[str]]:
    """The methods that walk together, by the copies that they explain."""
    several = dict.fromkeys(derived.copies for derived in engine.methods.values())
    return {
        copies: frozenset(name for name, derived in engine.methods.items() if derived.copies == copies)
        for copies in several
    }


def _limits(engine: Engine, plain: Mapping[str, float]) -> dict[tuple[object, str], float]:
    """Per pass that a walk makes, what the plain loop takes for it at most."""
    found: dict[tuple[object, str], float] = {}
    for name, derived in engine.methods.items():
        for rule in derived.rules or ("gradient",):
            key = derived.copies, rule
            found[key] = max(found.get(key, 0.0), plain[name])
    return found
