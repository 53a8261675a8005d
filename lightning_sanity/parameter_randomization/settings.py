"""How a cascade is walked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How to walk; see ``parameter_randomization_test`` for the meanings."""

    repeats: int
    seed: int
    retarget: bool
    norm_stats: str
    diagnostics: tuple[str, ...]
    picture_samples: tuple[int, ...]
    picture_sides: tuple[int, ...] = ()
    engine: str = "auto"
    max_batch: int | None = None
    max_memory: int | None = None
    on_interrupt: str = "raise"
