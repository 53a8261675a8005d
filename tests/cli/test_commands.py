import subprocess
import sys

import pytest

from lightning_sanity import SanityResult, attribution
from lightning_sanity.cli import main


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:saliency maps failed")
def test_demo_writes_what_it_promises_and_agrees_with_the_literature(tmp_path, capsys):
    code = main(["demo", "--out", str(tmp_path), "--epochs", "4", "--trials", "4", "--samples", "16"])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert {"verdicts.png", "maps.png", "curves.png", "result.json"} <= {path.name for path in tmp_path.iterdir()}
    assert list(tmp_path.rglob("events.out.tfevents.*"))
    assert list(tmp_path.rglob("latest.json"))
    assert "guided_backprop" in printed
    assert "tensorboard --logdir" in printed
    result = SanityResult.from_json(tmp_path / "result.json")
    assert result.valid
    assert not result.passed


def test_methods_lists_every_name(capsys):
    assert main(["methods"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert [name for name in attribution.available() if name not in listed] == []


@pytest.mark.parametrize("arguments", [[], ["paint"], ["demo", "--trials", "many"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: lightning-sanity" in capsys.readouterr().err


def test_a_bad_value_is_one_sentence_and_not_a_traceback(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--epochs", "0", "--trials", "0"]) == 2
    assert capsys.readouterr().err.startswith("lightning-sanity: --epochs must be at least 1")


def test_the_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "lightning_sanity", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Exit codes: 0 pass, 1 fail" in done.stdout
