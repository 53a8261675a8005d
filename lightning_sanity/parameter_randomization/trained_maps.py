"""What is known of the trained model before any weight is random: its maps, their signal, how far they come again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lightning_sanity.attribution.batching import ROWS
from lightning_sanity.attribution.method import first
from lightning_sanity.engine import Engine
from lightning_sanity.explanation.explainer import Explainer
from lightning_sanity.explanation.maps import CROSS_PAIRS, QUESTIONS, Explanation, Maps, Reference, reduced
from lightning_sanity.explanation.measurements import Track
from lightning_sanity.parameter_randomization.diagnostics import between_classes
from lightning_sanity.parameter_randomization.settings import Settings
from lightning_sanity.parameter_randomization.study import Study
from lightning_sanity.parameter_randomization.timing import timed
from lightning_sanity.parameter_randomization.work_sharing import guards, unite_references
from lightning_sanity.resources.processes import Share
from lightning_sanity.resources.random_streams import stream_seed
from lightning_sanity.result.pictures import coarse, of_maps

_GUARDING = 0.3  # of the time that is left, for all methods' noisy copies
_PATIENCE = 0.01  # of the time that is left, to time one explanation again


class TrainedModel:
    """Explanations of the untouched clone.

    Args:
        study: What is explained, of which model.
        settings: How to walk.
        explain: Runs the methods.
        share: This process's part of the work: every process needs the maps; one makes those that come from shared
            passes, one guards them.

    Attributes:
        references: Its maps, per method.
        seconds: Of each method's explanation and of comparing it, where there is a limit on time.
        outputs: Of the model, where they came by.
        pass_seconds: Of an explanation by all methods at once, where time is so short that it was not made twice.
    """

    def __init__(
        self,
        study: Study,
        settings: Settings,
        explain: Explainer,
        share: Share,
    ) -> None:
        self.what, self.methods, self.settings = study.what, study.methods, settings
        self.references: dict[str, Reference] = {}
        self.seconds: dict[str, tuple[float, float]] = {}
        self.pass_seconds: float | None = None
        self._copies: dict[str, int] = {}
        self._similarities, self._support = study.similarities, study.support
        self._explain, self._share = explain, share
        self._owners: dict[str, int] = {}
        self._samples = study.samples
        keys = [stream_seed(settings.seed, "guard", repeat) for repeat in range(settings.repeats)]
        self._noisy: Explanation | None = study.what.with_noise(keys)
        self.outputs: Tensor | None = None
        self._shared: dict[str, Maps] = {}
        self._shared_noisy: dict[str, Maps] = {}

    def mine(self, name: str) -> bool:
        """Whether this process guards the method's maps."""
        return self._share.does(self._owners[name])

    def share_passes(self, engine: Engine | None, clock: Callable[[], float], left: float | None) -> Collection[str]:
        """Decide who guards what, first of all, and once; explain at once what an engine can.

        The maps of methods whose passes it shares come from one pass over the batch, proven by two samples, and they
        are guarded together, by one pass over noisy copies.

        Args:
            engine: Shares passes, if it is to be had.
            clock: Tells what a pass takes.
            left: Seconds that are left of a limit on time, if there is one.

        Returns:
            The methods of which nothing is left to be explained.
        """
        names = [] if engine is None else engine.of_the_batch_itself()
        names = names if len(names) > 1 else []  # a single one takes no less than by itself
        passes = {name: method.passes for name, (method, _) in self.methods.items()}
        stochastic = [name for name, (method, _) in self.methods.items() if method.stochastic]
        self._owners, explainer = guards(self._share, passes, stochastic, names, self.settings.repeats)
        if engine is None or not names:
            return ()
        copies, took, explained = self.settings.repeats, 0.0, names
        if self._share.does(explainer):
            begun = clock()
            outputs, found = engine.explain(self.what, names)
            took = clock() - begun
            explained = engine.proven(self.what, found)
            self.outputs = outputs if len(explained) == len(names) else None
            self._shared = {name: reduced(found[name], name, self.what) for name in explained}
            copies = self._affordable(took / len(names), left)
        if left is None and self.mine(names[0]):  # the copies need not wait for another process's maps
            self._shared_noisy = self._of_noisy(engine, explained, copies)
        copies, took = self._hand_round(explainer, copies, took)
        if copies < self.settings.repeats:
            self.pass_seconds = took
        if left is not None and self.mine(names[0]):
            self._shared_noisy = self._of_noisy(engine, list(self._shared), copies)
        self._shared_noisy = {name: maps for name, maps in self._shared_noisy.items() if name in self._shared}
        return self._shared_noisy.keys()

    def _hand_round(self, explainer: int, copies: int, took: float) -> tuple[int, float]:
        """Give every process what one of them found in the batch itself."""
        if self._share.world > 1:
            device = first(self.what.inputs).device
            made = {name: maps.to("cpu") for name, maps in self._shared.items()}
            outputs = None if self.outputs is None else self.outputs.cpu()
            made, outputs, copies, took = self._share.exchange((made, outputs, copies, took))[explainer]
            self._shared = {name: maps.to(device) for name, maps in made.items()}
            self.outputs = None if outputs is None else outputs.to(device)
        return copies, took

    def _of_noisy(self, engine: Engine, names: Sequence[str], copies: int) -> dict[str, Maps]:
        """Maps of so many noisy copies by one pass."""
        noisy = self._copied(copies)
        return {name: reduced(found, name, noisy) for name, found in engine.explain(noisy, names)[1].items()}

    def _affordable(self, seconds: float, left: float | None) -> int:
        """How many noisy copies to explain by a method that takes so long for one."""
        if left is None:
            return self.settings.repeats
        room = _GUARDING * left / max(len(self.methods), 1)
        return max(1, min(self.settings.repeats, int(room / max(seconds, 1e-9))))

    def fewest_copies(self) -> int:
        """How many noisy copies the methods that this process guards had at least."""
        return min([count for name, count in self._copies.items() if self.mine(name)], default=self.settings.repeats)

    def _copied(self, copies: int) -> Explanation:
        """So many of the noisy copies."""
        assert self._noisy is not None
        return next(self._noisy.chunks(copies * self._samples))

    def refer(
        self, name: str, track: Track, clock: Callable[[], float], left: float | None = None, depths: int = 1
    ) -> None:
        """Fill a track with what the trained model's maps say.

        Args:
            name: The method.
            track: Where to.
            clock: Of ``seconds``.
            left: Seconds that are left of a limit on time, if there is one.
            depths: How many depths of the method come at once, and are compared at once.
        """
        hurried = self.pass_seconds is not None
        patience = 0.0 if left is None or hurried else _PATIENCE * left
        if name in self._shared and (left is None or hurried):
            maps, explaining = self._shared[name], self.pass_seconds or 0.0
        else:
            explain = partial(self._explain, name, self.what, "reference")
            maps, explaining = timed(explain, clock, patience, self._share.agreed)
        reference = self.references[name] = Reference(maps, self._similarities, self._support)
        if left is not None:
            self.seconds[name] = explaining, self._comparing(reference, 1 if hurried else depths, clock, patience)
        copies = self.settings.repeats
        if name in self._shared_noisy:
            copies = len(self._shared_noisy[name].signed) // self._samples
        elif self.methods[name][0].passes > 0:
            copies = self._share.agreed(self._affordable(explaining, left))
        self._copies[name] = copies
        flat = maps.magnitude.reshape(self._samples, -1)
        live = flat.isfinite().all(1) & (flat.amax(1) > flat.amin(1))
        track.dead = float(1 - live.float().mean())
        track.unsigned = bool((maps.signed >= 0).all())
        track.norm = torch.linalg.vector_norm(flat).float()
        track.coarse = coarse(maps.magnitude)
        if self.settings.picture_samples:
            track.picture = pictured(maps, self.settings)
        for similarity in self._similarities:
            # Under the one seed of all models, the unchanged model's map is the same again.
            track.ceiling[similarity.name] = flat.new_ones((1, self._samples), dtype=torch.float32)
        if not self.mine(name):
            return
        if self.methods[name][0].stochastic:
            ranked = self.ranked(maps)
            again = [self._explain(name, self.what, "again", repeat) for repeat in range(copies)]
            track.again = torch.stack([ranked.against(one, 0)["spearman"][0] for one in again]).float()
        self._guard(name, track, maps, copies)

    def _comparing(self, reference: Reference, depths: int, clock: Callable[[], float], patience: float) -> float:
        """Seconds that comparing the maps of one depth takes, where so many may be compared at once."""
        if self.pass_seconds is not None and self.seconds:
            return next(comparing for _, comparing in self.seconds.values())
        several = min(depths, reference.together)
        maps, shifts = [reference.maps] * several, [min(1, self._samples - 1)] * several
        _, seconds = timed(lambda: list(reference.against_each(maps, shifts)), clock, patience)
        return seconds / several

    def _guard(self, name: str, track: Track, maps: Maps, copies: int) -> None:
        """Do the maps carry signal: like themselves under a little noise, unlike the maps of other samples?"""
        reference = self.ranked(maps)
        rows = [reference.against(one, 0)["spearman"][0] for one in self._under_noise(name, copies)]
        track.noise = torch.stack(rows).float()
        pairs = reference.to_one_another(range(1, min(self._samples - 1, CROSS_PAIRS) + 1))["spearman"]
        if self.what.question is not None and len(pairs):
            crossed = [self._explain(name, self.what.crossed(shift)) for shift in range(1, len(pairs) + 1)[:QUESTIONS]]
            pairs = torch.stack([reference.against(maps, 0)["spearman"][0] for maps in crossed])
        track.cross = pairs.float() if len(pairs) else track.noise.new_full((1, self._samples), torch.nan)

    def _under_noise(self, name: str, copies: int) -> list[Maps]:
        """A method's maps of noisy copies of the batch."""
        if name in self._shared_noisy:
            return self._shared_noisy.pop(name).split(self._samples)
        method, noisy = self.methods[name][0], self._copied(copies)
        together = not method.stochastic and method.prepare is None and not noisy.in_one
        if together and len(first(noisy.inputs)) <= ROWS:
            # One pass for all repeats, which changes nothing: no draw, and nothing kept per probe.
            return self._explain(name, noisy, "noise", 0).split(self._samples)
        parts = noisy.chunks(self._samples)
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
        self._noisy, self._shared, self._shared_noisy = None, {}, {}

    def ranked(self, maps: Maps) -> Reference:
        """Maps prepared for the rank correlation of magnitudes alone."""
        return Reference(maps, [s for s in self._similarities if s.name == "spearman"], None)


def pictured(maps: Maps, settings: Settings) -> Tensor:
    """Small signed maps of the pictured samples, ``(K, h, w)``."""
    return of_maps(maps.signed[list(settings.picture_samples)].float(), settings.picture_sides)
