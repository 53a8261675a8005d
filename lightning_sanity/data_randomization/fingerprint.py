"""What an experiment trains, by name: what tells the runs in its folder from those of another experiment."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer
from torch.utils._pytree import tree_leaves
from torch.utils.data import IterableDataset, TensorDataset

from lightning_sanity.data_randomization.distinct import layers_of
from lightning_sanity.data_randomization.label_access import LabelError, Path, identity, stored_labels
from lightning_sanity.model.digest import update_digest
from lightning_sanity.resources.quoting import listed
from lightning_sanity.resources.random_streams import generator, isolated_rng

_LOOKED_AT = 256  # samples of a data set that is not a TensorDataset
_LOOKS = (  # arguments of a Trainer that change nothing in the weights, or that a run may be continued with
    "max_epochs",
    "logger",
    "profiler",
    "default_root_dir",
    "enable_progress_bar",
    "enable_model_summary",
    "enable_checkpointing",
    "log_every_n_steps",
    "num_sanity_val_steps",
)

Fingerprint = Mapping[str, str]


def differences(stored: Fingerprint, now: Fingerprint) -> str:
    """What differs between two experiments, in words; empty if nothing does."""
    names = [name for name in (*now, *(set(stored) - set(now))) if stored.get(name) != now.get(name)]
    return listed((f"{name} ({_short(stored.get(name))} there, {_short(now.get(name))} here)" for name in names), 3)


def _short(value: str | None) -> str:
    if value is None:
        return "not set"
    return value if len(value) <= 60 else f"{value[:57]}..."


def of_networks(modules: Sequence[pl.LightningModule]) -> dict[str, str]:
    """Class, layers, plain attributes and hyper-parameters, optimizers and their schedules.

    What differs between modules of one experiment, such as a name that is drawn, is no setting.
    """
    settings = [
        {**_plain_attributes(module), **{str(key): described(value) for key, value in module.hparams.items()}}
        for module in modules
    ]
    shared = {key: value for key, value in settings[0].items() if all(other.get(key) == value for other in settings)}
    layers = hashlib.sha256(repr(layers_of(modules[0])).encode()).hexdigest()[:12]
    named = {f"the network's {key}": value for key, value in sorted(shared.items())}
    return {
        "the optimizer": of_optimizers(modules[0]),
        "the network's class": type(modules[0]).__qualname__,
        "the network's layers": layers,
        **named,
    }


def of_optimizers(module: pl.LightningModule) -> str:
    """Optimizers and schedules with their settings; "unknown" where they cannot be made without a Trainer."""
    try:
        with isolated_rng(0):
            made = tree_leaves(copy.deepcopy(module).configure_optimizers())
    except Exception:  # whatever a Trainer would have been asked for
        return "unknown"
    parts = []
    for each in made:
        if isinstance(each, Optimizer):
            groups = [{key: value for key, value in group.items() if key != "params"} for group in each.param_groups]
            parts.append(f"{type(each).__name__}({'; '.join(map(described, groups))})")
        elif isinstance(each, LRScheduler):
            parts.append(f"{type(each).__name__}({described(_plain(each.state_dict()))})")
    return ", ".join(parts) or "none"


def of_trainer(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of a Trainer, but for those that change nothing in the weights."""
    return {f"Trainer({key}=)": described(value) for key, value in arguments.items() if key not in _LOOKS}


def of_data(dataset: Any, path: Path) -> str:
    """Digest of length, labels and contents: of all of a ``TensorDataset``, else of some samples.

    A data set that gives other contents at every reading is told by its length and labels alone.
    """
    sha = hashlib.sha256(f"{type(dataset).__name__} {_length(dataset)}".encode())
    labels = stored_labels(dataset, path)
    if labels is not None:
        with suppress(LabelError):
            sha.update(repr([identity(label) for label in labels]).encode())
    contents = {_contents(dataset) for _ in range(2)}
    sha.update((contents.pop() if len(contents) == 1 else "varying").encode())
    return sha.hexdigest()[:16]


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:  # a stream
        return None


def _contents(dataset: Any) -> str:
    with isolated_rng(0):
        if isinstance(dataset, TensorDataset):
            samples: Any = dataset.tensors
        elif isinstance(dataset, IterableDataset):
            samples = list(islice(iter(dataset), _LOOKED_AT))
        else:
            chosen = torch.randperm(len(dataset), generator=generator("samples to recognise"))[:_LOOKED_AT]
            samples = [dataset[index] for index in chosen.tolist()]
    sha = hashlib.sha256()
    for leaf in tree_leaves(samples):
        if isinstance(leaf, Tensor):
            update_digest(sha, leaf)
        elif hasattr(leaf, "__array_interface__") or isinstance(leaf, np.ndarray):  # pictures too
            update_digest(sha, torch.from_numpy(np.array(leaf)))
        else:
            sha.update(described(leaf).encode())
    return sha.hexdigest()


def described(value: Any) -> str:
    """A setting in words that are the same in every process: no addresses, no identities.

    >>> described({"lr": 0.1, "betas": (0.9, 0.99)}), described(len)
    ('lr=0.1, betas=(0.9, 0.99)', 'len')
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={described(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = sorted(map(described, value)) if isinstance(value, (set, frozenset)) else list(map(described, value))
        return f"({', '.join(parts)})"
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return str(value.tolist() if np.size(value) <= 8 else hashlib.sha256(repr(value).encode()).hexdigest()[:12])
    function = getattr(value, "func", value)  # of a partial
    given = [*map(described, getattr(value, "args", ())), described(getattr(value, "keywords", {}))]
    if name := getattr(function, "__qualname__", None):
        return f"{name}({', '.join(filter(None, given))})" if function is not value else str(name)
    return f"{type(value).__name__}({described(_plain_attributes(value))})"


def _plain_attributes(value: Any) -> dict[str, str]:
    held = {key: part for key, part in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
    return {key: described(part) for key, part in _plain(held).items() if key != "training"}


def _plain(held: Mapping[str, Any]) -> dict[str, Any]:
    """Only numbers, names and sequences of them."""

    def is_plain(part: Any) -> bool:
        if isinstance(part, (list, tuple)):
            return all(map(is_plain, part))
        return part is None or isinstance(part, (bool, int, float, str))

    return {key: part for key, part in held.items() if is_plain(part)}
