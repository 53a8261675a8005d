"""The two sanity checks ask different questions: neither result stands for the other, and a result says whose it is."""

import json

import pytest
from made_results import FAILING, PASSING, made, made_of_labels

from lightning_sanity import SanityResult
from lightning_sanity.attribution import resolve_all
from lightning_sanity.attribution.controls import edge_detector
from lightning_sanity.cli import main
from lightning_sanity.release import Policy, gate
from lightning_sanity.release.decision import to_dict
from lightning_sanity.result.controls import KNOWN

OF_WEIGHTS, OF_LABELS = "parameter_randomization", "data_randomization"
WEIGHTS, LABELS = made(), made_of_labels()


@pytest.mark.parametrize(
    ("results", "tests", "code"),
    [
        ([WEIGHTS], (), 0),
        ([LABELS], (), 0),
        ([WEIGHTS, LABELS], (), 0),
        ([WEIGHTS], (OF_WEIGHTS,), 0),
        ([WEIGHTS], (OF_LABELS,), 1),
        ([LABELS], (OF_WEIGHTS,), 1),
        ([LABELS], (OF_LABELS,), 0),
        ([WEIGHTS], (OF_WEIGHTS, OF_LABELS), 1),
        ([LABELS], (OF_WEIGHTS, OF_LABELS), 1),
        ([WEIGHTS, LABELS], (OF_WEIGHTS, OF_LABELS), 0),
        ([WEIGHTS, made_of_labels({"gradcam": FAILING})], (), 1),
        ([WEIGHTS, made_of_labels({"gradcam": FAILING})], (OF_WEIGHTS,), 0),
        ([made({"gradcam": FAILING}), LABELS], (OF_WEIGHTS, OF_LABELS), 1),
        ([made({"gradcam": FAILING}), LABELS], (OF_LABELS,), 0),
    ],
)
@pytest.mark.parametrize("require", [(), ("gradcam",)])
def test_every_test_that_is_asked_for_must_pass_by_results_of_its_own(results, tests, code, require):
    assert gate(results, Policy(require=require, tests=tests)).exit_code == code


def test_a_method_that_one_test_measured_is_not_measured_by_the_other():
    results = [made({"gradcam": PASSING, "lime": PASSING}), LABELS]
    decision = gate(results, Policy(require=("gradcam", "lime")))
    missed = [(check.name, check.test) for check in decision.checks if check.outcome != "PASS"]
    assert missed == [("lime", OF_LABELS)]
    assert "required but not measured" in decision.reason
    assert gate(results, Policy(require=("gradcam", "lime"), tests=(OF_WEIGHTS,))).passed


def test_a_decision_says_which_test_each_line_is_of(tmp_path, capsys):
    decision = gate([WEIGHTS, LABELS])
    assert {check.test for check in decision.checks} == {OF_WEIGHTS, OF_LABELS}
    assert "gradcam (random labels) (DRI " in decision.reason
    assert [check["test"] for check in to_dict(decision)["checks"]] == [OF_WEIGHTS, OF_LABELS]
    paths = [str(each.to_json(tmp_path / f"{i}.json")) for i, each in enumerate((WEIGHTS, LABELS))]
    assert main(["gate", *paths, "--tests", OF_WEIGHTS]) == 0
    assert "left out: a result of the data randomization test" in " ".join(capsys.readouterr().out.split())
    assert main(["gate", paths[0], "--tests", f"{OF_WEIGHTS}, {OF_LABELS}"]) == 1
    assert "data randomization test" in capsys.readouterr().out
    assert main(["gate", paths[0], "--tests", "labels"]) == 2


def test_the_test_of_labels_is_about_each_of_its_true_label_models(tmp_path):
    mine, other = made(weights_digest="1" * 64), made(weights_digest="5" * 64)
    assert gate([mine, LABELS]).passed
    with pytest.raises(ValueError, match="about 2 models"):
        gate([other, LABELS])


def test_only_results_of_the_baselines_test_are_compared_with_it(tmp_path):
    path = made(weights_digest="0" * 64).to_json(tmp_path / "accepted.json")
    decision = gate([WEIGHTS, LABELS], Policy(baseline=path))
    assert decision.passed
    assert {check.test for check in decision.checks if "baseline" in check.name} == {OF_WEIGHTS}
    assert gate([LABELS], Policy(baseline=path)).exit_code == 3


def rewritten(result, **settings):
    data = json.loads(json.dumps(result.to_dict()))
    data["settings"] |= settings
    return data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (rewritten(LABELS, test=OF_WEIGHTS, order="cascading"), "'units' holds the steps of the other test"),
        (rewritten(WEIGHTS, test=OF_LABELS, models=[3, 2], seed=0), "'units' holds the steps of the other test"),
        (rewritten(WEIGHTS, test="mine"), "'settings.test' must be one of"),
        (rewritten(WEIGHTS, test=None), "'settings.test' must be one of"),
        (rewritten(LABELS, test=OF_WEIGHTS) | {"units": ["head"]}, "'coverage.units' proves another 1"),
    ],
)
def test_a_result_cannot_be_called_one_of_the_other_test(data, says):
    with pytest.raises(ValueError, match=says):
        gate(SanityResult.from_dict(data))


def test_a_failing_method_cannot_be_called_a_control():
    data = rewritten(made({"gradcam": PASSING, "lime": FAILING}), methods=["gradcam"])
    data["settings"]["controls"].append("lime")
    data["verdicts"]["lime"]["gated"] = False
    with pytest.raises(ValueError, match="names lime, which is no control"):
        gate(SanityResult.from_dict(data))


def test_a_control_is_one_under_its_own_name_only():
    given = resolve_all({"mine": edge_detector(), "edge_detector": "edge_detector"})
    assert {name: method.control for name, method in given.items()} == {"mine": False, "edge_detector": True}
    assert all(resolve_all(name)[name].control for name in KNOWN if name != "gradient")
