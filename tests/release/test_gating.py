import itertools
import json
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from made_results import FAILING, NOW, OPEN, PASSING, made, void
from torch import nn

from lightning_sanity import Criterion, Outcome, SanityResult
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.release import Policy, gate, read_policy
from lightning_sanity.release.policy import duration
from lightning_sanity.result.noninferiority import compare


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A checkpoint file and the digest of its weights."""
    path = tmp_path_factory.mktemp("release") / "best.pt"
    torch.save(model().state_dict(), path)
    return path, weights_digest(model())


# ------------------------------------------------------------------------------------------------------- the matrix

VERDICTS = {"pass": (PASSING, 0), "fail": (FAILING, 1), "open": (OPEN, 3)}
WEIGHTS = {"same": 0, "other": 1}
AGES = {"fresh": 0, "old": 1, "unknown": 3}
BASELINES = {"not asked": 0, "better": 0, "worse": 1, "other probe": 3}
REASONS = {
    "fail": "below 0.65",
    "open": "straddles 0.65",
    "other": "no result for these weights",
    "old": "old, at most 7.0 days allowed: test again",
    "unknown": "does not say when it was made",
    "worse": "worse by more than 0.1",
    "other probe": "measured on another probe",
    "invalid": "the run is not valid: the control 'edge_detector' passed",
}


def in_order(codes):
    """FAIL before INCONCLUSIVE before PASS."""
    return next(code for code in (1, 3, 0) if code in codes)


@pytest.mark.parametrize("valid", [True, False], ids=["valid", "invalid"])
@pytest.mark.parametrize(
    ("verdict", "weights", "age", "baseline"), list(itertools.product(VERDICTS, WEIGHTS, AGES, BASELINES))
)
def test_gate_matrix(verdict, weights, age, baseline, valid, released, cached):
    similarity, verdict_code = VERDICTS[verdict]
    path, digest = released
    created = {"unknown": "", "old": "2026-01-20T12:00:00+00:00"}.get(age, NOW.isoformat())
    result = replace(
        cached(similarity),
        weights_digest=digest if weights == "same" else "f" * 64,
        created=created,
    )
    if not valid:
        result = void(result, "the control 'edge_detector' passed")
    before = {"better": similarity + 0.2, "worse": similarity - 0.2}.get(baseline, similarity)  # of the baseline
    policy = Policy(
        require=("gradcam",),
        weights=path,
        max_age=duration("7d"),
        baseline=None if baseline == "not asked" else cached.file(before, other_probe=baseline == "other probe"),
    )
    decision = gate(result, policy, now=NOW)
    wrong = {
        name: code
        for name, code in (
            (verdict, verdict_code if valid else 0),
            (weights, WEIGHTS[weights]),
            (age, AGES[age]),
            (baseline, BASELINES[baseline] if valid or baseline == "not asked" else 3),
            ("invalid", 0 if valid else 3),
        )
        if code
    }
    assert decision.exit_code == in_order({0, *wrong.values()} - ({0} if wrong else set()))
    assert "\n" not in decision.reason
    if wrong and valid:
        reasons = [check.reason for check in decision.checks if check.outcome is decision.outcome]
        deciding = [name for name, code in wrong.items() if code == decision.exit_code]
        assert all(any(REASONS[name] in reason for reason in reasons) for name in deciding)
    if not wrong:
        assert decision.reason.startswith("passed: gradcam (PSI ")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """``made`` with a memory, and files of what it makes."""
    folder, results = tmp_path_factory.mktemp("baselines"), {}

    def result(similarity):
        if similarity not in results:
            results[similarity] = made({"gradcam": similarity})
        return results[similarity]

    def file(similarity, *, other_probe):
        path = folder / f"{similarity:.2f}-{other_probe}.json"
        changes = {"weights_digest": "0" * 64, **({"probe_digest": "b" * 64} if other_probe else {})}
        return path if path.exists() else replace(result(similarity), **changes).to_json(path)

    result.file = file
    return result


def test_a_result_from_the_future_is_inconclusive():
    decision = gate(made(), Policy(max_age="7d"), now=NOW - timedelta(days=1))
    assert decision.exit_code == 3
    assert "from the future" in decision.reason


# --------------------------------------------------------------------------------------------------- files and folders


def test_a_missing_result_is_a_fail(tmp_path):
    for path in (tmp_path / "result.json", tmp_path):
        decision = gate(path)
        assert decision.exit_code == 1
        assert decision.reason.endswith("never ran is not a pass")


def test_a_damaged_result_is_no_decision(tmp_path):
    (tmp_path / "latest.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        gate(tmp_path)


def test_of_a_folder_the_latest_counts(tmp_path):
    made().to_json(tmp_path / "step=1.json")
    made({"gradcam": FAILING}).to_json(tmp_path / "latest.json")
    assert gate(tmp_path).exit_code == 1


def test_without_a_latest_the_newest_counts_and_foreign_files_do_not(tmp_path):
    made({"gradcam": FAILING}, created="2026-01-01T00:00:00+00:00").to_json(tmp_path / "step=9.json")
    made(created="2026-01-02T00:00:00+00:00").to_json(tmp_path / "step=10.json")
    (tmp_path / "package.json").write_text('{"name": "something else"}')
    assert gate(tmp_path).exit_code == 0


def test_of_a_folder_the_result_about_the_weights_counts(tmp_path, released):
    path, digest = released
    made(weights_digest=digest).to_json(tmp_path / "step=5.json")
    made({"gradcam": FAILING}).to_json(tmp_path / "latest.json")
    assert gate(tmp_path, Policy(weights=path)).exit_code == 0


def test_a_folder_without_a_result_about_the_weights_fails(tmp_path, released):
    made().to_json(tmp_path / "latest.json")
    decision = gate(tmp_path, Policy(weights=released[0]))
    assert decision.exit_code == 1
    assert "none of the 1 results" in decision.reason


def test_all_results_that_are_given_must_pass():
    assert gate([made(), made()]).exit_code == 0
    assert gate([made(), made({"gradcam": FAILING})]).exit_code == 1


def test_a_baseline_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no baseline '.*last\.json'.*the first release has none"):
        gate(made(), Policy(baseline=tmp_path / "last.json"))


# ----------------------------------------------------------------------------------------------------------- methods


def test_only_required_methods_count():
    result = made({"gradcam": PASSING, "guided_backprop": FAILING})
    assert gate(result).exit_code == 1
    assert gate(result, Policy(require=("gradcam",))).exit_code == 0
    assert gate(result, Policy(require=("guided_backprop",))).exit_code == 1


def test_a_control_counts_where_it_is_required():
    assert gate(made(), Policy(require=("gradient",))).exit_code == 0
    assert gate(made(), Policy(require=("edge_detector",))).exit_code == 1


def test_a_required_method_that_was_not_measured_fails():
    decision = gate(made(), Policy(require=("gradcam", "lime")))
    assert decision.exit_code == 1
    assert decision.reason.startswith("lime: required but not measured (there are: edge_detector, gradcam")


def test_controls_alone_are_not_a_pass():
    decision = gate(made({}))
    assert decision.exit_code == 1
    assert "no method but controls" in decision.reason


# --------------------------------------------------------------------------------------------------------- threshold


@pytest.mark.parametrize("trials", [1, 6])
@pytest.mark.parametrize("similarity", [0.0, 0.3, 0.37, 0.6, 0.9])
@pytest.mark.parametrize("min_psi", [0.3, 0.65, 0.7, 0.95])
def test_a_threshold_decided_anew_is_what_the_judge_would_have_said(similarity, min_psi, trials):
    def measured(**criterion):
        return made(
            {"gradcam": similarity}, controls=False, trials=trials, spread=0.3, criterion=Criterion(**criterion)
        )

    decision = gate(measured(), Policy(min_psi=min_psi))
    assert decision.outcome is measured(min_psi=min_psi).verdicts["gradcam"].outcome


def test_a_threshold_never_turns_noise_into_a_pass():
    assert gate(made(), Policy(require=("random",), min_psi=0.1)).exit_code == 3


def test_a_laxer_threshold_lets_a_method_pass():
    result = made({"gradcam": OPEN})
    assert gate(result).exit_code == 3
    assert gate(result, Policy(min_psi=0.5)).exit_code == 0


def test_a_threshold_at_which_a_control_comes_out_wrong_decides_nothing():
    decision = gate(made(), Policy(min_psi=1.0))
    assert decision.exit_code == 3
    assert any("output_pattern" in check.reason for check in decision.checks)


def test_no_threshold_lets_a_map_pass_that_no_weights_change():
    assert gate(made({"gradcam": 1.0}, spread=0.0), Policy(min_psi=0.0)).exit_code == 1


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"alpha": 0.05}, 0), ({"alpha": 0.0}, 3), ({"max_dead_rate": 0.0}, 0),
        ({"min_separation": 0.5}, 0), ({"min_separation": 0.95}, 3), ({"min_separation": 0.0}, 0),
        ({"max_undefined_rate": 0.0}, 0),
        ({"min_trials": 6}, 0), ({"min_trials": 7}, 3), ({"min_samples": 24}, 0), ({"min_samples": 64}, 3),
    ],
)  # fmt: skip
def test_every_guard_is_asked_anew(asked, code):
    assert gate(made(), Policy(**asked)).exit_code == code


# ---------------------------------------------------------------------------------------------------------- baseline


def test_a_result_is_never_worse_than_itself():
    wide = made({"gradcam": 0.2}, spread=1.0)
    change = compare(wide, wide, "gradcam", max_drop=0.0)
    assert (change.outcome, change.value, change.low, change.high) == (Outcome.PASS, 0, 0, 0)


def test_a_change_that_the_data_do_not_show_is_inconclusive():
    before = made({"gradcam": 0.3}, spread=1.5, trials=3)
    after = made({"gradcam": 0.4}, spread=1.6, trials=4)
    change = compare(before, after, "gradcam")
    assert change.outcome is Outcome.INCONCLUSIVE
    assert "more trials or samples would tell" in change.reason


def test_the_change_of_psi_is_the_difference_of_the_verdicts():
    before, after = made({"gradcam": 0.2}), made({"gradcam": 0.5})
    expected = after.verdicts["gradcam"].psi - before.verdicts["gradcam"].psi
    assert compare(before, after, "gradcam").value == pytest.approx(expected, abs=1e-6)


def test_results_of_other_settings_are_not_compared():
    other = made(settings={**made().settings, "order": "independent"})
    assert "order was 'cascading' and is 'independent'" in compare(made(), other, "gradcam").reason


# ------------------------------------------------------------------------------------------------------------ policy


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("policy.yaml", "require: [gradcam]\nmin_psi: 0.7\nmax_age: 7d\nbaseline: old/accepted.json\n"),
        ("policy.toml", 'require = ["gradcam"]\nmin_psi = 0.7\nmax_age = "7d"\nbaseline = "old/accepted.json"\n'),
    ],
)
def test_a_policy_file_reads_as_its_arguments(name, text, tmp_path):
    if name.endswith("toml"):
        pytest.importorskip("tomllib")
    (tmp_path / name).write_text(text)
    expected = Policy(("gradcam",), 0.7, max_age=timedelta(days=7), baseline=tmp_path / "old" / "accepted.json")
    assert read_policy(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requires: [gradcam]", "unknown key 'requires'; choose from: require"),
        ("min_psi: high", "min_psi must be a number between 0 and 1, not 'high'"),
        ("min_trials: 2.5", "min_trials must be an integer of at least 1"),
        ("max_age: 7", "such as 36h or 7d, not 7"),
        ("require: 3", "require must be a list of method names"),
        ("weights: 3", "weights must be a file name"),
        ("", "there are no keys in it"),
        ("a: [", "not YAML"),
        ("!!python/object/apply:os.getcwd []", "not YAML"),
        ("a: &a [x]\nb: *a", "aliases are not read"),
        ("require: &a [x, *a]", "aliases are not read"),
        ("a: &a {x: 1}\n<<: *a", "aliases are not read"),
        ("require: " + "[" * 3000, "nested more than 4 deep"),
        ("require: [" + "{a: " * 3000, "nested more than 4 deep"),
        ("min_psi: 0.9\nmin_psi: 0.1", "the key 'min_psi' stands there twice"),
        (f"{'k' * 30000}: 1", "not YAML"),
        (f"? {'k' * 30000}\n: 1", "unknown key 'kkk"),
        (f"min_psi: {'9' * 30000}", "Exceeds the limit"),
        (f"min_psi: {'9:' * 9000}9", "min_psi must be a number between 0 and 1, not a huge number"),
        (f"max_age: {'7' * 30000}d", "a span of time is a number"),
        ("- 1\n" * 5000, "there are no keys in it"),
        ("# \n" * 20000, "is larger than"),
        ("? [a, b]\n: 1", "a key is no word"),
        ("several_models: maybe", "several_models must be true or false, not 'maybe'"),
        ("weights: ' '", "weights must be a file name"),
        ("require: [1]", "require must be a list of method names"),
    ],
)
def test_a_wrong_policy_says_what_is_wrong(text, message, tmp_path):
    (tmp_path / "policy.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ValueError, match=r"policy\.yaml'") as caught:
        read_policy(tmp_path / "policy.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.process_time() - began < 5


def test_the_decision_of_a_file_is_that_of_its_result(tmp_path):
    result = made({"gradcam": OPEN, "lime": FAILING})
    read = SanityResult.from_json(result.to_json(tmp_path / "result.json"))
    assert json.dumps(read.to_dict()) == json.dumps(result.to_dict())
    assert [c.reason for c in gate(tmp_path / "result.json").checks] == [c.reason for c in gate(result).checks]
