"""What trials will take, measured on the walk itself before it is thinned to its time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from lightning_sanity.budget import Shared, spread
from lightning_sanity.engine import Engine, Trial

_AGAIN = 3
_FEW = 2
_Result = TypeVar("_Result")


def clock(device: torch.device) -> Callable[[], float]:
    """A clock that waits for the device: only then it says what the work on it took."""

    def read() -> float:
        if device.type not in ("cpu", "meta"):
            torch.get_device_module(device).synchronize(device)
        return time.perf_counter()

    return read


def timed(act: Callable[[], _Result], now: Callable[[], float], patience: float) -> tuple[_Result, float]:
    """What an act returns and how long it takes.

    Its first call may also pay for what is set up once, so it is made again, as often as ``patience``, in seconds,
    allows; the repetitions count then.
    """
    begun = now()
    result = act()
    first = now() - begun
    again: list[float] = []
    while len(again) < _AGAIN and (len(again) + 1) * first <= patience:
        begun = now()
        act()
        again.append(now() - begun)
    return result, statistics.fmean(again) if again else first


def shared_walks(
    engine: Engine,
    attempt: Callable[[Engine], Trial | None],
    plain: Mapping[str, float],
    trials: int,
    seconds: float,
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

    Returns:
        The walks, and the first trial if it was walked whole; methods that the engine gave up meanwhile are in neither.
        None where there is no time even for that, or the engine gave up.
    """
    depths = len(engine.steps)
    proof = sum(_limits(engine, plain).values())  # one depth by the plain loop, once
    expected, few = depths * proof, None
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
        once = each = few.seconds / (1 + _FEW)
    elif few is not None and trial.seconds > few.seconds:
        each = min((trial.seconds - few.seconds) / (depths - _FEW), trial.seconds / depths)
        once = trial.seconds - depths * each
    else:
        once = each = trial.seconds / (1 + depths)  # the trained stream's pass, and one per depth
    total = sum(limits.values())
    walks = []
    for copies in dict.fromkeys(copies for copies, _ in limits):
        names = frozenset(name for name, derived in engine.methods.items() if derived.copies == copies)
        part = sum(limit for key, limit in limits.items() if key[0] == copies) / total
        walks.append(Shared(names, once * part, each * part))
    return tuple(walks), trial


def _limits(engine: Engine, plain: Mapping[str, float]) -> dict[tuple[object, str], float]:
    """Per pass that a walk makes, what the plain loop takes for it at most."""
    found: dict[tuple[object, str], float] = {}
    for name, derived in engine.methods.items():
        for rule in derived.rules or ("gradient",):
            key = derived.copies, rule
            found[key] = max(found.get(key, 0.0), plain[name])
    return found
