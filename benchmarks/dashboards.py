"""Question: what does each logger show of a real training, and can it be read?

Trains a small network on digits with the callback and one logger, several validations, prints what arrived there, and
photographs TensorBoard and MLflow, started on this machine, in a headless Chromium. Loggers that are not installed are
named. ``--package`` runs the same with another version of this library, for pictures of before and after:

    git worktree add ../before <commit>
    python benchmarks/dashboards.py --out before --package ../before
    python benchmarks/dashboards.py --out after [--loggers tensorboard wandb mlflow swanlab dvclive aim clearml numbers]
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
if "--package" in sys.argv:
    sys.path.insert(0, str(Path(sys.argv[sys.argv.index("--package") + 1]).resolve()))
sys.path.append(str(ROOT / "tests"))

import lightning as L  # noqa: E402  # after the package that is asked for
import torch  # noqa: E402
from measuring import parser  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402

from lightning_sanity import SaliencySanityCallback  # noqa: E402

METHODS = ["gradient", "gradcam", "guided_backprop"]


class Digits(L.LightningModule):
    """A small network on 8 x 8 digits."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, images):
        return self.layers(images)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


class Numbers:
    """Makes a logger that takes numbers and nothing else, and has no experiment."""

    def __new__(cls):
        from lightning.pytorch.loggers import Logger

        class NumbersLogger(Logger):
            name, version = "numbers", 0

            def __init__(self):
                super().__init__()
                self.rows = []

            def log_metrics(self, metrics, step=None):
                self.rows.append((step, dict(metrics)))

            def log_hyperparams(self, *given, **named):
                return

        return NumbersLogger()


def logger_of(kind, folder):
    """A logger of this kind that keeps all it has below the folder."""
    if kind == "numbers":
        return Numbers()
    if kind in ("tensorboard", "clearml"):
        from lightning.pytorch.loggers import TensorBoardLogger

        if kind == "clearml":  # it listens to TensorBoard's writer
            from clearml import Task

            Task.set_offline(True)
            Task.init("digits", "digits", auto_connect_frameworks={"pytorch": False}, auto_resource_monitoring=False)
        return TensorBoardLogger(folder, name="", version="run")
    if kind == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(project="digits", save_dir=folder, offline=True)
    if kind == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        where = f"sqlite:///{folder}/mlflow.db"
        return MLFlowLogger("digits", tracking_uri=where, artifact_location=str(folder / "artifacts"))
    if kind == "swanlab":
        from swanlab.integration.pytorch_lightning import SwanLabLogger

        return SwanLabLogger(project="digits", mode="offline", log_dir=str(folder), save_dir=folder)
    if kind == "dvclive":
        from dvclive.lightning import DVCLiveLogger

        return DVCLiveLogger(dir=str(folder / "dvclive"), save_dvc_exp=False, report=None)
    from aim.pytorch_lightning import AimLogger

    return AimLogger(repo=str(folder), system_tracking_interval=None, log_system_params=False)


def trained(logger, folder, epochs):
    """A training with as many validations."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    data = torch.utils.data.TensorDataset(images, torch.tensor(labels))
    train, held = torch.utils.data.random_split(data, [1400, 397], torch.Generator().manual_seed(0))
    options = {"methods": METHODS, "probe": 16, "trials": 3, "max_time": None}
    trainer = L.Trainer(
        max_epochs=epochs, logger=logger, callbacks=[SaliencySanityCallback(**options)], default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=5,
        accelerator="cpu",
    )  # fmt: skip
    L.seed_everything(0, verbose=False)
    loaders = torch.utils.data.DataLoader(train, 64, shuffle=True), torch.utils.data.DataLoader(held, 200)
    trainer.fit(Digits(), *loaders)


def of_tensorboard(folder):
    """Tags by kind, from the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in sorted({file.parent for file in folder.rglob("*tfevents*")}):
        tags = EventAccumulator(str(path), size_guidance={"images": 0}).Reload().Tags()
        for kind in ("scalars", "images", "tensors"):
            found[f"{path.name}: {kind}"] = [tag for tag in tags[kind] if "sanity" in tag]
    return found


def of_wandb(folder):
    """The rows, the summary and the artifacts of an offline run."""
    from made_offline import Offline

    (file,) = folder.rglob("*.wandb")
    run = Offline(file)
    rows = [sorted(key for key in row if "sanity" in key) for row in run.rows]
    charts = [row for row in rows if any("verdicts" in key for key in row)]
    said = {key: value for key, value in run.summary.items() if "outcome" in key}
    kinds = [f"{artifact.name} {list(artifact.aliases)}" for artifact in run.artifacts]
    return {"rows with figures": len(charts), "the last of them": charts[-1:], "summary": said, "artifacts": kinds}


def of_mlflow(folder):
    """Metrics, tags and artifacts of the run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    files = sorted(str(path.relative_to(folder)) for path in (folder / "artifacts").rglob("*sanity*/**/*"))
    tags = {key: value for key, value in run.data.tags.items() if "sanity" in key}
    return {"metrics": sorted(key for key in run.data.metrics if "sanity" in key), "tags": tags, "artifacts": files}


def of_aim(folder):
    """Sequences of the run by kind."""
    from aim import Repo

    (run,) = Repo.from_path(str(folder)).iter_runs()
    kinds = {"numbers": run.metrics(), "images": run.get_image_sequences(), "texts": run.get_text_sequences()}
    return {
        kind: sorted({sequence.name for sequence in found if "sanity" in sequence.name})
        for kind, found in kinds.items()
    }


def files_of(folder):
    """Whatever lies there, by folder and ending."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and ("sanity" in str(path) or "events" in path.name or "media" in str(path)):
            key = f"{path.parent.relative_to(folder)}/*{path.suffix}"
            found[key] = found.get(key, 0) + 1
    return found


READERS = {"tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow, "aim": of_aim}
LOGGERS = ("tensorboard", "wandb", "mlflow", "swanlab", "dvclive", "aim", "clearml", "numbers")


@contextmanager
def served(command, port):
    """A server of this machine, once it answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def photographs_of_tensorboard(tab, folder, out):
    """Its pages of scalars, images, text and the custom layout."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    with served([*command, "--load_fast=false", "--samples_per_plugin", "images=20"], port) as address:
        time.sleep(8)  # it reads the files meanwhile
        for page in ("images", "timeseries", "text", "custom_scalars"):
            photograph(tab, f"{address}/?darkMode=false#{page}", out / f"tensorboard-{page}.png")


def photographs_of_mlflow(tab, folder, out):
    """The run's overview, its charts, and the report among the artifacts."""
    from mlflow.tracking import MlflowClient

    where = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(where)
    experiment = client.get_experiment_by_name("digits").experiment_id
    (run,) = client.search_runs([experiment])
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", where, "--port", str(port)]
    with served([*command, "--workers", "1", "--default-artifact-root", str(folder / "artifacts")], port) as address:
        begin = f"{address}/#/experiments/{experiment}/runs/{run.info.run_id}"
        for page in ("overview", "model-metrics", "artifacts/sanity/report.html", "artifacts/sanity/verdicts.json"):
            photograph(tab, f"{begin}/{page}", out / f"mlflow-{page.replace('/', '-')}.png")


def photograph(tab, address, path):
    """What the browser shows there when the page has settled."""
    from made_browser import show

    show(tab, "about:blank#" + path.stem)
    show(tab, address, width=1280)
    time.sleep(9)
    shot = tab("Page.captureScreenshot", clip={"x": 0, "y": 0, "width": 1280, "height": 900, "scale": 1})["data"]
    path.write_bytes(base64.b64decode(shot))


def free_port():
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def one(kind, out, epochs):
    """Trains with this logger; what arrived."""
    folder = (out / kind).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # some keep files where the program runs
    os.environ |= {"WANDB_SILENT": "true", "CLEARML_OFFLINE_MODE": "1", "CLEARML_CACHE_DIR": str(folder / "clearml")}
    logger = logger_of(kind, folder)
    started = time.perf_counter()
    trained(logger, folder, epochs)
    found = {"seconds": round(time.perf_counter() - started, 1)}
    if kind == "wandb":
        import wandb

        wandb.finish()
        wandb.teardown()
    if kind == "numbers":
        found["last row"] = {key: value for key, value in logger.rows[-1][1].items() if "sanity" in key}
        found["outcomes"] = [row for _, row in logger.rows if "sanity/outcome" in row][-1:]
    return found | (READERS[kind](folder) if kind in READERS else {}) | {"files": files_of(folder)}


def main():
    """Trains, reads, photographs; each logger in a process of its own, as some patch others."""
    flags = parser(__doc__)
    flags.add_argument("--out", type=Path, default=Path("dashboards"))
    flags.add_argument("--loggers", nargs="*", choices=LOGGERS, default=["tensorboard", "wandb", "mlflow"])
    flags.add_argument("--epochs", type=int, default=3)
    flags.add_argument("--package", type=Path, help="a folder with another version of this library")
    flags.add_argument("--alone", action="store_true", help="the only logger, in this process")
    given = flags.parse_args()
    if given.equality_only:
        assert set(READERS) <= set(LOGGERS)
        print(f"equality: readers of {', '.join(READERS)} belong to loggers")
        return
    if given.alone:
        warnings.simplefilter("default")
        print(json.dumps(one(given.loggers[0], given.out, given.epochs), indent=1, default=str))
        return
    for kind in given.loggers:
        command = [sys.executable, __file__, "--alone", "--loggers", kind, "--out", str(given.out)]
        command += ["--epochs", str(given.epochs), *(["--package", str(given.package)] if given.package else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        (given.out / kind).mkdir(parents=True, exist_ok=True)
        (given.out / kind / "said.txt").write_text(done.stderr)
        missing = [line for line in done.stderr.splitlines() if line.startswith("ModuleNotFoundError")]
        print(f"\n{kind}: {missing[0] if done.returncode and missing else ''}")
        said = [line for line in done.stderr.splitlines() if "sanity" in line or "randomization test" in line]
        print(*(f"  said: {line.strip()}" for line in said[:6]), done.stdout, sep="\n", flush=True)
    _photograph(given.out.resolve(), [kind for kind in given.loggers if kind in ("tensorboard", "mlflow")])


def _photograph(out, kinds):
    from made_browser import BROWSER, chromium

    if BROWSER is None:
        print("no Chromium is installed: no photographs")
        return
    taking = {"tensorboard": photographs_of_tensorboard, "mlflow": photographs_of_mlflow}
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as tab:
        tab("Page.enable")
        for kind in kinds:
            taking[kind](tab, out / kind, out)


if __name__ == "__main__":
    main()
