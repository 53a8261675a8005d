"""What a run comes to: told once, and an error where one was asked for and anything but a pass came out."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from made_results import FAILING, OPEN, PASSING, made, void

from lightning_sanity import SanityCheckFailed
from lightning_sanity.callback.conclusion import NEVER_REACHED, Conclusion, undecided
from lightning_sanity.callback.narration import Narration

GOOD, BAD = made({"gradcam": PASSING}), made({"gradcam": PASSING, "guided_backprop": FAILING})
UNDECIDED = made({"gradcam": OPEN})
VOID = void(GOOD, "the control 'random' passed")


def conclusion(result=GOOD, **options):
    gated = () if result is None else [name for name, verdict in result.verdicts.items() if verdict.gated]
    return Conclusion(Narration("sanity", verbose=True), gated, **{"raises": True, "running": True, **options})


def test_a_run_is_told_once(capsys):
    told = conclusion()
    for _ in range(2):
        told.tell(GOOD, None)
    assert capsys.readouterr().out.count("PSI [95 %]") == 1


def test_no_end_is_told_of_what_never_began(capsys):
    conclusion(running=False).tell(GOOD, None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("written", [True, False])
def test_a_page_is_named_where_one_was_written(tmp_path, capsys, written):
    if written:
        (tmp_path / "report.html").touch()
    conclusion().tell(GOOD, None, page=tmp_path / "report.html")
    assert (f"report: {tmp_path / 'report.html'}" in capsys.readouterr().out) is written


@pytest.mark.parametrize(
    ("result", "unmeasured", "says"),
    [
        (GOOD, None, None),
        (BAD, None, r"guided_backprop is FAIL: .*"),
        (UNDECIDED, None, r"gradcam is INCONCLUSIVE: .*"),
        (VOID, None, r"gradcam is INCONCLUSIVE: .*the control 'random' passed"),
        (None, NEVER_REACHED, r"never gave a result for these weights, which is not a pass: no validation"),
        (None, None, r"never gave a result for these weights, which is not a pass$"),
    ],
    ids=["passes", "fails", "open", "void", "nothing and why", "nothing"],
)
@pytest.mark.parametrize("raises", [True, False])
def test_anything_but_a_pass_is_an_error_where_that_was_asked_for(result, unmeasured, says, raises):
    expected = pytest.raises(SanityCheckFailed, match=says) if raises and says else nullcontext()
    with expected:
        conclusion(result, raises=raises).check(result, unmeasured)


@pytest.mark.parametrize(
    ("result", "more"), [(GOOD, False), (BAD, False), (UNDECIDED, True), (VOID, False), (None, False)]
)
def test_more_trials_could_decide_what_is_open_alone(result, more):
    gated = () if result is None else [name for name, verdict in result.verdicts.items() if verdict.gated]
    assert undecided(result, gated, 20) is more


def test_a_method_that_had_all_trials_gets_no_more():
    exhausted = replace(UNDECIDED, settings={**UNDECIDED.settings, "trials_run": {"gradcam": 20}})
    assert undecided(exhausted, ["gradcam"], 21)
    assert not undecided(exhausted, ["gradcam"], 20)


def test_what_it_took_is_told_below_the_table(capsys):
    conclusion().tell(GOOD, None, cost="measured for 3.0 s beside 100 s of training (3.0%)")
    assert "measured for 3.0 s beside 100 s" in capsys.readouterr().out.splitlines()[-1]
