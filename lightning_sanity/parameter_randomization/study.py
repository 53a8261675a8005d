"""What is studied: the trained model, the explanation of it, and how maps are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.model.structure import Known
from lightning_sanity.similarity import Similarity


@dataclass(frozen=True)
class Study:
    """The trained model, the explanation of it, and how maps are compared.

    Attributes:
        model: The live clone whose weights will be replaced.
        trained: Its trained weights, as far as they are kept anyway and need no second safekeeping.
        what: The explanation of the clone as it is now.
        methods: The methods to follow, prepared.
        similarities: The measures to fill.
        support: Pixels that are not background ``(N, H, W)``, or None.
        known: What was found of the model's structure before.
    """

    model: nn.Module
    trained: Mapping[str, Tensor]
    what: Explanation
    methods: Mapping[str, tuple[Method, AttributionFn]]
    similarities: Sequence[Similarity]
    support: Tensor | None
    known: Known = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many are explained."""
        return len(first(self.what.inputs))
