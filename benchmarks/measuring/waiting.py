"""Who makes the host wait for the device: what CUDA's own watch would see, on any machine."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_sanity

PACKAGE = Path(lightning_sanity.__file__).parent
OPERATIONS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
MOVES = {"cpu", "numpy", "tolist", "__array__"}
ON_A_CPU_ONLY = {("ranks", "_mean_positions"), ("ranks", "sort_packed"), ("ranks", "average_ranks")}
"""Guarded by ``device.type == "cpu"``, where asking costs nothing."""


def asking():
    """Module and function of the innermost frame of the package that does more than pass an operation on."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents and frame.f_code.co_name != "__torch_function__":
            return path.stem, frame.f_code.co_name
        frame = frame.f_back
    return "?", "?"


class Operations(TorchDispatchMode):
    """Counts operations whose result the host needs before it can go on."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in OPERATIONS or masked:
            self.found[asking()] += 1
        return function(*args, **(kwargs or {}))


class Moves(TorchFunctionMode):
    """Counts what brings values to the host; on a CPU no operation tells."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in MOVES:
            self.found[asking()] += 1
        return function(*args, **(kwargs or {}))


@contextmanager
def watched():
    """How often the host would wait within the block, by module and function; the count is whole at its end."""
    found: Counter[tuple[str, str]] = Counter()
    with Operations(found), Moves(found):
        yield found
    for place in ON_A_CPU_ONLY:
        found.pop(place, None)
