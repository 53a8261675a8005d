"""Random labels: which label each sample gets instead of its own, and data sets that hand it out."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from lightning_sanity.data_randomization.label_access import (
    STORES,
    LabelError,
    Path,
    TargetKey,
    all_labels,
    identity,
    label_of,
    like,
    like_batch,
    origins,
    path_of,
    with_label,
)
from lightning_sanity.resources.random_streams import generator, isolated_rng, stream_seed

MODES = ("permute", "uniform", "fraction")


@dataclass(frozen=True)
class RandomLabels:
    """The true label of every sample and the one it gets instead, as positions in a table of the distinct labels.

    Attributes:
        classes: The distinct labels; class indices, strings, one-hot or multi-label rows alike.
        true: Position ``(N,)`` of each sample's own label in ``classes``, int64 on the CPU.
        assigned: Position ``(N,)`` of the label it gets.
        chance: Expected share of samples whose label does not change.
        continuous: The labels are not classes: floating-point, and hardly any two are equal.
    """

    classes: tuple[Any, ...]
    true: Tensor
    assigned: Tensor
    chance: float
    continuous: bool

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.true)

    def __getitem__(self, index: int) -> Any:
        """The label that sample ``index`` gets."""
        return self.classes[self.assigned.numpy()[index]]

    def keeps(self, index: int) -> bool:
        """Whether sample ``index`` gets the label that it has."""
        return bool(self.true.numpy()[index] == self.assigned.numpy()[index])  # tensors take five times as long

    @property
    def agreement(self) -> float:
        """Share of samples whose label is their own."""
        return float((self.true == self.assigned).double().mean())

    @property
    def digest(self) -> str:
        """SHA-256 over every sample's true and assigned label."""
        sha = hashlib.sha256(repr([identity(label) for label in self.classes]).encode())
        sha.update(torch.stack([self.true, self.assigned]).numpy().tobytes())
        return sha.hexdigest()


def draw(
    labels: Sequence[Any],
    *,
    mode: str = "permute",
    fraction: float = 1.0,
    seed: int = 0,
    origins: Sequence[Hashable] | None = None,
) -> RandomLabels:
    """Random labels for samples whose own are ``labels``; the same for the same arguments, everywhere.

    The samples whose labels are randomised at a lower ``fraction`` are among those at a higher one.

    Args:
        labels: Class indices, strings, one-hot or multi-label rows: whatever can be compared.
        mode: ``"permute"`` exchanges labels among samples, which keeps how often each occurs; ``"uniform"`` draws from
            the distinct labels with equal probability; ``"fraction"`` is ``"permute"``, for configurations that say so.
        fraction: Share of samples whose labels are randomised.
        seed: Of the draw.
        origins: What tells samples apart, where one may be listed several times: it gets one label then.

    Raises:
        LabelError: If there is one class only, if no label would change, or if continuous labels are to be uniform.

    Data randomization of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv:1810.03292); a share
    of it as in Zhang et al., "Understanding deep learning requires rethinking generalization", ICLR 2017
    (arXiv:1611.03530).

    >>> labels = draw(["cat", "cat", "dog", "dog", "hen", "hen"])
    >>> sorted(labels[i] for i in range(6)), labels.agreement < 1
    (['cat', 'cat', 'dog', 'dog', 'hen', 'hen'], True)
    """
    if origins is not None and len(first := list(dict.fromkeys(origins))) < len(labels):
        return _repeated(labels, first, origins, mode=mode, fraction=fraction, seed=seed)
    classes, true = _table(labels)
    if len(classes) < 2:
        raise LabelError(
            f"all {len(labels)} samples have the label {_short(classes[0])}: with one class, nothing can be randomised"
        )
    continuous = _is_continuous(classes, len(labels))
    if continuous and mode == "uniform":
        raise LabelError(
            f"the labels are not classes: {len(classes)} distinct floating-point values among {len(labels)} samples. "
            'mode="uniform" needs classes; use mode="permute".'
        )
    order = torch.randperm(len(labels), generator=generator(seed, "whose labels"))
    chosen = order[: round(fraction * len(labels))]
    assigned, stream = true.clone(), generator(seed, "which labels")
    if mode == "uniform":
        assigned[chosen] = torch.randint(len(classes), (len(chosen),), generator=stream)
        chance = 1 / len(classes)
    else:
        assigned[chosen] = true[chosen[torch.randperm(len(chosen), generator=stream)]]
        chance = float(((true[chosen].bincount() / max(len(chosen), 1)).double() ** 2).sum())
    if torch.equal(assigned, true):
        raise LabelError(
            f"no label changed: fraction={fraction} of {len(labels)} samples is {len(chosen)}, and they keep their "
            "labels by chance. Raise fraction= or change seed=."
        )
    kept = 1 - len(chosen) / len(labels)
    return RandomLabels(tuple(classes), true, assigned, kept + (1 - kept) * chance, continuous)


def _repeated(
    labels: Sequence[Any], samples: Sequence[Hashable], origins: Sequence[Hashable], **drawn: Any
) -> RandomLabels:
    """Labels drawn once per sample, however often it is listed."""
    place = {origin: index for index, origin in enumerate(samples)}
    position = torch.tensor([place[origin] for origin in origins])
    listed = torch.zeros(len(samples), dtype=torch.long).scatter_(
        0, position.flip(0), torch.arange(len(labels)).flip(0)
    )
    once = draw([labels[index] for index in listed.tolist()], **drawn)
    true, assigned = once.true[position], once.assigned[position]
    return RandomLabels(once.classes, true, assigned, once.chance, once.continuous)


def _table(labels: Sequence[Any]) -> tuple[list[Any], Tensor]:
    """The distinct labels, sorted where they can be, and the position of each label among them."""
    first: dict[Hashable, Any] = {}
    identities = []
    for label in labels:
        key = identity(label)
        first.setdefault(key, label)
        identities.append(key)
    try:
        keys = sorted(first)  # type: ignore[type-var]  # independent of the order of samples
    except TypeError:
        keys = list(first)
    position = {key: i for i, key in enumerate(keys)}
    return [first[key] for key in keys], torch.tensor([position[key] for key in identities], dtype=torch.long)


def _is_continuous(classes: Sequence[Any], count: int) -> bool:
    array = np.asarray(classes[0].detach().float().cpu() if isinstance(classes[0], Tensor) else classes[0])
    if not np.issubdtype(array.dtype, np.floating) or len(classes) * 10 <= count:
        return False
    return not all(np.isin(np.asarray(label, dtype=float), (0, 1)).all() for label in classes)  # multi-label rows


def _short(label: Any) -> str:
    text = repr(label)
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Relabelled:
    """What stands in for ``self.dataset``: reading and setting attributes reaches the data set itself.

    User code, such as a worker's ``worker_init_fn``, finds what it expects; only where the true labels of all samples
    are kept (``targets`` and the like) it gets an error.
    """

    dataset: Any
    path: Path
    random_labels: RandomLabels | None

    @property
    def fits(self) -> bool:
        """Whether the data set is still as long as when its labels were collected."""
        return self.random_labels is None or len(self.random_labels) == len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # also while being unpickled
            raise AttributeError(name)
        if name in (*STORES, "tensors", "samples", "imgs"):
            raise AttributeError(
                f"'{name}' holds the true labels, and this data set randomises them: read `.dataset.{name}` if you "
                "want those, or `.random_labels` for both"
            )
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dataset!r})"


class RandomLabelDataset(_Relabelled, Dataset[Any]):
    """``dataset`` with random labels that belong to the index: the same at every reading, in every process.

    A sample whose label does not change is passed on untouched; of the others only the label is replaced, in the type
    it had. A sample that a ``Subset`` or ``ConcatDataset`` lists several times has one label. Index it like the
    original, also by lists and through ``__getitems__``.

    Args:
        dataset: Indexed by integers.
        mode: See ``draw``, like ``fraction`` and ``seed``. With ``fraction=0`` no label is even read.
        fraction: See there.
        seed: See there.
        target_key: Where a sample carries its label: a position, a name, or a path such as ``[1, "class"]``.
        labels: The true labels, where the caller knows them; else they are collected as in ``all_labels``.

    Attributes:
        random_labels: Which label each sample has and which it gets; None with ``fraction=0``.

    Raises:
        LabelError: If labels are not found or cannot be randomised.

    >>> from torch.utils.data import TensorDataset
    >>> data = RandomLabelDataset(TensorDataset(torch.zeros(100, 2), torch.arange(100) % 10))
    >>> sum(int(label) == index % 10 for index, (_, label) in enumerate(data)) < 25
    True
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        mode: str = "permute",
        fraction: float = 1.0,
        seed: int = 0,
        target_key: TargetKey = 1,
        labels: Sequence[Any] | None = None,
    ) -> None:
        if isinstance(dataset, IterableDataset):
            raise LabelError("an IterableDataset has no index that a label could belong to: RandomLabelIterableDataset")
        path = path_of(target_key)
        random_labels = None
        if fraction > 0:
            given = all_labels(dataset, path) if labels is None else labels
            listed = origins(dataset)
            random_labels = draw(given, mode=mode, fraction=fraction, seed=seed, origins=listed)
        self.__dict__.update(dataset=dataset, path=path, random_labels=random_labels)

    def __getitem__(self, index: Any) -> Any:
        sample = self.dataset[index]
        if self.random_labels is None:
            return sample
        if isinstance(index, slice):
            index = range(*index.indices(len(self)))
        if isinstance(index, (Sequence, np.ndarray, Tensor)) and np.ndim(index) == 1:
            labels = [self.random_labels[i] for i in index]
            return with_label(sample, self.path, like_batch(labels, label_of(sample, self.path)))
        return self._relabelled(sample, operator.index(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        # Subset and DataLoader prefer this method; the data set's own would bring the true labels back.
        own = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[index] for index in indices] if own is None else own(indices)
        return [self._relabelled(sample, operator.index(i)) for sample, i in zip(samples, indices, strict=True)]

    def _relabelled(self, sample: Any, index: int) -> Any:
        labels = self.random_labels
        if labels is None or labels.keeps(index):
            return sample
        return with_label(sample, self.path, like(labels[index], label_of(sample, self.path)))


class RandomLabelIterableDataset(_Relabelled, IterableDataset[Any]):
    """A stream with random labels that belong to each sample's id, drawn after one complete pass over the stream.

    Args:
        dataset: Finite, and can be iterated again. A process that sees only a shard randomises within it.
        sample_id: From a sample to what identifies it, in every epoch and process: a file name, a key. ``fraction=0``
            does without.
        mode: See ``draw``, like ``fraction`` and ``seed``.
        fraction: See there.
        seed: See there.
        target_key: See ``RandomLabelDataset``.

    Raises:
        LabelError: If ids repeat, the stream ends after one pass, or labels are not found or cannot be randomised;
            while iterating, if an id comes up that was not there before.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        sample_id: Callable[[Any], Hashable],
        *,
        mode: str = "permute",
        fraction: float = 1.0,
        seed: int = 0,
        target_key: TargetKey = 1,
    ) -> None:
        path = path_of(target_key)
        self.__dict__.update(dataset=dataset, path=path, sample_id=sample_id, random_labels=None, positions={})
        if fraction == 0:
            return
        labels: dict[Hashable, Any] = {}
        with isolated_rng(0):
            for sample in dataset:
                own = sample_id(sample)
                if own in labels:
                    raise LabelError(f"sample_id gives {own!r} to two samples: it must tell them apart")
                labels[own] = label_of(sample, path)
            if not labels or next(iter(dataset), None) is None:
                raise LabelError(
                    f"{type(dataset).__name__} is empty or gives its samples only once: its labels are unknown"
                )
        ids = sorted(labels, key=stream_seed)  # whatever the order in which a shuffled stream gave them
        random_labels = draw([labels[own] for own in ids], mode=mode, fraction=fraction, seed=seed)
        self.__dict__.update(random_labels=random_labels, positions={own: i for i, own in enumerate(ids)})

    @property
    def fits(self) -> bool:
        """True: an id that is new raises an error while iterating."""
        return True

    def __iter__(self) -> Iterator[Any]:
        if self.random_labels is None:
            yield from self.dataset
            return
        for sample in self.dataset:
            own = self.sample_id(sample)
            if own not in self.positions:
                raise LabelError(f"sample_id gives {own!r}, which was not in the stream when its labels were collected")
            index = self.positions[own]
            yield with_label(sample, self.path, like(self.random_labels[index], label_of(sample, self.path)))
