"""Settings of torch, NumPy and Python, and their random streams, as they were before a guest's call."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_cudnn(flags: list[bool]) -> None:
    for name, flag in zip(_CUDNN, flags, strict=True):
        setattr(torch.backends.cudnn, name, flag)


def _set_filters(kept: list[Any]) -> None:
    warnings.filters[:] = kept  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed meanwhile
        return None


def _enter(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


_CUDNN = ("enabled", "benchmark", "deterministic", "allow_tf32")
_SETTINGS: tuple[tuple[str, Callable[[], Any], Callable[[Any], Any]], ...] = (
    ("the grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    ("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("the default device", torch.get_default_device, _set_device),
    ("the number of threads", torch.get_num_threads, torch.set_num_threads),
    (
        "the demand for deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda kept: torch.use_deterministic_algorithms(kept[0], warn_only=kept[1]),
    ),
    (
        "cuDNN's flags",
        lambda: [getattr(torch.backends.cudnn, name) for name in _CUDNN],
        _set_cudnn,
    ),
    ("the precision of matmul", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    ("NumPy's error handling", np.geterr, lambda kept: np.seterr(**kept)),
    ("the warning filters", lambda: list(warnings.filters), _set_filters),
    ("the working directory", _folder, _enter),
)


@contextmanager
def settings_kept(left: list[str]) -> Iterator[None]:
    """Settings are after the block what they were before it; ``left`` learns which were changed."""
    before = [(name, read(), read, write) for name, read, write in _SETTINGS]
    try:
        yield
    finally:
        for name, value, read, write in before:
            if read() != value:
                left.append(name)
                write(value)


@contextmanager
def streams_kept(device: torch.device) -> Iterator[None]:
    """Random streams go on after the block where they were before it: a guest may draw as much as it likes."""
    accelerator = torch.get_device_module(device) if device.type not in ("cpu", "meta") else None
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_device = accelerator.get_rng_state(device) if accelerator is not None else None
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if accelerator is not None:
            accelerator.set_rng_state(of_device, device)
