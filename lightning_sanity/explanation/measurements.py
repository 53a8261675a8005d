"""What a test measures of one method: a track, filled by trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_sanity.result.curve import fits, rounded
from lightning_sanity.result.sanity_result import Grounds
from lightning_sanity.result.verdict import HALF, MEASURES, SIGNED, WHOLE, Evidence, Scope
from lightning_sanity.similarity import Similarity


@dataclass
class Trials:
    """What some trials measured of one method.

    Attributes:
        values: Per similarity ``(trials, depths, N)``; NaN where undefined.
        floor: The same for unrelated samples.
        norm: Norm of the maps at full randomization ``(trials,)``.
        dependence: Spearman of magnitude between the trained map and full randomization's on noisy inputs
            ``(trials, N)``, where asked for.
        entropy_rise: See ``complexity.efficient_mprt``; ``(trials, N)``, where asked for.
        pictures: Signed maps of the first trial of all ``(K, kept depths, h, w)``.
        error: Why the method was given up, if it was.
        failed_at: Trial and depth of that; (-1, 0) on the trained model.
        step: What values and floor are rounded to a multiple of; None = nothing.
    """

    values: dict[str, Tensor]
    floor: dict[str, Tensor]
    norm: Tensor
    dependence: Tensor | None = None
    entropy_rise: Tensor | None = None
    pictures: Tensor | None = None
    error: str | None = None
    failed_at: tuple[int, int] = (-1, 0)
    step: float | None = None

    @classmethod
    def empty(
        cls,
        like: Tensor,
        similarities: Sequence[Similarity],
        trials: int,
        depths: int,
        diagnostics: Sequence[str],
    ) -> Trials:
        """Tables for so many trials; ``like`` is the trained model's maps ``(N, H, W)``."""

        def table(*shape: int) -> Tensor:
            return torch.full((trials, *shape), torch.nan, dtype=torch.float32, device=like.device)

        samples = len(like)
        return cls(
            {similarity.name: table(depths, samples) for similarity in similarities},
            {similarity.name: table(depths, samples) for similarity in similarities},
            table(),
            dependence=table(samples) if "dependence" in diagnostics else None,
            entropy_rise=table(samples) if "entropy" in diagnostics else None,
        )

    def cpu(self) -> Trials:
        """The same on the CPU."""
        return _on_cpu(self)

    def round_(self, step: float) -> None:
        """Round the tables in place, unless one of them does not fit into single bytes; see ``result.curve``."""
        if all(fits(table, step) for tables in (self.values, self.floor) for table in tables.values()):
            for tables in (self.values, self.floor):
                for key, table in tables.items():
                    tables[key] = rounded(table, step, absolute=key == SIGNED)
            self.step = step


@dataclass
class Track:
    """What was measured of one method; tensors on the CPU once they are in a ``Walk``.

    Attributes:
        ceiling: Per similarity ``(repeats, N)``; ones where all models are explained under one seed.
        again: Spearman of magnitude between the explanation and others under other seeds ``(repeats, N)``; None for a
            deterministic method.
        noise: Spearman of magnitude under input noise ``(repeats, N)``.
        cross: Spearman of magnitude between trained maps of different samples ``(pairs, N)``.
        other_class: See ``diagnostics.between_classes``, where asked for.
        dead: Share of the trained model's maps that are constant or not finite.
        unsigned: Whether the trained model's maps have no negative value.
        norm: Norm of the trained model's maps; ``(K,)`` where several are compared.
        picture: Signed maps of the trained model ``(K, h, w)``, where asked for.
        coarse: Small copies of the trained model's maps ``(N, h, w)``, uint8.
        trials: What the trials measured so far; None before the first.
        error: Why the method was given up, if it was.
        failed_at: See ``Trials``.
    """

    ceiling: dict[str, Tensor] = field(default_factory=dict)
    again: Tensor | None = None
    noise: Tensor | None = None
    cross: Tensor | None = None
    other_class: dict[str, Tensor] = field(default_factory=dict)
    dead: float = 0.0
    unsigned: bool = False
    norm: Tensor | None = None
    picture: Tensor | None = None
    coarse: Tensor | None = None
    trials: Trials | None = None
    error: str | None = None
    failed_at: tuple[int, int] = (-1, 0)

    def append(self, more: Trials, walked: int) -> None:
        """Keep the first ``walked`` of some more trials, on the CPU."""
        if more.error is not None:
            self.error, self.failed_at = more.error, more.failed_at
            return
        before = self.trials

        def joined(name: str) -> Any:
            new = getattr(more, name)
            old = None if before is None else getattr(before, name)
            if isinstance(new, dict):
                cut = {key: table[:walked] for key, table in new.items()}
                return cut if old is None else {key: torch.cat([old[key], table]) for key, table in cut.items()}
            if new is None or old is None:
                return None if new is None else new[:walked]
            return torch.cat([old, new[:walked]])

        tables = {name: joined(name) for name in ("values", "floor", "norm", "dependence", "entropy_rise")}
        pictures = more.pictures if before is None else before.pictures
        self.trials = Trials(**tables, pictures=pictures)

    @property
    def pictures(self) -> Tensor | None:
        """Signed maps ``(K, 1 + kept depths, h, w)``, the trained model's first."""
        if self.picture is None or self.trials is None or self.trials.pictures is None:
            return None
        return torch.cat([self.picture[:, None], self.trials.pictures], 1)

    def cpu(self) -> Track:
        """The same on the CPU."""
        return _on_cpu(self)


def _on_cpu(found: Any) -> Any:
    moved: dict[str, Any] = {}
    for name, value in vars(found).items():
        if isinstance(value, dict):
            moved[name] = {key: tensor.cpu() for key, tensor in value.items()}
        elif isinstance(value, Tensor):
            moved[name] = value.cpu()
    return replace(found, **moved)


def agreement_of(trained: Tensor, outputs: Tensor) -> Tensor:
    """Share of equal predictions ``(trials, depths)``; NaN for a single output."""
    if trained.ndim < 2 or trained.shape[1] < 2:
        return outputs.new_full(outputs.shape[:2], torch.nan, dtype=torch.float32)
    same = outputs.argmax(3) == trained.argmax(1)
    return same.float().flatten(2).mean(2)


def correlation_of(trained: Tensor, outputs: Tensor) -> Tensor:
    """Pearson correlation with the trained outputs ``(trials, depths)``."""
    a = trained.reshape(1, 1, -1).double()
    b = outputs.reshape(*outputs.shape[:2], -1).double()
    a, b = a - a.mean(2, keepdim=True), b - b.mean(2, keepdim=True)
    return ((a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2))).float()


def spread_of(outputs: Tensor) -> Tensor:
    """Standard deviation over samples, averaged over outputs; ``(trials,)``."""
    return outputs.reshape(*outputs.shape[:2], -1).double().std(1, correction=0).mean(1)


def agreement_of_twins(outputs: Tensor) -> Tensor:
    """Signed correlation over samples of each score between consecutive re-initialised models ``(trials - 1, scores)``.

    Independent weights give scores that rise and fall independently of one another: near 0 on average, whatever the
    architecture. Where all weights are positive, every model's scores rise with the same samples: 1. A score that is
    the same for all samples is NaN.

    Args:
        outputs: Of models whose weights are all random, on the same samples ``(trials, N, ...)``.
    """
    scores = outputs.reshape(*outputs.shape[:2], -1).double()
    scores = scores - scores.mean(1, keepdim=True)
    scores = scores / scores.square().sum(1, keepdim=True).sqrt()
    return (scores[1:] * scores[:-1]).sum(1)


def evidence_of(
    track: Track,
    problem: str | None,
    half: bool = False,
    *,
    weights: Sequence[float] = (),
    scope: Scope = WHOLE,
) -> Evidence:
    """What a verdict rests on: the measures that mean something for these maps."""
    if track.coarse is not None and track.coarse[0].numel() == 1:
        problem = problem or _ONE_VALUE
    error = track.error
    if half and error is not None and any(name in error for name in ("Half", "BFloat16")):  # as torch names them
        error += HALF
    values = track.trials.values if track.trials is not None else {}
    floor = track.trials.floor if track.trials is not None else {}
    measures = [m for m in MEASURES if m in values and not (m == SIGNED and track.unsigned)]
    return Evidence(
        {m: values[m] for m in measures},
        {m: floor[m] for m in measures},
        {m: track.ceiling[m] for m in measures},
        track.noise,
        track.cross,
        track.dead,
        problem or error,
        half,
        track.again,
        weights,
        scope,
    )


def grounds_of(track: Track, problem: str | None, half: bool = False) -> Grounds:
    """What a verdict rests on besides the curves, for the result; arguments as of ``evidence_of``."""
    evidence = evidence_of(track, problem, half)
    if track.error is not None:  # what each of several processes had measured before differs
        return Grounds(trivial=evidence.trivial, half=half)
    noise, cross = (None if table is None else table.float() for table in (evidence.noise, evidence.cross))
    return Grounds(noise, cross, evidence.dead, track.unsigned, evidence.trivial, half)


_ONE_VALUE = (
    "a map of one value has nothing to be ranked: a saliency map needs several positions; explain an input that has "
    "them, or a layer"
)
