"""What a computation keeps in memory at most, measured while it runs on few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Bytes of the tensors that operations inside the block make, on any device and in backward passes too.

    What a library works with inside a single operation is not seen.

    Attributes:
        peak: The most there were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def alive(self) -> int:
        """Bytes of those that are still there."""
        self._made = {key: entry for key, entry in self._made.items() if not entry[0].expired()}
        return sum(size for _, size in self._made.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given:  # a view or an update makes nothing
                    self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, self.alive())
        return result


@dataclass(frozen=True)
class Need:
    """Bytes that something takes: for one sample, and for each further one."""

    one: int
    further: int

    def of(self, samples: int) -> int:
        """For so many samples."""
        return self.one + (samples - 1) * self.further

    def fit(self, room: int) -> int:
        """How many samples fit into so many bytes; 0 if not even one does."""
        return 0 if room < self.one else 1 + (room - self.one) // max(self.further, 1)


def need(act: Callable[[int], Any]) -> tuple[Need, Need]:
    """What ``act(samples)`` takes while it runs, and what of it is left in what it returns, by one and two samples."""
    peaks, left = [], []
    for samples in (1, 2):
        with Meter() as meter:
            kept = act(samples)
        left.append(meter.alive())
        peaks.append(meter.peak)
        del kept
    return tuple(Need(one, max(two - one, 0)) for one, two in (peaks, left))  # type: ignore[return-value]


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What these tensors keep, shared storages once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def check_memory(limit: Any) -> None:
    """Raise a ValueError unless it is a number of bytes, or None."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"max_memory must be a number of bytes, such as 2 * 1024**3, not {limit!r}")
