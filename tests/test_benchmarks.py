"""Every benchmark's own proof: what it would time gives equal results."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
@pytest.mark.filterwarnings("ignore")
def test_results_are_equal_before_they_are_timed(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)  # so that processes that a benchmark starts find it too
    monkeypatch.setattr("sys.argv", [name, "--equality-only"])
    importlib.import_module(name).main()
    assert capsys.readouterr().out
