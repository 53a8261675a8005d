"""How much is explained at once where memory is limited: sized by what one and two samples take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_sanity.attribution.batching import ROWS
from lightning_sanity.attribution.method import first, output_gradient
from lightning_sanity.engine import FAILURES, Engine
from lightning_sanity.explanation.explainer import Explainer
from lightning_sanity.explanation.maps import Explanation, Reference, reduced
from lightning_sanity.parameter_randomization.study import Study
from lightning_sanity.randomization.unit import Unit
from lightning_sanity.resources.memory import Meter, bytes_of, need

_DRAWING = 3
"""A unit is re-initialised beside its old values, and compared with them."""
_NOISY = 3
"""Noisy copies of the batch are made of stacked copies and stacked patterns."""
_TRACING = 8
"""Samples' worth of one explanation that taking a network apart needs: it runs five, and keeps what each operation
returns."""


def rows_within(limit: int | None, model: nn.Module, what: Explanation) -> int:
    """How many rows a gradient may be taken of at once beside a clone and a twin, before anything else is measured."""
    if limit is None or not first(what.inputs).is_floating_point():
        return ROWS
    weights = 2 * bytes_of([*model.parameters(), *model.buffers()])

    def act(samples: int) -> None:
        few = next(what.chunks(samples))
        output_gradient(few.model, few.inputs, few.target)

    try:
        taken, _ = need(act)
    except FAILURES:
        return 1
    return min(ROWS, max(1, taken.fit(limit - weights)))


class Room:
    """A limit on memory, and what was decided to keep it.

    Args:
        limit: Bytes above the trained model.
        study: What is explained, of which model, and how maps are compared.
        steps: Which units are random at each depth.
        twin: Whether trials build twins of the model.
        repeats: Noisy copies of the batch that are explained together.
        trials: How many are expected.

    Attributes:
        left: Bytes for explaining, beside what is always there.
        no_walks: Whether it was too little to walk all depths at once.
    """

    def __init__(
        self,
        limit: int,
        study: Study,
        steps: Sequence[Sequence[Unit]],
        twin: bool,
        repeats: int,
        trials: int,
    ) -> None:
        model, what, similarities, support = study.model, study.what, study.similarities, study.support
        self.limit, self._what = limit, what
        self._samples = study.samples
        self._model = bytes_of([*model.parameters(), *model.buffers()])

        def compare(samples: int) -> Reference:
            few = next(what.chunks(samples))
            maps = reduced(first(few.inputs).float(), "any", few)
            reference = Reference(maps, similarities, None if support is None else support[: len(maps.signed)])
            reference.against(maps, len(maps.signed) - 1)
            return reference

        comparing, kept = need(compare)
        passing = _passing(what)
        units = dict.fromkeys(unit for step in steps for unit in step)
        drawing = max(bytes_of(map(model.get_parameter, unit.parameters)) for unit in units)
        tables = 8 * len(similarities) * trials * len(steps) * self._samples
        one = next(what.chunks(1))
        last = trials * self._samples * bytes_of([reduced(first(one.inputs).float(), "any", one).magnitude])
        stacked = repeats * self._samples
        self._stacked = stacked if stacked <= ROWS else self._samples
        batches = 1 + _NOISY * self._stacked // self._samples
        self._always = self._model * (2 if twin else 1) + batches * bytes_of([first(what.inputs)])
        self._always += len(study.methods) * (kept.of(self._samples) + tables)
        self._always += last * (1 if what.question is None else 2)
        # The clone was proven alive with a second set of weights, all zero.
        self._least = max(comparing.of(self._samples), passing, _DRAWING * drawing, self._model)
        self.left = limit - self._always
        self._explaining = self._walking = 0
        self._too_large: dict[str, int] = {}
        self.no_walks = False

    def divide(self, explain: Explainer) -> None:
        """Let the methods explain as much at once as fits."""
        explain.measure(self._what, self._stacked)
        self._explaining, self._too_large = explain.fit(self.left)

    def holds(self, engine: Engine, explain: Explainer) -> bool:
        """Whether the engine's walks fit beside what the plain loop needs; if so, both are cut to what does."""
        kept = engine.kept_bytes()
        alone, (beside, excess) = self._explaining, explain.fit(self.left - kept)
        walk = None if set(excess) - set(self._too_large) else engine.fit(self.left - kept, explain.rows)
        if walk is None:
            self.no_walks = True
            explain.fit(self.left)
            return False
        self._walking = max(self._walking, alone, kept + max(walk, beside, self._least))
        return True

    def traces(self, explain: Explainer) -> bool:
        """Whether there is room to take the network apart, which comes before any walk."""
        tracing = self._model + _TRACING * min(explain.per_sample.values(), default=0)
        self.no_walks = tracing > self.left
        if not self.no_walks:
            self._walking = max(self._walking, tracing)
        return not self.no_walks

    def settings(self, explain: Explainer) -> dict[str, Any]:
        """What was decided, in plain values."""
        return {
            "max_bytes": self.limit,
            "predicted_bytes": self._always + max(self._least, self._explaining, self._walking),
            "chunks": dict(explain.in_chunks),
            "rows": dict(explain.rows),
        }

    def notes(self) -> tuple[str, ...]:
        """What did not fit."""
        found = []
        if self._too_large:
            takes = ", ".join(f"{name} {_megabytes(size)}" for name, size in self._too_large.items())
            left = f"{_megabytes(max(self.left, 0))} of max_memory are left beside weights and maps"
            found.append(f"max_memory was not kept: {left}, and these take more at the least: {takes}")
        elif self._always + self._least > self.limit:
            least = _megabytes(self._always + self._least)
            found.append(f"max_memory was not kept: weights, maps and one plain pass take {least}")
        if self.no_walks:
            found.append("max_memory leaves no room to explain all depths at once: one after the other instead")
        return tuple(found)


def _passing(what: Explanation) -> int:
    """What a plain pass over the batch takes."""
    try:
        return need(lambda samples: next(what.chunks(samples)).outputs())[0].of(len(first(what.inputs)))
    except FAILURES:  # a model for one batch size only
        with Meter() as meter:
            what.outputs()
        return meter.peak


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
