"""What the callback asks of a Trainer: whether it validates or must stop, other processes, where progress is shown."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_sanity.resources.budget import Interrupted
from lightning_sanity.resources.fatal_errors import must_end
from lightning_sanity.resources.processes import everyone
from lightning_sanity.resources.progress import Progress

_PROGRESS_EVERY = 10.0  # seconds between lines


def never_validates(trainer: Any) -> str | None:
    """Why ``fit`` will not validate, as far as that can be told when it starts; None if it will, or may."""
    if trainer.limit_val_batches == 0:
        return "limit_val_batches=0 allows no validation: raise it, or call trainer.validate() afterwards"
    if not trainer.enable_validation:
        if not trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined():
            return "fit() was given no validation loader: pass val_dataloaders=, or call trainer.validate() afterwards"
        return (
            f"{type(trainer.lightning_module).__name__} has no validation_step, which may do nothing but must be there"
        )
    every = trainer.check_val_every_n_epoch
    if trainer.global_step or trainer.current_epoch or trainer.val_check_batch is None:
        return None  # resumed, or by the clock: not known
    needed, there_are = _batches_to_validation(trainer, 0, 0), _batches_left(trainer, 0)
    if not needed > there_are or needed == math.inf:
        return None
    setting = (
        f"val_check_interval={trainer.val_check_interval}" if every is None else f"check_val_every_n_epoch={every}"
    )
    return (
        f"with {setting} the first validation comes after {needed:g} training batches, and training ends after "
        f"{there_are:g}: lower it, or train longer"
    )


def ends_training(trainer: Any) -> bool:
    """Whether no validation of ``fit`` will follow the one that is over now, as far as that can be told."""
    if trainer.should_stop:
        return True
    loop = trainer.fit_loop
    if trainer.val_check_batch is None:  # by the clock
        return False
    needed = _batches_to_validation(trainer, trainer.current_epoch, loop.epoch_loop.batch_idx + 1)
    return bool(needed > _batches_left(trainer, loop.total_batch_idx + 1)) and needed != math.inf


def done(trainer: Any) -> float:
    """The share of training that is over after the validation that is over now; 0 where nobody knows."""
    batches = trainer.fit_loop.total_batch_idx + 1
    return float(batches / (batches + max(_batches_left(trainer, batches), 0.0)))


def _batches_to_validation(trainer: Any, epoch: int, batch: int) -> float:
    """After how many more batches the next validation comes, from so many batches of an epoch on."""
    every, within, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch, trainer.fit_loop.max_batches
    if every is None:
        return float(within)
    if (epoch + 1) % every == 0 and batch + within <= batches:
        return float(within)
    skipped = every - 1 - epoch % every if batch == 0 else every - 1 - (epoch + 1) % every
    return float((batches - batch if batch else 0) + skipped * batches + min(within, batches))


def _batches_left(trainer: Any, done: int) -> float:
    """How many batches training has left after so many, as far as that is known."""
    epochs, batches = trainer.max_epochs, trainer.fit_loop.max_batches
    left = batches * epochs - done if epochs is not None and epochs >= 0 else math.inf
    if trainer.max_steps >= 0 and trainer.lightning_module.automatic_optimization:
        left = min(left, (trainer.max_steps - trainer.global_step) * trainer.accumulate_grad_batches)
    return float(left)


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


def occasion(trainer: Any) -> dict[str, Any]:
    """What a measurement belongs to: the stage, and in training the epoch and how many batches were trained on."""
    stage = str(getattr(trainer.state.fn, "value", trainer.state.fn))
    if stage != "fit":
        return {"stage": stage}
    return {"stage": stage, "epoch": int(trainer.current_epoch), "batch": int(trainer.fit_loop.total_batch_idx) + 1}


@contextmanager
def going_on(what: str) -> Iterator[None]:
    """An error inside the block is a warning and never ends a training, unless it was raised to do just that."""
    try:
        yield
    except BaseException as error:
        if must_end(error):
            raise
        rank_zero_warn(f"{what}; training goes on. {type(error).__name__}: {error}")


def logged_step(trainer: Any) -> int:
    """The step at which loggers show a measurement.

    That of the checkpoint and of the file. Lightning's own count of batches lies one behind it during a validation,
    because it counts a batch only when its validation is over; with several optimizers, which ``global_step`` counts
    apart, it is what all else of the run is shown at.
    """
    loop = getattr(trainer.fit_loop, "epoch_loop", None)
    steps = int(trainer.global_step)
    batches = int(getattr(loop, "_batches_that_stepped", steps))
    return steps if steps - batches in (0, 1) else batches


def progress_lines(trainer: Any) -> Progress:
    """Progress as an occasional line: a second live bar breaks some terminals."""
    bar = trainer.progress_bar_callback
    last = time.monotonic()

    def tick(done: int, total: int, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_EVERY:
            last = now
            line = f"randomization test: {done / max(total, 1):.0%}, {(total - done) / 1000:.0f} s left ({label})"
            if bar is not None:
                bar.print(line)
            else:
                rank_zero_info(line)

    return tick
