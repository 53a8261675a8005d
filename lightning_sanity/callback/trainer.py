"""What the callback asks of a Trainer: data, the other processes, whether it must stop, where progress is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from lightning_sanity.explanation import probe as probes
from lightning_sanity.explanation.probe import Probe
from lightning_sanity.resources.budget import Interrupted
from lightning_sanity.resources.processes import everyone
from lightning_sanity.resources.progress import Progress

_PROGRESS_EVERY = 10.0  # seconds between lines


def form_probe(
    trainer: Any, module: Any, given: Any, ids: Sequence[int] | None, seed: int, single_precision: bool
) -> Probe:
    """The probe as the model is to get it: through the user's transfer hooks, in the trainer's precision.

    Args:
        trainer: Of either Lightning package.
        module: Its LightningModule.
        given: See ``probe.form``.
        ids: Samples of an earlier run, which are taken again if they are still there.
        seed: Of the choice.
        single_precision: Floating point inputs in float32, whatever the trainer's own precision is.
    """

    def convert(batch: Any) -> Any:
        if not single_precision:
            return trainer.precision_plugin.convert_input(batch)
        return tree_map(lambda t: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t, batch)

    def transfer(batch: Any) -> Any:
        batch = module._on_before_batch_transfer(convert(batch), dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    loader = _first_loader(trainer)
    formed: Probe | None = None
    if isinstance(given, int) and ids is not None:
        try:
            formed = probes.from_ids_of(loader, ids, seed=seed, transfer=transfer)
        except (IndexError, KeyError, probes.ProbeError) as error:
            rank_zero_warn(f"the probe of the checkpoint is gone and another one is taken: {error}")
    if formed is None:
        formed = probes.form(given, loader, seed=seed, transfer=transfer)
    inputs = convert(formed.inputs)
    return replace(formed, inputs=inputs, digest=probes.digest(inputs))


def _first_loader(trainer: Any) -> DataLoader[Any] | Iterable[Any] | None:
    """The first loader of the data that is looked at now, however many and however nested."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    return next((leaf for leaf in tree_leaves(loaders) if leaf is not None), None)


def gatherer(trainer: Any) -> Callable[[Any], list[Any]]:
    """A function that collects one object from every rank, on every rank."""
    return everyone if trainer.world_size > 1 else lambda part: [part]


def interruptible(trainer: Any, tick: Progress) -> Progress:
    """``tick``, but raising as soon as training has to end.

    A stop that was asked for before the test began does not end it: what training ends with is to be measured.

    Args:
        trainer: Of either Lightning package.
        tick: Called after every step of a test.

    Raises:
        Interrupted: On a termination signal, or when ``trainer.should_stop`` is set meanwhile. At once, before the
            test starts, on a termination signal that has already come.
    """
    stopping = bool(trainer.should_stop)

    def poll() -> None:
        if trainer.received_sigterm:
            raise Interrupted("a termination signal came during the randomization test")
        if trainer.should_stop and not stopping:
            raise Interrupted("training was told to stop during the randomization test")

    def watched(done: int, total: int, label: str) -> None:
        poll()
        tick(done, total, label)

    poll()
    return watched


def logged_step(trainer: Any) -> int:
    """The step that loggers use as their x axis; it differs from ``global_step`` with several optimizers."""
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    return int(getattr(loop, "_batches_that_stepped", trainer.global_step))


def progress_lines(trainer: Any) -> Progress:
    """Progress as an occasional line: a second live bar breaks some terminals."""
    bar = trainer.progress_bar_callback
    last = time.monotonic()

    def tick(done: int, total: int, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_EVERY:
            last = now
            line = f"randomization test: {done}/{total} ({label})"
            if bar is not None:
                bar.print(line)
            else:
                rank_zero_info(line)

    return tick
