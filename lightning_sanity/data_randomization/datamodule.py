"""RandomLabelDataModule: any data module or loaders, with labels that say nothing about the inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset
from typing_extensions import override

from lightning_sanity.data_randomization.label_access import LabelError, Path, all_labels, identity, label_of, path_of
from lightning_sanity.data_randomization.loaders import LoaderError, follows_labels, rebuilt, samplers_of
from lightning_sanity.data_randomization.random_labels import (
    MODES,
    RandomLabelDataset,
    RandomLabelIterableDataset,
    RandomLabels,
)
from lightning_sanity.resources.random_streams import isolated_rng

__all__ = ["RandomLabelDataModule", "RandomLabelDataset", "RandomLabelIterableDataset"]

Relabelled = RandomLabelDataset | RandomLabelIterableDataset
Loaders = DataLoader[Any] | Sequence[DataLoader[Any]] | Mapping[str, DataLoader[Any]]

_HOOKS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
_DELEGATED = (  # Lightning asks of these whether they are overridden, so that an empty one would stand in the way
    "prepare_data",
    *_HOOKS.values(),
    "predict_dataloader",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
_PROVEN = 8  # samples that go through the collate function to see what arrives
_UNBALANCED = 0.9


class RandomLabelDataModule(pl.LightningDataModule):
    """A data module, or loaders, with randomised training labels: the data randomization test's other half.

    A network that is trained on permuted labels can only memorise. Attributions that look the same for it and for the
    network trained on the true labels do not explain what was learned.

    Everything but the labels stays as it was: samplers, collate functions, workers, hooks, validation and test data.
    The label of a sample belongs to its index: it is the same in every epoch, worker and process, after reloading, and
    when a checkpoint is resumed. Before training, the labels are proven to have changed, and their agreement with the
    true ones is logged: ``random_labels/train_agreement`` beside what chance gives, ``train_chance_agreement``.

    Args:
        datamodule: A ``LightningDataModule``, or the training loaders: one, or a list or dictionary of them.
        mode: ``"permute"`` exchanges labels among samples and keeps their frequencies; ``"uniform"`` draws classes with
            equal probability; ``"fraction"`` permutes the labels of a share of the samples.
        fraction: Share of samples whose labels are randomised, in any mode; training with 0 is bit-identical to
            training without this wrapper.
        seed: Of the draw.
        target_key: Where a sample carries its label: a position, a key or attribute, or a path: ``[1, "class"]``.
        splits: Whose labels are randomised, of ``"train"``, ``"val"`` and ``"test"``.
        sample_id: From a sample to what identifies it; needed for an ``IterableDataset``, which has no index.
        val_dataloaders: With plain training loaders: those for validation.

    Attributes:
        datamodule: The wrapped data module.
        random_labels: Per split and loader, which label each sample has and which it gets; filled when a loader is
            asked for, in the process that trains.
        label_agreement: Per split, the measured share of samples whose label is the true one.
        chance_agreement: Per split, the share that is expected.

    A sampler that draws samples by their true labels (``WeightedRandomSampler``, class-balanced ones) would leave a
    trace of them; it is replaced by uniform sampling, with a warning.

    Raises:
        MisconfigurationException: If an argument is wrong; when loaders are asked for, if labels cannot be found or did
            not change.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv:1810.03292), section 4.

    Example::

        trainer.fit(model, datamodule=RandomLabelDataModule(data))  # otherwise as trainer.fit(model, datamodule=data)
    """

    def __init__(
        self,
        datamodule: pl.LightningDataModule | Loaders,
        *,
        mode: Literal["permute", "uniform", "fraction"] = "permute",
        fraction: float = 1.0,
        seed: int = 0,
        target_key: int | str | Sequence[int | str] = 1,
        splits: Sequence[str] = ("train",),
        sample_id: Callable[..., Any] | None = None,
        val_dataloaders: Loaders | None = None,
    ) -> None:
        super().__init__()
        splits = (splits,) if isinstance(splits, str) else tuple(splits)
        _check_arguments(mode, fraction, seed, target_key, splits)
        inner = _as_datamodule(datamodule, val_dataloaders)
        for split in splits:
            if not is_overridden(_HOOKS[split], inner):
                raise MisconfigurationException(
                    f"splits={splits!r} asks for randomised {split} labels, but {type(inner).__name__} has no "
                    f"`{_HOOKS[split]}()`. Define it there (the LightningModule's is not seen), or pass loaders."
                )
        self.mode, self.fraction, self.seed, self.target_key, self.splits = mode, fraction, seed, target_key, splits
        self.sample_id = sample_id
        self.random_labels: dict[str, list[RandomLabels]] = {}
        self.label_agreement: dict[str, float] = {}
        self.chance_agreement: dict[str, float] = {}
        self._relabelled: dict[str, list[Relabelled]] = {}
        self._digests: dict[str, list[str]] = {}
        self.name = inner.name
        self.prepare_data_per_node = inner.prepare_data_per_node
        self.allow_zero_length_dataloader_with_multiple_devices = (
            inner.allow_zero_length_dataloader_with_multiple_devices
        )
        for hook in _DELEGATED:
            if is_overridden(hook, inner):
                setattr(self, hook, getattr(inner, hook))
        for split in splits:
            setattr(self, _HOOKS[split], partial(self._random_loaders, split))
        own = {"mode": mode, "fraction": fraction, "seed": seed, "target_key": target_key, "splits": splits}
        self.save_hyperparameters(
            # Prefixes, because Lightning refuses names that the module's hyper-parameters also have.
            {f"random_labels/{key}": _plain(value) for key, value in own.items()}
            | {f"datamodule/{key}": _plain(value) for key, value in inner.hparams.items()},
        )
        self.datamodule = inner  # last: from here on, attributes reach it

    # ---------------------------------------------------------------------------------------- standing in for another

    @property
    def trainer(self) -> pl.Trainer | None:
        """The trainer; Lightning sets it here only, and the wrapped data module's hooks may use theirs."""
        return self.__dict__.get("_trainer")

    @trainer.setter
    def trainer(self, trainer: pl.Trainer | None) -> None:
        self.__dict__["_trainer"] = trainer
        if "datamodule" in self.__dict__:
            self.datamodule.trainer = trainer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "datamodule" not in self.__dict__:  # also while being unpickled
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self.datamodule, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what only the wrapped data module has there: a tuner sets ``batch_size``."""
        own = "datamodule" not in self.__dict__ or name in self.__dict__ or hasattr(type(self), name)
        if own or not hasattr(self.datamodule, name):
            super().__setattr__(name, value)
        else:
            setattr(self.datamodule, name, value)

    @override
    def setup(self, stage: str) -> None:
        self.datamodule.setup(stage)

    @override
    def teardown(self, stage: str) -> None:
        self.datamodule.teardown(stage)

    @override
    def on_exception(self, exception: BaseException) -> None:
        self.datamodule.on_exception(exception)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"datamodule": self.datamodule.state_dict(), "digests": {k: list(v) for k, v in self._digests.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.datamodule.load_state_dict(state_dict.get("datamodule", {}))
        self._digests = {key: list(value) for key, value in state_dict.get("digests", {}).items()}

    def __str__(self) -> str:
        return f"Randomised labels ({self.mode}, {', '.join(self.splits)}) of\n{self.datamodule}"

    # ------------------------------------------------------------------------------------------------------- loaders

    def _random_loaders(self, split: str) -> Any:
        """The wrapped data module's loaders, rebuilt over relabelled data sets.

        Rebuilt here, in the hook, because Lightning may build them again from the arguments that it saw: to inject a
        ``DistributedSampler``, for one. A data set exchanged later would be lost then.
        """
        loaders = getattr(self.datamodule, _HOOKS[split])()
        known, self._relabelled[split] = self._relabelled.get(split, []), []
        convert = partial(self._random_loader, split, known)
        try:
            if isinstance(loaders, CombinedLoader):
                leaves = [convert(loader) for loader in loaders.flattened]
                loaders = copy.copy(loaders)
                loaders.flattened = leaves
            else:
                loaders = tree_map(convert, loaders)
        except (LabelError, LoaderError) as error:
            raise MisconfigurationException(f"`{_HOOKS[split]}`: {error}") from error
        self._publish(split)
        return loaders

    def _random_loader(self, split: str, known: Sequence[Relabelled], loader: Any) -> DataLoader[Any]:
        if not isinstance(loader, DataLoader):
            raise LoaderError(
                f"{type(loader).__name__} is not a `torch.utils.data.DataLoader`, so its labels cannot be randomised"
            )
        if any(isinstance(part, Relabelled) for part in _nested(loader.dataset)):
            raise LoaderError("the labels of this data set are randomised already")
        # Loaders are asked for again, every few epochs for example: that must not read all labels again.
        dataset = next((other for other in known if other.dataset is loader.dataset and other.fits), None)
        is_new = dataset is None
        dataset = dataset or self._relabel(loader)
        self._relabelled[split].append(dataset)
        labels = dataset.random_labels
        if labels is None or isinstance(dataset, RandomLabelIterableDataset):
            return rebuilt(loader, dataset)
        biased = next((sampler for sampler in samplers_of(loader) if follows_labels(sampler, labels.true)), None)
        if biased is not None:
            rank_zero_warn(
                f"`{type(biased).__name__}` draws {split} samples by their true labels, which are randomised now: "
                "it is replaced by uniform sampling"
            )
        random_loader = rebuilt(loader, dataset, uniform=biased is not None)
        if is_new:
            _prove_arrival(loader, random_loader, labels, dataset.path)
        return random_loader

    def _relabel(self, loader: DataLoader[Any]) -> Relabelled:
        dataset = loader.dataset
        drawn: dict[str, Any] = {"mode": self.mode, "fraction": self.fraction, "seed": self.seed}
        drawn["target_key"] = self.target_key
        if isinstance(dataset, IterableDataset):
            if self.sample_id is None and self.fraction > 0:
                raise LoaderError(
                    f"{type(dataset).__name__} is an IterableDataset: it has no index that a random label could "
                    "belong to. Pass sample_id=, a function from a sample to what identifies it, such as a file name."
                )
            return RandomLabelIterableDataset(dataset, self.sample_id or identity, **drawn)
        if self.fraction == 0:
            return RandomLabelDataset(dataset, **drawn)
        names = ("num_workers", "worker_init_fn", "multiprocessing_context", "timeout")
        labels = all_labels(
            dataset,
            path_of(self.target_key),
            loading={name: getattr(loader, name) for name in names},
            report=lambda done, total: rank_zero_info(f"reading the true labels: {done} of {total} samples"),
        )
        return RandomLabelDataset(dataset, labels=labels, **drawn)

    # --------------------------------------------------------------------------------------------------------- proof

    def _publish(self, split: str) -> None:
        """Say, log and remember how far the labels agree with the true ones; warn if they are not those from before."""
        drawn = [each.random_labels for each in self._relabelled[split] if each.random_labels is not None]
        self.random_labels[split] = drawn
        announced = split in self.label_agreement
        total = sum(map(len, drawn))
        agreement = sum(labels.agreement * len(labels) for labels in drawn) / total if drawn else 1.0
        chance = sum(labels.chance * len(labels) for labels in drawn) / total if drawn else 1.0
        self.label_agreement[split], self.chance_agreement[split] = agreement, chance
        digests = [labels.digest for labels in drawn]
        if self._digests.get(split, digests) != digests:
            rank_zero_warn(
                f"the randomised {split} labels are not those from before (the checkpoint, or the last loading): the "
                "data set, its order, or the arguments changed. Labels that change during training cannot be memorised."
            )
        self._digests[split] = digests
        if announced or not drawn:
            return
        kept = all(torch.equal(labels.true.bincount(), labels.assigned.bincount()) for labels in drawn)
        rank_zero_info(
            f"{split} labels are randomised: {agreement:.1%} of {total} agree with the true ones "
            f"(chance: {chance:.1%}); {'each is as frequent as before' if kept else 'their frequencies changed'}"
        )
        if any(labels.continuous for labels in drawn):
            rank_zero_info(f"the {split} labels look continuous (regression): they are exchanged as they are")
        if chance > _UNBALANCED and self.fraction == 1:
            rank_zero_warn(
                f"{chance:.0%} of the randomised {split} labels are the true ones by chance, so frequent is one class: "
                "a network trained on them differs little from one trained on the true labels"
            )
        self._log({f"{split}_agreement": agreement, f"{split}_chance_agreement": chance})

    def _log(self, values: Mapping[str, float]) -> None:
        if (trainer := self.trainer) is None:
            return
        for logger in trainer.loggers:
            try:
                logger.log_metrics({f"random_labels/{k}": v for k, v in values.items()}, step=trainer.global_step)
            except Exception as error:  # a logger that is down must not cost the run
                rank_zero_warn(f"the label agreement could not be logged to {type(logger).__name__}: {error}")


def _check_arguments(mode: Any, fraction: Any, seed: Any, target_key: Any, splits: Sequence[Any]) -> None:
    if mode not in MODES:
        raise MisconfigurationException(f"`mode` must be one of {', '.join(map(repr, MODES))}, not {mode!r}")
    if not isinstance(fraction, (int, float)) or isinstance(fraction, bool) or not 0 <= fraction <= 1:
        raise MisconfigurationException(f"`fraction` must be a number from 0 to 1, not {fraction!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise MisconfigurationException(f"`seed` must be an integer, not {seed!r}")
    if not splits or not set(splits) <= set(_HOOKS):
        raise MisconfigurationException(f"`splits` must be some of {', '.join(map(repr, _HOOKS))}, not {splits!r}")
    try:
        path_of(target_key)
    except LabelError as error:
        raise MisconfigurationException(str(error)) from error


def _as_datamodule(given: Any, val_dataloaders: Any) -> pl.LightningDataModule:
    """The data module, or one whose hooks return the given loaders."""
    if isinstance(given, RandomLabelDataModule):
        raise MisconfigurationException(
            "the data module is a RandomLabelDataModule already: randomising twice is no more random"
        )
    if isinstance(given, pl.LightningDataModule):
        if val_dataloaders is not None:
            raise MisconfigurationException("`val_dataloaders` go with plain loaders; a data module has its own")
        return given
    leaves = tree_leaves(given)
    if not leaves or not all(isinstance(leaf, DataLoader) for leaf in leaves):
        other = any("pytorch_lightning" in cls.__module__ for cls in type(given).__mro__)
        raise MisconfigurationException(
            "`datamodule` must be a `lightning.pytorch.LightningDataModule`, a `DataLoader`, or a list or dictionary "
            f"of loaders, not {type(given).__name__}"
            + (" of the package `pytorch_lightning`: import `lightning.pytorch` everywhere" if other else "")
        )
    module = pl.LightningDataModule()
    setattr(module, _HOOKS["train"], partial(_return, given))
    if val_dataloaders is not None:
        setattr(module, _HOOKS["val"], partial(_return, val_dataloaders))
    return module


def _return(value: Any) -> Any:
    return value


def _nested(dataset: Any) -> Iterator[Any]:
    """``dataset`` and the data sets that it draws from, as ``Subset`` and ``ConcatDataset`` do."""
    yield dataset
    parts = getattr(dataset, "datasets", ())
    for part in (getattr(dataset, "dataset", None), *(parts if isinstance(parts, (list, tuple)) else ())):
        if isinstance(part, Dataset):
            yield from _nested(part)


def _prove_arrival(loader: DataLoader[Any], changed: DataLoader[Any], labels: RandomLabels, path: Path) -> None:
    """Send some samples whose label changed through both loaders' collate function.

    Raises:
        LoaderError: If the same labels arrive: the function takes them from elsewhere.
    """
    some = (labels.true != labels.assigned).nonzero().flatten()[:_PROVEN].tolist()
    before, after = ([_arriving(each, index, path) for index in some] for each in (loader, changed))
    if before == after and None not in before:
        raise LoaderError(
            "the true labels still arrive in the batches: the collate function takes them from elsewhere than "
            f"target_key={list(path)!r} of the sample. Point target_key there, or let it use that part of the sample."
        )


def _arriving(loader: DataLoader[Any], index: int, path: Path) -> Hashable:
    """The label in a batch of one, or None where that cannot be told."""
    with isolated_rng(index):
        sample = loader.dataset[index]
        try:
            return identity(label_of(loader.collate_fn(sample if loader.batch_sampler is None else [sample]), path))
        except Exception:  # a collate function may want more samples, or form batches without the path
            return None


def _plain(value: Any) -> Any:
    """``value`` in types that a checkpoint can be loaded with under ``weights_only=True``; else its description."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if value is None or type(value) in (bool, int, float, str) else repr(value)
