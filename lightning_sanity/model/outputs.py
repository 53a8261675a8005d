"""Which of the things that a model returns are its scores: found by name or by fit, never by being the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.fx import Proxy

Path = tuple[int | str, ...]

_NAMES = ("logits", "scores", "logit", "score", "predictions", "preds", "y_hat", "out")
"""What scores are called, the likeliest first."""
_COUNTS = ("num_classes", "n_classes", "num_labels")
_TENSORS: Any = (Tensor, Proxy)  # a proxy stands for a tensor while a model is traced symbolically


class OutputError(ValueError):
    """The scores cannot be told among a model's outputs."""


@dataclass(frozen=True)
class Output:
    """One of the things that a model returns.

    Attributes:
        path: Keys and places that lead to it; empty where the model returns a tensor.
        known: How it was found; empty where there was no choice.
    """

    path: Path = ()
    known: str = ""

    @property
    def name(self) -> str:
        """As a reader would write it: ``logits``, ``1``, ``heads.site``."""
        return ".".join(map(str, self.path))

    def of(self, outputs: Any) -> Any:
        """It, among what the model returned; also while the model is traced symbolically."""
        for key in self.path:
            outputs = _at(outputs, key)
        return outputs


def scores_among(
    outputs: Any,
    samples: int | None,
    wanted: int | str | None = None,
    classes: int | None = None,
    labels: Tensor | None = None,
) -> Output:
    """The output that holds the scores.

    Args:
        outputs: What the model returned for ``samples`` samples.
        samples: None where that is not known.
        wanted: The place or name of the output that was asked for.
        classes: How many there are, where that is known.
        labels: The samples' classes ``(N,)``, where they are known: scores are what predicts them.

    Raises:
        OutputError: If the wanted output is not there, or several could be meant.
        TypeError: If there is no tensor.
    """
    if isinstance(outputs, _TENSORS) and wanted is None:
        return Output()
    found = dict(_leaves(outputs))
    if wanted is not None:
        return _wanted(outputs, found, wanted)
    if not found:
        raise TypeError(
            f"the model returned {type(outputs).__name__} without a tensor: pass forward=, a function "
            "(model, *inputs) -> outputs (N, classes)"
        )
    if _detections(outputs):
        raise OutputError(
            "the model returns detections, boxes with scores for every sample, and no row of class scores: say which "
            "number is explained, with target=targets.box(boxes) or a function of these outputs that returns (N,)"
        )
    # A loss is one number and no score; what has no row per sample is none either.
    rows = {path: leaf for path, leaf in found.items() if _has_rows(leaf, samples)} or found
    flat = {path: leaf for path, leaf in rows.items() if leaf.ndim <= 2} or rows
    for known, fitting in _guesses(rows, flat, classes, labels):
        if len(fitting) == 1:
            return Output(fitting[0], known)
    raise OutputError(
        f"several of the model's outputs could be its scores: {listed(flat, samples)}; pass output=, the place or "
        "name of the one to explain, or forward="
    )


def _detections(outputs: Any) -> bool:
    """Whether it is a list with one dictionary of boxes and scores per sample, as torchvision's detectors return it."""
    if not isinstance(outputs, (list, tuple)) or not outputs:
        return False
    return all(isinstance(one, Mapping) and "boxes" in one and "scores" in one for one in outputs)


def _guesses(
    rows: Mapping[Path, Tensor], flat: Mapping[Path, Tensor], classes: int | None, labels: Tensor | None
) -> Iterator[tuple[str, list[Path]]]:
    """Ways to tell scores, the surest first, and what each of them finds."""
    for name in _NAMES:
        named: list[Path] = [path for path in rows if path[-1] == name]
        if named:
            yield f"it is called '{name}'", named
            break
    if len(flat) == 1:
        yield "no other output has a row of numbers per sample", list(flat)
    wide: list[Path] = [path for path, leaf in flat.items() if leaf.ndim == 2 and leaf.shape[1] == classes]
    yield f"it alone is as wide as there are classes, {classes}", wide
    if labels is not None:
        fitting = [path for path, leaf in flat.items() if _predicts(leaf, labels)]
        yield "it alone predicts the labels", fitting
        yield "it predicts the labels, and what else does is its probabilities", _logits_of(fitting, flat)
        known = _classes_in(labels)
        by_labels: list[Path] = [path for path, leaf in flat.items() if leaf.ndim == 2 and leaf.shape[1] == known]
        yield f"it alone is as wide as the labels have classes, {known}", by_labels
    yield "the others are its probabilities", _logits_of(wide or list(flat), flat)


_CHANCE = 0.01
"""How probable so many right predictions may be at most where only the most frequent class is known."""


def _predicts(leaf: Tensor, labels: Tensor) -> bool:
    """Whether the largest of a sample's numbers is its class, more often than chance has it."""
    if leaf.ndim != 2 or leaf.shape[1] < 2 or len(leaf) != len(labels) or int(labels.max()) >= leaf.shape[1]:
        return False
    right = int((leaf.argmax(1) == labels.to(leaf.device)).sum())
    most = int(labels.bincount().max())
    chance = max(most / len(labels), 1 / leaf.shape[1])
    from scipy.stats import binomtest  # half a second to import

    return chance < 1 and bool(binomtest(right, len(labels), chance, "greater").pvalue < _CHANCE)


def are_labels(value: Any) -> TypeGuard[Tensor]:
    """Whether it is class indices, one per sample."""
    if not isinstance(value, Tensor) or value.ndim != 1 or not len(value):
        return False
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return whole and int(value.min()) >= 0


def _classes_in(labels: Tensor) -> int | None:
    """How many classes there are by labels in which each of them occurs; None where that is not so."""
    distinct = labels.unique()
    count = len(distinct)
    return count if count > 1 and int(distinct[0]) == 0 and int(distinct[-1]) == count - 1 else None


def _logits_of(paths: Sequence[Path], flat: Mapping[Path, Tensor]) -> list[Path]:
    """The outputs of which all others are the softmax, its logarithm or the sigmoid."""

    def derived(one: Tensor, other: Tensor) -> bool:
        if one.ndim != 2 or one.shape != other.shape or one.shape[1] < 2:
            return False
        made = (one.softmax(1), one.log_softmax(1), one.sigmoid())
        return any(each.allclose(other.to(each), rtol=1e-3, atol=1e-5) for each in made)

    return [
        path
        for path in paths
        if not any(derived(flat[other], flat[path]) for other in paths if other != path)
        and all(derived(flat[path], flat[other]) for other in paths if other != path)
    ]


def _has_rows(leaf: Tensor, samples: int | None) -> bool:
    return leaf.is_floating_point() and leaf.ndim > 0 and (samples is None or len(leaf) == samples)


def _wanted(outputs: Any, found: Mapping[Path, Tensor], wanted: int | str) -> Output:
    if isinstance(outputs, _TENSORS):
        raise OutputError(f"output={wanted!r} names one of several outputs, but the model returns one tensor")
    if isinstance(wanted, int) and not isinstance(outputs, (*_TENSORS, Mapping)):
        top = len(outputs) if isinstance(outputs, Sequence) else 0
        wanted = wanted + top if wanted < 0 else wanted
    said = str(wanted)
    exact: list[Path] = [path for path in found if path == (wanted,)]
    matches = exact or [path for path in found if said in (".".join(map(str, path)), str(path[-1]))]
    if len(matches) != 1:
        raise OutputError(
            f"output={wanted!r} names {len(matches) or 'none'} of the model's outputs; there are {listed(found)}"
        )
    return Output(matches[0], "output= names it")


def listed(found: Mapping[Path, Tensor], samples: int | None = None) -> str:
    """Outputs with their shapes, as a message names them."""

    def shape(leaf: Tensor) -> str:
        sizes = ["N" if place == 0 and size == samples else str(size) for place, size in enumerate(leaf.shape)]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"

    return ", ".join(f"'{'.'.join(map(str, path))}' {shape(leaf)}" for path, leaf in found.items())


def features_by(rows: Tensor, name: str = "", classes: int | None = None) -> str | None:
    """By what rows of numbers show that they are features of their samples rather than scores; None if by nothing.

    Certain signs only, which no row of scores bears by chance: a projection that is not normalised looks like scores.

    Args:
        rows: Outputs ``(N, F)``.
        name: Of the output, if it has one.
        classes: How many there are, where that is known: as many numbers are their scores, whatever they look like.
    """
    if rows.ndim != 2 or rows.shape[1] < _WIDE or rows.shape[1] == classes or not bool(rows.isfinite().all()):
        return None
    word = name.rpartition(".")[2].lower()
    if word in _FEATURES or word.endswith(("_embeds", "_embedding", "_features")):
        return f"the output is called '{word}'"
    rows = rows.detach().double()
    if bool((rows.norm(dim=1) - 1).abs().max() < _EXACT) and not bool(((rows == 0) | (rows == 1)).all()):
        return "every row has length 1"
    if bool(rows.mean(1).abs().max() < _EXACT) and bool((rows.std(1, correction=0) - 1).abs().max() < _EXACT):
        return "every row has mean 0 and variance 1, as a normalisation leaves it"
    shares = bool((rows.sum(1) - 1).abs().max() < _EXACT) or bool((rows <= 1).all())  # of a softmax, of sigmoids
    if bool((rows >= 0).all()) and not shares:
        return "no number is negative, as a rectifier leaves features"
    return None


_FEATURES = {"embedding", "embeddings", "embeds", "features", "feats", "pooler_output", "hidden", "latent", "latents"}
_WIDE = 32
"""Numbers in a row from which on these signs are none of chance."""
_EXACT = 1e-3


def logits(outputs: Any) -> Tensor:
    """The scores among a model's outputs; see ``scores_among``."""
    found: Tensor = scores_among(outputs, None).of(outputs)
    return found


def classes_of(model: nn.Module) -> int | None:
    """How many classes the model says it has: an attribute, a saved hyper-parameter, its configuration."""
    for holder in (model, getattr(model, "hparams", None), getattr(model, "config", None)):
        for name in _COUNTS:
            count = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
            if isinstance(count, int) and not isinstance(count, bool) and count > 1:
                return count
    return None


def _leaves(outputs: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor with the way to it."""
    if isinstance(outputs, _TENSORS):
        yield path, outputs
        return
    pairs: Iterator[tuple[int | str, Any]]
    if isinstance(outputs, Mapping):
        pairs = iter(outputs.items())
    elif hasattr(outputs, "_fields"):
        pairs = ((name, getattr(outputs, name)) for name in outputs._fields)
    elif isinstance(outputs, (tuple, list)):
        pairs = iter(enumerate(outputs))
    elif is_dataclass(outputs):
        pairs = ((field.name, getattr(outputs, field.name)) for field in fields(outputs))
    else:
        held = vars(outputs) if hasattr(outputs, "__dict__") else {}
        pairs = ((name, value) for name, value in held.items() if isinstance(value, _TENSORS))
    for key, value in pairs:
        yield from _leaves(value, (*path, key))


def _at(outputs: Any, key: int | str) -> Any:
    return outputs[key] if isinstance(outputs, (Mapping, Proxy)) or isinstance(key, int) else getattr(outputs, key)
