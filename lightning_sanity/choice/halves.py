"""Parameters tuned on one half of the samples and judged on the other.

The best of many settings on the samples that chose it is better by luck as well as by merit, and what is luck does not
come again (the winner's curse; Cawley & Talbot, "On Over-fitting in Model Selection and Subsequent Selection Bias in
Performance Evaluation", JMLR 2010). The other half has not seen the choice, so that its figure is honest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_sanity.result.psi import LEVEL, Interval


@dataclass(frozen=True)
class Halves:
    """Places of the samples ``(n,)`` that tune and of those that judge; together all of them once."""

    tune: Tensor
    judge: Tensor


def split(samples: int, groups: Tensor | None = None, *, seed: int = 0) -> Halves:
    """Two halves at random, each group's samples shared out evenly.

    Args:
        samples: How many there are.
        groups: Class or group of each, ``(N,)`` integers; None if there are none.
        seed: Of the draw.

    Raises:
        ValueError: If there are fewer than 4 samples: a half needs two for an interval.
    """


@dataclass(frozen=True)
class Tuning:
    """What a search over settings found, and what is left of it.

    Attributes:
        chosen: The setting with the best mean on the tuning half; the default unless another one was better.
        default: The setting that was there before.
        promised: Gain of the chosen over the default on the half that chose it: too good by selection.
        gain: The same on the other half, with an interval for new samples. 0 where the default was chosen.
        figures: Per setting, its mean on the tuning half and on the judging half.
    """

    chosen: str
    default: str
    promised: Interval
    gain: Interval
    figures: Mapping[str, tuple[float, float]]

    @property
    def kept(self) -> str:
        """The setting to use: the chosen one if its gain is above 0 for certain, else the default."""
        return self.chosen if self.gain.low > 0 else self.default


def tune(scores: Mapping[str, Tensor], default: str, halves: Halves, *, level: float = LEVEL) -> Tuning:
    """Choose a setting on one half and judge it on the other.

    Args:
        scores: Per setting ``(N,)``, higher is better. A setting with fewer than 2 defined scores in the tuning half
            is not chosen. Settings need scores on the judging half only if they may be chosen.
        default: The setting that is always in the race.
        halves: Which samples tune and which judge.
        level: Of the intervals.

    Raises:
        ValueError: If the default has no scores, or shapes differ.
    """
