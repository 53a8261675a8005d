import importlib.util
import json
import subprocess
import sys

import pytest

from lightning_sanity import SanityResult, __version__, attribution
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


def test_methods_stand_under_their_kind_with_their_columns_explained(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    paragraphs = [part.splitlines() for part in printed.split("\n\n")]
    kinds = {part[0]: {line.split()[0] for line in part[1:]} for part in paragraphs[1:-1]}
    assert {"occlusion", "lime", "rise"} <= kinds["hiding parts of the input"]
    assert "random" in kinds["controls: their verdict is known beforehand, and they never gate"]
    assert "others" not in kinds
    assert {line.split(":")[0] for line in paragraphs[-1]} == {"signed", "random", "cost", "needs"}


def test_methods_as_json_have_what_the_table_has(capsys):
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(attribution.available())
    assert next(row for row in rows if row["name"] == "smoothgrad")["cost"] == 25


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning_sanity {__version__}\n"


@pytest.mark.parametrize("command", ["check", "random-labels"])
def test_a_configuration_without_classes_names_the_option_that_is_missing(tmp_path, capsys, command):
    config, checkpoint = tmp_path / "config.yaml", tmp_path / "best.ckpt"
    config.write_text("model:\n  width: 3\ndata:\n  batch_size: 4\ntrainer:\n  max_epochs: 1\n")
    checkpoint.touch()
    given = ["--ckpt", str(checkpoint)] if command == "check" else []
    assert main([command, "--config", str(config), *given]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "names no class for its model and its data" in said
    assert "--model-class MODULE:CLASS --data-class MODULE:CLASS" in said
    assert main([command, "--config", str(config), *given, "--model-class", "torch.nn:Module"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "names no class for its data, " in said
    assert "add --data-class MODULE:CLASS, where" in said


def test_a_file_that_is_no_configuration_is_named(tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- a\n")
    assert main(["random-labels", "--config", str(tmp_path / "list.yaml")]) == 2
    assert "list.yaml' is no configuration" in capsys.readouterr().err


def test_without_its_parser_the_extra_is_named(tmp_path, capsys, monkeypatch):
    def find_spec(name, *rest):
        return None if name == "jsonargparse" else original(name, *rest)

    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    (tmp_path / "config.yaml").write_text("model:\n  class_path: a.B\n")
    assert main(["random-labels", "--config", str(tmp_path / "config.yaml")]) == 2
    assert 'pip install "lightning-sanity[cli]"' in capsys.readouterr().err


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


def test_commands_that_read_results_start_without_what_runs_models():
    program = (
        "import sys; from lightning_sanity.cli import main; "
        "codes = [main([c, '--help']) for c in ('gate', 'compare')]; "
        "heavy = {'lightning', 'captum', 'torchvision', 'matplotlib', 'scipy.stats'}; "
        "print(codes, sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[0, 0] []"


def test_the_package_names_all_that_it_offers_before_it_is_imported():
    program = (
        "import sys, lightning_sanity; known = set(sys.modules); names = dir(lightning_sanity); "
        "assert {*lightning_sanity.__all__, 'result', 'report'} <= {*names}; assert set(sys.modules) == known; "
        "assert all(getattr(lightning_sanity, name) is not None for name in names)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
