"""A decision as a step summary: what failed first, with its number, and no file twice."""

import re

import pytest
from made_figures import EVIL
from made_results import FAILING, OPEN, PASSING, made, made_of_labels, void

from lightning_sanity.release import Policy, gate
from lightning_sanity.release.decision import markdown, to_dict
from lightning_sanity.report import decided
from lightning_sanity.result import Outcome

MIXED = {"gradcam": PASSING, "lime": OPEN, "guided_backprop": FAILING, "integrated_gradients": PASSING}


def rows(summary):
    """The tables' rows as cells, headings and rules left out."""
    lines = summary.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert len({len(line) for line in lines}) <= 2
    return [[cell.strip() for cell in line] for line in lines if line[0].strip() not in ("outcome", "---")]


def test_what_failed_stands_first_then_what_is_open():
    assert [row[:2] for row in rows(markdown(gate(made(MIXED))))] == [
        ["❌ FAIL", r"guided\_backprop"],
        ["❓ INCONCLUSIVE", "lime"],
        ["✅ PASS", "gradcam"],
        ["✅ PASS", r"integrated\_gradients"],
    ]


@pytest.mark.parametrize(("make", "index"), [(made, "PSI"), (made_of_labels, "DRI")])
def test_every_method_has_the_number_of_its_reason(make, index):
    result = make(MIXED)
    summary = markdown(gate(result))
    assert f"| outcome | check | {index} [95 %] | why |" in summary
    found = rows(summary)
    assert sorted(row[2] for row in found) == sorted(decided.number(result.verdicts[name]) for name in MIXED)
    for row in found:
        assert row[2] in row[3].replace("\\", "")


def test_a_file_is_named_once_however_many_checks_it_has(tmp_path):
    good, bad = made({"gradcam": PASSING}).to_json(tmp_path / "good.json"), made(MIXED).to_json(tmp_path / "bad.json")
    summary = markdown(gate([good, bad]))
    for name in ("good.json", "bad.json"):
        assert summary.count(name) == 1
    assert summary.index("bad.json") < summary.index("good.json"), "the file that failed stands first"


def test_no_word_of_a_reason_is_cut():
    result = void(made({"gradcam": OPEN}), "a control came out as it must not, " + "which is quite a long story, " * 40)
    decision = gate(result, Policy(require=("gradcam", "x" * 80), min_trials=20))
    for row, check in zip(rows(markdown(decision)), decision.worst_first, strict=True):
        assert row[-1].replace("\\", "").split() == check.reason.split()


def test_what_is_no_method_has_no_number_and_none_is_a_table_without_the_column():
    decision = gate(made({"gradcam": PASSING}), Policy(min_trials=20))
    assert [row[2] for row in rows(markdown(decision))] == ["", "1.00 [0.99, 1.00]"]
    assert [len(row) for row in rows(markdown(gate("nothing.json")))] == [3]


def test_an_undefined_index_is_said_to_be():
    decision = gate(void(made({"gradcam": 1.0}, spread=0.0), "nothing was random"))
    (row,) = (row for row in rows(markdown(decision)) if row[1] == "gradcam")
    assert row[2] == decided.number(decision.judged[0].verdicts["gradcam"])


def test_both_tests_of_one_file_name_their_own_index():
    summary = markdown(gate([made(), made_of_labels()]))
    assert "| PSI / DRI [95 %] |" in summary
    assert "gradcam (random labels)" in summary


def test_names_that_are_markup_stay_text():
    summary = markdown(gate(made({f"{EVIL} | x": FAILING})))
    assert "<img" not in summary
    assert len(rows(summary)) == 1


def test_json_has_the_interval_beside_the_index():
    (check,) = to_dict(gate(made({"gradcam": OPEN})))["checks"]
    assert check["psi_low"] < check["psi"] < check["psi_high"]
    (check,) = to_dict(gate("nothing.json"))["checks"]
    assert (check["psi"], check["psi_low"], check["outcome"]) == (None, None, Outcome.FAIL.value)
