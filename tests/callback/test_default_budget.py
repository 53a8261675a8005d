"""The callback as it comes: when it measures in a training, and what a training ends with."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from made_trainings import callback, few_digits, trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_sanity import Criterion, SanityResult
from lightning_sanity.callback.trainer import ends_training
from lightning_sanity.cli import demo
from lightning_sanity.model.clone import weights_digest

pytestmark = pytest.mark.filterwarnings("ignore")


class Foresees(pl.Callback):
    """Asks at every validation whether it is the last."""

    def __init__(self):
        self.said = []

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.said.append(ends_training(trainer))


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_epochs": 5, "check_val_every_n_epoch": 2},
        {"max_epochs": 4, "check_val_every_n_epoch": 2},
        {"max_epochs": 2, "val_check_interval": 0.5},
        {"max_epochs": 2, "val_check_interval": 5},
        {"max_epochs": 3, "val_check_interval": 5, "check_val_every_n_epoch": None},
        {"max_epochs": 3, "val_check_interval": 3, "check_val_every_n_epoch": 2},
        {"max_epochs": 9, "max_steps": 16},
        {"max_epochs": 9, "max_steps": 6, "accumulate_grad_batches": 2, "val_check_interval": 4},
        {"max_epochs": 3, "limit_train_batches": 3},
    ],
    ids=str,
)
def test_the_last_validation_is_known(tmp_path, settings):
    foresees = Foresees()
    data = DataLoader(torch.randn(16, 32), 2)
    trainer(tmp_path, foresees, **settings).fit(BoringModel(), data, data)
    assert foresees.said == [False] * (len(foresees.said) - 1) + [True]


def measured_at(tmp_path, *others, epochs=4, **changes):
    """The callback, the trainer, and the steps whose weights were measured."""
    measured = callback("gradient", report=True, trials=2, **changes)
    run = trainer(tmp_path, measured, *others, max_epochs=epochs, logger=CSVLogger(tmp_path, name="", version=""))
    model = demo.DigitsClassifier()
    run.fit(model, *few_digits(128, 128))
    steps = sorted(int(path.stem.split("=")[1]) for path in (tmp_path / "sanity").glob("step=*.json"))
    assert measured.result.weights_digest == weights_digest(model)
    assert measured.result.settings["thinned"] == {}
    return measured, run, steps


def test_a_short_training_is_measured_at_its_first_and_its_last_validation(tmp_path):
    _, run, steps = measured_at(tmp_path)
    assert steps == [2, 8]
    assert run.callback_metrics["sanity/age"] == 0


def test_without_a_limit_every_validation_is_measured(tmp_path):
    assert measured_at(tmp_path, max_time=None)[2] == [2, 4, 6, 8]


def test_a_training_is_watched_with_few_trials_and_what_it_ends_with_is_decided(tmp_path):
    """The gradient's interval is too wide at three trials of four samples; an index that stays open takes all."""
    measured = callback("gradient", report=True, trials="auto", probe=4, max_time=None, criterion=Criterion(0.93))
    run = trainer(tmp_path, measured, max_epochs=3, logger=CSVLogger(tmp_path, name="", version=""))
    run.fit(demo.DigitsClassifier(), *few_digits(128, 128))
    results = [SanityResult.from_json(tmp_path / "sanity" / f"step={step}.json") for step in (2, 4, 6)]
    assert [result.settings["trials_run"]["gradient"] for result in results] in ([3, 3, 10], [3, 3, 20])
    assert [result.settings["trials_run"]["edge_detector"] for result in results] == [3, 3, 5]
    assert run.validate(run.lightning_module, few_digits(128, 128)[1], verbose=False)
    assert measured.result.settings["trials_run"]["gradient"] in (10, 20)


def test_what_is_open_at_an_unforeseen_end_is_measured_once_more(tmp_path):
    stopping = EarlyStopping("val/accuracy", mode="max", min_delta=1e9, patience=1)
    measured = callback("gradient", trials="auto", probe=4, max_time=None, criterion=Criterion(0.93))
    trainer(tmp_path, measured, stopping, max_epochs=9).fit(demo.DigitsClassifier(), *few_digits(128, 128))
    assert measured.result.step == 4
    assert measured.result.settings["trials_run"]["gradient"] in (10, 20)


def test_what_an_unforeseen_end_leaves_is_measured_after_training(tmp_path):
    stopping = EarlyStopping("val/accuracy", mode="max", min_delta=1e9, patience=2)
    _, run, steps = measured_at(tmp_path, stopping, epochs=9)
    assert run.current_epoch == 3
    assert steps == [2, 6]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    logged = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [row["sanity/age"] for row in logged if row.get("sanity/age")][-1] == "0.0"


def test_a_training_that_breaks_off_is_not_measured_again(tmp_path):
    class Press(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    measured = callback("gradient")
    with pytest.raises(SystemExit):
        trainer(tmp_path, measured, Press(), max_epochs=4).fit(demo.DigitsClassifier(), *few_digits(128, 128))
    assert measured.result.step == 2


def test_weights_are_those_of_a_training_without_it(tmp_path):
    found = []
    for others in ((), (callback("gradient"),)):
        pl.seed_everything(0, verbose=False)
        model = demo.DigitsClassifier()
        trainer(tmp_path, *others, max_epochs=3).fit(model, *few_digits(128, 128, shuffle=True))
        found.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*found)
