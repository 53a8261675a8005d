"""What a result says of how it came about: settings, versions, inputs, date."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Any

import torch

from lightning_sanity.attribution.method import first
from lightning_sanity.explanation.probe import batch_size, digest
from lightning_sanity.explanation.request import Request
from lightning_sanity.explanation.tokens import Embedding
from lightning_sanity.similarity import Similarity


def environment(device: torch.device) -> dict[str, str]:
    """Versions of what a measurement depends on, and the device."""
    return {"python": platform.python_version(), "platform": platform.system(), "device": str(device), **_versions()}


@cache
def _versions() -> Mapping[str, str]:
    found = {}
    for name in ("lightning-sanity", "torch", "lightning", "captum", "scikit-image"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def settings_of(
    test: str,
    methods: Iterable[str],
    gated: Collection[str],
    similarities: Sequence[Similarity],
    asked: Request,
    place: Embedding | None,
    values: Any,
) -> dict[str, Any]:
    """What every result says of what was compared, and of what was explained."""
    names = list(methods)
    return {
        "test": test,
        "methods": [name for name in names if name in gated],
        "controls": [name for name in names if name not in gated],
        "similarities": [m.name for m in similarities],
        "normalizations": {m.name: m.normalization for m in similarities},
        "samples": batch_size(values),
        "input_shape": list(first(values).shape) if asked.layout is None else list(asked.layout.shape),
        "axes": None if asked.layout is None else asked.layout.settings,
        "explained_output": None if not asked.output.path else {"name": asked.output.name, "known": asked.output.known},
        "explained": asked.name,
        "tokens": None if place is None else place.settings,
        "target": asked.target_name,
    }


def provenance(inputs: Any, device: torch.device, started: float) -> dict[str, Any]:
    """Where a result comes from: versions, inputs, date, and seconds since ``started`` of ``time.perf_counter()``."""
    return {
        "environment": environment(device),
        "probe_digest": digest(dict(inputs) if isinstance(inputs, Mapping) else inputs),
        "seconds": time.perf_counter() - started,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
