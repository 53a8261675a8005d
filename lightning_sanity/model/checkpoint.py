"""The weights in a file: a Lightning checkpoint or a saved ``state_dict``, read without executing anything in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sanity.model.clone import state_digest


def load(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The ``state_dict`` of a checkpoint file, on the CPU.

    Args:
        path: A Lightning checkpoint, another one that keeps the weights under ``state_dict`` or ``model``, or a file
            that holds nothing but them.

    Raises:
        ValueError: If it is not such a file, or holds more than plain data and tensors.
        OSError: If it cannot be read.
    """
    if Path(path).is_dir():
        raise ValueError(
            f"'{path}' is a folder, of shards perhaps: make one file of it with "
            f"`python -m lightning.fabric.utilities.consolidate_checkpoint {path}`"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint file '{path}'")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint of plain tensors and values ({first_line}). If it holds more, "
            "save the weights alone: torch.save(model.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            held = held[key]
    if not isinstance(held, Mapping) or not any(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"'{path}' holds no state_dict")
    return {str(name): value for name, value in held.items()}


def without_wrapper(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same weights without the first part that all names share, such as ``model.``; None if they share none."""
    heads = {name.partition(".")[0] for name in state}
    if len(heads) != 1 or not all("." in name for name in state):
        return None
    return {name.partition(".")[2]: value for name, value in state.items()}


def digests(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Digests that a result about these weights may carry.

    The module that was tested may have been the saved one, or what a wrapper (a LightningModule, ``torch.compile``)
    holds: one digest for each.

    Raises:
        ValueError: See ``load``.
        OSError: If the file cannot be read.
    """
    state: Mapping[str, Any] | None = load(path)
    found = []
    while state is not None:
        found.append(state_digest(state))
        state = without_wrapper(state)
    return tuple(found)
