"""Where a run keeps its results: beside its checkpoints, and no run's files replace another's."""

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from made_hostile import Images, Small, drawing, loader, observer, quiet, trainer

from lightning_sanity import SanityResult
from lightning_sanity.callback.result_files import Folder, home
from lightning_sanity.resources.files import write_whole


class Tracking(Logger):
    """As W&B's and MLflow's are: a folder for all runs, a name, a version, and no folder of the run."""

    def __init__(self, save_dir, name, version):
        super().__init__()
        self._save_dir, self._name, self._version = save_dir, name, version

    save_dir = property(lambda self: self._save_dir)
    name = property(lambda self: self._name)
    version = property(lambda self: self._version)
    experiment = property(lambda self: self)

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *arguments, **named):
        pass


LOGGERS = {
    "none": lambda root: False,
    "TensorBoard": lambda root: TensorBoardLogger(root / "tb", name="mine"),
    "TensorBoard without a name": lambda root: TensorBoardLogger(root / "tb", name="", version="run"),
    "CSV": lambda root: CSVLogger(root / "csv", name="mine"),
    "a tracking service": lambda root: Tracking(str(root / "wandb"), "project", "1a2b3c"),
    "a numbered version": lambda root: Tracking(str(root / "wandb"), "project", 3),
    "a remote service": lambda root: Tracking(None, "project", "1a2b3c"),
    "several": lambda root: [Tracking(str(root / "wandb"), "project", "1a2b3c"), CSVLogger(root / "csv")],
}


@pytest.mark.parametrize("kind", LOGGERS)
def test_results_lie_beside_the_checkpoints(tmp_path, kind):
    checkpoints = ModelCheckpoint()
    run = trainer(
        tmp_path,
        [observer(report=True), checkpoints],
        logger=LOGGERS[kind](tmp_path),
        enable_checkpointing=True,
        max_epochs=1,
    )
    with quiet():
        run.fit(Small(), loader(Images(drawing("none"))), loader(Images(drawing("none"))))
    folder = Path(checkpoints.best_model_path).parents[1] / "sanity"
    assert sorted(path.name for path in folder.iterdir()) == ["latest.json", "report.html", "step=6.json"]
    assert sorted(tmp_path.rglob("*.json")) == sorted(folder.glob("*.json"))


def fitted(folder, logger=False, **changes):
    run = trainer(folder, [observer(report=True, **changes)], logger=logger, max_epochs=1)
    with quiet():
        run.fit(Small(), loader(Images(drawing("none"))), loader(Images(drawing("none"))))
    return run


@pytest.mark.parametrize("logger", [True, False])
def test_two_runs_of_one_folder_keep_both_results(tmp_path, logger):
    for seed, version in enumerate("ab"):
        pl.seed_everything(seed, verbose=False)
        fitted(tmp_path, Tracking(str(tmp_path), "project", version) if logger else False)
    written = [path for path in tmp_path.rglob("*.json") if path.name != "latest.json"]
    assert len({SanityResult.from_json(path).weights_digest for path in written}) == 2
    if not logger:
        assert sorted(path.name for path in written) == ["step=6-batch=6.json", "step=6.json"]


def test_a_logger_that_cannot_say_where_costs_a_warning(tmp_path):
    class Lost(Tracking):
        @property
        def version(self):
            raise ConnectionError("the server is gone")

    with pytest.warns(UserWarning, match="could not be shown; training goes on. ConnectionError: the server is gone"):
        run = fitted(tmp_path, Lost(None, "project", "x"))
    assert run.current_epoch == 1


def test_a_remote_folder_gets_the_files(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    fitted("memory://runs/one")
    system = fsspec.filesystem("memory")
    there = sorted(Path(path).name for path in system.ls("/runs/one/sanity", detail=False))
    assert there == ["latest.json", "report.html", "step=6.json"]
    assert json.loads(system.cat("/runs/one/sanity/latest.json"))["step"] == 6
    fitted("memory://runs/one")
    assert system.exists("/runs/one/sanity/step=6-batch=6.json")
    system.rm("/runs", recursive=True)


def test_a_folder_is_named_as_it_is_given():
    assert home(type("Of", (), {"default_root_dir": "memory://x", "loggers": []})()) == "memory://x"


def test_a_file_takes_the_first_free_name(tmp_path):
    folder = Folder(str(tmp_path / "made"))
    names = [folder.add((f"{k}.txt" for k in count()), lambda path: write_whole(path, "new")) for _ in range(3)]
    assert names == ["0.txt", "1.txt", "2.txt"]
    assert folder.write("0.txt", lambda path: write_whole(path, "replaced")) == str(tmp_path / "made" / "0.txt")
    assert (tmp_path / "made" / "0.txt").read_text() == "replaced"
    assert len(list((tmp_path / "made").iterdir())) == 3


def test_a_file_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError("disk full")

    def broken(path):
        write_whole(path, "half")

    monkeypatch.setattr(os, "fsync", full)
    folder = Folder(str(tmp_path))
    for act in (lambda: folder.write("a", broken), lambda: folder.add(iter("ab"), broken)):
        with pytest.raises(OSError, match="disk full"):
            act()
    assert list(tmp_path.iterdir()) == []


KILLS = """
import json, os, signal, sys, time
from itertools import count
from pathlib import Path
from lightning_sanity.callback.result_files import Folder
from lightning_sanity.resources.files import write_whole

place, text = Path(sys.argv[1], "latest.json"), "x" * 200_000
for attempt in range(40):
    begun, begins = os.pipe()
    writer = os.fork()
    if not writer:
        try:
            for number in count():
                Folder(sys.argv[1]).write("latest.json", lambda path: write_whole(path, json.dumps([number, text])))
                os.write(begins, b".")
        finally:
            os._exit(1)
    os.close(begins)
    os.read(begun, 1)
    time.sleep(0.0005 * attempt)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.close(begun)
    assert len(json.loads(place.read_text())) == 2
"""


@pytest.mark.slow  # a process of its own: pytest's may have threads, and does not fork
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that were forked")
def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], check=True)
    assert (tmp_path / "latest.json").exists()
    assert list(tmp_path.glob(".*.partial"))  # kills came while files were half written


SWEEP = """
import os, sys
import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from made_hostile import Images, Small, drawing, loader, observer, quiet, trainer

folder = sys.argv[1]
workers = []
for seed in range(4):
    worker = os.fork()
    if not worker:
        pl.seed_everything(seed, verbose=False)
        logger = TensorBoardLogger(folder) if sys.argv[2] == "TensorBoard" else False
        run = trainer(folder, [observer(report=True)], logger=logger, max_epochs=1)
        with quiet():
            run.fit(Small(), loader(Images(drawing("none"))), loader(Images(drawing("none"))))
        os._exit(0)
    workers.append(worker)
assert [os.waitpid(worker, 0)[1] for worker in workers] == [0] * 4
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its runs by forking")
@pytest.mark.parametrize("logger", ["none", "TensorBoard"])
def test_a_sweep_of_four_processes_keeps_all_results(tmp_path, logger):
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SWEEP, str(tmp_path), logger],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    written = list(tmp_path.rglob("step=*.json"))
    assert len({SanityResult.from_json(path).weights_digest for path in written}) == len(written) == 4


def wandb_logger(folder):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(project="test", save_dir=folder, offline=True)


def mlflow_logger(folder):
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger(tracking_uri=f"file:{folder}/mlruns")


@pytest.mark.slow  # these services take seconds to begin
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [wandb_logger, mlflow_logger, TensorBoardLogger], ids=["W&B", "MLflow", "TensorBoard"])
def test_two_runs_of_a_real_logger_keep_both_results(tmp_path, make, monkeypatch):
    for name, value in (("MLFLOW_ALLOW_FILE_STORE", "true"), ("WANDB_SILENT", "true"), ("WANDB_MODE", "offline")):
        monkeypatch.setenv(name, value)
    for seed in range(2):
        pl.seed_everything(seed, verbose=False)
        if make is wandb_logger:
            wandb = pytest.importorskip("wandb")
            wandb.teardown()  # a session reads the environment once, and another test may have begun it
        fitted(tmp_path, make(tmp_path))
        if make is wandb_logger:
            wandb.finish()
            wandb.teardown()
    written = {
        path.parent: SanityResult.from_json(path).weights_digest for path in tmp_path.rglob("sanity/step=6.json")
    }
    assert len(written) == 2
    assert len(set(written.values())) == 2
