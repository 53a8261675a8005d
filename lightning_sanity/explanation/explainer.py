"""Runs attribution methods for a walk: one random stream for all models, within memory, within time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from lightning_sanity.attribution.batching import ROWS, at_most, at_once
from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.explanation.maps import AttributionFailed, Explanation, Maps, explain
from lightning_sanity.resources.budget import alarm
from lightning_sanity.resources.memory import Need, need
from lightning_sanity.resources.random_streams import stream_seed


class Explainer:
    """Explanations of one walk.

    Args:
        methods: The methods, prepared.
        seed: Of their draws.
        deadline: Value of ``time.perf_counter()`` by which the walk is to be done, if any.
        max_batch: Most samples at once, from the beginning; all if None.
        alarm: Ends an explanation that hangs; see ``budget.alarm``.

    Attributes:
        in_chunks: How many samples at once a method gets; all, if it is not in here.
        rows: How many altered copies at once; as many as the method itself allows, if it is not in here.
        ran_out: Whether memory ever ran out.
        max_batch: See above.
    """

    def __init__(
        self,
        methods: Mapping[str, tuple[Method, AttributionFn]],
        seed: int,
        deadline: float | None = None,
        max_batch: int | None = None,
        alarm: Callable[[float | None, str], AbstractContextManager[None]] = alarm,
    ) -> None:
        self.methods, self.seed, self.max_batch, self._alarm = methods, seed, max_batch, alarm
        self.in_chunks: dict[str, int] = {}
        self.rows: dict[str, int] = {}
        self.ran_out = False
        self._needs: dict[str, tuple[Need, int, bool]] = {}  # what it takes, samples at once, whether it makes copies
        self._started, self._deadline = time.perf_counter(), deadline
        self._explained: set[str] = set()
        self._of_part: dict[tuple[str, int, int], list[AttributionFn]] = {}

    def whole(self, samples: int) -> bool:
        """Whether so many samples may be explained at once, as far as is known."""
        return not self.ran_out and samples <= (self.max_batch or samples)

    def __call__(self, name: str, what: Explanation, *key: object) -> Maps:
        """Maps of a method; one seed for all models, so that only the weights differ, unless ``key`` asks for another.

        Raises:
            AttributionFailed: If the method raises or returns no attribution.
            Interrupted: If it hangs.
        """
        method = self.methods[name][0]
        seed = stream_seed(self.seed, "explainer", *(key if key and (key[0] == "again" or method.fresh) else ()))
        with self.patience(f"method '{name}'"), at_most(self.rows.get(name, ROWS)):
            maps = self._within_memory(name, what, seed)
        self._explained.add(name)
        return maps

    def patience(self, what: str, least: float = 1.0) -> AbstractContextManager[None]:
        """End what hangs, as far as there is a deadline, but not before ``least`` seconds."""
        seconds = None
        if self._deadline is not None:
            seconds = max(2 * self._deadline - self._started - time.perf_counter(), least)
        return self._alarm(seconds, f"{what} did not return within twice max_time")

    def measure(self, what: Explanation, stacked: int) -> None:
        """Find out what each method takes, by one and two samples.

        Args:
            what: The batch.
            stacked: Samples that are explained at once where no noise is drawn.
        """
        samples, seed = len(first(what.inputs)), stream_seed(self.seed, "explainer")
        for name, (method, function) in self.methods.items():
            if method.passes == 0:
                continue
            shared = _takes_any_rows(method, function)

            def act(
                count: int, rows: int, name: str = name, run: AttributionFn = function if shared else method
            ) -> None:
                with at_most(rows):
                    explain(run, name, next(what.chunks(count)), seed)

            try:
                taken, _ = need(lambda count: act(count, count))
                several, _ = need(lambda count: act(1, 2))
            except AttributionFailed:  # which the reference will find out, and say
                continue
            multiplies = several.one - taken.one > taken.further / 2
            self._needs[name] = taken, samples if method.stochastic else stacked, multiplies

    @property
    def per_sample(self) -> dict[str, int]:
        """Bytes that each further row of a method takes, as far as they were measured."""
        return {name: taken.further for name, (taken, _, _) in self._needs.items()}

    def fit(self, room: int) -> tuple[int, dict[str, int]]:
        """From now on explain no more at once than so many bytes hold.

        Samples are explained apart, and altered copies of them. A stochastic method keeps its batch, because noise
        drawn for other chunks is other noise: of it only the copies are limited.

        Returns:
            What that takes at most, and the methods for which it is more than ``room``, with what they take.
        """
        most, excess = 0, {}
        for name, (taken, samples, multiplies) in self._needs.items():
            size = max(taken.fit(room), 1)
            self.rows[name] = min(size, ROWS)
            if not self.methods[name][0].stochastic:
                self.in_chunks[name] = min(size, samples)
                samples = self.in_chunks[name]
            copies = max(1, round(self.methods[name][0].passes)) if multiplies else 1
            takes = taken.of(at_once(self.rows[name], samples, copies) if multiplies else samples)
            most = max(most, takes)
            if takes > room:
                excess[name] = takes
        return most, excess

    def _within_memory(self, name: str, what: Explanation, seed: int) -> Maps:
        """As many samples at once as memory allows: halved when it runs out, and it stays halved."""
        method, function = self.methods[name]
        samples = len(first(what.inputs))
        while True:
            size = min(self.in_chunks.get(name, samples), self.max_batch or samples, samples)
            try:
                if size == samples:
                    return explain(function, name, what, seed)
                shared = _takes_any_rows(method, function)
                parts = list(what.chunks(size))
                ready = [function if shared else _prepared_once(method) for _ in parts]
                ready = self._of_part.setdefault((name, size, samples), ready)
                return Maps.together([explain(one, name, part, seed) for one, part in zip(ready, parts, strict=True)])
            except AttributionFailed as error:
                # Noise drawn for other chunks is other noise, so a stochastic method cannot change its mind midway.
                settled = method.stochastic and name in self._explained
                if size == 1 or settled or not error.out_of_memory:
                    raise
            self.in_chunks[name], self.ran_out = size // 2, True


def _takes_any_rows(method: Method, function: AttributionFn) -> bool:
    """Whether a function prepared on a batch serves parts of it as well."""
    return method.of_all or (isinstance(function, Derived) and function.copies is None)


def _prepared_once(method: Method) -> AttributionFn:
    """The method, prepared on the first model it meets, which is the trained one, and kept so."""
    made: list[AttributionFn] = []

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        if not made:
            made.append(method.attribute if method.prepare is None else method.prepare(model, inputs))
        return made[0](model, inputs, target)

    return attribute
