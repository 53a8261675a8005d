"""What a computation keeps in memory at most, measured while it runs on few samples."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
    """Bytes of the tensors that operations inside the block make, on any device and in backward passes too.

    They are counted where they are made and where they are released, so that an operation costs the same however many
    there are. What a library works with inside a single operation is not seen.

    Attributes:
        peak: The most there were at once.
        alive: Those that are still there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.alive = 0
        self._made: dict[int, weakref.ref[Any]] = {}

    def _release(self, key: int, size: int, storage: weakref.ref[Any]) -> None:
        self.alive -= size
        if self._made.get(key) is storage:
            del self._made[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:  # a view makes nothing
            return result
        storages = {leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        fresh = {storage._cdata: storage for storage in storages if storage._cdata not in self._made}
        if fresh:  # nor does an update of what was there before the block
            given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            for key, storage in fresh.items():
                if key not in given:
                    size = storage.nbytes()
                    self._made[key] = weakref.ref(storage, partial(self._release, key, size))
                    self.alive += size
        self.peak = max(self.peak, self.alive)
        return result


_UNKNOWN = 2**62
_GROUP = Path("/sys/fs/cgroup")


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
        left.append(meter.alive)
        peaks.append(meter.peak)
        del kept
    return tuple(Need(one, max(two - one, 0)) for one, two in (peaks, left))  # type: ignore[return-value]


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What these tensors keep, shared storages once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def free(device: torch.device) -> int:
    """Bytes that a process may still take on a device; on the CPU what is left of the machine's, or of a container's.

    Where nobody says, as much as any walk could want.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_UNKNOWN]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with suppress(OSError, ValueError):  # a container's limit; what its files keep cached can be had back
        limit, used = (int((_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = (line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
        found.append(limit - used + sum(int(size) for name, size in cached if name == "inactive_file"))
    return max(0, min(found))


def check_memory(limit: Any) -> None:
    """Raise a ValueError unless it is a number of bytes, or None."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"max_memory must be a number of bytes, such as 2 * 1024**3, not {limit!r}")
