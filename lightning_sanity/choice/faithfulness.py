"""Do maps say what removing parts of the input does to the output: the columns that methods are ranked by.

Two questions, each asked with several removals, because what takes a removed part's place decides a good deal of the
answer (Sturmfels et al., "Visualizing the Impact of Feature Attribution Baselines", Distill 2020):

- "fidelity": over random regions of one size, the correlation of what the map says a region holds with what the output
  loses without it. It is 1 less the infidelity of the best scaled and shifted map (Yeh et al. 2019, arXiv:1901.09392),
  under its root and with its sign. The outputs without the regions are computed once, for all methods together.
- "deletion": area under the probability while the most relevant parts are inserted first, less that while they are
  removed first (Petsiuk et al. 2018, arXiv:1806.07421).

A map may be read by its magnitude or with its sign. Which reading serves a method better is found on one half of the
samples and used on the other, both ways round, so that no sample chooses the reading by which it is scored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.baselines import baseline_for
from lightning_sanity.attribution.batching import ROWS, Rows
from lightning_sanity.attribution.method import first
from lightning_sanity.attribution.perturbation import perturbed_outputs
from lightning_sanity.choice.halves import split
from lightning_sanity.choice.subject import Subject, laid_out, sides_of
from lightning_sanity.explanation.maps import Maps
from lightning_sanity.quality.faithfulness import deletion_auc, insertion_auc
from lightning_sanity.quality.localization import iou_at_equal_area
from lightning_sanity.resources.random_streams import generator

METRICS = ("fidelity", "deletion")
"""Columns that need nothing but the model; "localization" needs masks of what is known to matter."""
READINGS = ("magnitude", "signed")
REGIONS = 48
"""Random regions per removal; each costs one forward pass of every sample, for all methods together."""


@dataclass(frozen=True)
class Effort:
    """How much is run for the scores.

    Attributes:
        regions: Random regions per removal.
        removals: How many removals.
        steps: Points of a deletion curve after the first; 0 leaves the column out.
        random_maps: Random maps whose mean is the baseline.
    """

    regions: int = REGIONS
    removals: int = 3
    steps: int = 8
    random_maps: int = 4

    def passes(self, methods: int) -> int:
        """Forward passes of every sample that scoring so many methods takes, the baselines beside them."""
        curves = 2 * (self.steps + 1) if self.steps else 0
        return self.removals * (self.regions + 2 + (methods + 1 + self.random_maps) * curves)


EFFORTS = (Effort(), Effort(32, 2, 6, 2), Effort(24, 1, 4, 1), Effort(24, 1, 0, 1))
"""The whole, and what is run where a budget is short."""
_SHARE = 4  # a region takes this part of every side
_SMALLEST_BLUR = 4  # pixels of the shorter side


@dataclass(frozen=True)
class Yardstick:
    """What maps of one batch are measured by.

    Attributes:
        subject: What is explained.
        model: What is run on altered inputs.
        inputs: Its inputs, with numbers that can be replaced.
        hidden: Per removal, what takes the place of removed parts, shaped like the explained input.
        regions: Which positions each region takes ``(K, P)``.
        lost: Per removal, what the explained output loses without each region ``(K, N)``.
        whole: Per removal, what it loses without anything, mean magnitude over samples.
        steps: Points of a deletion curve after the first.
        masks: What is known to matter ``(N, *sides)``, or None.
    """

    subject: Subject
    model: nn.Module
    inputs: object
    hidden: Mapping[str, Tensor]
    regions: Tensor
    lost: Mapping[str, Tensor]
    whole: Mapping[str, float]
    steps: int
    masks: Tensor | None = None

    def readings(self, maps: Maps) -> dict[str, Tensor]:
        """The maps as they may be read, ``(N, *sides)`` each."""
        value = first(self.inputs)
        found = {"magnitude": laid_out(maps.magnitude, value)}
        if bool((maps.signed < 0).any()):
            found["signed"] = laid_out(maps.signed, value)
        return found

    def fidelity(self, read: Tensor) -> Tensor:
        """Mean over removals of the correlation over regions, ``(N,)``; NaN where a map or the output is constant."""
        said = self.regions.to(read) @ read.flatten(1).T  # (K, N)
        return torch.stack([_correlation(said, lost) for lost in self.lost.values()]).mean(0)

    def deletion(self, read: Tensor) -> Tensor:
        """Mean over removals of insertion less deletion, ``(N,)``; higher is better."""
        what = self.subject.what
        classified = what.target is not None and self.subject.outputs.ndim == 2 and self.subject.outputs.shape[1] > 1
        options = {"steps": self.steps} if classified else {"steps": self.steps, "probability": None}
        found = []
        for name, hidden in self.hidden.items():
            scale = 1.0 if classified else self.whole[name]
            arguments = self.model, self.inputs, read.to(hidden), what.target
            inserted = insertion_auc(*arguments, baseline=hidden, **options)
            deleted = deletion_auc(*arguments, baseline=hidden, **options)
            found.append((inserted - deleted) / scale)
        return torch.stack(found).mean(0)

    def localization(self, read: Tensor) -> Tensor:
        """Overlap with the masks of as many of the most relevant positions as they have, ``(N,)``."""
        assert self.masks is not None
        shape = (len(read), -1, read.shape[-1])
        return iou_at_equal_area(read.reshape(shape), self.masks.to(read).reshape(shape))


def yardstick(subject: Subject, masks: Tensor | None = None, effort: Effort = EFFORTS[0]) -> Yardstick:
    """Remove regions from every sample, once for all methods.

    Args:
        subject: What is explained.
        masks: What is known to matter ``(N, *sides)`` or ``(N, 1, *sides)``.
        effort: How much is run.

    Raises:
        ValueError: If masks do not fit the input.
    """
    model, inputs = subject.perturbable
    value = first(inputs).detach()
    hidden = dict(list(removals(value, subject.seed).items())[: effort.removals])
    regions = regions_of(sides_of(value), subject.seed, effort.regions).to(value.device)
    everything = torch.ones_like(regions[:1])
    taken = torch.cat([regions, everything, ~everything])
    lost, whole = {}, {}
    for name, instead in hidden.items():

        def perturb(samples: slice, copies: range, instead: Tensor = instead) -> Tensor:
            removed = taken[copies.start : copies.stop, None]  # (k, 1, P)
            removed = removed.unflatten(2, (1, *value.shape[2:])) if value.ndim > 2 else removed
            return torch.where(removed, instead[samples], value[samples])

        with torch.no_grad():
            outputs = perturbed_outputs(model, inputs, subject.what.target, len(taken), perturb, Rows(ROWS, "fidelity"))
        lost[name] = (outputs[-1:] - outputs[: len(regions)]).double()
        whole[name] = float((outputs[-1] - outputs[-2]).abs().double().mean()) or 1.0
    if masks is not None:
        masks = masks[:, 0] if masks.ndim == value.ndim and masks.shape[1] == 1 and value.ndim > 2 else masks
        if tuple(masks.shape) != (len(value), *sides_of(value)):
            raise ValueError(
                f"masks must say for every position of the {len(value)} samples whether it matters, "
                f"{(len(value), *sides_of(value))}, not {tuple(masks.shape)}"
            )
    return Yardstick(subject, model, inputs, hidden, regions, lost, whole, effort.steps, masks)


def removals(value: Tensor, seed: int) -> dict[str, Tensor]:
    """What takes the place of removed parts, by name: shaped like the input ``(N, ...)``.

    Images lose a part to their own blur, their mean, and to noise of their mean and spread; other inputs to their mean
    over positions and such noise; columns of a table to the batch's mean of that column, and to another sample's value.
    """
    if value.ndim < 3:
        mean = value.mean(0, keepdim=True).expand(value.shape)
        return {"mean": mean, "others": value.roll(1 + len(value) // 2, 0)}
    dims = tuple(range(2, value.ndim))
    mean, spread = value.mean(dims, keepdim=True), value.std(dims, keepdim=True)
    drawn = [torch.randn(value.shape[1:], generator=generator(seed, "removal", place)) for place in range(len(value))]
    noise = mean + spread * torch.stack(drawn).to(value)
    image = value.ndim == 4 and min(value.shape[-2:]) >= _SMALLEST_BLUR
    blurred = {"blur": baseline_for("blur", value)} if image else {}
    return {**blurred, "mean": mean.expand(value.shape), "noise": noise}


def regions_of(sides: tuple[int, ...], seed: int, count: int = REGIONS) -> Tensor:
    """Random regions of one size ``(count, P)``: boxes along all sides, subsets of the columns of a table."""
    draw = generator(seed, "regions", *sides)
    if len(sides) == 1 and sides[0] < 2 * _SHARE:
        wide = max(1, sides[0] // _SHARE)
        chosen = torch.rand(count, sides[0], generator=draw).argsort(1) < wide
        return chosen.flatten(1)
    found = torch.ones(count, *[1] * len(sides), dtype=torch.bool)
    for axis, side in enumerate(sides):
        wide = max(1, side // _SHARE)
        corner = torch.randint(side - wide + 1, (count, 1), generator=draw)
        inside = (torch.arange(side) >= corner) & (torch.arange(side) < corner + wide)
        found = found & inside.reshape(count, *(side if place == axis else 1 for place in range(len(sides))))
    return found.flatten(1)


def scored(yardstick: Yardstick, maps: Maps, metrics: tuple[str, ...], seed: int) -> tuple[dict[str, Tensor], str]:
    """Scores of one method ``{metric: (N,)}``, higher is better, and the reading that serves it best over all samples.

    Args:
        yardstick: What maps are measured by.
        maps: The method's.
        metrics: Of ``METRICS`` and "localization".
        seed: Of the halves.
    """
    readings = yardstick.readings(maps)
    by_reading = {name: yardstick.fidelity(read) for name, read in readings.items()}
    use = _cross_fitted(by_reading, seed)
    chosen = _picked(list(readings.values()), use)
    found = {"fidelity": _picked(list(by_reading.values()), use)} if "fidelity" in metrics else {}
    if "deletion" in metrics and yardstick.steps:
        found["deletion"] = yardstick.deletion(chosen).double().cpu()
    if "localization" in metrics:
        found["localization"] = yardstick.localization(readings["magnitude"]).double().cpu()
    means = {name: float(values.nanmean()) for name, values in by_reading.items()}
    best = max(means, key=lambda name: means[name] if math.isfinite(means[name]) else -math.inf)
    return {name: values.double().cpu() for name, values in found.items()}, best


def _cross_fitted(by_reading: Mapping[str, Tensor], seed: int) -> Tensor:
    """Which reading each sample is scored by ``(N,)``: the one that is better on the other half of the samples."""
    names = list(by_reading)
    samples = len(by_reading[names[0]])
    use = torch.zeros(samples, dtype=torch.long)
    if len(names) == 1 or samples < 4:
        return use
    halves = split(samples, seed=seed)
    for own, other in ((halves.tune, halves.judge), (halves.judge, halves.tune)):
        means = torch.stack([by_reading[name][other].nanmean() for name in names]).nan_to_num(nan=-math.inf)
        use[own] = int(means.argmax())
    return use


def _picked(several: list[Tensor], use: Tensor) -> Tensor:
    """Of each sample, the entry of the reading that it uses."""
    stacked = torch.stack(several)
    return stacked[use.to(stacked.device), torch.arange(len(use), device=stacked.device)]


def _correlation(said: Tensor, lost: Tensor) -> Tensor:
    """Pearson's correlation ``(N,)`` of the columns of two ``(K, N)``; NaN where one hardly varies."""
    a, b = said.double(), lost.double().to(said.device)
    still = _still(a, 1e-6) | _still(b, 1e-6)
    a, b = a - a.mean(0), b - b.mean(0)
    found = (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()
    return found.masked_fill(still, torch.nan).clamp(-1, 1)


def _still(table: Tensor, share: float) -> Tensor:
    return table.amax(0) - table.amin(0) <= share * table.abs().amax(0)
