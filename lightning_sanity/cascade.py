"""Walks a cascade: re-initialise a unit, explain again, compare; fills one ``(trials, depths, N)`` tensor per measure.

Everything stays on the model's device; what a step needs of the reference maps is prepared once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity._rng import stream_seed
from lightning_sanity.attribution.batching import ROWS
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.complexity import efficient_mprt
from lightning_sanity.diagnostics import between_classes, other_classes
from lightning_sanity.explanation import AttributionFailed, Explanation, Maps, Reference, explain
from lightning_sanity.pictures import coarse, small
from lightning_sanity.randomization import Change
from lightning_sanity.similarity import Similarity
from lightning_sanity.twins import Reinitializer, recalibrate_
from lightning_sanity.units import Unit

POSITIVE_CONTROL = "gradient"
_CROSS_PAIRS = 9


@dataclass
class Track:
    """What was measured of one method; tensors on the CPU once the walk has ended.

    Attributes:
        values: Per similarity ``(trials, depths, N)``.
        floor: The same for unrelated samples.
        ceiling: Per similarity ``(repeats, N)``; ones for a deterministic method.
        noise: Spearman of magnitude under input noise ``(repeats, N)``.
        cross: Spearman of magnitude between trained maps of different samples ``(pairs, N)``.
        dependence: Spearman of magnitude between the trained map and full randomization's on noisy inputs
            ``(trials, N)``, where asked for.
        other_class: See ``diagnostics.other_classes``, where asked for.
        entropy_rise: See ``complexity.efficient_mprt``; ``(trials, N)``, where asked for.
        dead: Share of the trained model's maps that are constant or not finite.
        unsigned: Whether the trained model's maps have no negative value.
        norm: Norm of the maps, trained first, then fully randomised per trial; ``(1 + trials,)``.
        pictures: Signed maps ``(K, 1 + kept depths, h, w)``.
        coarse: Small copies of the trained model's maps ``(N, h, w)``, uint8.
        error: Why the method was given up, if it was.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    floor: dict[str, Tensor] = field(default_factory=dict)
    ceiling: dict[str, Tensor] = field(default_factory=dict)
    noise: Tensor | None = None
    cross: Tensor | None = None
    dependence: Tensor | None = None
    other_class: dict[str, Tensor] = field(default_factory=dict)
    entropy_rise: Tensor | None = None
    dead: float = 0.0
    unsigned: bool = False
    norm: Tensor | None = None
    pictures: Tensor | None = None
    coarse: Tensor | None = None
    error: str | None = None


@dataclass(frozen=True)
class Walk:
    """What a cascade measured: a track per method, the outputs' change, and the parameters' changes per trial.

    ``twin_agreement`` is the mean Spearman correlation between the plain gradients of consecutive twins, same sample:
    near the floor for random twins, near 1 for twins that differ in name only; NaN where it was not measured.
    """

    tracks: dict[str, Track]
    agreement: Tensor
    correlation: Tensor
    spread_ratio: Tensor
    finite: bool
    twin_agreement: float
    changes: dict[str, list[Change]]


@dataclass(frozen=True)
class Settings:
    """How to walk; see ``parameter_randomization_test`` for the meanings."""

    repeats: int
    seed: int
    retarget: bool
    norm_stats: str
    diagnostics: tuple[str, ...]
    picture_samples: tuple[int, ...]
    picture_depths: tuple[int, ...]


Progress = Callable[[int, int, str], None]


class Cascade:
    """One walk: ``start``, then ``extend`` by trials as often as needed; ``walk`` says what was measured so far.

    Args:
        model: The live clone whose weights are replaced; restored at the end of every trial.
        what: The explanation of the untouched clone.
        methods: The methods to follow, prepared.
        similarities: The measures to fill.
        support: Pixels that are not background ``(N, H, W)``, or None.
        steps: Which units are random at each depth.
        reinitializer: Draws them.
        settings: How to walk.
        progress: Called as ``progress(done, total, label)``.
    """

    def __init__(
        self,
        model: nn.Module,
        what: Explanation,
        methods: Mapping[str, tuple[Method, AttributionFn]],
        similarities: Sequence[Similarity],
        support: Tensor | None,
        steps: Sequence[Sequence[Unit]],
        reinitializer: Reinitializer,
        settings: Settings,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.what, self.methods, self.similarities = model, what, methods, similarities
        self.support, self.steps, self.reinitializer, self.settings = support, steps, reinitializer, settings
        self.samples = len(first(what.inputs))
        self.trials = 0
        self.tracks: dict[str, Track] = {name: Track() for name in methods}
        self.references: dict[str, Reference] = {}
        self._progress = progress or (lambda done, total, label: None)
        self._done = self._total = 0
        self._outputs: list[Tensor] = []
        self._changes: dict[str, list[Change]] = {}
        self._twins: list[Tensor] = []
        self._previous_twin: Reference | None = None

    def start(self) -> None:
        """Explain the trained model: reference maps, their ceiling and the noise guard."""
        with self.what.overheard() as heard:
            for name in self.methods:
                self._guarded(name, self._reference)
        self._trained_outputs = heard[0] if heard else self.what.outputs()
        if "random_logit" in self.settings.diagnostics:
            others = other_classes(self.what.target, self._trained_outputs, self.settings.seed)
            for name in self.methods:
                self._guarded(name, lambda key: self._other_classes(key, others))

    def extend(self, trials: int, methods: Iterable[str] | None = None) -> None:
        """Walk that many more trials with ``methods``, all by default; the clone is trained again afterwards.

        A trial's draws depend on its number alone: five trials and five more are ten trials.
        """
        following = list(self.methods if methods is None else methods)
        for name in following:
            self._grow(self.tracks[name], trials)
        self._total = self._done + trials * len(self.steps) * len(following)
        saved = _snapshot(self.model)
        try:
            for trial in range(self.trials, self.trials + trials):
                self._outputs.append(self._walk_trial(trial, following, saved))
                _restore(self.model, saved)
        finally:
            _restore(self.model, saved)
        self.trials += trials

    def walk(self) -> Walk:
        """What was measured so far, on the CPU."""
        trained, outputs = self._trained_outputs, torch.stack(self._outputs)  # (N, ...), (trials, depths, N, ...)
        return Walk(
            tracks={name: _on_cpu(track) for name, track in self.tracks.items()},
            agreement=agreement_of(trained, outputs).cpu(),
            correlation=correlation_of(trained, outputs).cpu(),
            spread_ratio=(spread_of(outputs[:, -1]) / spread_of(trained[None])).float().cpu(),
            finite=bool(trained.isfinite().all()),
            twin_agreement=float(torch.cat(self._twins).nanmean()) if self._twins else math.nan,
            changes=self._changes,
        )

    def _walk_trial(self, trial: int, methods: Sequence[str], saved: dict[str, Tensor]) -> Tensor:
        """One trial; the model's outputs at every depth ``(depths, N, ...)``."""
        redraw = self.reinitializer.start_trial(trial)
        random: list[Unit] = []
        outputs = []
        for depth, step in enumerate(self.steps):
            if any(unit not in step for unit in random):
                _restore(self.model, saved)
                random = []
            for unit in (unit for unit in step if unit not in random):
                for change in redraw(self.model, unit):
                    self._changes.setdefault(change.parameter, []).append(change)
            random = list(step)
            if self.settings.norm_stats == "recalibrate":
                recalibrate_(self.model, random, self.what.outputs)
            now = self._retargeted() if self.settings.retarget else self.what
            with now.overheard() as heard:
                for name in methods:
                    self._guarded(name, lambda key: self._step(key, now, trial, depth))  # noqa: B023
                    self._done += 1
                    self._progress(self._done, self._total, f"trial {trial + 1}, {step[-1].name}, {name}")
            outputs.append(heard[0] if heard else now.outputs())
        if "dependence" in self.settings.diagnostics:
            for name in methods:
                self._guarded(name, lambda key: self._depend(key, trial))
        return torch.stack(outputs)

    def _retargeted(self) -> Explanation:
        """The same batch with the present model's own predictions."""
        if self.what.target is None:
            return self.what
        return Explanation(self.what.model, self.what.inputs, self.what.outputs().argmax(1))

    def _guarded(self, name: str, act: Callable[[str], None]) -> None:
        """A method that fails is given up with its reason; the others go on."""
        if self.tracks[name].error is None:
            try:
                act(name)
            except AttributionFailed as error:
                self.tracks[name].error = str(error)

    def _explain(self, name: str, what: Explanation, *key: object) -> Maps:
        """One seed for all models, so that only the weights differ; other seeds only where ``key`` says so."""
        method, function = self.methods[name]
        seed = stream_seed(
            self.settings.seed, "explainer", *(key if key and (key[0] == "again" or method.fresh) else ())
        )
        return explain(function, name, what, seed)

    def _reference(self, name: str) -> None:
        method, track = self.methods[name][0], self.tracks[name]
        maps = self._explain(name, self.what, "reference")
        reference = self.references[name] = Reference(maps, self.similarities, self.support)
        repeats = self.settings.repeats
        flat = maps.magnitude.reshape(self.samples, -1)
        live = flat.isfinite().all(1) & (flat.amax(1) > flat.amin(1))
        track.dead = float(1 - live.float().mean())
        track.coarse = coarse(maps.magnitude)
        track.unsigned = bool((maps.signed >= 0).all())
        track.norm = torch.linalg.vector_norm(flat).float().reshape(1)
        for similarity in self.similarities:
            empty = flat.new_empty((0, len(self.steps), self.samples), dtype=torch.float32)
            track.values[similarity.name], track.floor[similarity.name] = empty, empty.clone()
            track.ceiling[similarity.name] = flat.new_ones((max(repeats, 1), self.samples), dtype=torch.float32)
        if method.stochastic:
            for repeat in range(repeats):
                again = reference.against(self._explain(name, self.what, "again", repeat), 0)
                for key, (same, _) in again.items():
                    track.ceiling[key][repeat] = same
        self._guard(name, maps)
        if self.settings.picture_samples:
            one = self._picture(maps)[:, None]
            track.pictures = one.expand(-1, 1 + len(self.settings.picture_depths), -1, -1).clone()

    def _guard(self, name: str, maps: Maps) -> None:
        """Do the maps carry signal: like themselves under a little noise, unlike the maps of other samples?"""
        track = self.tracks[name]
        spearman = [similarity for similarity in self.similarities if similarity.name == "spearman"]
        reference = Reference(maps, spearman, None)
        method = self.methods[name][0]
        keys = [stream_seed(self.settings.seed, "guard", repeat) for repeat in range(self.settings.repeats)]
        # One pass for all repeats where that changes nothing: no draw, and nothing kept per probe.
        together = not method.stochastic and method.prepare is None and len(keys) * self.samples <= ROWS
        rows = []
        for number, group in enumerate([keys] if together else [[key] for key in keys]):
            maps = self._explain(name, self.what.with_noise(group), "noise", number)
            rows += [reference.against(one, 0)["spearman"][0] for one in maps.split(self.samples)]
        track.noise = torch.stack(rows).float()
        pairs = reference.to_one_another(range(1, min(self.samples - 1, _CROSS_PAIRS) + 1))["spearman"]
        track.cross = pairs.float() if len(pairs) else track.noise.new_full((1, self.samples), torch.nan)

    def _other_classes(self, name: str, others: Mapping[str, Sequence[Tensor]]) -> None:
        """How alike are the trained model's maps for the explained class and for another one?"""
        track, reference = self.tracks[name], self.references[name]
        for kind, targets in others.items():
            maps = [
                self._explain(name, replace(self.what, target=target), kind, place)
                for place, target in enumerate(targets)
            ]
            track.other_class |= between_classes(kind, reference.maps, maps)

    def _depend(self, name: str, trial: int) -> None:
        """Likeness to the trained map, at full randomization and under input noise."""
        key = stream_seed(self.settings.seed, "dependence", trial)
        maps = self._explain(name, self.what.with_noise([key]), "dependence", trial)
        spearman = [similarity for similarity in self.similarities if similarity.name == "spearman"]
        one = Reference(self.references[name].maps, spearman, None).against(maps, 0)["spearman"][0]
        self.tracks[name].dependence[trial] = one  # type: ignore[index]

    def _grow(self, track: Track, trials: int) -> None:
        """Room for that many more trials; undefined until they are walked."""
        if track.error is not None:
            return
        for table in (track.values, track.floor):
            table.update({key: _with_rows(tensor, trials) for key, tensor in table.items()})
        track.norm = _with_rows(track.norm, trials)  # type: ignore[arg-type]
        like = track.noise[:0]  # type: ignore[index]
        if "dependence" in self.settings.diagnostics:
            track.dependence = _with_rows(like if track.dependence is None else track.dependence, trials)
        if "entropy" in self.settings.diagnostics:
            track.entropy_rise = _with_rows(like if track.entropy_rise is None else track.entropy_rise, trials)

    def _step(self, name: str, now: Explanation, trial: int, depth: int) -> None:
        method, track = self.methods[name][0], self.tracks[name]
        if method.passes == 0 and depth > 0:  # never looks at the model, so one map per trial says all
            for table in (*track.values.values(), *track.floor.values()):
                table[trial, depth] = table[trial, 0]
            if method.fresh and self._pictured(trial, depth):
                self._draw(track, depth, self._explain(name, now, trial, depth))
            return
        maps = self._explain(name, now, trial, depth)
        # Which other sample a map is compared with changes from step to step, so that the floor averages over pairs.
        shift = 1 + (trial * len(self.steps) + depth) % (self.samples - 1) if self.samples > 1 else 0
        for key, (same, other) in self.references[name].against(maps, shift).items():
            track.values[key][trial, depth] = same
            track.floor[key][trial, depth] = other
        if depth == len(self.steps) - 1 or method.passes == 0:
            self._end(name, maps, trial)
        if self._pictured(trial, depth):
            self._draw(track, depth, maps)

    def _end(self, name: str, maps: Maps, trial: int) -> None:
        """What is measured at full randomization only."""
        track = self.tracks[name]
        track.norm[1 + trial] = torch.linalg.vector_norm(maps.magnitude)  # type: ignore[index]
        if track.entropy_rise is not None:
            track.entropy_rise[trial] = efficient_mprt(self.references[name].maps.magnitude, maps.magnitude)
        if name == POSITIVE_CONTROL:
            self._compare_twins(maps)

    def _compare_twins(self, maps: Maps) -> None:
        """Twins must not resemble one another: then their weights, not their architecture, draw the map."""
        spearman = [similarity for similarity in self.similarities if similarity.name == "spearman"]
        if self._previous_twin is not None:
            self._twins.append(self._previous_twin.against(maps, 0)["spearman"][0])
        self._previous_twin = Reference(maps, spearman, None)

    def _pictured(self, trial: int, depth: int) -> bool:
        return trial == 0 and depth in self.settings.picture_depths

    def _draw(self, track: Track, depth: int, maps: Maps) -> None:
        if track.pictures is not None:
            track.pictures[:, 1 + self.settings.picture_depths.index(depth)] = self._picture(maps)

    def _picture(self, maps: Maps) -> Tensor:
        chosen = maps.signed[list(self.settings.picture_samples)].float()
        return small(chosen[:, None])[:, 0]


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in tensors}


@torch.no_grad()
def _restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.copy_(saved[name])


def _with_rows(table: Tensor, rows: int) -> Tensor:
    return torch.cat([table, table.new_full((rows, *table.shape[1:]), torch.nan)])


def _on_cpu(track: Track) -> Track:
    moved: dict[str, Any] = {}
    for name, value in vars(track).items():
        if isinstance(value, dict):
            moved[name] = {key: tensor.cpu() for key, tensor in value.items()}
        elif isinstance(value, Tensor):
            moved[name] = value.cpu()
    return replace(track, **moved)


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
