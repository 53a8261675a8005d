"""Whether what a model says of a sample depends on the others in its batch.

Nodes of one graph as rows, normalisation over the batch, contrastive scores, retrieval: there the batch is one thing.
It may not be split, stacked or repeated, whatever that would save; and the gradient of all scores together is not that
of each: a sample is explained by its own score, as far as a method can do that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution.batching import rows_of, target_of
from lightning_sanity.attribution.method import Method, first, leaf, outputs_of, replaced
from lightning_sanity.explanation.maps import Explanation

_ROWS = 4
"""Samples that show it, where a model takes them: whatever is paired, halved or turned round meets another there."""
MOST = 64
"""Samples that are explained one by one."""
_HALVES = (torch.float16, torch.bfloat16)


def in_one(what: Explanation, outputs: Tensor | None = None, max_batch: int | None = None) -> bool:
    """Whether a sample's outputs depend on other samples of the batch.

    Two signs: a gradient from one sample's outputs to another sample's input, be it ever so small; and other outputs
    of the same samples among others, which shows what has no gradient.

    Args:
        what: The explanation.
        outputs: The model's outputs on the whole batch, if they are there. They are not looked at where the explanation
            says that some samples were seen to have the same among others.
        max_batch: Most samples to look at together, two at the least.
    """
    total, rows = len(first(what.inputs)), max(2, min(_ROWS, max_batch or _ROWS))
    index = torch.arange(rows, device=first(what.inputs).device) % total
    try:
        few = _rows(what, index)
        seen = _seen(_told_apart(few) if total < rows else few)
    except Exception:  # it takes the whole batch or none of it
        seen = None
    if seen is None or len(seen[1]) != rows:
        try:
            return _meet(*_seen(what))
        except Exception:  # no outputs are no sign
            return False
    known = outputs is None or what.apart or total < 2
    return _meet(*seen) or (not known and _differ(what, outputs, rows))  # type: ignore[arg-type]


def alone(methods: Mapping[str, Method], samples: int) -> tuple[dict[str, Method], tuple[str, ...]]:
    """The methods, each sample explained by its own score while all others stay as they are; and those that cannot.

    A method that looks inside the model sees the whole batch there, and explains the scores of all samples together.
    So does any method of more than ``MOST`` samples, each of which would take as many passes as the batch takes now.
    """
    found = {name: _alone(method) if samples <= MOST else method for name, method in methods.items()}
    return found, tuple(n for n, method in methods.items() if found[n] is method and method.passes > 0)


def _alone(method: Method) -> Method:
    inside = method.prepare is not None and method.over is None  # for a layer, say
    if method.passes == 0 or method.foreign or inside:
        return method
    refuses, settle, over = method.refuses, method.settle, method.over

    def of_one(model: nn.Module, inputs: Any, target: Tensor | None, place: int) -> tuple[nn.Module, Any, Any]:
        own = slice(place, place + 1)
        return _Among(model, inputs, place).eval(), rows_of(inputs, own), target_of(target, own)

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        samples = range(len(first(inputs)))
        return torch.cat([method(*of_one(model, inputs, target, place)) for place in samples])

    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        return None if refuses is None else refuses(*of_one(model, inputs, target, 0))

    return replace(
        method,
        attribute=attribute,
        refuses=reason,
        prepare=None,
        completeness=None,
        over=over and (lambda segments: _alone(over(segments))),
        settle=settle and (lambda model, inputs, target: _alone(settle(*of_one(model, inputs, target, 0)))),
    )


class _Among(nn.Module):
    """A model of one sample, any number of variants of it, among the others of its batch as they are."""

    def __init__(self, model: nn.Module, inputs: Any, place: int) -> None:
        super().__init__()
        self.model, self._inputs, self._place = model, inputs, place

    def forward(self, variants: Tensor, *_: Any) -> Tensor:
        value, place, found = first(self._inputs), self._place, []
        for variant in variants.split(1):
            batch = torch.cat([value[:place], variant, value[place + 1 :]])
            found.append(outputs_of(self.model, replaced(self._inputs, batch))[place : place + 1])
        return torch.cat(found)


def in_one_notes(
    max_batch: int | None = None, max_memory: int | None = None, joint: Sequence[str] = ()
) -> tuple[str, ...]:
    """What a reader must know of such a batch.

    Args:
        max_batch: What the user asked for, which is not followed.
        max_memory: Likewise.
        joint: Methods that cannot explain one sample's score alone.
    """
    limits = [name for name, value in (("max_batch", max_batch), ("max_memory", max_memory)) if value is not None]
    kept = f"; it was not split, whatever {' and '.join(limits)} said" if limits else ""
    return (
        "the outputs for a sample depend on the other samples of the batch: each is explained by its own score, among "
        f"these others alone{kept}",
        *([f"maps of {', '.join(joint)} show what a sample does to the scores of the whole batch"] if joint else []),
    )


def _rows(what: Explanation, index: Tensor) -> Explanation:
    target = None if what.target is None else what.target[index]
    return replace(what, inputs=rows_of(what.inputs, index), target=target)


def _told_apart(what: Explanation) -> Explanation:
    """The same with rows that differ: copies of one sample would hide who meets whom."""
    value = first(what.inputs)
    if not value.is_floating_point():
        return what
    apart = 1 + torch.arange(len(value), device=value.device, dtype=value.dtype) / 100
    return replace(what, inputs=replaced(what.inputs, value * apart.reshape(-1, *[1] * (value.ndim - 1))))


def _seen(what: Explanation) -> tuple[Tensor | None, Tensor]:
    """The explained input and the outputs of one pass; no input where that has no gradient."""
    value = first(what.inputs)
    if value.is_floating_point():
        with suppress(Exception), torch.enable_grad():
            explained = leaf(value)
            return explained, outputs_of(what.model, replaced(what.inputs, explained))
    return None, what.outputs()


def _meet(explained: Tensor | None, outputs: Tensor) -> bool:
    """Whether a gradient leads from one sample to another."""
    if explained is None:
        return False
    samples = len(explained)
    try:
        flat = outputs.reshape(len(outputs), -1)
        weights = torch.linspace(1, 2, flat.shape[1], device=flat.device, dtype=flat.dtype)
        # Who has others before and behind meets whoever is paired, turned round, summed up to here or from here on.
        places = (1,) if samples == _ROWS else sorted({0, min(1, samples - 1), samples - 1})
        slopes = [torch.autograd.grad(flat[place] @ weights, explained, retain_graph=True)[0] for place in places]
    except Exception:  # no gradient is no sign
        return False
    for place, slope in zip(places, slopes, strict=True):
        others = torch.cat([slope[:place], slope[place + 1 :]])
        if bool(((others != 0) & others.isfinite()).any()):
            return True
    return False


def _differ(what: Explanation, outputs: Tensor, rows: int) -> bool:
    """Whether some samples among others have other outputs."""
    total = len(outputs)
    index = torch.tensor([total - 1, 0, total // 2][:rows], device=outputs.device)
    try:
        found = _rows(what, index).outputs()
    except Exception:
        return False
    if found.dtype in _HALVES or len(found) != len(index):  # in 16 bits a batch of another size differs by itself
        return False
    expected = outputs.detach()[index].to(found)
    largest = float(torch.where(expected.isfinite(), expected, 0).abs().amax())
    if found.shape != expected.shape:  # a column per row of the batch, such as one image's likeness to every text
        return True
    return not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
