"""From a project of LightningCLI to verdicts, by the commands that the guide names."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lightning_sanity import SanityResult
from lightning_sanity.cli import main

HERE = Path(__file__).parents[1]
GUIDE = HERE.parent / "docs" / "labels.md"
CONFIG = """\
seed_everything: 0
model: {width: 16, lr: 0.01}
data: {training: 64, batch_size: 32}
trainer:
  max_epochs: 2
  limit_val_batches: 1
  accelerator: cpu
  enable_progress_bar: false
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: .}}
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val_accuracy, mode: max, filename: best}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a project that was trained by its own program."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(HERE / "made_project.py", folder / "project.py")
    (folder / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-W", "ignore", "project.py", "fit", "--config", "config.yaml"]
    subprocess.run(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return folder


@pytest.fixture
def command(project, monkeypatch, capsys):
    """Runs a line of a shell in the project, in this process."""

    def run(line):
        program, *arguments = shlex.split(line)
        assert program == "lightning-sanity"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    monkeypatch.chdir(project)
    yield run
    sys.modules.pop("project", None)


def test_the_two_commands_of_the_guide_give_the_verdict_of_the_label_test(project, command):
    (block,) = re.findall(r"```shell\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    training, deciding = block.splitlines()
    code, said = command(training.replace("--trainer.max_epochs=200", "--models 1"))  # as configured: 2 epochs
    assert code == 3
    assert "2 of 2 trainings ended at max_epochs=2 before they knew their labels" in said
    assert "larger --trainer.max_epochs" in said
    code, said = command(training)
    result = SanityResult.from_json(project / "labels" / "result.json")
    assert result.valid, result.validity
    assert result.verdicts["gradient"].passed
    assert "gradient (random labels)" in said
    assert code == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}[worst(result)]
    code, said = command(deciding)
    assert code == 0, said
    assert "passed: gradient (random labels)" in said


def worst(result):
    found = {verdict.outcome.value for verdict in result.verdicts.values() if verdict.gated}
    return next(outcome for outcome in ("FAIL", "INCONCLUSIVE", "PASS") if outcome in found)


def test_check_reads_what_the_program_saved_beside_its_run(project, command):
    run = "lightning_logs/version_0"
    line = f"lightning-sanity check --config {run}/config.yaml --ckpt_path {run}/checkpoints/best.ckpt"
    code, said = command(line)
    assert code == 2
    assert "add --model-class MODULE:CLASS --data-class MODULE:CLASS" in said
    given = "--model-class project:Classifier --data-class project:Digits --methods gradient --samples 16 --trials 5"
    code, said = command(f"{line} {given}")
    result = SanityResult.from_json(project / "sanity" / "result.json")
    assert code == (0 if result.verdicts["gradient"].passed else 3), said
    assert (result.settings["trials"], result.verdicts["gradient"].psi > 0.65) == (5, True)
    code, said = command(f"lightning-sanity gate sanity --weights {run}/checkpoints/best.ckpt")
    assert "none of" not in said
    other = torch.load(project / run / "checkpoints" / "best.ckpt", weights_only=True)
    other["state_dict"]["network.0.bias"] += 1
    torch.save(other, project / "other.ckpt")
    assert command("lightning-sanity gate sanity --weights other.ckpt")[0] == 1


def test_a_callback_of_the_configuration_is_asked_for_a_releases_trials(project, command):
    callback = (
        "    - class_path: lightning_sanity.SaliencySanityCallback\n      init_args: {methods: [gradient], probe: 8}\n"
    )
    (project / "watched.yaml").write_text(CONFIG + callback)
    (weights,) = project.rglob("best.ckpt")
    names = "--model-class project:Classifier --data-class project:Digits"
    code, said = command(f"lightning-sanity check --config watched.yaml {names} --ckpt {weights} --out released")
    assert code in (0, 1, 3), said
    result = SanityResult.from_json(project / "released" / "result.json")
    assert result.settings["trials_run"]["gradient"] == 20
