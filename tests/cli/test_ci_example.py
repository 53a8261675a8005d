import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from lightning_sanity import SanityResult
from lightning_sanity.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
WORKFLOW = yaml.safe_load((EXAMPLES / "github_workflow.yaml").read_text())
STEPS = {step["name"]: step["run"] for step in WORKFLOW["jobs"]["saliency_maps"]["steps"] if "run" in step}

pytestmark = pytest.mark.slow  # trains, in processes of their own


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a step of the workflow as a build machine would, in a folder with the examples."""
    folder, programs = tmp_path_factory.mktemp("job"), tmp_path_factory.mktemp("bin")
    shutil.copytree(EXAMPLES, folder / "examples")
    for name, arguments in (("python", ""), ("lightning-sanity", "-m lightning_sanity")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parent),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "COLUMNS": "200",
    }

    def step(script):
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    step.folder = folder
    for name in ("Train", "Test the checkpoint"):
        done = step(STEPS[name])
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    return step


@pytest.fixture
def command(run, monkeypatch, capsys):
    """Runs ``lightning-sanity`` in the folder of the job, in this process: that it starts is known by then."""
    monkeypatch.chdir(run.folder)
    monkeypatch.syspath_prepend(run.folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(run.folder / "again.md"))

    def call(line):
        program, *arguments = shlex.split(line.replace("\\\n", " "))
        assert program == "lightning-sanity"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(arguments)
        return code, capsys.readouterr()

    return call


def test_the_job_passes_on_gradient(run):
    done = run(STEPS["Gate"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS: passed: gradient (PSI" in done.stdout
    assert (run.folder / "gate.xml").exists()
    assert "Saliency maps: PASS" in (run.folder / "summary.md").read_text()


def test_the_job_fails_on_guided_backprop_alone(run, command):
    (run.folder / "guided.yaml").write_text("require: [guided_backprop]\n")
    code, printed = command(STEPS["Gate"].replace("examples/policy.yaml", "guided.yaml"))
    assert code == 1
    assert "FAIL: guided_backprop: the map keeps too much of itself" in printed.out


def test_the_job_fails_on_weights_that_were_not_tested(run, command):
    other = torch.load(run.folder / "run" / "best.ckpt", weights_only=True)
    other["state_dict"]["classifier.3.bias"] += 1e-3
    torch.save(other, run.folder / "other.ckpt")
    code, printed = command(STEPS["Gate"].replace("--weights run/best.ckpt", "--weights other.ckpt"))
    assert code == 1
    assert "none of the 1 results in 'run/sanity' is about these weights" in printed.out


def test_check_adds_the_callback_where_there_is_none(run, command):
    (run.folder / "plain.yaml").write_text(
        "model: {class_path: lightning_sanity.cli.demo.DigitsClassifier}\n"
        "data: {class_path: examples.ci_gate.Digits}\n"
        "trainer: {accelerator: cpu, logger: false}\n"
    )
    code, printed = command(
        "lightning-sanity check --config plain.yaml --ckpt_path run/best.ckpt --methods gradient --trials 2 "
        "--samples 8 --out added --trainer.enable_progress_bar=false"
    )
    assert code == 0, printed.out + printed.err
    result = SanityResult.from_json(run.folder / "added" / "result.json")
    assert (result.settings["methods"], result.settings["trials"]) == (["gradient"], 2)


def test_check_without_a_configuration_tests_the_same_weights(run, command):
    code, printed = command(
        "lightning-sanity check lightning_sanity.cli.demo:DigitsClassifier --ckpt run/best.ckpt "
        "--data examples.ci_gate:Digits --methods gradient,guided_backprop --trials 2 --samples 8 --out factory"
    )
    assert code == 1, printed.out + printed.err
    result = SanityResult.from_json(run.folder / "factory" / "result.json")
    assert result.weights_digest == SanityResult.from_json(run.folder / "run/sanity/result.json").weights_digest
    assert command("lightning-sanity gate factory --weights run/best.ckpt --require gradient")[0] == 0
