"""Labels: where a sample carries its own, how it is replaced there, and what all labels of a data set are."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import operator
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Sized
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from lightning_sanity.resources.random_streams import generator, isolated_rng

STORES = ("targets", "labels")
"""Attributes under which data sets keep the labels of all samples, as torchvision's do."""

_CHECKED = 64  # samples that a quick source of labels must agree with, beside one of each class
_CHECKED_CLASSES = 256
_READ_AT_ONCE = 64

TargetKey = int | str | Sequence[int | str]
Path = tuple[int | str, ...]
Report = Callable[[int, int], None]
"""Told how many labels of how many were read, now and then."""


class LabelError(ValueError):
    """The labels cannot be found, or not be randomised."""


def path_of(target_key: TargetKey) -> Path:
    """``target_key`` as a path from the sample to its label.

    >>> path_of(1), path_of(["annotation", 0])
    ((1,), ('annotation', 0))

    Raises:
        LabelError: If it is neither a position nor a name nor a path of them.
    """
    path = (target_key,) if not isinstance(target_key, (list, tuple)) else tuple(target_key)
    if not path or not all(isinstance(key, (int, str)) and not isinstance(key, bool) for key in path):
        raise LabelError(
            f"target_key must be a position such as 1, a name such as 'label', or a path such as [1, 'class'], "
            f"not {target_key!r}"
        )
    return path


_USUAL = ("label", "labels", "target", "targets", "y")


def usual_path(sample: Any) -> Path:
    """Where samples, or batches, usually have their label: under a usual name, else second.

    >>> usual_path({"image": 0, "label": 3}), usual_path(("image", 3))
    (('label',), (1,))
    """
    names = [name for name in _USUAL if isinstance(sample, Mapping) and name in sample]
    return (names[0],) if names else (1,)


def label_of(sample: Any, path: Path) -> Any:
    """What ``path`` leads to: positions count in sequences, names in mappings and attributes.

    >>> label_of(("image", {"class": 3, "box": None}), (1, "class"))
    3

    Raises:
        LabelError: If there is no such part; it says what there is.
    """
    part = sample
    for depth, key in enumerate(path):
        try:
            part = _part(part, key)
        except (LookupError, AttributeError, TypeError):
            where = "the sample" if depth == 0 else f"part {list(path[:depth])} of the sample"
            given = path[0] if len(path) == 1 else list(path)
            raise LabelError(
                f"no label at target_key={given!r}: {where} is {_description(part)}. "
                "Pass target_key= the position, the name, or a path such as [1, 'class']."
            ) from None
    return part


def _part(value: Any, key: int | str) -> Any:
    if isinstance(value, Mapping):
        return value[key]
    if isinstance(key, str):
        return getattr(value, key)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError
    return value[key]


def _description(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {name} with the keys {', '.join(map(repr, value))}"
    if isinstance(value, (tuple, list)):
        return f"a {name} of {len(value)} ({', '.join(type(part).__name__ for part in value)})"
    return f"a {name} of shape {tuple(value.shape)}" if isinstance(value, (Tensor, np.ndarray)) else f"a {name}"


def with_label(sample: Any, path: Path, label: Any) -> Any:
    """A copy of ``sample`` with another label at ``path``; its other parts are the very same objects."""
    if not path:
        return label
    key = path[0]
    part = with_label(_part(sample, key), path[1:], label)
    if isinstance(sample, tuple):
        position = range(len(sample))[key] if isinstance(key, int) else sample._fields.index(key)  # type: ignore[attr-defined]
        parts = [part if i == position else given for i, given in enumerate(sample)]
        return type(sample)(*parts) if hasattr(sample, "_fields") else type(sample)(parts)
    if dataclasses.is_dataclass(sample) and not isinstance(sample, (type, Mapping)):
        return dataclasses.replace(sample, **{str(key): part})
    changed = copy.copy(sample)  # a data set may keep its samples
    if isinstance(sample, (Mapping, list)):
        changed[key] = part
    else:
        setattr(changed, str(key), part)
    return changed


def like(label: Any, template: Any) -> Any:
    """``label`` in the type, precision and device of ``template``, and never the stored object itself."""
    if isinstance(template, Tensor):
        return torch.as_tensor(label).to(template, copy=True)
    if isinstance(template, np.ndarray):
        return np.array(label, dtype=template.dtype)
    if isinstance(template, np.generic):
        return template.dtype.type(label)
    if isinstance(template, (int, float)) and type(label) is not type(template):
        return type(template)(label)
    return copy.deepcopy(label)


def like_batch(labels: Sequence[Any], template: Any) -> Any:
    """``labels`` as one batch of the type that ``template``, another batch of labels, has."""
    if isinstance(template, Tensor):
        return torch.stack([torch.as_tensor(label) for label in labels]).to(template).reshape(template.shape)
    if isinstance(template, np.ndarray):
        return np.stack([np.asarray(label) for label in labels]).astype(template.dtype).reshape(template.shape)
    return [like(label, given) for label, given in zip(labels, template, strict=True)]


def identity(label: Any) -> Hashable:
    """Equal for equal labels, whether they are numbers, strings, arrays or rows of a one-hot matrix.

    >>> identity(torch.tensor(3)) == identity(3), identity([0, 1]) == identity(torch.tensor([0, 1]))
    (True, True)

    Raises:
        LabelError: If the label is a mapping or otherwise has no value to compare.
    """
    if isinstance(label, (int, str, float, bytes)) or label is None:
        return label
    if isinstance(label, Mapping):
        raise LabelError(
            f"the label is {_description(label)}: name the part that is the class, such as target_key=[1, 'class']"
        )
    if isinstance(label, Tensor):
        label = label.detach().cpu()
        label = (label.float() if label.dtype is torch.bfloat16 else label).numpy()
    if isinstance(label, (np.ndarray, np.generic, list, tuple)):
        try:
            array = np.asarray(label)
        except ValueError:
            raise LabelError("the label is a ragged list, which cannot be compared: use a fixed-size array") from None
        if array.dtype != object:
            if array.ndim == 0:
                return array.item()
            return array.shape, hashlib.blake2b(np.ascontiguousarray(array).tobytes()).digest()
    if isinstance(label, Hashable):
        return label
    raise LabelError(f"labels of type {type(label).__name__} cannot be compared: pass the target_key of the class")


def all_labels(
    dataset: Dataset[Any], path: Path, *, loading: Mapping[str, Any] | None = None, report: Report | None = None
) -> Sequence[Any]:
    """The label of every sample, without loading the samples where the data set keeps its labels in one place.

    Such a place (``targets``, ``labels``, the tensors of a ``TensorDataset``, a column of a Hugging Face data set; also
    through ``Subset`` and ``ConcatDataset``) is believed only if it agrees with some samples, at least one per class.
    Else every sample is read once. The global random streams are left as they were.

    Args:
        dataset: Indexed from 0 to ``len(dataset) - 1``.
        path: Where a sample carries its label.
        loading: Arguments of the ``DataLoader`` that reads the samples: workers and the like.
        report: Progress of reading.

    Raises:
        LabelError: If there is no label at ``path``, or it differs from one reading of a sample to the next.
    """
    if not isinstance(dataset, Sized) or len(dataset) == 0:
        raise LabelError(f"the data set ({type(dataset).__name__}) is empty or has no length")
    with isolated_rng(0):
        label_of(dataset[0], path)  # the first error is the plainest
        stored = stored_labels(dataset, path)
        if stored is not None and _is_true(stored, dataset, path):
            return stored
        read = _read(dataset, path, loading or {}, report)
        difference = _first_difference(read, dataset, path, classes=0)
    if difference is not None:
        raise LabelError(
            f"the label of sample {difference} differs from one reading to the next: the data set draws it, as mixup "
            "does. Mix in the collate function or in `on_after_batch_transfer` instead: the random labels arrive there."
        )
    return read


def stored_labels(dataset: Any, path: Path) -> Sequence[Any] | None:
    """What ``dataset`` itself keeps as its labels, unverified, or None."""
    found: Any = None
    if isinstance(dataset, Subset):
        base = stored_labels(dataset.dataset, path)
        return None if base is None else [base[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [stored_labels(part, path) for part in dataset.datasets]
        return (
            None
            if any(part is None for part in parts)
            else list(chain.from_iterable(p for p in parts if p is not None))
        )
    if isinstance(dataset, TensorDataset):
        if len(path) == 1 and isinstance(path[0], int):
            found = dataset.tensors[path[0]]
    elif len(path) == 1 and path[0] in (getattr(dataset, "column_names", None) or ()):
        found = dataset[path[0]]  # a column of a Hugging Face data set
    else:
        held = (getattr(dataset, name, None) for name in STORES)
        found = next((value for value in held if isinstance(value, (Sequence, np.ndarray, Tensor))), None)
    if found is None or isinstance(found, str) or len(found) != len(dataset):
        return None
    if isinstance(found, (Tensor, np.ndarray)) and found.ndim == 1:
        return found.tolist()
    return list(found)


def origins(dataset: Any) -> list[Hashable] | None:
    """What tells the samples of a ``Subset`` or ``ConcatDataset`` apart: data set and index; None for other data sets.

    >>> data = TensorDataset(torch.arange(9))
    >>> origins(data) is None, len(set(origins(Subset(data, [3, 3, -6]))))
    (True, 1)
    """
    if isinstance(dataset, Subset):
        base = origins(dataset.dataset)
        size = len(dataset.dataset) if isinstance(dataset.dataset, Sized) else 0
        indices = [operator.index(index) for index in dataset.indices]
        places = [index + size if index < 0 else index for index in indices]
        return [(id(dataset.dataset), place) for place in places] if base is None else [base[place] for place in places]
    if isinstance(dataset, ConcatDataset):
        found: list[Hashable] = []
        for part in dataset.datasets:
            listed = origins(part)
            found += [(id(part), index) for index in range(len(part))] if listed is None else listed  # type: ignore[arg-type]
        return found
    return None


def _is_true(stored: Sequence[Any], dataset: Dataset[Any], path: Path) -> bool:
    try:
        return _first_difference(stored, dataset, path) is None
    except LabelError:  # kept in a form that cannot be compared, such as whole annotations
        return False


def _first_difference(
    labels: Sequence[Any], dataset: Dataset[Any], path: Path, classes: int = _CHECKED_CLASSES
) -> int | None:
    """An index whose sample carries another label than listed; looks at some indices and one of each class."""
    first_of_class: dict[Hashable, int] = {}
    for index, label in enumerate(labels):
        first_of_class.setdefault(identity(label), index)
    some = torch.randperm(len(labels), generator=generator("labels to check"))[:_CHECKED].tolist()
    for index in sorted({*some, *list(first_of_class.values())[:classes]}):
        if identity(label_of(dataset[index], path)) != identity(labels[index]):
            return index
    return None


class _Labels(Dataset[Any]):
    """The labels of a data set's samples, in types that workers pass on without a file descriptor each."""

    def __init__(self, dataset: Dataset[Any], path: Path) -> None:
        self.dataset, self.path = dataset, path

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        label = label_of(self.dataset[index], self.path)
        return (
            label.detach().cpu().numpy() if isinstance(label, Tensor) and label.dtype is not torch.bfloat16 else label
        )


def _read(dataset: Dataset[Any], path: Path, loading: Mapping[str, Any], report: Report | None) -> list[Any]:
    loader: Iterable[list[Any]] = DataLoader(_Labels(dataset, path), _READ_AT_ONCE, collate_fn=list, **loading)
    labels: list[Any] = []
    last = time.monotonic()
    for batch in loader:
        labels += batch
        if report is not None and time.monotonic() - last > 10:
            last = time.monotonic()
            report(len(labels), len(dataset))  # type: ignore[arg-type]
    return labels
