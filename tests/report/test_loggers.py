"""Loggers, as their own readers see them: real event files, real CSV directories, real offline runs."""

import csv
import json
import re
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from made_figures import make_result
from made_offline import Offline
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_sanity.report import dashboards, figures
from lightning_sanity.report.loggers import _told, log_result
from lightning_sanity.report.shown import Shown
from lightning_sanity.result import Outcome, SanityResult, Verdict


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
    log_result([logger], make_result(step=7), step=7)
    logger.experiment.close()
    return EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0}).Reload()


@pytest.fixture
def csv_logger(tmp_path):
    return CSVLogger(tmp_path, name="", version="")


def rows(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tensorboard_gets_every_figure(events):
    names = ["1-verdicts", "3-maps-0", "3-maps-1", "4-sensitivity", "5-curves"]
    assert sorted(events.Tags()["images"]) == [f"sanity/{name}" for name in names]


def test_tensorboard_images_are_as_wide_as_a_card(events):
    widths = {tag: image.width for tag in events.Tags()["images"] for image in events.Images(tag)}
    assert set(widths.values()) == {350}


def test_tensorboard_gets_outcomes_as_numbers(events):
    tags = ("outcome", "gradient/outcome", "guided_backprop/outcome")
    found = {tag: [(e.step, e.value) for e in events.Scalars(f"sanity/{tag}")] for tag in tags}
    assert found == {"outcome": [(7, -1)], "gradient/outcome": [(7, 1)], "guided_backprop/outcome": [(7, -1)]}
    assert "sanity/random/outcome" not in events.Tags()["scalars"]


def test_tensorboard_images_sit_at_the_trainer_step(events):
    assert [image.step for image in events.Images("sanity/1-verdicts")] == [7]


def test_tensorboard_gets_the_verdicts_as_a_table(events):
    (event,) = events.Tensors("sanity/verdicts/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "| guided_backprop | FAIL | 0.31 [0.25, 0.38] | it stays |" in text
    assert "| random (control) | INCONCLUSIVE | undefined | no signal |" in text


def test_tensorboard_table_survives_bars_and_line_breaks(tmp_path):
    verdicts = make_result().verdicts
    odd = {"a|b": next(iter(verdicts.values()))}
    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_result([logger], make_result(methods=odd), step=1, images=False)
    logger.experiment.close()
    (event,) = EventAccumulator(str(tmp_path)).Reload().Tensors("sanity/verdicts/text_summary")
    assert r"| a\|b | PASS |" in event.tensor_proto.string_val[0].decode()


def test_csv_directory_gets_png_files(csv_logger, tmp_path):
    log_result([csv_logger], make_result(step=7), step=7)
    names = {path.name for path in (tmp_path / "sanity").iterdir()}
    assert names == {f"{name}-step=7.png" for name in ("curves", "sensitivity", "verdicts", "maps-0", "maps-1")}
    with Image.open(tmp_path / "sanity" / "curves-step=7.png") as image:
        assert image.size == (900, 400)


def test_csv_directory_gets_the_records(csv_logger, tmp_path):
    result = make_result(step=7)
    log_result([csv_logger], result, step=7, images=False)
    found = rows(tmp_path / "sanity_curve.csv")
    assert [(row["method"], row["unit"]) for row in found] == [(r["method"], r["unit"]) for r in result.to_records()]


def test_csv_records_of_two_measurements_share_a_file(csv_logger, tmp_path):
    for step in (7, 14):
        log_result([csv_logger], make_result(step=step), step=step, images=False)
    found = [row["step"] for row in rows(tmp_path / "sanity_curve.csv")]
    assert found == ["7"] * (len(found) // 2) + ["14"] * (len(found) // 2)


def test_prefix_may_hold_a_slash(csv_logger, tmp_path):
    log_result([csv_logger], make_result(pictures=None, step=7), prefix="sanity/deep", step=7)
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
    log_result([csv_logger], make_result(pictures=None, step=7), step=7)
    assert {path.name for path in tmp_path.rglob("*.png")} == {
        "curves-step=7.png",
        "sensitivity-step=7.png",
        "verdicts-step=7.png",
    }


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


def drifting(step, psi):
    """A result of a training whose gradient has this index after so many steps."""
    low, high = psi - 0.05, psi + 0.05
    outcome = Outcome.PASS if low >= 0.65 else Outcome.INCONCLUSIVE if high >= 0.65 else Outcome.FAIL
    return make_result(methods={"gradient": Verdict(outcome, "so", psi, low, high, "ssim")}, step=step, pictures=None)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A TensorBoard directory after measurements at steps 7 and 14."""
    tmp_path = tmp_path_factory.mktemp("twice")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_result([logger], drifting(7, 0.4), step=7)
    time.sleep(1.1)  # TensorBoard orders event files by the second in their names
    log_result([logger], drifting(14, 0.9), step=14, earlier=[drifting(7, 0.4)])
    logger.experiment.close()
    return tmp_path


def test_tensorboard_makes_no_chart_of_a_curve_over_depth(twice):
    tags = {
        tag
        for folder in twice.rglob("*.tfevents*")
        for tag in EventAccumulator(str(folder.parent)).Reload().Tags()["scalars"]
    }
    assert tags == {"sanity/outcome", "sanity/gradient/outcome", "sanity/passes from"}


def test_tensorboard_gets_a_card_over_training_from_the_second_measurement_on(twice):
    found = EventAccumulator(str(twice), size_guidance={"images": 0}).Reload()
    assert [event.step for event in found.Images("sanity/1-verdicts")] == [7, 14]
    assert [event.step for event in found.Images("sanity/2-over-training")] == [14]


def test_tensorboard_draws_the_threshold_from_the_first_step_to_the_last(twice):
    points = EventAccumulator(str(twice / "sanity_threshold")).Reload().Scalars("sanity/passes from")
    assert [(point.step, round(point.value, 2)) for point in points] == [(0, 0.65), (14, 0.65)]


def layout(directory):
    """The custom scalars' layout of a run: ``{category: {chart: pattern}}``."""
    (event, *_) = EventAccumulator(str(directory)).Reload().Tensors("custom_scalars__config__")
    return {
        category.title: {chart.title: chart.multiline.tag[0] for chart in category.chart}
        for category in Layout.FromString(event.tensor_proto.string_val[0]).category
    }


def test_tensorboard_layout_joins_the_indices_of_the_callback_and_the_threshold(twice):
    pattern = layout(twice / "sanity_threshold")["sanity"]["index"]
    tags = ["sanity/gradient/psi", "sanity/passes from", "sanity/gradient/psi_low", "other/gradient/psi"]
    assert [tag for tag in tags if re.search(pattern, tag)] == tags[:2]


def test_tensorboard_gets_no_layout_for_what_the_caller_does_not_log(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_result([logger], make_result(), step=1, images=False, prefix="release", over_training=False)
    logger.experiment.close()
    assert [path.parent for path in tmp_path.rglob("*.tfevents*")] == [tmp_path]


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory):
    """An offline run with two measurements."""
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    tmp_path = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_MODE", "offline")
        wandb.teardown()  # a session reads the environment once, and another test may have begun it
        logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
        for step, earlier in ((100, []), (200, [make_result(step=100)])):
            log_result([logger], make_result(step=step), step=step, earlier=earlier)
        directory = Path(logger.experiment.dir)
        wandb.finish()
        wandb.teardown()  # waits until everything is written
    (file,) = directory.parent.glob("*.wandb")
    return directory, Offline(file)


def test_wandb_gets_one_row_for_a_measurement(wandb_run):
    rows = wandb_run[1].rows
    assert [row["trainer/global_step"] for row in rows] == [100, 200]
    names = {"verdicts", "curves", "sensitivity", "maps-0", "maps-1", "table"}
    depth = {f"over depth/{key}_table" for key in ("ssim", "spearman")}
    for row, further in zip(rows, (set(), {"over-training"}), strict=True):
        assert {key for key in row if key.startswith("sanity")} == {
            f"sanity/{name}" for name in names | depth | further
        }


def test_wandb_images_lie_beside_the_run(wandb_run):
    images = [path.name.split("_")[0] for path in (wandb_run[0] / "media" / "images" / "sanity").glob("*.png")]
    assert sorted(images) == sorted([*2 * ["curves", "maps-0", "maps-1", "sensitivity", "verdicts"], "over-training"])


def test_wandb_table_of_verdicts_grows(wandb_run):
    tables = (json.loads(p.read_text()) for p in (wandb_run[0] / "media" / "table" / "sanity").glob("table_*.json"))
    first, second = sorted((table["data"] for table in tables), key=len)
    assert [row[:3] for row in first] == [
        [100, "guided_backprop", "FAIL"],
        [100, "gradient", "PASS"],
        [100, "random", "INCONCLUSIVE"],
    ]
    assert second == [*first, *([200, *row[1:]] for row in first)]


def test_wandb_charts_of_a_measurement_hold_its_curves_alone(wandb_run):
    folder = wandb_run[0] / "media" / "table" / "sanity" / "over depth"
    tables = [json.loads(path.read_text())["data"] for path in folder.glob("ssim_table_*.json")]
    expected = make_result().curves["gradient", "ssim"].mean.tolist()
    for rows in tables:
        line = [(row[0], row[2]) for row in rows if row[1] == "gradient"]
        assert line == [(depth, pytest.approx(mean)) for depth, mean in enumerate(expected, 1)]
    assert len(tables) == 2 or len(set(map(str, tables))) == 1


def test_wandb_summary_says_the_verdicts(wandb_run):
    summary = wandb_run[1].summary
    assert (summary["sanity/outcome"], summary["sanity/gradient/outcome"]) == ("FAIL", "PASS")


def test_wandb_result_is_an_artifact_with_a_version_per_measurement(wandb_run):
    found = [artifact for artifact in wandb_run[1].artifacts if artifact.type == "sanity-result"]
    assert [set(artifact.aliases) for artifact in found] == [{"latest", "step-100"}, {"latest", "step-200"}]
    assert len({artifact.name for artifact in found}) == 1


@pytest.fixture(scope="module")
def mlflow_run(tmp_path_factory):
    """Client and id of a run in a local file store."""
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        logger = MLFlowLogger(tracking_uri=f"file:{tmp_path_factory.mktemp('mlflow')}")
        odd = make_result().verdicts | {"<odd>": make_result().verdicts["gradient"]}
        log_result([logger], make_result(methods=odd, step=7), step=7)
        log_result([logger], make_result(methods=odd, step=14), step=14)
        yield logger.experiment, logger.run_id


def mlflow_table(mlflow_run, name, folder):
    """The rows of a table among the artifacts."""
    client, run = mlflow_run
    held = json.loads(Path(client.download_artifacts(run, f"sanity/{name}.json", str(folder))).read_text())
    return [dict(zip(held["columns"], row, strict=True)) for row in held["data"]]


def test_mlflow_keeps_curves_in_a_table_and_not_as_metrics_over_depth(mlflow_run, tmp_path):
    client, run = mlflow_run
    assert client.get_run(run).data.metrics == {}
    asked = {"step": 14, "method": "gradient", "similarity": "ssim"}
    line = [row for row in mlflow_table(mlflow_run, "curves", tmp_path) if asked.items() <= row.items()]
    assert [row["depth"] for row in line] == [1, 2, 3, 4, 5]
    assert [row["mean"] for row in line] == pytest.approx(make_result().curves["gradient", "ssim"].mean.tolist())


def test_mlflow_table_of_verdicts_grows(mlflow_run, tmp_path):
    rows = mlflow_table(mlflow_run, "verdicts", tmp_path)
    assert [(row["step"], row["verdict"]) for row in rows if row["method"] == "gradient"] == [(7, "PASS"), (14, "PASS")]


def test_mlflow_report_is_among_the_artifacts(mlflow_run, tmp_path):
    client, run = mlflow_run
    page = Path(client.download_artifacts(run, "sanity/report.html", str(tmp_path))).read_text()
    assert "(step 14)" in page


def test_mlflow_gets_figures_and_a_readable_result(mlflow_run, tmp_path):
    client, run = mlflow_run
    artifacts = {Path(file.path).name for file in client.list_artifacts(run, "sanity/step_7")}
    names = {"curves.png", "sensitivity.png", "verdicts.png", "maps-0.png", "maps-1.png", "result.json"}
    assert artifacts == names
    path = client.download_artifacts(run, "sanity/step_7/result.json", str(tmp_path))
    assert SanityResult.from_json(path).weights_digest == make_result().weights_digest


def test_mlflow_tags_say_the_verdicts_whatever_the_names(mlflow_run):
    client, run = mlflow_run
    tags = client.get_run(run).data.tags
    assert (tags["sanity/outcome"], tags["sanity/guided_backprop/outcome"]) == ("FAIL", "FAIL")
    assert tags["sanity/_odd_/outcome"] == "PASS"


class Metrics:
    """A logger that takes numbers and nothing else."""

    def __init__(self):
        self.rows = []

    experiment = None

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))


def test_a_logger_of_numbers_alone_gets_outcomes_and_what_it_cannot_show_is_said_once(caplog):
    caplog.set_level("INFO")
    loggers = [Metrics(), Metrics()]
    for logger in loggers:
        log_result([logger], make_result(step=7), step=7)
    expected = {"sanity/outcome": -1.0, "sanity/gradient/outcome": 1.0, "sanity/guided_backprop/outcome": -1.0}
    assert [logger.rows for logger in loggers] == [[(7, expected)]] * 2
    assert [record.message for record in caplog.records if "Metrics shows no pictures" in record.message] != []
    assert sum("Metrics shows no pictures" in record.message for record in caplog.records) == 1


def test_a_logger_without_an_experiment_gets_the_outcomes():
    from lightning.pytorch.loggers import Logger

    class Least(Logger):
        name, version, rows = "least", 0, ()

        def log_metrics(self, metrics, step=None):
            self.rows = [*self.rows, (step, metrics["sanity/outcome"])]

        def log_hyperparams(self, *given, **named):
            return

    least = Least()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_result([least], make_result(step=7), step=7)
    assert least.rows == [(7, -1.0)]


def test_what_a_logger_with_a_directory_does_not_show_is_said_once_with_its_place(csv_logger, tmp_path, caplog):
    caplog.set_level("INFO")
    _told.discard(CSVLogger)
    for step in (7, 14):
        log_result([csv_logger], make_result(step=step), step=step)
    said = [record.message for record in caplog.records if "CSVLogger shows no figures and curves" in record.message]
    assert len(said) == 1
    assert str(tmp_path) in said[0]


class Album(Metrics):
    """A logger with pictures and a directory, as SwanLab's."""

    def __init__(self, folder):
        super().__init__()
        self.save_dir, self.pictures, self.texts = str(folder), [], []

    def log_image(self, key, images, step=None):
        self.pictures.append((key, images[0].size, step))

    def log_text(self, key, texts, step=None):
        self.texts.append((key, texts[0].splitlines()[0], step))


def test_a_logger_with_pictures_gets_them_and_its_directory_the_rest(tmp_path):
    logger = Album(tmp_path)
    log_result([logger], make_result(pictures=None, step=7), step=7)
    assert [(key, step) for key, _, step in logger.pictures] == [
        ("sanity/verdicts", 7),
        ("sanity/curves", 7),
        ("sanity/sensitivity", 7),
    ]
    assert logger.texts == [("sanity/verdicts in words", "| method | verdict | PSI [95 %] | why |", 7)]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["sanity_curve.csv"]


class Live:
    """An experiment with pictures under names, as DVCLive's."""

    def __init__(self, folder):
        self.dir, self.pictures = str(folder), []

    def log_image(self, name, value):
        self.pictures.append(name)


def test_an_experiment_with_pictures_gets_them_by_step(tmp_path):
    live = Live(tmp_path)
    log_result([SimpleNamespace(experiment=live)], make_result(pictures=None, step=7), step=7)
    assert live.pictures == [f"sanity/{name}/7.png" for name in ("verdicts", "curves", "sensitivity")]
    assert (tmp_path / "sanity_curve.csv").exists()


def test_comet_gets_images_curves_and_the_result(tmp_path):
    pytest.importorskip("comet_ml")
    # In a process of its own: comet_ml wants to be imported first, and patches what it finds.
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import comet_ml
from types import SimpleNamespace
experiment = comet_ml.OfflineExperiment(offline_directory={str(tmp_path)!r}, log_code=False, log_env_details=False)
from lightning_sanity.report import loggers
from made_figures import make_result
from made_offline import Offline
loggers.log_result([SimpleNamespace(experiment=experiment)], make_result(step=7), step=7)
experiment.end()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=True)
    assert "was left out" not in done.stderr
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as content:
        messages = content.read("messages.json").decode()
    found = set(re.findall(r"sanity[\w/.=-]+", messages))
    names = {f"sanity/{name}" for name in ("curves", "sensitivity", "verdicts", "maps-0", "step=7.json", "outcome")}
    assert names <= found
    assert {f"sanity_curve/{method}/{key}" for method, key in make_result().curves} <= found


class Recorder:
    """Notes which of its methods are called."""

    def __init__(self):
        self.calls = set()

    def __getattr__(self, name):
        return lambda *arguments, **named: self.calls.add(name)


@pytest.mark.parametrize("numbers", [True, False])
def test_figures_alone_go_out_where_the_numbers_have(numbers):
    shown = Shown(make_result(step=7), "sanity", 7, numbers=numbers)
    comet, mlflow = Recorder(), Recorder()
    dashboards.to_comet(comet, shown)
    dashboards.to_mlflow(mlflow, "run", shown)
    assert (comet.calls == {"log_image"}) is (mlflow.calls == {"log_image"}) is not numbers
