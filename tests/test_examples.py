import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:saliency maps failed")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_quickstart_prints_verdicts(tmp_path, capsys):
    result = load("quickstart").main(tmp_path, epochs=2)
    assert result.verdicts["gradient"].passed
    assert "guided_backprop" in capsys.readouterr().out
