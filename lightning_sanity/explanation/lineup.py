"""Which methods explain what, on one model or on several: names, controls, guests, token ids, batches that are one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from lightning_sanity.attribution import resolve, resolve_all
from lightning_sanity.attribution.controls import output_pattern
from lightning_sanity.attribution.method import AttributionFn, Method
from lightning_sanity.explanation.dependence import alone, in_one, in_one_notes
from lightning_sanity.explanation.guests import Guests
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.options import CommonOptions
from lightning_sanity.explanation.probe import batch_size
from lightning_sanity.explanation.request import Request
from lightning_sanity.explanation.tokens import Embedding, at_embeddings, at_tokens
from lightning_sanity.model.clone import Adapted
from lightning_sanity.result.controls import CONTROLS, POSITIVE_CONTROL

Methods = str | AttributionFn | Sequence[Any] | Mapping[str, Any]
"""Names of methods, functions, or a dictionary of either."""


@dataclass(frozen=True)
class Lineup:
    """The methods of a test and what they explain.

    Attributes:
        subjects: The explanation of each model; token ids are explained at their embeddings.
        methods: By name, the controls among them.
        place: The embedding of the first model, where ids are opened.
        mask: What counts of a map ``(N, H, W)``; None = all.
        notes: What a reader should know of that.
    """

    subjects: tuple[Explanation, ...]
    methods: dict[str, Method]
    place: Embedding | None
    mask: Tensor | None
    notes: tuple[str, ...]

    @property
    def in_one(self) -> bool:
        """Whether the batch is one thing, which may not be divided."""
        return self.subjects[0].in_one


def lineup(
    methods: Methods,
    subjects: Sequence[Explanation],
    outputs: Tensor,
    asked: Request,
    given: CommonOptions,
    guests: Guests,
    max_batch: int | None = None,
    max_memory: int | None = None,
    apart: bool = False,
) -> Lineup:
    """Name the methods, add the controls, and fit both methods and subjects to the kind of input.

    Args:
        methods: What the user asked for.
        subjects: The explanation of each model, of one architecture.
        outputs: Of the models that the positive control is standardised by ``(K, N, ...)``, the first subject's first.
        asked: What is explained.
        given: Options of the test.
        guests: Takes in methods that are not ours.
        max_batch: Most samples to look at together.
        max_memory: The limit that cannot be kept where the batch is one thing.
        apart: Whether samples are known not to depend on one another.

    Raises:
        ValueError: If a method is unknown, or ``tokens`` do not fit the model.
    """
    layer = cast("str | None", given["layer"])
    # Adapted hides the model's own modules one level down.
    chosen = resolve_all(methods, f"model.{layer}" if layer and isinstance(subjects[0].model, Adapted) else layer)
    if given["controls"]:
        chosen |= {name: replace(resolve(name), control=True) for name in CONTROLS if name not in chosen}
    chosen = guests.invite({name: asked.guest(method) for name, method in chosen.items()})
    if POSITIVE_CONTROL in chosen:
        chosen[POSITIVE_CONTROL] = output_pattern(outputs.flatten(0, 1))
    place = mask = None
    notes: tuple[str, ...] = ()
    if at_embeddings(subjects[0].inputs, given["tokens"]):
        opened = [at_tokens(what, asked.names, given["tokens"]) for what in subjects]
        subjects, (_, place, mask) = [what for what, *_ in opened], opened[0]
    if not apart and in_one(subjects[0], outputs[0], max_batch):
        subjects = [replace(what, in_one=True) for what in subjects]
        chosen, joint = alone(chosen, batch_size(subjects[0].inputs))
        notes += in_one_notes(max_batch, max_memory, joint)
    if place is not None:
        chosen = {name: place.adapted(method) for name, method in chosen.items()}
        notes = place.notes + notes
    return Lineup(tuple(subjects), chosen, place, mask, notes)
