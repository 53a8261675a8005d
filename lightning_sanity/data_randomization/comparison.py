"""Compares the maps of several models, for the data randomization test: the counterpart of a cascade's walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.explanation.maps import (
    CROSS_PAIRS,
    QUESTIONS,
    AttributionFailed,
    Explanation,
    Maps,
    Reference,
    explain,
)
from lightning_sanity.explanation.measurements import Track, Trials
from lightning_sanity.explanation.probe import batch_size
from lightning_sanity.resources.random_streams import stream_seed
from lightning_sanity.result import pictures
from lightning_sanity.result.verdict import SIGNED
from lightning_sanity.similarity import Similarity

_FLOOR_PAIRS = 5  # other samples that a map is compared with for the floor, which is close to S_seed


@dataclass(frozen=True)
class Comparison:
    """Explains all models with a method and compares their maps.

    Attributes:
        true: How many of the models saw the true labels; they come first.
        subjects: Every model with the probe, for the same classes.
        measures: The similarities to fill.
        support: Pixels that are not background ``(N, H, W)``, or None.
        device: Where maps are compared.
        repeats: Re-runs for the noise guard, and of a stochastic method under other seeds.
        seed: Of every draw.
    """

    true: int
    subjects: Sequence[Explanation]
    measures: Sequence[Similarity]
    support: Tensor | None
    device: torch.device
    repeats: int
    seed: int

    def of(self, method: Method, functions: Sequence[AttributionFn]) -> tuple[Track, dict[str, Tensor]]:
        """What was measured, and per measure the similarity of every two models ``(K, K, N)``; on the CPU."""
        try:
            return self._measured(method, functions)
        except AttributionFailed as error:
            return Track(error=str(error)), {}

    def _measured(self, method: Method, functions: Sequence[AttributionFn]) -> tuple[Track, dict[str, Tensor]]:
        count, samples = len(self.subjects), batch_size(self.subjects[0].inputs)
        maps = [self._explain(method, functions, k, *((k,) if method.fresh else ())) for k in range(count)]
        references = [Reference(each, self.measures, self.support) for each in maps]
        empty = {m.name: torch.full((count, count, samples), torch.nan, dtype=torch.float32) for m in self.measures}
        likeness, unrelated = empty, {key: table.clone() for key, table in empty.items()}
        shifts = range(1, min(samples - 1, _FLOOR_PAIRS) + 1)
        for one, other in combinations(range(count), 2):
            found = [
                references[one].against(maps[other], shift, self._crossed(method, functions, other, shift))
                for shift in shifts
                if one < self.true <= other
            ]
            same = found[0] if found else references[one].against(maps[other], 0)
            for key, (value, _) in same.items():
                likeness[key][one, other] = likeness[key][other, one] = value.float().cpu()
                if found:
                    others = torch.stack([each[key][1] for each in found])
                    others = others.abs() if key == SIGNED else others  # before signs cancel: so the index takes them
                    unrelated[key][one, other] = others.nanmean(0).float().cpu()
        flat = torch.stack([each.magnitude.reshape(samples, -1) for each in maps[: self.true]])
        sides = tuple(first(self.subjects[0].inputs).shape[2:])
        live = flat.isfinite().all(2) & (flat.amax(2) > flat.amin(2))
        noise, cross = self._guard(method, functions, maps)
        norm = torch.stack([torch.linalg.vector_norm(each.magnitude) for each in maps]).float().cpu()
        track = Track(
            ceiling=self._ceiling(likeness),
            again=self._again(method, functions, maps[0]),
            noise=noise,
            cross=cross,
            dead=float(1 - live.float().mean()),
            unsigned=all(bool((each.signed >= 0).all()) for each in maps[: self.true]),
            norm=norm[: self.true],
            picture=_picture(maps[0], samples, sides),
            trials=Trials(
                values={key: self._between(table) for key, table in likeness.items()},
                floor={key: self._between(table) for key, table in unrelated.items()},
                norm=norm[self.true :],
                pictures=_picture(maps[self.true], samples, sides)[:, None],
            ),
        )
        return track, likeness

    def _crossed(self, method: Method, functions: Sequence[AttributionFn], model: int, shift: int) -> Maps | None:
        """Maps of other samples under the same question, where there is one."""
        what = self.subjects[model]
        if what.question is None:
            return None
        return self._explain(method, functions, model, *((model,) if method.fresh else ()), what=what.crossed(shift))

    def _between(self, table: Tensor) -> Tensor:
        """The pairs of a true-label and a permuted-label model ``(Ks * Kr, 1, N)`` of a table ``(K, K, N)``."""
        return table[: self.true, self.true :].flatten(0, 1)[:, None]

    def _explain(
        self,
        method: Method,
        functions: Sequence[AttributionFn],
        model: int,
        *key: object,
        what: Explanation | None = None,
    ) -> Maps:
        """One seed for all models, so that only what they learned differs; other seeds only where ``key`` says so."""
        found = explain(
            functions[model], method.name, what or self.subjects[model], stream_seed(self.seed, "explainer", *key)
        )
        return Maps(found.signed.to(self.device), found.magnitude.to(self.device))

    def _ceiling(self, likeness: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Likeness of true-label models to one another; one such model is like itself, under the one seed of all."""
        if self.true > 1:
            one, other = torch.triu_indices(self.true, self.true, 1)
            return {key: table[one, other] for key, table in likeness.items()}
        return {key: torch.ones(1, table.shape[-1], dtype=torch.float32) for key, table in likeness.items()}

    def _again(self, method: Method, functions: Sequence[AttributionFn], maps: Maps) -> Tensor | None:
        """Likeness of the first model's explanation to further ones under other seeds ``(repeats, N)``."""
        if not method.stochastic:
            return None
        reference = Reference(maps, [measure for measure in self.measures if measure.name == "spearman"], None)
        again = [
            reference.against(self._explain(method, functions, 0, "again", repeat), 0)["spearman"][0]
            for repeat in range(self.repeats)
        ]
        return torch.stack(again).float().cpu()

    def _guard(self, method: Method, functions: Sequence[AttributionFn], maps: Sequence[Maps]) -> tuple[Tensor, Tensor]:
        """Do the maps carry signal? See ``signal.signal``; mean over the true-label models."""
        spearman = [measure for measure in self.measures if measure.name == "spearman"]
        samples = len(maps[0].magnitude)
        noise, cross = [], []
        for model in range(self.true):
            reference = Reference(maps[model], spearman, None)
            rows = []
            for repeat in range(self.repeats):
                noisy = self.subjects[model].with_noise([stream_seed(self.seed, "guard", repeat)])
                again = self._explain(method, functions, model, "noise", repeat, model, what=noisy)
                rows.append(reference.against(again, 0)["spearman"][0])
            noise.append(torch.stack(rows))
            pairs = reference.to_one_another(range(1, min(samples - 1, CROSS_PAIRS) + 1))["spearman"]
            asked = [self._crossed(method, functions, model, shift) for shift in range(1, len(pairs) + 1)[:QUESTIONS]]
            alike = [reference.against(other, 0)["spearman"][0] for other in asked if other is not None]
            cross.append(torch.stack(alike) if alike else pairs)
        return torch.stack(noise).nanmean(0).float().cpu(), torch.stack(cross).nanmean(0).float().cpu()


def _picture(maps: Maps, samples: int, sides: Sequence[int]) -> Tensor:
    chosen = maps.signed[list(pictures.samples(samples))].float()
    return pictures.of_maps(chosen, sides).cpu()
