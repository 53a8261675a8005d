"""Data loaders: the same loader over another data set, and samplers that know the labels."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_sanity.resources.random_streams import isolated_rng

_BATCHING = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")
_NO_CHANCE = 1e-6
_ALL = (RandomSampler, SequentialSampler, DistributedSampler)
_IGNORANT = (RandomSampler, SequentialSampler, SubsetRandomSampler, DistributedSampler)


class LoaderError(ValueError):
    """A loader cannot be built again over another data set."""


def rebuilt(loader: DataLoader[Any], dataset: Dataset[Any], *, uniform: bool = False) -> DataLoader[Any]:
    """A new loader of the same class over ``dataset``, with the very same sampler, collate function and so on.

    A subclass is built from the arguments that its constructor was given, where Lightning recorded them (it does inside
    ``*_dataloader`` hooks), else from its attributes of the same names.

    Args:
        loader: Stays as it is.
        dataset: As long as the loader's.
        uniform: Draw samples uniformly, as many per epoch as before, instead of with the loader's own sampler.

    Raises:
        LoaderError: If the constructor cannot be called again or builds a data set of its own.
    """
    recorded = vars(loader).get("__pl_saved_args")
    names = vars(loader).get("__pl_saved_arg_names", ())
    if type(loader) is not DataLoader and recorded is not None and len(recorded) == len(names):
        arguments = {**dict(zip(names, recorded, strict=True)), **vars(loader)["__pl_saved_kwargs"]}
        arguments = {k: dataset if value is loader.dataset else value for k, value in arguments.items()}
    else:
        arguments = _arguments_from_attributes(loader)
        arguments["dataset"] = dataset
    if uniform:
        arguments = {name: value for name, value in arguments.items() if name not in _BATCHING}
        arguments |= _uniform_batching(loader, dataset)
    try:
        new = type(loader)(**arguments)
    except TypeError as error:
        raise LoaderError(
            f"`{type(loader).__name__}` cannot be built again: {error}. Build it inside the `*_dataloader` hook, or "
            "keep its arguments as attributes of the same names."
        ) from error
    for set_afterwards, change in vars(loader).get("__pl_attrs_record", ()):
        change(new, *set_afterwards)
    if new.dataset is not dataset:
        raise LoaderError(
            f"`{type(loader).__name__}` builds its own data set and cannot be given one with other labels: let it take "
            "`dataset` as an argument"
        )
    return new


def _arguments_from_attributes(loader: DataLoader[Any]) -> dict[str, Any]:
    """What the constructor would have to be given, apart from the data set; defaults are left out."""
    parameters = dict(inspect.signature(type(loader).__init__).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        parameters |= inspect.signature(DataLoader.__init__).parameters
    values = {k: v for k, v in vars(loader).items() if not k.startswith("_")}
    values["multiprocessing_context"] = loader.multiprocessing_context
    own_batches = loader.batch_sampler is not None and (
        loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler
    )
    for name in ("batch_size", "sampler", "drop_last") if own_batches else ("batch_sampler",):
        values.pop(name, None)
    if isinstance(loader.dataset, IterableDataset):
        values.pop("sampler", None)
    return {
        name: values[name]
        for name, parameter in parameters.items()
        if name in values and name != "dataset" and values[name] is not parameter.default
    }


def _uniform_batching(loader: DataLoader[Any], dataset: Dataset[Any]) -> dict[str, Any]:
    batches: Any = loader.batch_sampler
    size = (
        loader.batch_size if batches is None or loader.batch_size is not None else getattr(batches, "batch_size", None)
    )
    if batches is not None and size is None:
        raise LoaderError(
            f"`{type(batches).__name__}` forms batches by the true labels and has no `batch_size` to go on without it: "
            "use another batch sampler for the randomised run"
        )
    sampler: Any = getattr(batches, "sampler", loader.sampler)
    count = len(sampler) if isinstance(sampler, WeightedRandomSampler) else len(dataset)  # type: ignore[arg-type]
    generator = getattr(sampler, "generator", None)
    return {
        "batch_size": size,
        "sampler": RandomSampler(dataset, num_samples=count, generator=generator),  # type: ignore[arg-type]
        "drop_last": bool(getattr(batches, "drop_last", loader.drop_last)),
    }


def samplers_of(loader: DataLoader[Any]) -> Iterator[Any]:
    """Whatever decides which samples the loader draws: its sampler, batch sampler and what these draw from."""
    if isinstance(loader.dataset, IterableDataset):
        return
    for sampler in (loader.sampler, loader.batch_sampler):
        while sampler is not None:
            yield sampler
            sampler = getattr(sampler, "sampler", None)


def follows_labels(sampler: Any, classes: Tensor) -> bool:
    """Whether ``sampler`` draws by class: it weighs samples, or holds values that depend on the class alone.

    Args:
        sampler: A sampler or batch sampler.
        classes: The true class of every sample, ``(N,)``.
    """
    if isinstance(sampler, WeightedRandomSampler):
        return True
    if isinstance(sampler, _IGNORANT):
        return False
    return any(_is_by_class(value, classes) for value in getattr(sampler, "__dict__", {}).values())


def indices_drawn(loader: DataLoader[Any]) -> Tensor | None:
    """Indices that the loader draws in an epoch, once per draw; None where it draws all, or where that cannot be told.

    The sampler is copied for that, and the random streams are left as they were.
    """
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset) or type(getattr(sampler, "sampler", sampler)) in _ALL:
        return None
    try:
        copied = copy.deepcopy(sampler, {id(loader.dataset): loader.dataset})
        most = max(len(loader.dataset), 1)  # type: ignore[arg-type]
        with isolated_rng(0):
            flat = (index for part in copied for index in (part if isinstance(part, Sequence) else (part,)))
            found = torch.tensor([int(index) for index in islice(flat, most)])
    except Exception:  # a sampler may need other processes, or draw what is no index
        return None
    return found if len(found) and 0 <= int(found.min()) <= int(found.max()) < most else None


def prefers_classes(indices: Tensor, classes: Tensor) -> bool:
    """Whether the classes of drawn samples are far more or less frequent than in the data set: no chance in a million.

    Args:
        indices: Of the draws.
        classes: The true class of every sample, ``(N,)``.
    """
    from scipy.stats import chi2  # half a second to import

    expected = classes.bincount().double()
    seen = classes[indices].bincount(minlength=len(expected)).double()
    expected = expected / expected.sum() * seen.sum()
    known = expected > 0
    statistic = float(((seen - expected) ** 2 / expected)[known].sum())
    return bool(chi2.sf(statistic, max(1, int(known.sum()) - 1)) < _NO_CHANCE)


def _is_by_class(value: Any, classes: Tensor) -> bool:
    """``value`` lists one thing per sample, the same within each class; or, per class, the indices of its samples."""
    rows = isinstance(value, (list, tuple)) and all(
        isinstance(part, (list, tuple, np.ndarray, Tensor)) for part in value
    )
    if isinstance(value, Mapping) or (rows and 1 < len(value) < len(classes)):
        parts = list(value.values()) if isinstance(value, Mapping) else list(value)
        groups = [array for array in map(_array, parts) if array is not None and array.dtype.kind in "iu"]
        if len(groups) < 2 or len(groups) < len(parts) or not all(map(len, groups)):
            return False
        inside = all(array.min() >= 0 and array.max() < len(classes) for array in groups)
        return inside and all(len(classes[torch.from_numpy(array).long()].unique()) == 1 for array in groups)
    array = _array(value)
    if array is None or len(array) != len(classes):
        return False
    kinds = torch.from_numpy(np.unique(array, return_inverse=True)[1])
    one_of_class = kinds.new_zeros(int(classes.max()) + 1).scatter_(0, classes, kinds)
    return bool((one_of_class[classes] == kinds).all()) and bool((kinds != 0).any())


def _array(value: Any) -> np.ndarray[Any, Any] | None:
    """``value`` as a vector of numbers or strings, where it is one."""
    if not isinstance(value, (Sequence, np.ndarray, Tensor)) or isinstance(value, (str, bytes)):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # ragged
        return None
    return array if array.ndim == 1 and array.dtype.kind in "biufU" else None
