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

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from made_figures import make_result
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_sanity.report import figures
from lightning_sanity.report.loggers import log_result
from lightning_sanity.result import SanityResult


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
    names = ["1-verdicts", "2-maps-0", "2-maps-1", "3-sensitivity", "4-curves"]
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
    log_result([csv_logger], make_result(), step=7)
    names = {path.name for path in (tmp_path / "sanity").iterdir()}
    assert names == {f"{name}-step=7.png" for name in ("curves", "sensitivity", "verdicts", "maps-0", "maps-1")}
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


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A TensorBoard directory after measurements at steps 7 and 14, the second with one unit less."""
    tmp_path = tmp_path_factory.mktemp("twice")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_result([logger], make_result(), step=7, images=False)
    time.sleep(1.1)  # TensorBoard orders event files by the second in their names
    log_result([logger], make_result(units=("fc2", "fc1", "features")), step=14, images=False)
    logger.experiment.close()
    return tmp_path


def test_tensorboard_curves_have_depth_as_their_axis_and_show_the_last_measurement(twice):
    found = EventAccumulator(str(twice / "sanity_curve")).Reload()
    points = found.Scalars("sanity_curve/ssim/gradient")
    expected = make_result(units=("fc2", "fc1", "features")).curves["gradient", "ssim"].mean
    assert [point.step for point in points] == [1, 2, 3]
    assert [point.value for point in points] == pytest.approx(expected.tolist())


def layout(directory):
    """The custom scalars' layout of a run: ``{category: {chart: pattern}}``."""
    (event, *_) = EventAccumulator(str(directory)).Reload().Tensors("custom_scalars__config__")
    return {
        category.title: {chart.title: chart.multiline.tag[0] for chart in category.chart}
        for category in Layout.FromString(event.tensor_proto.string_val[0]).category
    }


def test_tensorboard_layout_puts_all_methods_of_a_similarity_into_one_chart(twice):
    charts = layout(twice / "sanity_curve")["sanity, over depth at the last measurement"]
    tags = EventAccumulator(str(twice / "sanity_curve")).Reload().Tags()["scalars"]
    shown = {title: [tag for tag in tags if re.search(pattern, tag)] for title, pattern in charts.items()}
    assert {title: len(lines) for title, lines in shown.items()} == {"ssim": 3, "spearman": 3}


def test_tensorboard_layout_over_training_finds_the_scalars_of_the_callback(twice):
    pattern = layout(twice / "sanity_curve")["sanity, over training"]["PSI"]
    tags = ["sanity/gradient/psi", "sanity/gradient/psi_low", "sanity/gradcam/psi", "other/gradient/psi"]
    assert [tag for tag in tags if re.search(pattern, tag)] == [tags[0], tags[2]]


def test_tensorboard_layout_leaves_out_what_the_caller_does_not_log(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    log_result([logger], make_result(), step=1, images=False, prefix="release", over_training=False)
    logger.experiment.close()
    assert list(layout(tmp_path / "release_curve")) == ["release, over depth at the last measurement"]


def logged(data, block=32768, header=7):
    """The records of a file in LevelDB's log format, which begins with seven bytes of Weights & Biases' own."""
    place, record = header, b""
    while place + header <= len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


class Offline:
    """What an offline run of Weights & Biases holds, decoded from its own record file."""

    def __init__(self, file):
        from wandb.proto.wandb_internal_pb2 import Record

        records = [Record.FromString(data) for data in logged(file.read_bytes())]
        self.rows = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        self.artifacts = [
            record.request.log_artifact.artifact
            for record in records
            if record.HasField("request") and record.request.HasField("log_artifact")
        ] + [record.artifact for record in records if record.HasField("artifact")]
        self.summary = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for record in records
            if record.HasField("summary")
            for item in record.summary.update
        }


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
        for step in (100, 200):
            log_result([logger], make_result(), step=step)
        directory = Path(logger.experiment.dir)
        wandb.finish()
        wandb.teardown()  # waits until everything is written
    (file,) = directory.parent.glob("*.wandb")
    return directory, Offline(file)


def test_wandb_gets_every_image_twice(wandb_run):
    images = [path.name.split("_")[0] for path in (wandb_run[0] / "media" / "images" / "sanity").glob("*.png")]
    assert sorted(images) == sorted(2 * ["curves", "maps-0", "maps-1", "sensitivity", "verdicts"])


def test_wandb_table_holds_every_record(wandb_run):
    (table, _) = sorted((wandb_run[0] / "media" / "table" / "sanity").glob("records_*.json"))
    assert len(json.loads(table.read_text())["data"]) == len(make_result().to_records())


def test_wandb_loses_no_row_of_the_curves(wandb_run):
    rows = [row for row in wandb_run[1].rows if "sanity_curve/depth" in row]
    assert [(row["trainer/global_step"], row["sanity_curve/depth"]) for row in rows] == [
        (step, depth) for step in (100, 200) for depth in range(1, 6)
    ]
    expected = make_result().curves["gradient", "ssim"].mean.tolist()
    assert [row["sanity_curve/gradient/ssim"] for row in rows[:5]] == pytest.approx(expected)


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
        log_result([logger], make_result(methods=odd), step=7)
        yield logger.experiment, logger.run_id


def test_mlflow_metrics_have_depth_as_their_step(mlflow_run):
    client, run = mlflow_run
    history = client.get_metric_history(run, "sanity_curve/gradient/ssim")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5]


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
loggers.log_result([SimpleNamespace(experiment=experiment)], make_result(), step=7)
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
