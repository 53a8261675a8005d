"""What is known of the trained model before any weight is random: its maps, their ceiling, their signal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_sanity._rng import stream_seed
from lightning_sanity.attribution.batching import ROWS
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.calibration import timed
from lightning_sanity.diagnostics import between_classes
from lightning_sanity.division import guards, unite_references
from lightning_sanity.engine import Engine
from lightning_sanity.explainer import Explainer
from lightning_sanity.explanation import CROSS_PAIRS, QUESTIONS, Explanation, Maps, Reference, reduced
from lightning_sanity.pictures import coarse, small
from lightning_sanity.settings import Settings
from lightning_sanity.shares import Share
from lightning_sanity.similarity import Similarity
from lightning_sanity.tracks import Track


class TrainedModel:
    """Explanations of the untouched clone.

    Args:
        what: Its explanation.
        methods: The methods, prepared.
        similarities: The measures to prepare its maps for.
        support: Pixels that are not background ``(N, H, W)``, or None.
        settings: How to walk.
        explain: Runs the methods.
        share: This process's part of the work: every process needs the maps, one guards them.

    Attributes:
        references: Its maps, per method.
        seconds: Of each method's explanation and of comparing it, where they were timed.
    """

    def __init__(
        self,
        what: Explanation,
        methods: Mapping[str, tuple[Method, AttributionFn]],
        similarities: Sequence[Similarity],
        support: Tensor | None,
        settings: Settings,
        explain: Explainer,
        share: Share,
    ) -> None:
        self.what, self.methods, self.settings = what, methods, settings
        self.references: dict[str, Reference] = {}
        self.seconds: dict[str, tuple[float, float]] = {}
        self._similarities, self._support, self._explain, self._share = similarities, support, explain, share
        self._owners: dict[str, int] = {}
        self._samples = len(first(what.inputs))
        keys = [stream_seed(settings.seed, "guard", repeat) for repeat in range(settings.repeats)]
        self._noisy: Explanation | None = what.with_noise(keys)
        self._ready: dict[str, tuple[Maps, Maps]] = {}
        self._tolerance: dict[str, float] = {}

    def mine(self, name: str) -> bool:
        """Whether this process guards the method's maps."""
        return self._share.does(self._owners[name])

    def share_passes(self, engine: Engine | None) -> None:
        """Decide who guards what; first of all, and once.

        Methods whose passes an engine shares are guarded together, the batch and its noisy copies explained at once.
        """
        names = [] if engine is None or self._noisy is None else engine.of_the_batch_itself()
        names = names if len(names) > 1 else []  # a single one takes no less than by itself
        passes = {name: method.passes for name, (method, _) in self.methods.items()}
        stochastic = [name for name, (method, _) in self.methods.items() if method.stochastic]
        self._owners = guards(self._share, passes, stochastic, names, self.settings.repeats)
        if engine is None or self._noisy is None or not names or not self.mine(names[0]):
            return
        plain, noisy = engine.explain(self.what, names), engine.explain(self._noisy, names)
        for name in plain.keys() & noisy.keys():
            self._ready[name] = reduced(plain[name], name, self.what), reduced(noisy[name], name, self._noisy)
            self._tolerance[name] = engine.methods[name].tolerance

    def refer(self, name: str, track: Track, clock: Callable[[], float], patience: float | None) -> None:
        """Fill a track with what the trained model's maps say.

        Args:
            name: The method.
            track: Where to.
            clock: Of ``seconds``.
            patience: Seconds to time the explanation again, see ``calibration.timed``; None if it need not be timed.
        """
        maps, explaining = timed(
            lambda: self._explain(name, self.what, "reference"), clock, patience or 0.0, self._share.agreed
        )
        reference = self.references[name] = Reference(maps, self._similarities, self._support)
        if patience is not None:
            _, comparing = timed(lambda: reference.against(maps, min(1, self._samples - 1)), clock, patience)
            self.seconds[name] = explaining, comparing
        flat = maps.magnitude.reshape(self._samples, -1)
        live = flat.isfinite().all(1) & (flat.amax(1) > flat.amin(1))
        track.dead = float(1 - live.float().mean())
        track.unsigned = bool((maps.signed >= 0).all())
        track.norm = torch.linalg.vector_norm(flat).float()
        track.coarse = coarse(maps.magnitude)
        if self.settings.picture_samples:
            track.picture = pictured(maps, self.settings.picture_samples)
        for similarity in self._similarities:
            rows = max(self.settings.repeats, 1)
            track.ceiling[similarity.name] = flat.new_ones((rows, self._samples), dtype=torch.float32)
        if not self.mine(name):
            return
        if self.methods[name][0].stochastic:
            for repeat in range(self.settings.repeats):
                again = reference.against(self._explain(name, self.what, "again", repeat), 0)
                for key, (same, _) in again.items():
                    track.ceiling[key][repeat] = same
        self._guard(name, track, maps)

    def _guard(self, name: str, track: Track, maps: Maps) -> None:
        """Do the maps carry signal: like themselves under a little noise, unlike the maps of other samples?"""
        reference = self.ranked(maps)
        rows = [reference.against(one, 0)["spearman"][0] for one in self._under_noise(name, maps)]
        track.noise = torch.stack(rows).float()
        pairs = reference.to_one_another(range(1, min(self._samples - 1, CROSS_PAIRS) + 1))["spearman"]
        if self.what.question is not None and len(pairs):
            crossed = [self._explain(name, self.what.crossed(shift)) for shift in range(1, len(pairs) + 1)[:QUESTIONS]]
            pairs = torch.stack([reference.against(maps, 0)["spearman"][0] for maps in crossed])
        track.cross = pairs.float() if len(pairs) else track.noise.new_full((1, self._samples), torch.nan)

    def _under_noise(self, name: str, maps: Maps) -> list[Maps]:
        """A method's maps of every noisy copy of the batch."""
        assert self._noisy is not None
        method = self.methods[name][0]
        if name in self._ready:
            of_batch, of_noisy = self._ready.pop(name)
            # The shared passes gave this method's own maps of the batch, and so surely those of noisy copies?
            off = torch.linalg.vector_norm((of_batch.signed - maps.signed).double())
            if off <= self._tolerance[name] * torch.linalg.vector_norm(maps.signed.double()):
                return of_noisy.split(self._samples)
        if not method.stochastic and method.prepare is None and len(first(self._noisy.inputs)) <= ROWS:
            # One pass for all repeats, which changes nothing: no draw, and nothing kept per probe.
            return self._explain(name, self._noisy, "noise", 0).split(self._samples)
        parts = self._noisy.chunks(self._samples)
        return [self._explain(name, part, "noise", number) for number, part in enumerate(parts)]

    def other(self, name: str, track: Track, others: Mapping[str, Sequence[Tensor]]) -> None:
        """How alike are the maps for the explained class and for another one?"""
        for kind, targets in others.items():
            maps = [
                self._explain(name, replace(self.what, target=target), kind, place)
                for place, target in enumerate(targets)
            ]
            track.other_class |= between_classes(kind, self.references[name].maps, maps)

    def unite(self, tracks: Mapping[str, Track]) -> None:
        """All processes get what each of them found; nothing more is to be found after that."""
        unite_references(self._share, tracks, self._owners)
        self._noisy, self._ready = None, {}

    def ranked(self, maps: Maps) -> Reference:
        """Maps prepared for the rank correlation of magnitudes alone."""
        return Reference(maps, [s for s in self._similarities if s.name == "spearman"], None)


def pictured(maps: Maps, samples: Sequence[int]) -> Tensor:
    """Small signed maps of some samples, ``(K, h, w)``."""
    return small(maps.signed[list(samples)].float()[:, None])[:, 0]
