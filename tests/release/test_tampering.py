"""No edit of a failing result lets it pass: its numbers decide, and words that contradict them make it unreadable."""

import copy
import json
import random

import pytest
from made_edits import DELETED, edited, single_edits
from made_results import FAILING, OPEN, PASSING, made

from lightning_sanity import SanityResult
from lightning_sanity.release import Policy, gate


def plain(result):
    return json.loads(json.dumps(result.to_dict()))


SMALL = {"trials": 2, "samples": 4, "probe_ids": (1, 2, 3, 4), "trained_maps": {}, "diagnostics": {}}
FAILED = plain(made({"gradcam": PASSING, "lime": FAILING}, **SMALL))


def code(data, policy=None):
    """The exit code of a gate; anything but an answer or a ``ValueError`` goes through."""
    try:
        return gate(SanityResult.from_dict(data), policy).exit_code
    except ValueError as error:
        return 2 if "\n" not in str(error) else str(error)


SINGLE = single_edits(FAILED)


def test_the_result_as_it_was_written_fails_and_a_good_one_passes():
    assert code(FAILED) == 1
    assert code(plain(made({"gradcam": PASSING}, **SMALL))) == 0


@pytest.mark.parametrize("part", sorted({str(path[0]) for path, _ in SINGLE}))
def test_no_single_edit_lets_a_failing_result_pass(part):
    tried = [(path, value) for path, value in SINGLE if path[0] == part]
    passing = [(path, value) for path, value in tried if code(edited(copy.deepcopy(FAILED), path, value)) == 0]
    assert tried
    assert passing == []


@pytest.mark.parametrize("seed", range(4))
def test_no_handful_of_edits_lets_a_failing_result_pass(seed):
    draw, passing = random.Random(seed), []
    for _ in range(500):
        data, tried = copy.deepcopy(FAILED), []
        for path, value in draw.sample(SINGLE, draw.randint(2, 5)):
            try:
                edited(data, path, value)
                tried.append((path, value))
            except (KeyError, IndexError, TypeError):  # an edit before took the place away
                continue
        passing += [tried] if code(data) == 0 else []
    assert passing == []


WORDS = [
    ("the outcome", {("verdicts", "lime", "outcome"): "PASS"}),
    ("the outcome and its numbers", {("verdicts", "lime", "outcome"): "PASS", ("verdicts", "lime", "psi"): 0.9,
                                     ("verdicts", "lime", "psi_low"): 0.85, ("verdicts", "lime", "psi_high"): 0.95}),
    ("the bar", {("settings", "criterion", "min_psi"): 0.05}),
    ("the bar and the outcome", {("settings", "criterion", "min_psi"): 0.05, ("verdicts", "lime", "outcome"): "PASS"}),
    ("what counts", {("verdicts", "lime", "gated"): False}),
    ("what counts, and what was asked", {("verdicts", "lime", "gated"): False, ("settings", "methods"): ["gradcam"],
                                         ("settings", "controls"): ["lime", "gradient", "edge_detector", "random"]}),
    ("the version of the file", {("version",): 1, ("grounds",): {}, ("verdicts", "lime", "outcome"): "PASS"}),
    ("the version of the library", {("environment",): {}, ("verdicts", "lime", "outcome"): "PASS"}),
    ("what it rests on", {("grounds", "lime"): DELETED, ("verdicts", "lime", "outcome"): "PASS"}),
    ("why it could not be measured", {("grounds", "lime", "trivial"): "no time"}),
    ("the baseline", {("settings", "baseline"): "a" * 64, ("verdicts", "lime", "outcome"): "PASS"}),
    ("the kind of test", {("settings", "test"): "data_randomization", ("verdicts", "lime", "outcome"): "PASS"}),
]  # fmt: skip


@pytest.mark.parametrize("edits", [edits for _, edits in WORDS], ids=[what for what, _ in WORDS])
def test_no_rewording_lets_a_failing_result_pass(edits):
    data = copy.deepcopy(FAILED)
    for path, value in edits.items():
        edited(data, path, value)
    assert code(data, Policy(require=("gradcam", "lime"))) != 0
    assert code(data) != 0


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            ("verdicts", "lime", "outcome"),
            "PASS",
            "'verdicts.lime.outcome' is PASS, but its numbers give FAIL:",
        ),
        (("verdicts", "lime", "psi"), 0.99, "'verdicts.lime.psi' is 0.99, but the curves give 0.1"),
        (
            ("verdicts", "lime", "psi_of", "spearman"),
            [0.9, 0.9, 0.9],
            "psi_of.spearman[0]' is 0.9, but the curves",
        ),
        (("verdicts", "lime", "gated"), False, "'verdicts.lime.gated' is false, but 'settings' says otherwise"),
        (("valid",), False, "'valid' is false, but 'verdicts.gradcam.outcome' is PASS"),
        (("coverage", "units", 0, "kept"), ["head.weight"], "these parameters kept their trained values: head.weight"),
        (("grounds", "gradcam", "dead"), 0.5, "'verdicts.gradcam.outcome' is PASS, but its numbers give INCONCLUSIVE"),
        (("settings", "criterion"), None, "'settings.criterion' does not say by what"),
    ],
)
def test_a_contradiction_names_both_sides(path, value, says):
    with pytest.raises(ValueError, match="contradicts itself") as caught:
        gate(SanityResult.from_dict(edited(copy.deepcopy(FAILED), path, value)))
    assert says in str(caught.value)


def test_a_file_of_version_1_is_read_and_never_passes(tmp_path):
    for similarity, expected in ((PASSING, 3), (OPEN, 3), (FAILING, 1)):
        data = plain(made({"gradcam": similarity}, **SMALL)) | {"version": 1}
        del data["grounds"]
        (tmp_path / "old.json").write_text(json.dumps(data))
        decision = gate(tmp_path / "old.json")
        assert decision.exit_code == expected
        assert "the verdict on gradcam" in decision.trusted
    assert any("cannot be decided anew" in check.reason for check in gate(made(grounds={})).checks)
