"""How much memory a piece of work takes at its peak, in a fresh process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# glibc then gives every larger block back to the system as soon as it is freed, and the peak is what was in use.
_RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


class Tensors(TorchDispatchMode):
    """Bytes of all storages that operations inside the block make and that are alive at once, at most.

    Exact and the same on every machine, but blind to what a kernel allocates for itself.
    """

    def __init__(self):
        super().__init__()
        self.peak, self._alive, self._most = 0, {}, 0
        there = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        self._there = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the operation and count what it returned."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._there and storage._cdata not in self._alive:
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    self._most += storage.nbytes()
        if self._most > self.peak:  # only then it matters which of them are still alive
            self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
            self._most = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._most)
        return result


def peak(prepare, *arguments):
    """MB that the work takes above what is there when it begins: ``resident``, and in ``tensors`` alone.

    Args:
        prepare: Module-level function that returns the work, a function without arguments; it runs twice.
        arguments: Of ``prepare``.
    """
    before = {name: os.environ.get(name) for name in _RETURNING}
    os.environ.update(_RETURNING)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_measured, prepare, arguments).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _measured(prepare, arguments):
    torch.set_num_threads(1)
    work = prepare(*arguments)
    with Tensors() as tensors:  # first, so that what a first call of anything loads is there already
        work()
    work = prepare(*arguments)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # the peak starts anew
    begun = _resident("VmRSS")
    work()
    return {"resident": (_resident("VmHWM") - begun) / 1024, "tensors": tensors.peak / 2**20}


def _resident(which):
    """In kB (Linux)."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(which)).split()[1])
