"""Where maps can differ from 0 at all: the positions of the input on which the explained numbers depend.

The score of a region or of one position, a forecast from the last step, an upper corner that is cut off: outside the
receptive field every map of every model is 0. Such ties make unrelated maps look alike, and a network degenerate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.batching import rows_of, target_of
from lightning_sanity.attribution.method import AttributionFn, first
from lightning_sanity.explanation.maps import AttributionFailed, Explanation, explain
from lightning_sanity.explanation.tokens import Embedding

_NEARLY_ALL = 0.75
"""Share of the positions from which a map is compared as a whole: a border that is cut off disturbs no measure, and
structural similarity needs whole maps."""
_LEAST = 3  # positions that a rank correlation takes


def reach_of(
    models: Iterable[Explanation], gradient: AttributionFn, key: int = 0, max_batch: int | None = None
) -> Tensor | None:
    """Positions on which the explained numbers can depend, laid out like maps ``(N, H, W)``; None if on nearly all.

    A position counts if one model's gradient is not 0 there, on one sample: a single model's may be 0 for reasons of
    its own, at units that are off. A little input noise moves what lies exactly at a kink, a black background without
    biases. Where each sample is asked a question of its own, its positions are its own as well.

    Args:
        models: The same batch, explained with several weights; asked for one after the other, while it matters.
        gradient: The plain gradient of an explanation.
        key: Of the noise.
        max_batch: Most samples at once.
    """
    reached: Tensor | None = None
    for number, what in enumerate(models):
        found: list[Tensor] = []
        try:
            for part in _parts(what, what.with_noise([key + number]), gradient, max_batch):
                found.append(part)
                if what.question is None and bool(part.any(0).float().mean() >= _NEARLY_ALL):
                    return None  # one sample may show it, and the others can only add to it
        except AttributionFailed:  # what has no gradient tells nothing, and is compared as a whole
            return None
        here = torch.cat(found)
        if what.question is None:
            here = here.any(0).expand_as(here)
        reached = here if reached is None else reached | here.to(reached.device)
        if bool(reached.float().mean() >= _NEARLY_ALL):
            return None
    return reached if reached is not None and bool(reached.any()) else None  # no gradient anywhere tells nothing


def _parts(what: Explanation, noisy: Explanation, gradient: AttributionFn, max_batch: int | None) -> Iterator[Tensor]:
    """Where the gradient is not 0, ``(n, H, W)``: of one sample, then of the others; of all if they are one thing."""
    samples = len(first(noisy.inputs))
    if what.question is None and not what.in_one and samples > 1:
        others = slice(1, samples)
        with suppress(AttributionFailed):  # a model for one batch size only
            yield explain(gradient, "gradient", next(noisy.chunks(1)), 0).magnitude != 0
            noisy = replace(noisy, inputs=rows_of(noisy.inputs, others), target=target_of(noisy.target, others))
    for part in [noisy] if max_batch is None else noisy.chunks(max_batch):
        yield explain(gradient, "gradient", part, 0).magnitude != 0


def within_reach(
    models: Iterable[Explanation],
    place: Embedding | None,
    mask: Tensor | None,
    key: int = 0,
    max_batch: int | None = None,
) -> tuple[Tensor | None, tuple[str, ...]]:
    """The mask ``(N, H, W)`` of what is compared, less what the explained numbers cannot depend on; and a note.

    Args:
        models: See ``reach_of``.
        place: Where tokens are opened, if they are.
        mask: What counts already; None = all.
        key: See ``reach_of``.
        max_batch: See ``reach_of``.
    """
    plain = resolve("gradient") if place is None else replace(place, reduce="norm").adapted(resolve("gradient"))
    reach = reach_of(models, plain.attribute, key, max_batch)
    if reach is None or bool((reach if mask is None else reach | ~mask).all()):
        return mask, ()
    left = reach.flatten(1).sum(1)
    least, most = int(left.min()), int(left.max())
    count = f"{most}" if least == most else f"{least} to {most}"
    note = (
        f"maps are compared at {count} of {reach[0].numel()} positions: nowhere else can the explained score depend on "
        "the input, whatever the weights are"
    )
    return (reach if mask is None else mask & reach), (note,)


def too_narrow(mask: Tensor | None) -> str | None:
    """Why no maps can be compared within a mask, if so."""
    left = _LEAST if mask is None else int(mask.flatten(1).sum(1).min())
    if left >= _LEAST:
        return None
    return (
        f"the explained score of a sample depends on {left} position{'' if left == 1 else 's'} of the input, and maps "
        f"are told apart by the order of {_LEAST} or more: explain a score that sees more of it, such as a mean over a "
        "region (targets.class_mask)"
    )
