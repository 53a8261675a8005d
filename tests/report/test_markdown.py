"""Markdown: read by other people's parsers."""

import re
from dataclasses import replace

import pytest
import torch
import yaml
from made_figures import invalid, make_result, nothing_defined

from lightning_sanity.report import markdown


def cells(text):
    """The rows of the table in a Markdown text."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


def test_summary_begins_with_the_answer():
    first = markdown.summary(make_result()).splitlines()[0]
    assert first == "## \N{BALLOT X} FAIL: maps of guided_backprop change too little with the weights (step 400)"


def test_summary_of_an_invalid_run_begins_with_that():
    assert markdown.summary(invalid()).startswith("## ! NOT VALID, no verdict can be trusted\n\nthe control 'random'")


def test_summary_says_which_weights_and_what_a_pass_is_worth():
    text = markdown.summary(make_result())
    assert "weights ab" in text
    assert "A pass is necessary, not sufficient" in text


def test_table_has_a_row_per_method_with_its_interval():
    rows = cells(markdown.table(make_result()))[2:]
    assert [row[:3] for row in rows] == [
        ["guided_backprop", "FAIL", "0.31 [0.25, 0.38]"],
        ["gradient", "PASS", "0.93 [0.88, 0.97]"],
        ["random (control)", "INCONCLUSIVE", "undefined"],
    ]


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "a | b\n## c", "[x](javascript:y)", "*b* `c` _d_"])
def test_names_bring_no_markup(name):
    row = markdown.table(make_result(methods={name: make_result().verdicts["gradient"]})).splitlines()[2]
    bare = re.sub(r"\\.", "", row)  # without what is escaped
    assert not any(mark in bare for mark in ("<", "](", "*", "`", " _"))
    assert bare.count("|") == 5


def test_model_card_is_a_block_of_metadata_that_yaml_reads():
    text = markdown.model_card(make_result(), "my: model", dataset="org/digits", dataset_name="Digits")
    assert text.startswith("---\n")
    assert text.endswith("---\n")
    (entry,) = yaml.safe_load(text.strip("-\n"))["model-index"]
    (found,) = entry["results"]
    assert (entry["name"], found["dataset"]["type"]) == ("my: model", "org/digits")
    assert [(metric["value"], metric["args"]["verdict"]) for metric in found["metrics"]] == [
        (0.93, "PASS"),
        (0.31, "FAIL"),
    ]


def test_model_card_is_read_by_its_hub():
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(markdown.model_card(make_result(), "digits"))
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {"PSI of gradient": 0.93, "PSI of guided_backprop": 0.31}


def test_model_card_refuses_an_invalid_run():
    with pytest.raises(ValueError, match="not valid and belongs on no model card"):
        markdown.model_card(invalid(), "digits")


def test_model_card_refuses_to_invent_numbers():
    with pytest.raises(ValueError, match="no gated method"):
        markdown.model_card(nothing_defined(), "digits")


def test_model_card_leaves_controls_out():
    result = make_result()
    verdicts = {name: replace(verdict, gated=name == "gradient") for name, verdict in result.verdicts.items()}
    (entry,) = yaml.safe_load(markdown.model_card(replace(result, verdicts=verdicts), "m").strip("-\n"))["model-index"]
    assert [metric["name"] for metric in entry["results"][0]["metrics"]] == ["PSI of gradient"]


def test_summary_says_how_far_a_method_that_draws_agrees_with_itself():
    result = make_result()
    name = next(name for name, verdict in result.verdicts.items() if verdict.gated)
    assert "another seed" not in markdown.summary(result)
    found = markdown.summary(replace(result, reproducibility={name: torch.full((2, 24), 0.934)}))
    assert "Run again under another seed" in found
    assert f"{name} at 0.93" in found
