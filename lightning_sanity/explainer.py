"""Runs attribution methods for a walk: one random stream for all models, within memory, within time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

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
        alarm: Ends an explanation that hangs; see ``budget.alarm``.

    Attributes:
        in_chunks: Methods for which memory ran out, and how many samples at once they get now.
    """

    def __init__(
        self,
        methods: Mapping[str, tuple[Method, AttributionFn]],
        seed: int,
        deadline: float | None = None,
        alarm: Callable[[float | None, str], AbstractContextManager[None]] = alarm,
    ) -> None:
        self._alarm = alarm
        self.methods, self.seed = methods, seed
        self.in_chunks: dict[str, int] = {}
        self._started, self._deadline = time.perf_counter(), deadline
        self._explained: set[str] = set()

    def __call__(self, name: str, what: Explanation, *key: object) -> Maps:
        """Maps of a method; one seed for all models, so that only the weights differ, unless ``key`` asks for another.

        Raises:
            AttributionFailed: If the method raises or returns no attribution.
            Interrupted: If it hangs.
        """
        method = self.methods[name][0]
        seed = stream_seed(self.seed, "explainer", *(key if key and (key[0] == "again" or method.fresh) else ()))
        with self._alarm(self._patience(), f"method '{name}' did not return within twice max_time"):
            maps = self._within_memory(name, what, seed)
        self._explained.add(name)
        return maps

    def _patience(self) -> float | None:
        """Seconds after which a single explanation counts as hung."""
        if self._deadline is None:
            return None
        return max(2 * self._deadline - self._started - time.perf_counter(), 1.0)

    def _within_memory(self, name: str, what: Explanation, seed: int) -> Maps:
        """As many samples at once as memory allows: halved when it runs out, and it stays halved."""
        method, function = self.methods[name]
        samples = len(first(what.inputs))
        while True:
            size = min(self.in_chunks.get(name, samples), samples)
            try:
                if size == samples:
                    return explain(function, name, what, seed)
                return Maps.together([explain(method, name, part, seed) for part in what.chunks(size)])
            except AttributionFailed as error:
                # Noise drawn for other chunks is other noise, so a stochastic method cannot change its mind midway.
                settled = method.stochastic and name in self._explained
                if size == 1 or settled or not error.out_of_memory:
                    raise
            self.in_chunks[name] = size // 2
