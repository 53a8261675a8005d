"""Runs attribution methods for a walk: one random stream for all models, within memory, within time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from lightning_sanity._rng import stream_seed
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.budget import alarm
from lightning_sanity.explanation import AttributionFailed, Explanation, Maps, explain


class Explainer:
    """Explanations of one walk.

    Args:
        methods: The methods, prepared.
        seed: Of their draws.
        deadline: Value of ``time.perf_counter()`` by which the walk is to be done, if any.
        max_batch: Most samples at once, from the beginning; all if None.

    Attributes:
        in_chunks: Methods for which memory ran out, and how many samples at once they get now.
        max_batch: See above.
    """

    def __init__(
        self,
        methods: Mapping[str, tuple[Method, AttributionFn]],
        seed: int,
        deadline: float | None = None,
        max_batch: int | None = None,
    ) -> None:
        self.methods, self.seed, self.max_batch = methods, seed, max_batch
        self.in_chunks: dict[str, int] = {}
        self._started, self._deadline = time.perf_counter(), deadline
        self._explained: set[str] = set()
        self._of_part: dict[tuple[str, int, int], list[AttributionFn]] = {}

    def whole(self, samples: int) -> bool:
        """Whether every method explains so many samples at once."""
        return not self.in_chunks and samples <= (self.max_batch or samples)

    def __call__(self, name: str, what: Explanation, *key: object) -> Maps:
        """Maps of a method; one seed for all models, so that only the weights differ, unless ``key`` asks for another.

        Raises:
            AttributionFailed: If the method raises or returns no attribution.
            Interrupted: If it hangs.
        """
        method = self.methods[name][0]
        seed = stream_seed(self.seed, "explainer", *(key if key and (key[0] == "again" or method.fresh) else ()))
        with self.patience(f"method '{name}'"):
            maps = self._within_memory(name, what, seed)
        self._explained.add(name)
        return maps

    def patience(self, what: str) -> AbstractContextManager[None]:
        """End what hangs, as far as there is a deadline."""
        seconds = None
        if self._deadline is not None:
            seconds = max(2 * self._deadline - self._started - time.perf_counter(), 1.0)
        return alarm(seconds, f"{what} did not return within twice max_time")

    def _within_memory(self, name: str, what: Explanation, seed: int) -> Maps:
        """As many samples at once as memory allows: halved when it runs out, and it stays halved."""
        method, function = self.methods[name]
        samples = len(first(what.inputs))
        while True:
            size = min(self.in_chunks.get(name, self.max_batch or samples), samples)
            try:
                if size == samples:
                    return explain(function, name, what, seed)
                parts = list(what.chunks(size))
                ready = self._of_part.setdefault((name, size, samples), [_prepared_once(method) for _ in parts])
                return Maps.together([explain(one, name, part, seed) for one, part in zip(ready, parts, strict=True)])
            except AttributionFailed as error:
                # Noise drawn for other chunks is other noise, so a stochastic method cannot change its mind midway.
                settled = method.stochastic and name in self._explained
                if size == 1 or settled or not error.out_of_memory:
                    raise
            self.in_chunks[name] = size // 2


def _prepared_once(method: Method) -> AttributionFn:
    """The method, prepared on the first model it meets, which is the trained one, and kept so."""
    made: list[AttributionFn] = []

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        if not made:
            made.append(method.attribute if method.prepare is None else method.prepare(model, inputs))
        return made[0](model, inputs, target)

    return attribute
