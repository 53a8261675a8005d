"""The first screen of a page: order, what to do, trust."""

import re
from dataclasses import replace

import pytest
from made_figures import invalid, make_result

from lightning_sanity.report import html
from lightning_sanity.report.first_screen import marks, scale, standing, trust
from lightning_sanity.result import Outcome, Verdict


def several():
    """Five methods, in another order than that of their urgency."""
    found = {"good": (Outcome.PASS, 0.9), "bad": (Outcome.FAIL, 0.4), "open": (Outcome.INCONCLUSIVE, 0.7)}
    found |= {"worst": (Outcome.FAIL, 0.1), "wide": (Outcome.INCONCLUSIVE, 0.6)}
    reasons = {
        "open": "PSI by ssim straddles 0.65; about 20 trials",
        "wide": "PSI by ssim straddles 0.65; more samples",
    }
    return make_result(
        methods={
            name: Verdict(outcome, reasons.get(name, "so"), index, index - 0.1, index + 0.1, "ssim")
            for name, (outcome, index) in found.items()
        }
    )


def test_lines_name_methods_in_the_order_of_the_table():
    result = several()
    named = [names for _, names, _ in standing(result)]
    assert named == ["worst, bad", "wide, open", "good"]
    rows = re.findall(r'<a href="#method-\d+">(\w+)</a>', html.render(result))
    assert rows == [name for names in named for name in names.split(", ")]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (("about 20 trials instead of 5 would settle it", "about 9 trials instead of 5 would settle it (an aside)"),
         "open; about 20 trials instead of 5 would settle them"),
        (("about 9 trials instead of 5 would settle it", "about 148 samples instead of 16 would settle it"),
         "open; about 9 trials instead of 5 and 148 samples instead of 16 would settle them"),
        (("about 9 trials instead of 5 would settle it", "it lies too close to the threshold"),
         "open; about 9 trials instead of 5 would settle 1 of 2"),
        (("the maps carry no signal", "it lies too close to the threshold"),
         "open; the reason of each, below, says what would settle it"),
        (("about 6 models of each kind instead of 3 would settle it",
          "about 4 models of each kind instead of 3 would settle it"),
         "open; about 6 models of each kind instead of 3 would settle them"),
        (("more samples", "more samples"), "open; more samples"),
        ((f"explain other samples or take another method: {'one that cuts off nothing, ' * 5}",) * 2,
         "open; explain other samples or take another method"),
    ],
    ids=["most trials", "trials and samples", "some", "none", "models", "same", "long"],
)  # fmt: skip
def test_open_methods_say_together_what_would_settle_them(ends, said):
    base = make_result()
    verdicts = {
        f"open {k}": Verdict(Outcome.INCONCLUSIVE, f"PSI by ssim straddles 0.65; {end}", 0.7, 0.6, 0.8, "ssim")
        for k, end in enumerate(ends)
    }
    ((outcome, names, what),) = standing(replace(base, verdicts=verdicts))
    assert (outcome, names, what) == (Outcome.INCONCLUSIVE, "open 0, open 1", said)
    assert said in html.render(make_result(methods=verdicts))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (make_result(), "Yes: its control came out as it must."),
        (several(), "Not shown: no control was run."),
        (invalid(), "No, for the reason above."),
    ],
    ids=["yes", "not shown", "no"],
)
def test_trust_has_three_answers_said_once(result, said):
    assert trust(result) == said
    assert html.render(result).count(said) == 1


def test_a_page_says_beside_its_numbers_from_where_a_method_passes():
    assert scale(make_result()) == "PSI with its 95 % interval, passes from 0.65; 0 = ignores the weights"
    assert "passes" not in scale(make_result(settings={}))


def test_marks_above_the_bars_do_not_crowd():
    base = make_result()
    assert marks(base) == [0.0, 0.65, 1.0]
    assert marks(replace(base, settings={"criterion": {"min_psi": 0.9}})) == [0.0, 0.9]


def test_no_verdict_of_a_void_run_is_named_on_top():
    assert standing(invalid()) == []
    assert html.render(invalid()).count("void <s>") == 4  # in the table and in the sections
