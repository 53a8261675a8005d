"""Options of a Trainer in all pairs, with modules and data that would notice: with the callback all is as without it.

Every checkpoint that a run wrote is shown to the gate, whose answer must be the truth: whether these very weights were
measured at a validation.
"""

import csv
import warnings
from itertools import combinations

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from made_hostile import (
    Counting,
    Flat,
    Images,
    Logging,
    Small,
    Stream,
    Witness,
    drawing,
    loader,
    observer,
    others_in,
    told,
)
from made_trainings import assert_identical

from lightning_sanity.model import checkpoint


def averaging():
    return pytest.importorskip("lightning.pytorch.callbacks.weight_averaging").EMAWeightAveraging(decay=0.5)


OPTIONS = {
    "precision": ["32-true", "bf16-mixed", "64-true", "bf16-true"],
    "accumulate_grad_batches": [1, 4],
    "val_check_interval": [1.0, 0.5, 2],
    "check_val_every_n_epoch": [1, 2],
    "gradient_clip_val": [None, 0.1],
    "gradient_clip_algorithm": ["norm", "value"],
    "limit_val_batches": [1.0, 2],
    "limit_train_batches": [1.0, 5],
    "num_sanity_val_steps": [0, 2],
    "reload_dataloaders_every_n_epochs": [0, 1],
    "inference_mode": [True, False],
    "log_every_n_steps": [1, 50],
    "logger": ["none", "csv"],
    "max_steps": [-1, 7],
    # Of the trainer's callbacks:
    "saving": ["at validation", "at steps", "best"],
    "beside": ["nobody", "averaging", "stochastic averaging", "stopping", "rates"],
    # Of the user's:
    "model": [Small, Flat, Logging, Counting],
    "noise": ["none", "numpy", "python", "torch", "stream"],
    "then": ["nothing", "validate", "test"],
    "every_n_validations": [1, 2],
}


def pairs_of(row):
    return set(combinations(sorted(row.items(), key=lambda item: item[0]), 2))


def all_pairs(options):
    """Rows in which every two values of different options meet; each is chosen to make most pairs that are open."""
    names = sorted(options)
    missing = {
        ((one, a), (other, b)) for one, other in combinations(names, 2) for a in options[one] for b in options[other]
    }
    rows = []
    while missing:
        row = dict(min(missing, key=str))
        for name in sorted(names, key=lambda each: -len(options[each])):
            if name not in row:
                row[name] = max(
                    options[name],
                    key=lambda value: len(missing & pairs_of({**row, name: value})),
                )
        missing -= pairs_of(row)
        rows.append(row)
    return rows


ROWS = all_pairs(OPTIONS)
QUICK = range(0, len(ROWS), 6)


def others(row):
    made = {
        "averaging": averaging,
        "stochastic averaging": lambda: StochasticWeightAveraging(0.01, swa_epoch_start=1),
        "stopping": lambda: EarlyStopping("loss", patience=1, strict=False),
        "rates": LearningRateMonitor if row["logger"] == "csv" else lambda: EarlyStopping("loss", strict=False),
    }
    return [made[row["beside"]]()] if row["beside"] in made else []


def saving(row, folder):
    how = {
        "at validation": {"save_top_k": -1},
        "at steps": {"save_top_k": -1, "every_n_train_steps": 2},
        "best": {"monitor": "step", "mode": "max"},
    }
    return ModelCheckpoint(folder / "checkpoints", filename="{epoch}-{step}", **how[row["saving"]])


def data(row):
    noise = drawing("numpy" if row["noise"] == "stream" else row["noise"])
    training, validation = Images(noise), Images(noise)
    held_out = Stream(validation) if row["noise"] == "stream" else validation
    return training, validation, loader(training, shuffle=True), loader(held_out)


CALLERS = {"saving", "beside", "model", "noise", "then", "every_n_validations", "logger"}


def run(row, folder, measuring):
    """All that a run leaves: checkpoints, metrics, tables, order of data, counts; and who was witnessed."""
    pl.seed_everything(0, verbose=False)
    training, validation, *loaders = data(row)
    witness, saver, model = Witness(), saving(row, folder), row["model"]()
    mine = (
        [observer(report=True, every_n_validations=row["every_n_validations"], max_time=None), witness]
        if measuring
        else []
    )
    trainer = pl.Trainer(
        default_root_dir=folder,
        callbacks=[*mine, *others(row), saver],
        max_epochs=3,
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version="") if row["logger"] == "csv" else False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{name: value for name, value in row.items() if name not in CALLERS},
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, *loaders)
        trainer.save_checkpoint(folder / "end.ckpt")
        if row["then"] != "nothing":
            getattr(trainer, row["then"])(model, loaders[1], verbose=False)
    troubles = [str(each.message) for each in caught if "training goes on" in str(each.message)]
    metrics = {key: value for key, value in trainer.callback_metrics.items() if not key.startswith("sanity/")}
    counts = model.outside.seen if isinstance(model, Counting) else None
    left = {
        "checkpoints": {path.name: others_in(path) for path in folder.rglob("*.ckpt")},
        "metrics": metrics,
        "table": table(folder / "metrics.csv"),
        "order": (training.asked, validation.asked),
        "counts": counts,
        "norms": model.norms if isinstance(model, Counting) else None,
        "step": trainer.global_step,
    }
    return left, witness.digests, troubles


def table(path):
    if not path.exists():
        return None
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v and not k.startswith("sanity/")} for row in csv.DictReader(file)]
    return [row for row in rows if set(row) - {"epoch", "step"}]


def test_every_pair_of_options_meets():
    assert len(OPTIONS) - len(CALLERS - {"logger"}) >= 12
    met = set().union(*map(pairs_of, ROWS))
    wanted = {
        frozenset([(one, str(a)), (other, str(b))])
        for one, other in combinations(OPTIONS, 2)
        for a in OPTIONS[one]
        for b in OPTIONS[other]
    }
    assert {frozenset((name, str(value)) for name, value in pair) for pair in met} == wanted


@pytest.mark.parametrize(
    "number", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in range(len(ROWS))]
)
def test_training_is_the_same_and_the_gate_tells_the_truth(tmp_path, number):
    row, folder = ROWS[number], tmp_path / "run"  # paths stand in checkpoints, so that both runs have the same folder
    with_callback, witnessed, troubles = run(row, folder, True)
    assert troubles == []
    for path in sorted(folder.rglob("*.ckpt")):
        measured = set(witnessed) & set(checkpoint.digests(path))
        if row["every_n_validations"] == 1:
            assert told(folder, path) == bool(measured), path.name
        elif told(folder, path):
            assert measured, path.name
        if row["saving"] == "at validation" and path.name != "end.ckpt" and row["every_n_validations"] == 1:
            assert measured or row["beside"] != "nobody" or row["max_steps"] > 0 or row["check_val_every_n_epoch"] > 1
    folder.rename(tmp_path / "with")
    without, *_ = run(row, folder, False)
    assert_identical(with_callback, without)
