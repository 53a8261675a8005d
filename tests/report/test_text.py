"""A result in words: what a terminal and a notebook show."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from made_figures import EVIL
from made_results import FAILING, OPEN, PASSING, made

from lightning_sanity.report.text import account, advice, legend, line, markup
from lightning_sanity.result import Criterion, Curve, Outcome

ALL = {"gradcam": PASSING, "guided_backprop": FAILING, "occlusion": OPEN}


def blanked(result, method, share):
    """The same result with that share of a method's pairs undefined."""
    curve = result.curves[method, "spearman"]
    values = curve.values.clone()
    values.flatten()[: round(share * values.numel())] = float("nan")
    return replace(result, curves={**result.curves, (method, "spearman"): Curve(values, curve.floor, curve.ceiling)})


def test_every_method_has_a_line_with_verdict_interval_and_measure():
    lines = account(made(ALL), width=100).splitlines()
    for name, outcome in (("gradcam", "PASS"), ("guided_backprop", "FAIL"), ("occlusion", "INCONCLUSIVE")):
        row = next(text for text in lines if text.startswith(f"{name} "))
        assert re.fullmatch(rf"{name} +{outcome} +\d\.\d\d \[\d\.\d\d, \d\.\d\d\] +spearman", row)
    assert any(text.startswith("edge_detector (control)") for text in lines)


def test_the_gradient_that_runs_beside_is_a_comparison_and_no_control():
    result = made({"gradcam": PASSING, "gradient": PASSING})
    beside = replace(result.verdicts["gradient"], gated=False)
    said = account(replace(result, verdicts={**result.verdicts, "gradient": beside}))
    assert "gradient (comparison)" in said
    assert "edge_detector (control)" in said


def test_the_legend_is_one_line_and_says_what_passes_and_what_0_1_and_more_mean():
    said = legend(made(ALL))
    assert len(said) <= 120
    for words in ("passes from 0.65", "0 = ignores the weights", "1 = as different", "above 1"):
        assert words in said


def test_the_legend_names_the_threshold_that_was_used():
    assert "passes from 0.4 " in legend(made(ALL, criterion=Criterion(min_psi=0.4)))


def test_a_number_that_rests_on_few_pairs_is_marked_and_explained():
    said = account(blanked(made(), "gradcam", 0.57), width=100)
    assert "on 43% of the pairs (*)" in said
    assert "\n(*) in the other pairs" in said


def test_a_number_that_rests_on_nearly_all_pairs_bears_no_mark():
    assert "(*)" not in account(blanked(made(), "gradcam", 0.05))


def test_a_method_that_cannot_apply_is_to_be_left_out():
    result = made({"gradcam": PASSING, "guided_backprop": FAILING, "occlusion": PASSING})
    out = replace(result.verdicts["occlusion"], outcome=Outcome.INCONCLUSIVE, reason="not applicable: no image")
    failed, foreign = advice(replace(result, verdicts={**result.verdicts, "occlusion": out}))
    assert "do not show maps of guided_backprop" in failed
    assert "leave out occlusion" in foreign
    assert "methods=['gradcam', 'guided_backprop']" in foreign


def test_methods_with_one_reason_share_its_sentence():
    result = made({"gradcam": PASSING, "occlusion": PASSING})
    why = {name: replace(verdict, outcome=verdict.outcome.INCONCLUSIVE, reason="the maps carry no signal")
           for name, verdict in result.verdicts.items()}  # fmt: skip
    assert account(replace(result, verdicts=why)).count(" INCONCLUSIVE: the maps carry no signal") == 1


def test_an_invalid_run_says_why_before_any_number():
    said = account(replace(made(), valid=False, validity="the control 'input_copy' passed"), width=120)
    assert said.startswith("NOT VALID, no verdict can be trusted: the control 'input_copy' passed")
    assert "next:" not in said


@pytest.mark.parametrize("width", [40, 72, 100])
def test_sentences_are_wrapped_to_the_terminal(width):
    said = account(made(ALL), width=width)
    sentences = said.split("\n\n")[-1].splitlines()
    assert max(map(len, sentences)) <= max(width, 60)


def test_colours_are_for_terminals_only():
    assert "\033" not in account(made(ALL))
    plain = re.sub(r"\033\[\d+m", "", account(made(ALL), colour=True))
    assert plain == account(made(ALL))


def test_what_to_do_next_depends_on_what_came_out():
    assert "do not show maps of guided_backprop" in advice(made(ALL))[0]
    assert "trials=20 and 64 samples" in advice(made())[0]
    assert advice(made(trials=20, samples=64)) == []


def test_the_line_of_a_validation_has_every_gated_method():
    assert re.fullmatch(
        r"PSI: gradcam PASS \d\.\d\d, guided_backprop FAIL \d\.\d\d, occlusion INCONCLUSIVE \d\.\d\d", line(made(ALL))
    )
    assert line(replace(made(), valid=False, validity="nothing was random")) == "no verdict: nothing was random"


def test_a_notebook_shows_the_same_and_no_markup_of_a_name():
    page = ElementTree.fromstring(markup(made({EVIL: FAILING})))
    assert {node.tag for node in page.iter()} == {"div", "p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    shown = " ".join(page.itertext())
    assert "FAIL" in shown
    assert "above 1" in shown
