"""What a choice is made for: a copy of the model, the batch that is explained, the candidates that can be run on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.explanation.explainer import Explainer
from lightning_sanity.explanation.guests import Guests
from lightning_sanity.explanation.lineup import lineup
from lightning_sanity.explanation.maps import Explanation, Maps
from lightning_sanity.explanation.options import CommonOptions
from lightning_sanity.explanation.preparation import explained_target, in_half, prepared_methods, quiet_copy
from lightning_sanity.explanation.probe import batch_size
from lightning_sanity.explanation.request import Request
from lightning_sanity.explanation.tokens import Embedding


@dataclass(frozen=True)
class Subject:
    """A model and a batch, ready to be explained; only inside ``subject``.

    Attributes:
        model: The copy.
        what: What is explained.
        methods: The candidates and the controls, by name.
        outputs: Of the model on the batch ``(N, ...)``.
        problem: Why nothing can be concluded on this batch, or None.
        device: Where all of it is.
        seed: Of every draw.
        place: Where token ids are embedded, if they are explained.
    """

    model: nn.Module
    what: Explanation
    methods: Mapping[str, Method]
    outputs: Tensor
    problem: str | None
    device: torch.device
    seed: int
    place: Embedding | None = None

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.outputs)

    @property
    def perturbable(self) -> tuple[nn.Module, Any]:
        """The model and its inputs with numbers that can be replaced: token ids at their embeddings."""
        if self.place is None:
            return self.what.model, self.what.inputs
        return self.place.embedded(self.what.model, self.what.inputs)

    def few(self, samples: int) -> Explanation:
        """The first samples; all where a sample's output depends on the others."""
        return self.what if self.what.in_one else next(self.what.chunks(samples))

    def prepared(
        self, names: list[str], what: Explanation
    ) -> tuple[dict[str, str], dict[str, tuple[Method, AttributionFn]]]:
        """Why some of the methods mean nothing here, and the others, prepared."""
        return prepared_methods({name: self.methods[name] for name in names}, what)

    def maps(self, names: list[str], key: int = 0) -> Iterator[tuple[str, Maps]]:
        """Maps of the whole batch, method after method; ``key`` asks what draws for other draws.

        Raises:
            AttributionFailed: If one raises.
        """
        _, ready = self.prepared(names, self.what)
        explain = Explainer(ready, self.seed)
        for name in ready:
            yield name, explain(name, self.what, *(("again", key) if key else ()))


@contextmanager
def subject(
    model: nn.Module, asked: Request, candidates: Mapping[str, Any], given: CommonOptions, deadline: float | None
) -> Iterator[Subject]:
    """The model and the batch of a question; nothing in the block disturbs the caller.

    Raises:
        ValueError: If the outputs are no scores or a candidate is unknown.
        CloneError: If the model cannot be copied.
    """
    prepared_copy = quiet_copy(model, asked.inputs, asked.forward, given["clone_fn"], given["seed"], shown=asked.shown)
    with prepared_copy as (copied, explained, values, device, _, graph):
        target, problem = explained_target(asked.target, graph.outputs, batch_size(values), in_half(copied, device))
        what = Explanation(explained, values, target, chosen=asked.chosen, question=asked.place, apart=graph.apart)
        guests = Guests([(model, copied)], deadline)
        lined = lineup(candidates, [what], graph.outputs.to(device)[None], asked, given, guests)
        yield Subject(
            copied, lined.subjects[0], lined.methods, graph.outputs, problem, device, given["seed"], lined.place
        )


def sides_of(value: Tensor) -> tuple[int, ...]:
    """Sides of a map of this input, without its channels.

    >>> sides_of(torch.zeros(2, 3, 8, 9)), sides_of(torch.zeros(2, 5))
    ((8, 9), (5,))
    """
    return tuple(value.shape[2:]) if value.ndim > 2 else tuple(value.shape[1:])


def laid_out(maps: Tensor, value: Tensor) -> Tensor:
    """Maps ``(N, H, W)`` with the sides of the input, ``(N, *sides)``."""
    return maps.reshape(len(maps), *sides_of(value))


def blank(magnitude: Tensor) -> Tensor:
    """Which maps ``(N, H, W)`` are constant or not finite; ``(N,)``."""
    flat = magnitude.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    return ~(low.isfinite() & high.isfinite() & (low < high))


def cost_of(method: Method) -> float:
    """Passes that one explanation takes; NaN for what a user wrote."""
    return math.nan if method.foreign else method.passes


def value_of(what: Explanation) -> Tensor:
    """The explained input."""
    return first(what.inputs)
