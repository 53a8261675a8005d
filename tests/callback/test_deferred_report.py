"""Numbers go out at every measurement; figures and page may wait, and then come once."""

import csv

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from made_figures import make_result
from made_trainings import callback, few_digits, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_sanity.callback.deferred_report import Publication
from lightning_sanity.callback.max_time import Allowance
from lightning_sanity.cli import demo

FIRST, SECOND = (make_result(step=step) for step in (10, 20))


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """A run whose first measurement was told and never drawn, and whose second was told and drawn later."""
    folder = tmp_path_factory.mktemp("run")
    loggers = [TensorBoardLogger(folder, name="board", version=""), CSVLogger(folder, name="files", version="")]
    publication = Publication("sanity", images=True, report=True)
    for result in (FIRST, SECOND):
        publication.write(result, None, result.step, str(folder))
        publication.tell(loggers)
        assert publication.owes
        assert not (folder / "sanity" / "report.html").exists()
    for _ in range(2):
        publication.show(loggers)
    assert not publication.owes
    loggers[0].experiment.close()
    return folder


def test_a_dashboard_has_the_numbers_of_all_and_the_figures_of_what_was_drawn(waiting):
    board = EventAccumulator(str(waiting / "board"), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert [event.step for event in board.Scalars("sanity/outcome")] == [10, 20]
    assert [event.step for event in board.Images("sanity/1-verdicts")] == [20]
    assert [event.step for event in board.Images("sanity/2-over-training")] == [20]


def test_files_have_every_curve_once_and_the_pictures_of_what_was_drawn(waiting):
    with (waiting / "files" / "sanity_curve.csv").open(newline="") as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert steps == len(FIRST.to_records()) * ["10"] + len(SECOND.to_records()) * ["20"]
    assert {path.stem.split("-step=")[1] for path in (waiting / "files" / "sanity").glob("*.png")} == {"20"}
    assert "(step 20)" in (waiting / "sanity" / "report.html").read_text()


def test_a_page_is_named_once_it_was_asked_for(tmp_path):
    publication = Publication("sanity", images=False, report=True)
    assert publication.page is None
    publication.write(FIRST, None, 10, str(tmp_path))
    assert publication.page == tmp_path / "sanity" / "report.html"


@pytest.mark.filterwarnings("ignore")
def test_a_training_without_time_for_figures_logs_every_verdict_and_draws_the_last(tmp_path, monkeypatch):
    inside = Allowance.divide
    monkeypatch.setattr(Allowance, "divide", lambda self, **given: _undrawn(inside(self, **given)))
    measured = callback("gradient", max_time=60.0, log_images=True, report=True)
    run = trainer(tmp_path, measured, max_epochs=2, logger=CSVLogger(tmp_path, name="", version=""))
    run.fit(demo.DigitsClassifier(), *few_digits(128, 64))
    with (tmp_path / "sanity_curve.csv").open(newline="") as file:
        assert {row["step"] for row in csv.DictReader(file)} == {"2", "4"}
    assert {path.stem.split("-step=")[1] for path in (tmp_path / "sanity").glob("*.png")} == {"4"}


def _undrawn(parts):
    return type(parts)(parts.test, False, parts.compare, parts.decide, parts.extend)
