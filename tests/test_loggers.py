"""Loggers, as their own readers see them: real event files, real CSV directories, real offline runs."""

import csv
import json
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_figures import make_result

from lightning_sanity.report import figures
from lightning_sanity.report.loggers import log_result


class Broken:
    """A logger whose service is down."""

    @property
    def experiment(self):
        raise ConnectionError("no route to host")


class Nowhere:
    """A logger that can show nothing and has no directory."""

    experiment = None


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """What a TensorBoard reader finds after one measurement at step 7."""
    tmp_path = tmp_path_factory.mktemp("events")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_result([logger], make_result(), step=7)
    logger.experiment.close()
    return EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0}).Reload()


@pytest.fixture
def csv_logger(tmp_path):
    return CSVLogger(tmp_path, name="", version="")


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tensorboard_gets_every_figure(events):
    assert set(events.Tags()["images"]) == {"sanity/curves", "sanity/verdicts", "sanity/maps-0", "sanity/maps-1"}


def test_tensorboard_images_sit_at_the_trainer_step(events):
    assert [image.step for image in events.Images("sanity/curves")] == [7]


def test_tensorboard_gets_the_verdicts_as_a_table(events):
    (event,) = events.Tensors("sanity/verdicts/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "| guided_backprop | FAIL | it stays |" in text
    assert "| random (control) | INCONCLUSIVE | no signal |" in text


def test_tensorboard_table_survives_bars_and_line_breaks(tmp_path):
    verdicts = make_result().verdicts
    odd = {"a|b": next(iter(verdicts.values()))}
    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_result([logger], make_result(methods=odd), step=1, images=False)
    logger.experiment.close()
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("sanity/verdicts/text_summary")
    assert r"| a\|b | PASS |" in event.tensor_proto.string_val[0].decode()


def test_csv_directory_gets_png_files(csv_logger, tmp_path):
    log_result([csv_logger], make_result(), step=7)
    names = {path.name for path in (tmp_path / "sanity").iterdir()}
    assert names == {f"{name}-step=7.png" for name in ("curves", "verdicts", "maps-0", "maps-1")}
    with Image.open(tmp_path / "sanity" / "curves-step=7.png") as image:
        assert image.size == (900, 400)


def test_csv_directory_gets_the_records(csv_logger, tmp_path):
    result = make_result()
    log_result([csv_logger], result, step=7, images=False)
    found = rows(tmp_path / "sanity_curve.csv")
    assert [(row["method"], row["unit"]) for row in found] == [(r["method"], r["unit"]) for r in result.to_records()]


def test_csv_records_of_two_measurements_share_a_file(csv_logger, tmp_path):
    for step in (7, 14):
        log_result([csv_logger], make_result(), step=step, images=False)
    found = [row["step"] for row in rows(tmp_path / "sanity_curve.csv")]
    assert found == ["7"] * (len(found) // 2) + ["14"] * (len(found) // 2)


def test_prefix_may_hold_a_slash(csv_logger, tmp_path):
    log_result([csv_logger], make_result(pictures=None), prefix="sanity/deep", step=7)
    assert (tmp_path / "sanity" / "deep_curve.csv").exists()
    assert (tmp_path / "sanity" / "deep" / "curves-step=7.png").exists()


def test_no_figure_is_drawn_without_images(csv_logger, tmp_path):
    log_result([csv_logger], make_result(), step=7, images=False)
    assert not list(tmp_path.rglob("*.png"))


def test_no_figure_is_drawn_without_loggers(monkeypatch):
    monkeypatch.setattr(figures, "curves", lambda result: pytest.fail("drawn for nobody"))
    log_result([], make_result(), step=7)


def test_figures_are_drawn_once_for_all_loggers(tmp_path, monkeypatch):
    calls = []
    draw = figures.curves
    monkeypatch.setattr(figures, "curves", lambda result: calls.append(result) or draw(result))
    log_result([CSVLogger(tmp_path / name) for name in "ab"], make_result(pictures=None), step=7)
    assert len(calls) == 1


def test_a_result_without_pictures_is_logged_without_maps(csv_logger, tmp_path):
    log_result([csv_logger], make_result(pictures=None), step=7)
    assert {path.name for path in tmp_path.rglob("*.png")} == {"curves-step=7.png", "verdicts-step=7.png"}


def test_a_result_without_curves_is_logged(csv_logger, tmp_path):
    log_result([csv_logger], make_result(curves={}, pictures=None), step=7)
    assert not (tmp_path / "sanity_curve.csv").exists()


def test_a_failing_logger_warns_once_and_spares_the_next(csv_logger, tmp_path):
    with pytest.warns(UserWarning, match="Broken could not show .* ConnectionError: no route to host") as caught:
        log_result([Broken(), csv_logger], make_result(), step=7, images=False)
    assert len(caught) == 1
    assert (tmp_path / "sanity_curve.csv").exists()


def test_a_remote_directory_is_refused_with_a_warning():
    class Remote:
        experiment, log_dir = None, "s3://bucket/run"

    with pytest.warns(UserWarning, match="local directories only, not to 's3://bucket/run'"):
        log_result([Remote()], make_result(), step=7)


def test_a_logger_without_a_directory_gets_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_result([Nowhere()], make_result(), step=7)


@pytest.fixture
def wandb_run(tmp_path, monkeypatch):
    """The directory and summary of an offline run with two measurements."""
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    for step in (100, 200):
        log_result([logger], make_result(), step=step)
    run = logger.experiment
    yield Path(run.dir), dict(run.summary), run.step
    wandb.finish()


@pytest.mark.filterwarnings("default")
def test_wandb_gets_images_a_table_and_every_depth(wandb_run):
    directory, summary, step = wandb_run
    images = [path.name.split("_")[0] for path in (directory / "media" / "images" / "sanity").glob("*.png")]
    (table, _) = sorted((directory / "media" / "table" / "sanity").glob("records_*.json"))
    assert sorted(set(images)) == ["curves", "maps-0", "maps-1", "verdicts"]
    assert len(json.loads(table.read_text())["data"]) == len(make_result().to_records())
    assert (summary["sanity_curve/depth"], summary["trainer/global_step"]) == (5, 200)
    assert step == 2 * (len(set(images)) + 1 + 5)  # none of the rows was dropped


@pytest.mark.filterwarnings("default")
def test_mlflow_gets_figures_and_curves_over_depth(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}")
    log_result([logger], make_result(), step=7)
    client, run = logger.experiment, logger.run_id
    history = client.get_metric_history(run, "sanity_curve/gradient/ssim")
    artifacts = {Path(file.path).name for file in client.list_artifacts(run, "sanity/step_7")}
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5]
    assert artifacts == {"curves.png", "verdicts.png", "maps-0.png", "maps-1.png"}
