"""A folder of shards, from its weights to the decision about them."""

import json
import sys
import warnings

import pytest
import torch
from torch.distributed import checkpoint as distributed

from lightning_sanity.cli import main

MODULE = """
import torch
from torch import nn

def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

def data():
    torch.manual_seed(1)
    return torch.randn(16, 1, 6, 6)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "in_shards.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(MODULE, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        for seed in (3, 4):
            distributed.save({"model": names["model"](seed).state_dict()}, checkpoint_id=tmp_path / f"{seed}.ckpt")
    torch.save(names["model"](3).state_dict(), "plain.pt")
    yield tmp_path
    sys.modules.pop("in_shards", None)


def test_a_folder_is_checked_and_gated_as_the_one_file_is(project, capsys):
    found = {}
    for name in ("3.ckpt", "plain.pt"):
        arguments = ["--data", "in_shards:data", "--methods", "gradient", "--trials", "3", "--samples", "12"]
        code = main(["check", "in_shards:model", "--ckpt", name, *arguments, "--out", f"{name}.out"])
        found[name] = json.loads((project / f"{name}.out" / "result.json").read_text())
        assert main(["gate", f"{name}.out", "--weights", "3.ckpt"]) == code != 2
    assert found["3.ckpt"]["verdicts"] == found["plain.pt"]["verdicts"]
    capsys.readouterr()
    assert main(["gate", "3.ckpt.out", "--weights", "4.ckpt"]) == 1
    assert "is about these weights: never ran" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "choose"])
def test_a_configuration_and_a_folder_do_not_go_together(command, project, capsys):
    assert main([command, "--config", "config.yaml", "--ckpt", "3.ckpt"]) == 2
    said = capsys.readouterr().err
    assert "name MODULE:FACTORY in place of --config" in said
    assert "consolidate_checkpoint 3.ckpt" in said
