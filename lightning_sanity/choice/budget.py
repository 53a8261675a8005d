"""What a choice may spend: seconds, or explanations of one sample."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Budget:
    """A limit, and what has been spent.

    Attributes:
        seconds: Of wall time, from the start on; None = no limit.
        explanations: Of one sample by one model; None = no limit.
        explained: How many were made.
        started: Value of ``time.perf_counter()``.
    """

    seconds: float | None = None
    explanations: int | None = None
    explained: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        for name, value in (("budget", self.seconds), ("max_explanations", self.explanations)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and value > 0):
                raise ValueError(f"{name} must be a positive number, not {value!r}")

    @property
    def deadline(self) -> float | None:
        """Value of ``time.perf_counter()`` by which to be done."""
        return None if self.seconds is None else self.started + self.seconds

    def seconds_left(self) -> float | None:
        """Seconds that are left; None without a limit."""
        return None if self.deadline is None else max(self.deadline - time.perf_counter(), 0.0)

    def seconds_until(self, part: float) -> float | None:
        """Seconds until this part of the whole is spent; None without a limit."""
        if self.seconds is None:
            return None
        return max(self.started + part * self.seconds - time.perf_counter(), 0.0)

    def affords(self, seconds: float, explanations: int = 0) -> bool:
        """Whether so much more can be spent."""
        left = self.seconds_left()
        in_time = left is None or seconds <= left
        return in_time and (self.explanations is None or self.explained + explanations <= self.explanations)

    def affordable(
        self, names: Sequence[str], seconds: Mapping[str, float], explanations: int, part: float = 1.0
    ) -> list[str]:
        """The first of the names that can be paid for together.

        Args:
            names: The cheapest first.
            seconds: What each takes.
            explanations: What each takes, alike for all.
            part: Of all seconds, by whose end they are to be done.
        """
        left = self.seconds_until(part)
        taken: list[str] = []
        time_taken = 0.0
        for name in names:
            time_taken += seconds.get(name, 0.0)
            if left is not None and time_taken > left:
                break
            if self.explanations is not None and self.explained + (len(taken) + 1) * explanations > self.explanations:
                break
            taken.append(name)
        return taken
