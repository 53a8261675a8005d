"""What became of methods from one result to the last."""

import pytest
from made_compared import FAILING, LONG, OPEN, PASSING, run, two, undefined, unequal
from made_results import void

from lightning_sanity.result import Outcome
from lightning_sanity.result.comparison import compared, differing
from lightning_sanity.result.noninferiority import compare


def outcomes(comparison):
    return {track.method: track.change.outcome for track in comparison.tracks}


def test_the_last_is_compared_with_the_first_as_a_pair_is():
    first, last = two()
    middle = run({"gradcam": FAILING}, "2")
    for results in ([first, last], [first, middle, last]):
        for track in compared(results).tracks:
            assert track.change == compare(first, last, track.method)


def test_a_result_between_decides_nothing_and_is_compared_too():
    comparison = compared([run({"lime": PASSING}), run({"lime": FAILING}, "1"), run({"lime": PASSING}, "2")])
    assert comparison.outcome is Outcome.PASS
    assert [change.outcome for change in comparison.tracks[0].changes] == [Outcome.FAIL, Outcome.PASS]


def test_the_worst_comes_first():
    comparison = compared(two())
    assert [track.method for track in comparison.tracks] == ["input_x_gradient", "guided_backprop", "gradcam", "lime"]
    assert comparison.reason.startswith("input_x_gradient: worse by more than 0.1: PSI ")


def test_a_new_method_counts_by_its_own_verdict_and_one_that_is_gone_cannot_be_told():
    assert outcomes(compared(unequal())) == {
        "deconvnet": Outcome.FAIL,
        "lime": Outcome.INCONCLUSIVE,
        LONG: Outcome.INCONCLUSIVE,
        "gradient": Outcome.PASS,
        "rise": Outcome.PASS,
    }


def test_what_is_undefined_in_either_is_no_pass():
    assert set(outcomes(compared(undefined())).values()) == {Outcome.INCONCLUSIVE}


def test_the_reason_says_how_many_more_are_as_bad():
    first, last = run({"a": PASSING, "b": PASSING, "c": PASSING}), run({"a": FAILING, "b": FAILING, "c": PASSING}, "1")
    assert compared([first, last]).reason.endswith(" (and 1 more)")


@pytest.mark.parametrize("at", [0, 1])
def test_an_invalid_run_at_either_end_decides_nothing(at):
    results = [run({"gradcam": PASSING}), run({"gradcam": PASSING}, "1")]
    results[at] = void(results[at], "a control passed")
    comparison = compared(results)
    assert comparison.outcome is Outcome.INCONCLUSIVE
    assert "invalid run: a control passed" in comparison.reason


def test_other_numbers_of_samples_are_named_with_both_numbers():
    (track,) = compared([run({"gradcam": OPEN}), run({"gradcam": OPEN}, "1", samples=12)]).tracks
    assert "measured on 24 samples and on 12" in track.change.reason


def test_one_result_is_no_comparison():
    with pytest.raises(ValueError, match="two results or more, not 1"):
        compared([run({"gradcam": PASSING})])


def test_settings_and_versions_that_differ_are_found_and_no_others():
    first = run({"gradcam": PASSING})
    other = run({"gradcam": PASSING}, trials=9, environment={**first.environment, "torch": "3"})
    assert differing([first, other, first]) == {"trials": (6, 9, 6), "torch": ("2", "3", "2")}
    assert differing([first, first]) == {}
