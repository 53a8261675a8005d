"""What is explained, and the saliency maps of it: made, reduced over channels, compared with the trained model's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sanity.attribution.batching import out_of_memory, rows_of, target_of
from lightning_sanity.attribution.method import AttributionFn, first
from lightning_sanity.explanation.guests import visiting
from lightning_sanity.explanation.kinds import summed
from lightning_sanity.explanation.remedies import remedy_for
from lightning_sanity.explanation.returned import ADVICE, NoAttribution, stacked, turned
from lightning_sanity.resources.fatal_errors import must_end
from lightning_sanity.resources.quoting import quoted
from lightning_sanity.resources.random_streams import generator, reseed
from lightning_sanity.similarity import Similarity

NOISE = 0.02
"""Input noise of the guard: standard deviation as a share of each sample's range. It asks only whether the maps carry
signal at all; it is never the ceiling, because a deep network's gradient may move more under noise than under new
weights."""


CROSS_PAIRS = 9
"""Other samples that a map is compared with for the noise guard."""
QUESTIONS = 3
"""Of these, how many are asked the same question, where there is one; each costs an explanation."""


_TOGETHER = 2**16
"""Pixels up to which maps of several depths are compared at once: more leave a cache."""
_HALVES = (torch.float16, torch.bfloat16)
_STEPS = 64  # of the smallest representable number; a map that reaches fewer has lost its shape to underflow


class AttributionFailed(RuntimeError):
    """A method raised, or returned something that is no attribution."""

    @property
    def out_of_memory(self) -> bool:
        """Whether fewer samples at once might help."""
        cause = self.__cause__
        return isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and out_of_memory(cause))


@dataclass(frozen=True)
class Maps:
    """A batch of saliency maps: the attribution reduced over channels, ``(N, H, W)`` each."""

    signed: Tensor
    magnitude: Tensor

    def split(self, samples: int) -> list[Maps]:
        """Maps of stacked copies of a batch, one per copy."""
        return [Maps(*pair) for pair in zip(self.signed.split(samples), self.magnitude.split(samples), strict=True)]

    def to(self, device: torch.device | str) -> Maps:
        """The same on a device."""
        return Maps(self.signed.to(device), self.magnitude.to(device))

    @staticmethod
    def together(parts: Sequence[Maps]) -> Maps:
        """The inverse of ``split``."""
        return Maps(torch.cat([part.signed for part in parts]), torch.cat([part.magnitude for part in parts]))


@dataclass(frozen=True)
class Explanation:
    """What is explained: a model whose call returns ``(N, classes)``, a fixed batch and the explained class of each.

    Attributes:
        model: See above.
        inputs: A tensor, or a tuple whose first is explained.
        target: Explained class of each sample; None for a single output.
        opened: ``(model, inputs) -> inputs`` whose first is continuous, where noise cannot be added to the inputs
            themselves: the embeddings of tokens.
        embedded: ``model -> module`` that takes such inputs and lets the first one stand in for what the model makes of
            the others.
        chosen: ``(model, inputs) -> inputs`` that hold what this model itself would choose to be asked about, where
            that is more than a class.
        question: Place among the inputs of what is asked of each sample, if any: a mask, a position.
        in_one: Whether a sample's outputs depend on the others of its batch, which is then never split nor stacked.
        apart: Whether some samples were seen to have the same outputs among others.
    """

    model: nn.Module
    inputs: Any
    target: Tensor | None
    opened: Callable[[nn.Module, Any], Any] | None = None
    embedded: Callable[[nn.Module], nn.Module] | None = None
    chosen: Callable[[nn.Module, Any], Any] | None = None
    question: int | None = None
    in_one: bool = False
    apart: bool = False

    def opened_inputs(self) -> Any:
        """The inputs whose first is continuous, as the model is now."""
        return self.inputs if self.opened is None else self.opened(self.model, self.inputs)

    def with_noise(self, keys: Sequence[int]) -> Explanation:
        """As many noisy copies of the batch as keys, stacked; each sample's noise is its own, scaled by its range."""
        inputs = self.opened_inputs()
        value, everyone = first(inputs), slice(None)
        noisy = torch.cat([value] * len(keys))
        if value.is_floating_point():
            flat = value.reshape(len(value), -1)
            spread = (flat.amax(1) - flat.amin(1)).repeat(len(keys)).reshape(-1, *[1] * (value.ndim - 1))
            # A stream per sample: the samples are tested as independent, and none may depend on the batch's size.
            draws = [generator(key, "noise", sample) for key in keys for sample in range(len(value))]
            drawn = [torch.randn(value.shape[1:], generator=draw, dtype=torch.float32) for draw in draws]
            patterns = torch.stack(drawn)
            noisy = noisy + NOISE * spread * patterns.to(value.device, value.dtype)
        stacked = rows_of(inputs, everyone, len(keys), noisy)
        return replace(self, inputs=stacked, target=target_of(self.target, everyone, len(keys)))

    def crossed(self, shift: int) -> Explanation:
        """Every sample's question put to the sample ``shift`` places before it.

        Where the question alone shapes a map (the region whose score is explained), maps of unrelated samples are
        unrelated only under the same question.
        """
        place = None if self.question is None else self.question % len(self.inputs)
        total = len(first(self.inputs))

        def rolled(value: Any) -> Any:
            return value.roll(shift, 0) if isinstance(value, Tensor) and len(value) == total else value

        kept = tuple(value if k == place else tree_map(rolled, value) for k, value in enumerate(self.inputs))
        return replace(self, inputs=kept)

    def retargeted(self) -> Explanation:
        """The same batch, asked about what the model as it is now predicts."""
        if self.chosen is not None:
            return replace(self, inputs=self.chosen(self.model, self.inputs))
        return self if self.target is None else replace(self, target=self.outputs().argmax(1))

    def chunks(self, size: int) -> Iterator[Explanation]:
        """The same in parts of at most ``size`` samples."""
        total = len(first(self.inputs))
        for start in range(0, total, size):
            rows = slice(start, min(start + size, total))
            yield replace(self, inputs=rows_of(self.inputs, rows), target=target_of(self.target, rows))

    @torch.no_grad()
    def outputs(self) -> Tensor:
        """The model's outputs on the batch."""
        found: Tensor = self.model(*self.inputs) if isinstance(self.inputs, tuple) else self.model(self.inputs)
        return found.detach()

    @contextmanager
    def overheard(self) -> Iterator[list[Tensor]]:
        """Outputs on this very batch that come by while methods run inside the block: passes that need no repeating."""
        listener = _Listener(first(self.inputs), [])
        handle = self.model.register_forward_hook(listener)
        try:
            yield listener.heard
        finally:
            handle.remove()


@dataclass(frozen=True)
class _Listener:
    """A hook that keeps what a model returns for one input; of a class, so that a method may pickle the model."""

    value: Tensor
    heard: list[Tensor]

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        seen = arguments[0] if arguments and not self.heard and not visiting() else None
        same = isinstance(seen, Tensor) and seen.shape == self.value.shape and torch.equal(seen, self.value)
        if same and isinstance(output, Tensor):
            self.heard.append(output.detach())


def explain(function: AttributionFn, name: str, what: Explanation, seed: int) -> Maps:
    """Run a method on random streams started from ``seed`` and reduce its attribution over channels.

    Call it inside ``isolated_rng``.

    Raises:
        AttributionFailed: If it raises or returns another shape than the input's; names the method.
    """
    value = first(what.inputs)
    try:
        reseed(seed, value.device)
        with torch.enable_grad():
            attribution = function(what.model, what.inputs, what.target)
    except NoAttribution as error:
        raise AttributionFailed(f"method '{name}' {error}") from error
    except (Exception, SystemExit) as error:
        if must_end(error):
            raise
        remedy = remedy_for(error, what.model, what.inputs)
        raise AttributionFailed(f"method '{name}' failed. {remedy}. It raised {quoted(error)}") from error
    return reduced(attribution, name, what)


def reduced(attribution: Tensor, name: str, what: Explanation) -> Maps:
    """The maps of an attribution of this batch.

    Raises:
        AttributionFailed: If it is none; names the method.
    """
    if isinstance(attribution, tuple) and len(attribution) == 1:
        attribution = attribution[0]
    value = first(what.inputs)
    if isinstance(attribution, np.ndarray):
        attribution = torch.as_tensor(attribution)
    if isinstance(attribution, (list, tuple)) and len(attribution) == len(value):
        attribution = stacked(attribution)
    if not isinstance(attribution, Tensor):
        raise AttributionFailed(
            f"method '{name}' returned {type(attribution).__name__} instead of a tensor shaped like the input "
            f"{tuple(value.shape)}{ADVICE.get(type(attribution), '')}"
        )
    attribution = attribution.detach().to(value.device)
    if attribution.is_complex() or not attribution.is_floating_point():
        attribution = attribution.abs() if attribution.is_complex() else attribution.float()
    return _reduced(attribution, value, name)


def _reduced(attribution: Tensor, value: Tensor, name: str) -> Maps:
    attribution = _resolved(attribution)
    counted = not (attribution.is_floating_point() or attribution.is_complex())  # a map of bits or whole numbers
    attribution = attribution.float() if counted or attribution.dtype in _HALVES else attribution
    maps = summed(attribution, value)
    if maps is None:
        wanted, got = tuple(value.shape), tuple(attribution.shape)
        raise AttributionFailed(
            f"method '{name}' returned shape {got} for an input of shape {wanted}{turned(got, wanted)}"
        )
    return Maps(*maps)


def _resolved(attribution: Tensor) -> Tensor:
    """Blank in place of what underflow left of an attribution in 16 bits: its shape is that of the rounding.

    Such a map may well resemble itself under noise and no other map, which looks like sensitivity.
    """
    kind, number = attribution.device.type, attribution.dtype
    if number not in _HALVES and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        number = torch.get_autocast_dtype(kind)  # what it was computed in, before it was cast back
    if number not in _HALVES or attribution.numel() == 0:
        return attribution
    step = torch.finfo(number).smallest_normal * torch.finfo(number).eps
    lost = attribution.abs().flatten(1).amax(1) < _STEPS * step
    return attribution.masked_fill(lost.reshape(-1, *[1] * (attribution.ndim - 1)), 0)


class Reference:
    """The trained model's maps of one method, prepared for every similarity."""

    def __init__(self, maps: Maps, similarities: Sequence[Similarity], support: Tensor | None) -> None:
        self.maps = maps
        self._support = support
        self._prepared = {similarity.name: self._prepare(similarity, maps) for similarity in similarities}
        self.similarities = similarities

    def _prepare(self, similarity: Similarity, maps: Maps, shift: int = 0) -> Any:
        rolled = Maps(maps.signed.roll(shift, 0), maps.magnitude.roll(shift, 0)) if shift else maps
        return _prepared(similarity, rolled, self._support)

    def against(self, maps: Maps, shift: int, unrelated: Maps | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """``similarity -> (same sample, sample rolled by shift)``, each ``(N,)``; NaN where ``shift`` is 0.

        ``unrelated`` maps take the place of the rolled ones where given.
        """
        found = {}
        for similarity in self.similarities:
            reference = self._prepared[similarity.name]
            prepared = self._prepare(similarity, maps)
            same = similarity.compare(reference, prepared)
            if shift == 0:
                other = torch.full_like(same, torch.nan)
            elif unrelated is not None:
                other = similarity.compare(reference, self._prepare(similarity, unrelated))
            elif similarity.on_support:  # the support belongs to the reference's sample: roll before, not after
                other = similarity.compare(reference, self._prepare(similarity, maps, shift))
            else:
                other = similarity.compare(reference, tree_map(lambda t: t.roll(shift, 0), prepared))
            found[similarity.name] = (same, other)
        return found

    @property
    def together(self) -> int:
        """How many depths ``against_each`` compares at once."""
        return max(1, _TOGETHER // max(1, self.maps.magnitude.numel()))

    def against_each(
        self, several: Iterable[Maps], shifts: Iterable[int], unrelated: Iterable[Maps | None] | None = None
    ) -> Iterator[tuple[Maps, dict[str, tuple[Tensor, Tensor]]]]:
        """Maps of one depth after the other and what ``against`` finds, small ones many at once."""
        pairs = zip(several, shifts, strict=True)
        each = zip(pairs, repeat(None) if unrelated is None else unrelated, strict=False)
        while some := [(*pair, other) for pair, other in islice(each, self.together)]:
            maps, places, others = zip(*some, strict=True)
            alone = len(some) == 1 or 0 in places
            found = [self.against(*one) for one in some] if alone else self._stacked_against(maps, places, others)
            yield from zip(maps, found, strict=True)

    def _stacked_against(
        self, several: Sequence[Maps], shifts: Sequence[int], unrelated: Sequence[Maps | None]
    ) -> list[dict[str, tuple[Tensor, Tensor]]]:
        depths, samples = len(several), len(self.maps.magnitude)
        maps, asked = Maps.together(several), [each for each in unrelated if each is not None]
        index = torch.arange(samples, device=maps.magnitude.device)
        rolled = torch.cat([(index - shift) % samples + place * samples for place, shift in enumerate(shifts)])
        support = None if self._support is None else self._support.repeat(depths, 1, 1)
        found: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in several]
        for similarity in self.similarities:
            reference = tree_map(lambda t: torch.cat([t] * depths), self._prepared[similarity.name])
            prepared = _prepared(similarity, maps, support)
            same = similarity.compare(reference, prepared)
            if asked:
                other = _prepared(similarity, Maps.together(asked), support)
            elif similarity.on_support:  # the support belongs to the reference's sample: roll before, not after
                other = _prepared(similarity, Maps(maps.signed[rolled], maps.magnitude[rolled]), support)
            else:
                other = tree_map(lambda t: t[rolled], prepared)
            pairs = zip(same.split(samples), similarity.compare(reference, other).split(samples), strict=True)
            for each, pair in zip(found, pairs, strict=True):
                each[similarity.name] = pair
        return found

    def to_one_another(self, shifts: Sequence[int]) -> dict[str, Tensor]:
        """``similarity -> (shifts, N)`` of each sample's map to the map of the sample ``shift`` places before it."""
        found = {}
        for similarity in self.similarities:
            mine = self._prepared[similarity.name]
            rows = [similarity.compare(mine, tree_map(lambda t: t.roll(shift, 0), mine)) for shift in shifts]  # noqa: B023
            found[similarity.name] = torch.stack(rows) if rows else torch.empty(0, dtype=torch.float32)
        return found


def _prepared(similarity: Similarity, maps: Maps, support: Tensor | None) -> Any:
    chosen = maps.signed if similarity.maps == "signed" else maps.magnitude
    return similarity.prepare(chosen, support) if similarity.on_support else similarity.prepare(chosen)
