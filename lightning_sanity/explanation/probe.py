"""The probe: the fixed batch that is explained, how it is chosen and how it is recognised."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_sanity.model.digest import update_digest
from lightning_sanity.resources.random_streams import generator, isolated_rng
from lightning_sanity.resources.restored_state import put_back, streams

_LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_INPUT_KEYS = ("image", "images", "input", "inputs", "pixel_values", "x")
_KEYWORD = ("input_ids", "inputs_embeds")
"""Keys of batches that are a model's keyword arguments as a whole, but for the labels."""


class ProbeError(ValueError):
    """The probe cannot be formed from what was given."""


@dataclass(frozen=True)
class Probe:
    """A fixed batch.

    Attributes:
        inputs: Positional arguments of the model, or a dictionary of its keyword arguments; tensors ``(N, ...)`` on
            the CPU.
        labels: Class labels ``(N,)`` where known; used to balance, never to explain.
        ids: Dataset indices, where known.
        digest: SHA-256 over the inputs.
    """

    inputs: tuple[Any, ...] | dict[str, Any]
    labels: Tensor | None
    ids: tuple[int, ...] | None
    digest: str

    def __len__(self) -> int:
        """Number of samples."""
        return batch_size(self.inputs)


def digest(inputs: Any) -> str:
    """SHA-256 over types, shapes and contents of every tensor in ``inputs``."""
    sha = hashlib.sha256()
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            update_digest(sha, leaf)
        else:
            sha.update(repr(leaf).encode())
    return sha.hexdigest()


def different(inputs: Any) -> int:
    """How many of the samples differ from one another.

    >>> different(torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 2.0]]))
    2
    """
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    numbered = [torch.unique(tensor.flatten(1), dim=0, return_inverse=True)[1] for tensor in tensors]
    return len(torch.unique(torch.stack(numbered), dim=1).T) if numbered else 0


def batch_size(inputs: Any) -> int:
    """The common first dimension of the tensors in ``inputs``.

    Raises:
        ProbeError: If there is no tensor, one has no dimension, or they differ.
    """
    sizes = {int(leaf.shape[0]) if leaf.ndim else 0 for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or 0 in sizes:
        raise ProbeError(
            "the inputs must be tensors with one common, non-empty first dimension, a row per sample; found "
            f"{sizes or 'none'}. What belongs to no sample, the edges of a graph or a fixed prompt, comes by forward=: "
            "forward=lambda model, nodes: model(nodes, edges)"
        )
    return sizes.pop()


def among_others(samples: int) -> list[int]:
    """Places of up to three samples, taken by which each has other neighbours than in the batch.

    >>> among_others(8), among_others(2)
    ([7, 0, 4], [1, 0])
    """
    return list(dict.fromkeys((samples - 1, 0, samples // 2)))


def from_batch(batch: Any, ids: Sequence[int] | None = None) -> Probe:
    """A probe from a collated batch: a tensor, ``(inputs, labels, ...)`` or a mapping.

    Of a mapping the usual input key is taken; with "input_ids" among them, as language models have it, everything but
    the labels, as keyword arguments.

    Raises:
        ProbeError: If no input tensor can be told.
    """
    inputs, labels = split(batch)
    inputs = tree_map(lambda leaf: leaf.detach().cpu().clone() if isinstance(leaf, Tensor) else leaf, inputs)
    labels = labels.detach().cpu().clone() if isinstance(labels, Tensor) else None
    batch_size(inputs)
    return Probe(inputs, labels, None if ids is None else tuple(ids), digest(inputs))


def split(batch: Any) -> tuple[tuple[Any, ...] | dict[str, Any], Tensor | None]:
    """Model inputs and class labels of a batch or sample in one of the usual forms."""
    if isinstance(batch, Tensor):
        return (batch,), None
    if isinstance(batch, Mapping):
        label = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
        if any(key in batch for key in _KEYWORD):
            return {key: value for key, value in batch.items() if key not in _LABEL_KEYS}, _class_labels(label)
        value = next((batch[key] for key in _INPUT_KEYS if key in batch), None)
        if value is None:
            value = next((v for k, v in batch.items() if k not in _LABEL_KEYS and isinstance(v, Tensor)), None)
        if value is None:
            raise ProbeError(f"no input tensor among the keys {list(batch)}: pass the probe as tensors")
        return (value,), _class_labels(label)
    if isinstance(batch, Sequence) and batch and not isinstance(batch, str):
        inputs = tuple(batch[0]) if isinstance(batch[0], (tuple, list)) else (batch[0],)
        return inputs, _class_labels(batch[1] if len(batch) > 1 else None)
    raise ProbeError(
        f"cannot tell inputs from labels in a batch of type {type(batch).__name__}: pass the probe as tensors"
    )


def as_called(batch: Any, forward: Callable[..., Any]) -> Any:
    """A batch with the inputs that a ``forward`` asks for gathered in its first entry.

    A ``forward`` of several arguments gets the first entries of a tuple, or those of a mapping that bear its
    arguments' names, or else all but the labels if their number fits. One whose only argument is called ``batch`` gets
    the batch. Any other batch stays as it is.
    """
    parameters = inspect.signature(forward).parameters.values()
    names = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if isinstance(batch, Mapping):
        label = next(((batch[key],) for key in _LABEL_KEYS if key in batch), ())
        others = {key: value for key, value in batch.items() if key not in _LABEL_KEYS}
        if names == ["batch"]:
            return ((dict(batch),), *label)
        if len(names) < 2 or any(key in batch for key in _KEYWORD):
            return batch
        if all(name in batch for name in names):
            return (tuple(batch[name] for name in names), *label)
        tensors = tuple(value for value in others.values() if isinstance(value, Tensor))
        return (tensors, *label) if len(tensors) == len(names) else batch
    if not isinstance(batch, (list, tuple)) or not batch or not isinstance(batch[0], Tensor):
        return batch
    if names == ["batch"]:
        return ((batch,), *batch[1:2])
    several = 1 < len(names) <= len(batch)
    return (tuple(batch[: len(names)]), *batch[len(names) :]) if several else batch


def _class_labels(value: Any) -> Tensor | None:
    """Integer labels, one per sample; None for regression targets, masks and the like."""
    if value is None or isinstance(value, (str, bytes)):
        return None
    tensor = torch.as_tensor(value) if isinstance(value, (int, Tensor)) or hasattr(value, "__array__") else None
    if tensor is None or tensor.is_floating_point() or tensor.is_complex() or tensor.ndim > 1:
        return None
    return tensor.long()


@contextmanager
def _unnoticed(seed: int, *asked: Any) -> Iterator[None]:
    """Data sets that augment draw from the global streams or from their own, and count; training must not notice."""
    with isolated_rng(seed), put_back(*asked):
        yield


def can_be_indexed(loader: Any) -> bool:
    """Whether single samples can be had of a loader's data set, and nobody can tell afterwards that they were."""
    dataset = getattr(loader, "dataset", None)
    indexed = dataset is not None and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return indexed and not streams(dataset)


Step = Callable[[Any], Any]
"""What happens to a batch between loader and model: conversion, transfer hooks."""


def _as_is(batch: Any) -> Any:
    return batch


def from_dataset(
    dataset: Dataset[Any],
    size: int,
    *,
    seed: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    transfer: Step = _as_is,
) -> Probe:
    """A class-balanced probe of ``size`` samples from a map-style dataset, the same for the same seed.

    Samples are looked at in a seeded order, at most ``max(50 * size, 1000)`` of them, and taken in turns from the
    classes that were found; no further than the first few, where these have no class. Of a smaller data set all
    samples are taken.

    Raises:
        ProbeError: If the dataset holds no two samples.
    """
    total = len(dataset)  # type: ignore[arg-type]
    if total < _LEAST:
        raise ProbeError(f"probe={size} samples were asked for, but the data set has only {total}: {_WHY}")
    with _unnoticed(seed, dataset, collate):
        order = torch.randperm(total, generator=generator(seed, "probe")).tolist()[: max(50 * size, 1000)]
        by_class: dict[int | None, list[int]] = {}
        for index in order:
            label = split(dataset[index])[1]
            one = label is not None and label.numel() == 1  # several labels of a sample are no class to balance by
            by_class.setdefault(int(label) if label is not None and one else None, []).append(index)
            if list(by_class) == [None] and len(by_class[None]) == _TELLING:
                by_class[None] = order[:size]
                break
            if len(by_class) > 1 and min(map(len, by_class.values())) * len(by_class) >= 4 * size:
                break  # every class seen so far has plenty
        classes = sorted(by_class, key=lambda label: -1 if label is None else label)
        turns = chain.from_iterable(zip_longest(*(by_class[label] for label in classes)))
        chosen = sorted(islice((index for index in turns if index is not None), size))
        return from_ids(dataset, chosen, seed=seed, collate=collate, transfer=transfer)


def from_ids(
    dataset: Dataset[Any],
    ids: Sequence[int],
    *,
    seed: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    transfer: Step = _as_is,
) -> Probe:
    """The probe made of the given indices of ``dataset``."""
    with _unnoticed(seed, dataset, collate):
        samples = [dataset[index] for index in ids]
        try:
            batch = (collate or default_collate)(samples)
        except RuntimeError as error:
            if "equal size" not in str(error):
                raise
            shapes = sorted(
                {tuple(t.shape) for sample in samples for t in tree_leaves(sample) if isinstance(t, Tensor)}
            )
            raise ProbeError(
                f"the samples of the probe have different shapes, {', '.join(map(str, shapes[:3]))}: maps of unlike "
                "sides cannot be compared; pass probe= as tensors that are cropped, resized or padded to one"
            ) from error
        return from_batch(transfer(batch), ids)


def from_ids_of(loader: Any, ids: Sequence[int], *, seed: int = 0, transfer: Step = _as_is) -> Probe:
    """The probe made of the given indices of a loader's data set.

    Raises:
        ProbeError: If its data set cannot be indexed.
        IndexError: If it has become smaller.
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is None or not hasattr(dataset, "__getitem__"):
        raise ProbeError("the validation loader has no data set that can be indexed")
    return from_ids(dataset, ids, seed=seed, collate=getattr(loader, "collate_fn", None), transfer=transfer)


def from_loader(loader: Iterable[Any], size: int, *, seed: int = 0, transfer: Step = _as_is) -> Probe:
    """A probe from a loader: class-balanced where its data set can be indexed, else its first samples.

    Raises:
        ProbeError: If there are no two samples.
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is not None and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return from_dataset(dataset, size, seed=seed, collate=getattr(loader, "collate_fn", None), transfer=transfer)
    with _unnoticed(seed, loader):
        batches: list[Probe] = []
        for batch in loader:
            batches.append(from_batch(transfer(batch)))
            if sum(map(len, batches)) >= size:
                break
    return first_of(batches, size)


def first_of(batches: Sequence[Probe], size: int) -> Probe:
    """The first ``size`` samples of some batches, or all.

    Raises:
        ProbeError: If there are no two.
    """
    total = sum(map(len, batches))
    if total < _LEAST:
        raise ProbeError(f"probe={size} samples were asked for, but the loader gave {total}: {_WHY}")
    inputs = tree_map(_joined(size), *(p.inputs for p in batches))
    labelled = [p.labels for p in batches if p.labels is not None]
    labels = torch.cat(labelled)[:size] if len(labelled) == len(batches) else None
    return Probe(inputs, labels, None, digest(inputs))


def _joined(size: int) -> Callable[..., Any]:
    return lambda *parts: torch.cat(parts)[:size] if isinstance(parts[0], Tensor) else parts[0]


def form(given: Any, loader: Iterable[Any] | None, *, seed: int = 0, transfer: Step = _as_is) -> Probe:
    """The probe from whatever the user gave.

    Args:
        given: An int (that many samples of ``loader``), tensors or ``(inputs, labels)``, a data set, or a loader; of
            the latter two, all samples of a data set of at most 1024, or the first batch of a loader.
        loader: The validation loader; needed for an int.
        seed: Of the choice.
        transfer: Applied to a batch from a loader or data set before it is taken apart; tensors are used as given.

    Raises:
        ProbeError: If it cannot be formed.
    """
    if isinstance(given, int):
        if loader is None:
            raise ProbeError(
                f"probe={given} is taken from the validation set, but there is none: pass tensors or a data set"
            )
        return from_loader(loader, given, seed=seed, transfer=transfer)
    if isinstance(given, DataLoader):
        with _unnoticed(seed, given):
            return from_batch(transfer(next(iter(given))))
    if isinstance(given, Dataset):
        size = len(given)  # type: ignore[arg-type]
        if size > 1024:
            raise ProbeError(
                f"the probe data set has {size} samples; pass a Subset of at most 1024, 16 to 64 are usual"
            )
        return from_ids(given, range(size), seed=seed, transfer=transfer)
    return from_batch(given)


def check_probe(given: Any) -> None:
    """Refuse what no probe can be formed of, as far as that can be told without a model or reading any data.

    Raises:
        ProbeError: What is wrong with it, and what would be right.
    """
    if isinstance(given, bool) or not isinstance(given, (int, Tensor, Sequence, Mapping, Dataset, DataLoader)):
        shown = "True or False" if isinstance(given, bool) else f"a {type(given).__name__}"
        raise ProbeError(f"probe must be {_KINDS}, not {shown}")
    if isinstance(given, str):
        raise ProbeError(f"probe must be {_KINDS}, not {given!r}")
    if isinstance(given, int):
        if given < _LEAST:
            raise ProbeError(f"probe must be an integer of at least {_LEAST}, not {given}: {_WHY}")
        return
    if isinstance(given, DataLoader):
        samples = given.batch_size if isinstance(given.batch_size, int) else _LEAST
    elif isinstance(given, Dataset):
        if not hasattr(given, "__len__"):
            raise ProbeError(f"probe: a {type(given).__name__} has no length; pass a loader of it, or tensors")
        samples = len(given)
    else:
        samples = batch_size(split(given)[0])
    if samples < _LEAST:
        raise ProbeError(f"probe has {samples} sample: {_WHY}")


_LEAST = 2
_TELLING = 4
"""Samples without a class after which no other is expected to have one."""
_KINDS = "a number of samples, tensors, (inputs, labels), a data set or a loader"
_WHY = "every map is compared with another sample's, so at least 2 are needed; 16 to 64 are usual"


def described(batch: Any) -> str:
    """Types and shapes of the tensors that a model is given of a batch.

    >>> described((torch.zeros(4, 3, 8, 8), torch.zeros(4)))
    'float32 (4, 3, 8, 8)'
    """
    try:
        inputs, _ = split(batch)
    except ProbeError:
        inputs = (batch,)
    found = [f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    return ", ".join(found) or f"a {type(batch).__name__} without tensors"
