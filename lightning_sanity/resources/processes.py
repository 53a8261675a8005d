"""How several processes share one test: who explains what, and how the parts come together.

Every process draws from the same seeds and explains only its share. What a process finds does not depend on who finds
it, so any number of processes has the same result.
"""

from __future__ import annotations

import io
import math
import pickle
import signal
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from lightning_sanity.resources.budget import Interrupted, alarm

_Item = TypeVar("_Item", bound=Hashable)


class PeerFailed(RuntimeError):
    """The test broke on another process; what happened there."""


@dataclass(frozen=True)
class _Failure:
    message: str
    interrupted: bool


def _alone(part: Any) -> list[Any]:
    return [part]


def everyone(part: Any) -> list[Any]:
    """The parts of all processes of ``torch.distributed``, on every process."""
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts


_OF_NUMPY = {torch.bool, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64}


class _Packer(pickle.Pickler):
    """Tensors go as arrays, which takes a tenth of the time where they are small; and of a view only what it shows."""

    def reducer_override(self, value: Any) -> Any:
        """A tensor's array, if it has one."""
        if type(value) is torch.Tensor and value.device.type == "cpu" and value.dtype in _OF_NUMPY:
            return torch.from_numpy, (value.detach().numpy(),)
        return NotImplemented


def _packed(part: Any) -> bytes:
    packed = io.BytesIO()
    _Packer(packed, pickle.HIGHEST_PROTOCOL).dump(part)
    return packed.getvalue()


class Share:
    """One process's part of a test.

    All processes must make the same exchanges in the same order. A process that cannot go on calls ``fail`` instead of
    its next exchange, which then raises on all others, so that none waits for ever.

    Args:
        rank: Number of this process.
        world: How many there are.
        gather: Collects one picklable object from every process, on every process, in the order of ranks.
    """

    def __init__(self, rank: int = 0, world: int = 1, gather: Callable[[Any], list[Any]] = _alone) -> None:
        self.rank, self.world = rank, world
        self._gather = gather
        self._open = world > 1

    def owners(self, costs: Mapping[_Item, float], loads: list[float] | None = None) -> dict[_Item, int]:
        """Who does each item: the most expensive first, each to whom has least to do.

        Args:
            costs: Of the items.
            loads: What every process has to do already; added to.
        """
        loads, found = [0.0] * self.world if loads is None else loads, {}
        for item in sorted(costs, key=lambda item: -costs[item]):  # stable: equal costs in the given order
            rank = loads.index(min(loads))
            found[item] = rank
            loads[rank] += costs[item]
        return found

    @property
    def workers(self) -> int:
        """How many processes the work is divided among."""
        return self.world

    @property
    def apart(self) -> bool:
        """Whether processes may run different passes at the same time."""
        return True

    def does(self, owner: int) -> bool:
        """Whether this process does what the given one owns."""
        return owner == self.rank

    def agreed(self, value: Any) -> Any:
        """What this process goes by; the same on all where they must go together."""
        return value

    def common(self, names: Iterable[str]) -> set[str]:
        """Those names that every process gives."""
        found = [set(given) for given in self.exchange(list(names))]
        return found[0].intersection(*found[1:])

    def alarm(self, seconds: float | None, message: str) -> AbstractContextManager[None]:
        """See ``budget.alarm``."""
        return alarm(seconds, message)

    def exchange(self, part: Any) -> list[Any]:
        """Every process's part, in the order of ranks.

        Raises:
            Interrupted: If a process was interrupted.
            PeerFailed: If a process failed.
        """
        was_open, self._open = self._open, False  # closed for good if the gathering itself breaks
        parts = [part] if self.world == 1 else [pickle.loads(packed) for packed in self._gather(_packed(part))]
        failure = next(((rank, found) for rank, found in enumerate(parts) if isinstance(found, _Failure)), None)
        self._open = was_open and failure is None
        if failure is not None:
            rank, found = failure
            raise (Interrupted if found.interrupted else PeerFailed)(f"{found.message} (on rank {rank})")
        return parts

    def close(self) -> None:
        """Say that no exchange follows, so that nobody waits for this process any more."""
        self._open = False

    def fail(self, error: BaseException) -> None:
        """Tell the other processes, if they are still waiting for this one."""
        if self._open:
            self._open = False
            self._gather(_packed(_Failure(f"{type(error).__name__}: {error}", isinstance(error, Interrupted))))


class Together(Share):
    """The part of a process that holds only shards of a model: all of the work, in step with the others.

    The passes of such a model are collective, so every process runs all of them. All find the same; what the first one
    found is kept. They meet before every forward pass, where they end together if one of them has to.

    Attributes:
        signals: Those that ended the test, on whichever process they came.
    """

    def __init__(self, rank: int = 0, world: int = 1, gather: Callable[[Any], list[Any]] = _alone) -> None:
        super().__init__(rank, world, gather)
        self.signals: set[int] = set()
        self._explanations = 0
        self._until, self._late = math.inf, ""

    def owners(self, costs: Mapping[_Item, float], loads: list[float] | None = None) -> dict[_Item, int]:
        """The first process; all do its work."""
        return dict.fromkeys(costs, 0)

    @property
    def workers(self) -> int:
        """None is spared anything."""
        return 1

    @property
    def apart(self) -> bool:
        """Only where there is but one."""
        return self.world == 1

    def does(self, owner: int) -> bool:
        """Everything."""
        return True

    def agreed(self, value: Any) -> Any:
        """What the first process goes by."""
        return self.exchange(value)[0]

    @contextmanager
    def alarm(self, seconds: float | None, message: str) -> Iterator[None]:
        """End an explanation that takes longer at its next forward pass: a process must not leave the others alone."""
        self._explanations += 1
        self._until, self._late = math.inf if seconds is None else time.monotonic() + seconds, message
        try:
            yield
        finally:
            self._until = math.inf

    def exchange(self, part: Any) -> list[Any]:
        """See ``Share.exchange``; it also fails if the processes have come to different places."""
        parts = super().exchange((self._explanations, isinstance(part, _Meeting), part))
        if len({found[:2] for found in parts}) > 1:
            raise PeerFailed(
                "a method failed on one process and not on another: the processes no longer agree on what comes next, "
                "so the test was stopped"
            )
        return [found[2] for found in parts]

    def meet(self, signals: Iterable[int]) -> None:
        """Go on, or end together.

        Args:
            signals: That came on this process.

        Raises:
            Interrupted: If a signal came on any process, or an explanation took too long on any.
            PeerFailed: If another process failed.
        """
        late = self._late if time.monotonic() > self._until else None
        found = self._hear(signals, late)
        if self.signals:
            names = ", ".join(signal.Signals(number).name for number in sorted(self.signals))
            raise Interrupted(f"{names} came during the randomization test")
        for each in found:
            if each.late is not None:
                raise Interrupted(each.late)

    def _hear(self, signals: Iterable[int], late: str | None = None) -> list[_Meeting]:
        found: list[_Meeting] = self.exchange(_Meeting(tuple(signals), late))
        self.signals = {number for each in found for number in each.signals}
        return found

    def close(self) -> None:
        """Nothing yet: until ``finish``, a process that fails has others waiting for it."""

    def finish(self, signals: Iterable[int]) -> None:
        """Meet once more, so that all know of signals that came since; see ``meet``."""
        self._hear(signals)
        super().close()


@dataclass(frozen=True)
class _Meeting:
    signals: tuple[int, ...]
    late: str | None
