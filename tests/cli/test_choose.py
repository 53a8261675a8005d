"""From a checkpoint to a recommendation in one command."""

import json
import sys

import pytest
import torch

from lightning_sanity import Choice
from lightning_sanity.cli import main
from tests.made_choices import digits, fitted, network, trained

MODULE = """
from tests.made_choices import network, probe
from torch.utils.data import TensorDataset
def model():
    return network(1)
data = TensorDataset(*probe(40))
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "mine_to_choose.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    torch.save(trained().state_dict(), "best.pt")
    torch.save(network(7).state_dict(), "untrained.pt")
    yield tmp_path
    sys.modules.pop("mine_to_choose", None)


GIVEN = ["choose", "mine_to_choose:model", "--data", "mine_to_choose:data", "--samples", "12", "--trials", "3"]


def test_a_factory_and_its_data_give_a_recommendation_and_three_files(project, capsys):
    code = main([*GIVEN, "--ckpt", "best.pt", "--candidates", "gradient,input_x_gradient", "--by-class"])
    printed = capsys.readouterr().out
    choice = Choice.from_json(project / "choice" / "choice.json")
    assert code == (0 if choice.recommended else 3), printed
    assert choice["input_x_gradient"].verdict is not None
    assert len(choice.groups) > 1
    assert choice.reason[:30] in " ".join(printed.split())
    assert {path.name for path in (project / "choice").iterdir()} == {"choice.json", "choice.html", "choice.md"}


def test_nothing_to_recommend_exits_with_3(project, capsys):
    assert main([*GIVEN, "--ckpt", "untrained.pt", "--out", "other"]) == 3
    assert "no recommendation" in capsys.readouterr().out
    assert json.loads((project / "other" / "choice.json").read_text())["recommended"] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["choose", "a:b"], "needs the checkpoint"),
        (["choose", "a:b", "--ckpt", "gone.pt"], "there is no checkpoint file"),
        (["choose", "--ckpt", "best.pt"], "choose needs --config FILE, or MODULE:FACTORY"),
        ([*GIVEN, "--ckpt", "best.pt", "--quality", "truth"], "unknown quality 'truth'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exits_with_2(project, capsys, given, said):
    assert main(given) == 2
    assert said in capsys.readouterr().err


def test_a_configuration_of_lightning_cli_is_validated_and_chosen_for(project, capsys):
    from tests.made_project import Classifier

    torch.manual_seed(0)
    (project / "config.yaml").write_text(
        "seed_everything: 0\nmodel:\n  class_path: tests.made_project.Classifier\n  init_args: {width: 4}\n"
        "data:\n  class_path: tests.made_project.Digits\n"
        "trainer: {logger: false, enable_progress_bar: false, enable_model_summary: false, accelerator: cpu}\n"
    )
    model = Classifier(width=4)
    checkpoint = {"state_dict": model.state_dict()}
    torch.save(checkpoint | {"pytorch-lightning_version": "2.5.0", "epoch": 0, "global_step": 0}, "run.ckpt")
    code = main(["choose", "--config", "config.yaml", "--ckpt_path", "run.ckpt", "--samples", "12"])
    captured = capsys.readouterr()
    assert code == 3, captured
    assert "labels" in captured.out  # the untrained network is told by the labels of the probe


def test_labels_of_the_data_give_away_a_network_of_permuted_labels(project, capsys):
    """Nobody has to ask for it: the labels come with the batches."""
    images, labels = digits()
    permuted = labels[:300][torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    model = fitted(network(), images[:300], permuted)
    torch.save(model.state_dict(), "permuted.pt")
    assert main([*GIVEN, "--ckpt", "permuted.pt", "--out", "permuted"]) == 3
    choice = Choice.from_json(project / "permuted" / "choice.json")
    assert "labels" in choice.reason
    assert "no recommendation" in choice.reason
