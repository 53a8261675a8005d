"""Parameters tuned on one half of the samples and judged on the other.

The best of many settings on the samples that chose it is better by luck as well as by merit, and what is luck does not
come again (the winner's curse; Cawley & Talbot, "On Over-fitting in Model Selection and Subsequent Selection Bias in
Performance Evaluation", JMLR 2010). The other half has not seen the choice, so that its figure is honest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sanity.choice.contest import LEAST, mean_interval
from lightning_sanity.resources.random_streams import generator
from lightning_sanity.resources.suggestions import unknown
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
    if samples < 4:
        raise ValueError(f"{samples} samples cannot be halved: each half needs two for an interval; give at least 4")
    if groups is not None and groups.shape != (samples,):
        raise ValueError(f"groups must say one for each of the {samples} samples, not {tuple(groups.shape)}")
    draw = torch.randperm(samples, generator=generator("halves", seed))
    if groups is not None:
        draw = draw[groups.cpu()[draw].argsort(stable=True)]  # group after group, at random within each
    return Halves(draw[::2].sort().values, draw[1::2].sort().values)


@dataclass(frozen=True)
class Tuning:
    """What a search over settings found, and what is left of it.

    Attributes:
        chosen: The setting that gained most over the default on the tuning half; the default if none did.
        default: The setting that was there before.
        promised: Gain of the chosen over the default on the half that chose it: too good by selection.
        gain: The same on the other half, with an interval for new samples. 0 where the default was chosen.
        figures: Per setting, its mean on the tuning half and on the judging half; NaN where it has none.
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
        scores: Per setting ``(N,)``, higher is better, NaN where undefined: a setting that was not judged has NaN on
            that half. One with fewer than two scores beside the default's on the tuning half is not chosen.
        default: The setting that is always in the race.
        halves: Which samples tune and which judge.
        level: Of the intervals.

    Raises:
        ValueError: If the default is not among the settings or has no score, or shapes differ.
    """
    if default not in scores:
        raise ValueError(unknown("default setting", default, scores))
    shapes = {name: tuple(given.shape) for name, given in scores.items()}
    size = len(halves.tune) + len(halves.judge)
    if any(shape != (size,) for shape in shapes.values()):
        raise ValueError(f"every setting needs one score for each of the {size} samples, not {shapes}")
    table = {name: given.detach().double().cpu() for name, given in scores.items()}
    figures = {
        name: (float(given[halves.tune].nanmean()), float(given[halves.judge].nanmean()))
        for name, given in table.items()
    }
    usual = table[default]
    if not usual[halves.tune].isfinite().any():
        raise ValueError(f"the default setting '{default}' has no defined score on the half that tunes")
    chosen, most = default, 0.0
    for name, given in table.items():
        better = (given - usual)[halves.tune]  # paired: what makes a sample hard is in both
        if int(better.isfinite().sum()) >= LEAST and float(better.nanmean()) > most:
            chosen, most = name, float(better.nanmean())
    gains = table[chosen] - usual
    promised, gain = (mean_interval(gains[half], level) for half in (halves.tune, halves.judge))
    return Tuning(chosen, default, promised, gain, figures)
