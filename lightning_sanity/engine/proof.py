"""The proof of a walk: the plain path explains a few samples as well, with the weights as they are.

One plain pass shows gradient and outputs, so a method that reads nothing but outputs is proven by those that another
one's pass returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from lightning_sanity.attribution.batching import ROWS, at_most, rows_of
from lightning_sanity.attribution.derived import Derived, Reading
from lightning_sanity.attribution.method import first
from lightning_sanity.engine.rounding import in_double, relative, rounding_explains
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.resources.random_streams import generator, reseed, stream_seed

SAMPLES = 3
"""By which a method is proven."""


def proof_depth(seed: int, depths: int) -> int:
    """A depth drawn by the seed: neither the last nor in the middle, where turning all rows round goes unseen."""
    last = depths - 1
    able = [depth for depth in range(last) if 2 * depth != last] or [last]
    return able[stream_seed(seed, "proof") % len(able)]


def in_order(methods: Mapping[str, Derived]) -> list[str]:
    """Names in the order in which they are proven: who reads outputs alone comes behind who makes a pass for more."""
    return sorted(methods, key=lambda name: methods[name].reads_outputs)


class PlainPath:
    """What the plain path makes of an explanation, for as long as the weights stay as they are.

    Args:
        what: The explanation.
        seed: Of the explainers' draws, and of which samples are looked at.
        rows: Per method, how many samples are explained at once; as many as a method usually does, if it is not here.
        listens: Whether some method reads nothing but the outputs of another one's pass.
    """

    def __init__(self, what: Explanation, seed: int, rows: Mapping[str, int], listens: bool) -> None:
        self._what, self._seed, self._rows = what, seed, rows
        self._samples, self._device = len(first(what.inputs)), first(what.inputs).device
        self._some = self._few()
        self._outputs: Tensor | None = None
        self._listens = listens  # to listen is to compare inputs, and to wait for the device

    def difference(self, name: str, method: Derived, ours: Tensor, tolerance: float) -> float:
        """How far an attribution is from the plain path's, as a share of its norm; 0 where only rounding parts them.

        A few samples are enough, but for a method that draws something for the whole batch. A sum over copies may be
        dominated by one that lies where rounding decides: the plain path is then asked how far it is from itself.
        """
        whole = method.copies is not None
        some = torch.arange(self._samples, device=self._device) if whole else self._some
        what = _rows(self._what, some)
        plain = self._of_outputs(method, what) if method.reads_outputs else None
        plain = self._plainly(name, method, what) if plain is None else plain
        off = relative(ours[some], plain)
        if off <= tolerance or not whole:
            return off
        return 0.0 if rounding_explains(off, plain, lambda: self._plainly(name, method, in_double(what))) else off

    def _few(self) -> Tensor:
        """Up to three samples in an order without symmetry, drawn by the seed."""
        draw = torch.randperm(self._samples, generator=generator(self._seed, "proof", self._samples))[:SAMPLES]
        return draw.to(self._device)

    def _plainly(self, name: str, method: Derived, what: Explanation) -> Tensor:
        rows = self._rows.get(name, max(self._samples, ROWS))
        reseed(self._seed, self._device)
        quiet: AbstractContextManager[list[Tensor]] = nullcontext([])
        asks = self._listens and self._outputs is None and method.copies is None
        with what.overheard() if asks else quiet as heard, torch.enable_grad(), at_most(rows):
            parts = [
                method.plain(part.model, part.inputs, part.target)
                for part in what.chunks(rows if method.copies is None else self._samples)
            ]
        if heard:
            self._outputs = heard[0]
        return torch.cat([part.detach() for part in parts])

    def _of_outputs(self, method: Derived, what: Explanation) -> Tensor | None:
        """By the outputs of the same samples that another method's plain pass returned, if there was one."""
        if self._outputs is None:
            return None
        return method.of(what.opened_inputs(), Reading({}, outputs=self._outputs))


def _rows(what: Explanation, some: Tensor) -> Explanation:
    target = None if what.target is None else what.target[some]
    return replace(what, inputs=rows_of(what.inputs, some), target=target)
