"""Random streams that are reproducible and never the caller's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream_seed(*key: object) -> int:
    """A 63-bit seed that depends on every part of ``key`` and on nothing else.

    Hashing the whole key gives each (seed, trial, unit) its own stream, so that a draw does not depend on what was
    drawn before it, on how many units there are, or on which device they live.

    >>> stream_seed(0, "fc") == stream_seed(0, "fc"), stream_seed(0, "fc") == stream_seed(1, "fc")
    (True, False)
    """
    digest = hashlib.sha256("\x1f".join(map(repr, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*key: object) -> torch.Generator:
    """A CPU generator seeded with ``stream_seed(*key)``; draw on the CPU and copy, so that every device agrees."""
    return torch.Generator().manual_seed(stream_seed(*key))


def reseed(seed: int, device: torch.device | None = None) -> None:
    """Start the global streams anew; only inside ``isolated_rng``, which gives the caller's back."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed: without an accelerator it queues a call with a whole stack trace, every time.
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def isolated_rng(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed python, numpy and torch inside the block; restore every stream afterwards, also after an error.

    Args:
        seed: What the block's streams start from.
        device: The accelerator whose stream the block may use; the CPU's is always covered.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device is not None and device.type not in ("cpu", "meta") else []
    with torch.random.fork_rng(
        devices=[d.index if d.index is not None else 0 for d in devices],
        device_type=devices[0].type if devices else "cuda",
    ):
        reseed(seed, device)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
