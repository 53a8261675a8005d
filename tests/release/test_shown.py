"""The gate lets only a recommended method be shown."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from lightning_sanity import Outcome, parameter_randomization_test
from lightning_sanity.cli import main
from lightning_sanity.release import gate
from lightning_sanity.release.shown import shown
from tests.made_choices import answer, probe, trained


@cache
def measured():
    images, labels = probe()
    given = {"trials": 5, "labels": labels, "pictures": False, "progress": False}
    return parameter_randomization_test(trained(), images, methods=[answer().recommended], **given)


def test_a_recommended_method_may_be_shown():
    assert shown(answer().recommended, answer(), gate(measured())).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("method", "said"), [("guided_backprop", "failed"), ("cam", "does not apply"), ("never_tried", "no candidate")]
)
def test_any_other_may_not_and_the_reason_names_those_that_may(method, said):
    check = shown(method, answer(), gate(measured()))
    assert check.outcome is Outcome.FAIL
    assert said in check.reason
    assert answer().recommended in check.reason


def test_a_choice_about_other_weights_lets_nothing_be_shown():
    other = replace(answer(), weights_digest="0" * 64)
    check = shown(answer().recommended, other, gate(measured()))
    assert check.outcome is Outcome.FAIL
    assert "other weights" in check.reason


def test_the_command_exits_by_it(tmp_path, capsys):
    result, choice = measured().to_json(tmp_path / "r" / "result.json"), answer().to_json(tmp_path / "choice.json")
    torch.save(trained().state_dict(), tmp_path / "best.pt")
    gated = ["gate", str(result), "--weights", str(tmp_path / "best.pt")]
    assert main([*gated, "--choice", str(choice), "--shown", answer().recommended]) == 0
    assert main([*gated, "--choice", str(choice), "--shown", "guided_backprop"]) == 1
    assert "shown: guided_backprop" in capsys.readouterr().out
    assert main([*gated, "--shown", "gradient"]) == 2
    assert "--choice" in capsys.readouterr().err
