"""What is explained inside a network rather than handed to it: the embeddings of token ids.

Shared walks explain an input. Where ids are explained at their embeddings, the network behind these is walked, which
is the same at all depths but those at which the embeddings themselves are random: there the same network gets others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_sanity.attribution.batching import of_few
from lightning_sanity.attribution.method import first
from lightning_sanity.engine.path import Path, named_tensors
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.model.graph import trace


class Opening:
    """The explained values of a batch, for trained and for random weights.

    Args:
        what: The explanation.

    Attributes:
        asked: The same of a model that is handed what is explained; as the trained model makes it.
    """

    def __init__(self, what: Explanation) -> None:
        self.what, self.asked = what, _opened(what, what.model)
        self._units: frozenset[int] = frozenset()

    def find_units(self, path: Path) -> None:
        """Find out on which units of a path the explained values hang."""
        opened = self.what.opened
        if opened is None or self.asked.inputs is self.what.inputs:
            return

        def read(inputs: Any) -> list[str]:
            given = inputs if isinstance(inputs, tuple) else (inputs,)
            graph = trace(self.what.model, given, lambda *values: first(opened(self.what.model, values)))
            return [name for name in graph.uses if graph.reaching(name)]

        tensors = dict(named_tensors(self.what.model))
        self._units = path.units_of(tensors[name] for name in of_few(read, self.what.inputs))

    def closed(self, steps: Sequence[frozenset[int]]) -> list[frozenset[int]]:
        """The depths at which the trained model's values are explained."""
        return [step for step in steps if not step & self._units]

    def parts(
        self, what: Explanation, steps: Sequence[frozenset[int]], path: Path
    ) -> Iterator[tuple[Explanation, tuple[int, ...]]]:
        """The depths at which the same values are explained, with what that is.

        Args:
            what: The explanation, of this batch or of another.
            steps: Indices of the random units at each depth.
            path: Has their weights.
        """
        depths: dict[frozenset[int], list[int]] = defaultdict(list)
        for depth, step in enumerate(steps):
            depths[step & self._units].append(depth)
        for key, some in depths.items():
            if not key:
                yield self.asked if what is self.what else _opened(what, what.model), tuple(some)
            else:
                network: Any = path.random if key == self._units else path.mixed(key)
                yield _opened(what, network.model), tuple(some)


@torch.no_grad()
def _opened(what: Explanation, model: nn.Module) -> Explanation:
    """An explanation of what this model makes of the inputs."""
    if what.opened is None or what.embedded is None:
        return what
    return replace(what, model=what.embedded(what.model), inputs=what.opened(model, what.inputs))
