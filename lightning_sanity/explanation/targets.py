"""Which number of a model's outputs is explained, where a class index does not say it.

Any function ``outputs -> (N,)`` can be passed as ``target=``. What it should ask of each sample and keep fixed while
the model is re-initialised (a predicted mask, a reference embedding) is a ``Target``: a choice made once from the
trained model's outputs, and a score of any model's outputs given that choice.

For detectors, pick the box in a function: ``target=lambda found: torch.stack([one["scores"][k] for one in found])``, or
``box`` where boxes move with the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_sanity.model.outputs import logits


@dataclass(frozen=True)
class Target:
    """A number per sample.

    Attributes:
        name: What results call it.
        score: ``(outputs, choice) -> (N,)``, differentiable.
        choose: ``outputs -> choice (N, ...)``: what is asked of each sample, one row each. Called once on the trained
            model's outputs; with ``retarget=True`` again on every re-initialised model's.
        among: The same target, told which tokens of a padded batch are real, bool ``(N, T)``; None where that does not
            matter. Known from an input called "attention_mask" or "mask", or from ``Tokens(mask=...)``.
    """

    name: str
    score: Callable[[Any, Tensor], Tensor]
    choose: Callable[[Any], Tensor]
    among: Callable[[Tensor], Target] | None = None


def class_mask(index: int = 0, mask: Tensor | None = None) -> Target:
    """Segmentation: the sum of a class's scores over the pixels that are predicted as that class.

    Args:
        index: The class, of outputs ``(N, classes, ...)``. With a single class, pixels with a positive score are its.
        mask: Pixels ``(N, ...)`` to sum over instead.

    Vinogradova et al., "Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping",
    AAAI 2020 (arXiv:2002.11434).
    """

    def choose(outputs: Any) -> Tensor:
        scores = _dense(outputs, index)
        if mask is not None:
            if mask.shape != scores[:, index].shape:
                raise ValueError(
                    f"class_mask: the mask has shape {tuple(mask.shape)}, the outputs {tuple(scores[:, index].shape)}"
                )
            return mask.to(scores)
        found = scores.argmax(1) == index if scores.shape[1] > 1 else scores[:, 0] > 0
        if not bool(found.any()):
            raise ValueError(
                f"class_mask: class {index} is predicted nowhere on the probe; choose another, or pass mask="
            )
        return found.to(scores.dtype)

    return Target(
        f"class {index} over its mask",
        lambda outputs, chosen: (_dense(outputs, index)[:, index] * chosen).flatten(1).sum(1),
        choose,
    )


def _dense(outputs: Any, index: int) -> Tensor:
    if isinstance(outputs, dict) and isinstance(outputs.get("out"), Tensor):  # torchvision's segmentation models
        return _dense(outputs["out"], index)
    scores = logits(outputs)
    if scores.ndim < 3 or not 0 <= index < scores.shape[1]:
        raise ValueError(
            f"class_mask needs scores (N, classes, ...) with class {index}, not outputs of shape {tuple(scores.shape)}"
        )
    return scores


def position(place: int | Tensor, index: int | Tensor | None = None) -> Target:
    """Sequences: the score of a class at one position of outputs ``(N, T, classes)``.

    Args:
        place: The position, one for all or one per sample ``(N,)``; negative counts from the end. Of a padded batch
            with a mask only real tokens count, so that -1 is the last of them whichever side is padded.
        index: The class there, one for all or ``(N,)``; the predicted one if None.
    """
    return _position(place, index, None)


def _position(place: int | Tensor, index: int | Tensor | None, real: Tensor | None) -> Target:
    def there(outputs: Any) -> Tensor:
        scores = logits(outputs)
        if scores.ndim != 3:
            raise ValueError(f"position needs scores (N, T, classes), and the model returned {tuple(scores.shape)}")
        return scores

    def choose(outputs: Any) -> Tensor:
        scores = there(outputs)
        counted = torch.ones(scores.shape[:2], dtype=torch.bool, device=scores.device)
        if real is not None and real.shape == counted.shape:
            counted = real.to(scores.device)
        at = _counted_off(torch.as_tensor(place, device=scores.device).expand(len(scores)), counted)
        own = scores[torch.arange(len(scores), device=scores.device), at].argmax(-1)
        chosen = own if index is None else torch.as_tensor(index, device=scores.device).expand(len(scores))
        return torch.stack([at, chosen], 1)

    def score(outputs: Any, chosen: Tensor) -> Tensor:
        scores = there(outputs)
        return scores[torch.arange(len(scores), device=scores.device), chosen[:, 0], chosen[:, 1]]

    return Target("a class at a position", score, choose, lambda real: _position(place, index, real))


def _counted_off(place: Tensor, counted: Tensor) -> Tensor:
    """Positions ``(N,)`` of the tokens that a place means among those that count, bool ``(N, T)``."""
    total = counted.sum(1)
    wanted = torch.where(place < 0, total + place, place)
    wrong = (wanted < 0) | (wanted >= total)
    if bool(wrong.any()):
        sample = int(wrong.nonzero()[0])
        raise ValueError(
            f"position: sample {sample} has {int(total[sample])} tokens that count, so there is no position "
            f"{int(place[sample])}; choose from {-int(total[sample])} to {int(total[sample]) - 1}"
        )
    return (counted & (counted.cumsum(1) - 1 == wanted[:, None])).int().argmax(1)


def cosine_to(reference: Tensor) -> Target:
    """Embeddings: the cosine of outputs ``(N, D)`` to a reference.

    Args:
        reference: One for all ``(D,)`` or one per sample ``(N, D)``. Not the model's own outputs on the same inputs:
            to those every cosine is 1, and its gradient 0.
    """

    def choose(outputs: Any) -> Tensor:
        found = logits(outputs)
        try:
            return reference.detach().to(found).expand(found.shape).clone()
        except RuntimeError as error:
            raise ValueError(
                f"cosine_to: a reference of shape {tuple(reference.shape)} does not fit outputs {tuple(found.shape)}"
            ) from error

    return Target(
        "cosine to a reference", lambda outputs, chosen: F.cosine_similarity(logits(outputs), chosen, dim=1), choose
    )


def labels(index: Tensor | list[int] | None = None) -> Target:
    """Multi-label: the sum of the scores of several classes.

    Args:
        index: The classes, the same for all samples; those each sample is predicted to have (score > 0) if None.
    """

    def choose(outputs: Any) -> Tensor:
        scores = logits(outputs)
        if index is None:
            return (scores > 0).to(scores.dtype)
        chosen = torch.zeros_like(scores)
        chosen[:, torch.as_tensor(index, device=scores.device)] = 1
        return chosen

    return Target("the predicted labels", lambda outputs, chosen: (logits(outputs) * chosen).sum(1), choose)


def box(boxes: Tensor, index: int | None = None) -> Target:
    """Detection: the score of the box that overlaps a given one, weighted by that overlap.

    Of a list with one dictionary of ``boxes`` ``(B, 4)``, ``scores`` and ``labels`` per sample, as torchvision's
    detectors return it: ``max_b scores_b * IoU(boxes_b, box)``; 0, without a gradient, where nothing was detected.

    Args:
        boxes: One box per sample ``(N, 4)``, as (x1, y1, x2, y2).
        index: Only detections with this label count.

    Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps", CVPR 2021 (arXiv:2006.03204).
    """
    from torchvision.ops import box_iou

    def score(outputs: Any, chosen: Tensor) -> Tensor:
        found = []
        for one, wanted in zip(outputs, chosen, strict=True):
            kept = one["scores"] if index is None else one["scores"] * (one["labels"] == index)
            overlap = box_iou(one["boxes"].detach(), wanted[None])[:, 0]
            found.append((kept * overlap).amax() if len(kept) else wanted.sum() * 0)
        return torch.stack(found)

    return Target("the score of a box", score, lambda outputs: boxes.to(outputs[0]["boxes"]))


def check_target(given: Any, *, labels: bool = False) -> None:
    """Refuse what is no target, whatever the model.

    Args:
        given: See ``parameter_randomization_test``.
        labels: Whether ``"labels"`` means something here.

    Raises:
        ValueError: What would be right.
    """
    if labels and isinstance(given, str) and given == "labels":
        return
    integer = isinstance(given, int) and not isinstance(given, bool)
    integer |= isinstance(given, (list, tuple)) and all(type(each) is int for each in given)
    if given is not None and not (integer or callable(given) or isinstance(given, (Tensor, Target))):
        own = "'labels', " if labels else ""
        raise ValueError(
            f"target must be a class index or one per sample as a tensor, {own}a function outputs -> (N,), one of "
            f"lightning_sanity.targets, or None for the predicted class, not {given!r}"
        )
