"""A long run stays tidy, and what it logs says what it cost and what it could not decide."""

import json
import time
from dataclasses import replace

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from made_hostile import Images, Small, drawing, loader, quiet, trainer
from made_results import FAILING, OPEN, PASSING, made, void

from lightning_sanity import SaliencySanityCallback
from lightning_sanity.callback.deferred_report import Publication
from lightning_sanity.callback.scalars import scalars


class Directory:
    """A logger of files."""

    experiment = object()

    def __init__(self, folder):
        self.log_dir = str(folder)


def published(folder, results, **options):
    """What lies in the folder after measurements at steps 1, 2, ..."""
    publication = Publication("sanity", **{"images": False, "report": True, **options})
    for step, result in enumerate(results, 1):
        publication.write(made_at(result, step), None, step, str(folder))
        publication.show([Directory(folder)])
    return {path.name for path in (folder / "sanity").iterdir()}


def made_at(result, step):

    return replace(result, step=step, pictures=None)


GOOD, BETTER, FAILED = made({"gradcam": PASSING}), made({"gradcam": PASSING - 0.05}), made({"gradcam": FAILING})
VOID = void(GOOD, "the control 'random' passed")


@pytest.mark.parametrize(
    ("results", "keep", "steps"),
    [
        ([GOOD] * 4, None, {1, 2, 3, 4}),
        ([FAILED, BETTER, *[GOOD] * 4], 1, {1, 2, 6}),
        ([FAILED, BETTER, *[GOOD] * 4], 2, {1, 2, 5, 6}),
        ([GOOD, VOID, GOOD, BETTER], 1, {2, 4}),
        ([FAILED] * 3, 1, {1, 2, 3}),
        ([GOOD, BETTER], 5, {1, 2}),
    ],
)
def test_the_last_the_best_and_the_failing_ones_stay(results, keep, steps, tmp_path):
    files = published(tmp_path, results, keep=keep)
    assert files == {f"step={step}.json" for step in steps} | {"latest.json", "report.html"}
    assert json.loads((tmp_path / "sanity" / "latest.json").read_text())["step"] == len(results)


def test_pictures_go_with_their_result_and_files_of_other_runs_stay(tmp_path):
    before = tmp_path / "sanity"
    before.mkdir()
    for name in ("step=1.json", "curves-step=12.png", "mine.json"):
        (before / name).write_text("{}")
    files = published(tmp_path, [BETTER, *[GOOD] * 3], keep=1, images=True)
    assert {"step=1.json", "curves-step=12.png", "mine.json"} <= files
    pictures = {name[name.index("step=") :] for name in files if name.endswith(".png")}
    assert pictures == {"step=1-v1.png", "step=4.png", "step=12.png"}


def test_a_file_that_cannot_be_removed_costs_a_warning(tmp_path):
    publication = Publication("sanity", images=False, report=True, keep=1)
    for step, result in enumerate([BETTER, GOOD, GOOD], 1):
        publication.write(made_at(result, step), None, step, str(tmp_path))
    (tmp_path / "sanity" / "step=2.json").unlink()
    (tmp_path / "sanity" / "step=2.json").mkdir()
    with pytest.warns(UserWarning, match=r"'step=2\.json'.*could not be removed"):
        publication.show([])


def test_keep_is_a_number_of_measurements():
    with pytest.raises(MisconfigurationException, match="keep"):
        SaliencySanityCallback("gradient", keep=0)


@pytest.mark.parametrize(
    ("result", "inconclusive"), [(GOOD, 0.0), (FAILED, 0.0), (made({"gradcam": OPEN}), 1.0), (VOID, 1.0), (None, 1.0)]
)
def test_what_was_not_decided_is_told_from_what_failed(result, inconclusive):
    logged = scalars(result, ["gradcam"], [], age=0, seconds=2.0, moved={})
    assert logged["gradcam/inconclusive"] == inconclusive


def test_seconds_count_files_and_figures(tmp_path, monkeypatch):
    def slowly(self, loggers):
        time.sleep(0.5)

    monkeypatch.setattr(Publication, "show", slowly)
    measured = SaliencySanityCallback("gradient", probe=4, trials=1, repeats=1, max_steps=1)
    made_trainer = trainer(tmp_path, [measured], max_epochs=1, logger=CSVLogger(tmp_path))
    began = time.perf_counter()
    with quiet():
        made_trainer.fit(Small(), loader(Images(drawing("none"))), loader(Images(drawing("none"))))
    seconds = float(made_trainer.callback_metrics["sanity/seconds"])
    assert measured.result.seconds + 0.5 <= seconds <= time.perf_counter() - began
