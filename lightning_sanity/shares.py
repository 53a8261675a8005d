"""How several processes share one test: who explains what, and how the parts come together.

Every process walks the whole cascade with the same seeds, which costs little, and explains only its share. What a
process finds does not depend on who finds it, so any number of processes has the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lightning_sanity.budget import Interrupted

_Item = TypeVar("_Item", bound=Hashable)


class PeerFailed(RuntimeError):
    """The test broke on another process; what happened there."""


@dataclass(frozen=True)
class _Failure:
    message: str
    interrupted: bool


def _alone(part: Any) -> list[Any]:
    return [part]


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

    def owners(self, costs: Mapping[_Item, float]) -> dict[_Item, int]:
        """Who does each item: the most expensive first, each to whom has least to do."""
        loads, found = [0.0] * self.world, {}
        for item in sorted(costs, key=lambda item: -costs[item]):  # stable: equal costs in the given order
            rank = loads.index(min(loads))
            found[item] = rank
            loads[rank] += costs[item]
        return found

    def exchange(self, part: Any) -> list[Any]:
        """Every process's part, in the order of ranks.

        Raises:
            Interrupted: If a process was interrupted.
            PeerFailed: If a process failed.
        """
        was_open, self._open = self._open, False  # closed for good if the gathering itself breaks
        parts = self._gather(part)
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
            self._gather(_Failure(f"{type(error).__name__}: {error}", isinstance(error, Interrupted)))
