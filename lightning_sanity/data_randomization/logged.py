"""Evidence that models learned their labels, from what trainings wrote down themselves."""

from __future__ import annotations

import math
import re
from pathlib import Path

import lightning.pytorch as pl

from lightning_sanity.data_randomization.learned_labels import Memorization, all_known
from lightning_sanity.data_randomization.recorder import RECORD, Run

_WORDS = re.compile(r"[^a-z]+")


def memorization_logged(trainer: pl.Trainer, reference: str | Path) -> Memorization | None:
    """How well the model in training, and one of ``random_label_experiment``, learned their labels.

    Args:
        trainer: That trains the one: what its module logs per epoch as an accuracy in training is believed.
        reference: Checkpoint of the other, with the record of its training beside it.

    Returns:
        None if either is unknown.
    """
    accuracy, record = logged_accuracy(trainer), Path(reference).parent / RECORD
    if accuracy is None or not record.exists():
        return None
    run = Run.read(record)
    found = run.agreement
    if found is None:
        return None
    return Memorization(
        (accuracy,),
        (run.train_accuracy,),
        (run.test_accuracy,),
        run.test_samples,
        math.nan if run.chance is None else run.chance,
        (found.share,),
        min(found.chance, 1 - 1e-9),
        found.samples,
        run.measure,
        (found.association,) if all_known([found]) else (),
    )


def logged_accuracy(trainer: pl.Trainer) -> float | None:
    """The accuracy in training that was logged of the last whole epoch; the least, if several were.

    It is told by its name, of which "train" and "acc", or longer forms, must be words: ``train/acc``,
    ``accuracy_train``. What is logged of single steps says little and does not count.
    """
    results = getattr(getattr(trainer.fit_loop, "epoch_loop", None), "_results", None) or {}
    names = {each.meta.name for each in results.values() if each.meta.on_epoch}
    metrics = trainer.callback_metrics
    found = [float(metrics[name]) for name in names if _is_accuracy(name) and name in metrics]
    return min((value for value in found if 0 <= value <= 1), default=None)


def _is_accuracy(name: str) -> bool:
    """Whether it is named as an accuracy in training.

    >>> [_is_accuracy(name) for name in ("train/acc", "TrainAccuracy", "val_acc", "train_loss", "training-accuracy_1")]
    [True, True, False, False, True]
    """
    words = _WORDS.split(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return bool({"train", "training"} & {*words}) and bool({"acc", "accuracy"} & {*words})
