"""What the models of a data randomization test learned, as a table: memorisation comes before any verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_sanity.result.sanity_result import SanityResult


@dataclass(frozen=True)
class LearnedRow:
    """A model: its name and how well it knows the labels, in words."""

    name: str
    train: str
    test: str
    agreement: str


@dataclass(frozen=True)
class Learned:
    """All models of a result.

    Attributes:
        measure: What the numbers are, such as "accuracy".
        rows: One per model, those of true labels first.
    """

    measure: str
    rows: tuple[LearnedRow, ...]

    @classmethod
    def of(cls, result: SanityResult) -> Learned | None:
        """What a result says of that, or None if it says nothing."""
        known = result.settings.get("memorization")
        if not isinstance(known, Mapping):
            return None
        rows = [
            LearnedRow(f"true-label model {index}", _share(value), "", "all")
            for index, value in enumerate(_numbers(known, "true_train"))
        ]
        tested, agreement = _numbers(known, "permuted_test"), _numbers(known, "label_agreement")
        rows += [
            LearnedRow(
                f"random-label model {index}", _share(value), _share(_at(tested, index)), _share(_at(agreement, index))
            )
            for index, value in enumerate(_numbers(known, "permuted_train"))
        ]
        return cls(str(known.get("measure", "accuracy")), tuple(rows))


def _numbers(known: Mapping[str, Any], name: str) -> Sequence[Any]:
    values = known.get(name, ())
    return values if isinstance(values, (list, tuple)) else ()


def _at(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else math.nan


def _share(value: Any) -> str:
    """A share in percent.

    >>> _share(0.987), _share(float("nan"))
    ('98.7 %', 'unknown')
    """
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) and math.isfinite(value) else "unknown"
