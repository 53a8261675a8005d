"""A Trainer that trains nothing: for data modules and transfer hooks that ask for one outside of a training."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_sanity.resources.random_streams import isolated_rng

_BARE = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


@contextmanager
def on_the_bench(
    module: nn.Module, datamodule: pl.LightningDataModule, seed: int = 0
) -> Iterator[Callable[[Any], Any]]:
    """The data, prepared and set up, with what happens to a batch before the network sees it in validation.

    Args:
        module: Its transfer hooks are used if it is a LightningModule, unless the data module has its own.
        datamodule: ``prepare_data`` and ``setup("fit")`` are called.
        seed: Of the random streams inside the block, which are put back.
    """
    lit = module if isinstance(module, pl.LightningModule) else pl.LightningModule()
    before = lit._trainer, datamodule.trainer
    with isolated_rng(seed):
        trainer = _bare()
        trainer.strategy.connect(lit)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You have overridden")  # which training says itself
            trainer._data_connector.attach_datamodule(lit, datamodule)
        lit.trainer = trainer
        trainer.state.fn = TrainerFn.VALIDATING
        trainer.validating = True
        try:
            datamodule.prepare_data()
            datamodule.setup("fit")

            def transfer(batch: Any) -> Any:
                return trainer.strategy.batch_to_device(lit._on_before_batch_transfer(batch), dataloader_idx=0)

            yield transfer
        finally:
            lit._trainer, datamodule.trainer = before


def _bare() -> pl.Trainer:
    """Without the lines about devices, which are not this one's."""
    spoken = [logging.getLogger(f"{name}.utilities.rank_zero") for name in ("lightning.pytorch", "pytorch_lightning")]
    levels = [each.level for each in spoken]
    for each in spoken:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*GPU available but not used")
            return pl.Trainer(**_BARE)  # type: ignore[arg-type]
    finally:
        for each, level in zip(spoken, levels, strict=True):
            each.setLevel(level)


def loaders_in(given: Any) -> list[DataLoader[Any]]:
    """The loaders among what a ``*_dataloader`` hook returned."""
    flat = getattr(given, "flattened", None)
    return [leaf for leaf in (tree_leaves(given) if flat is None else flat) if leaf is not None]
