"""A model card says what the record says, once, and keeps all else that it said."""

import sys

import pytest
import yaml
from made_results import FAILING, NOW, PASSING, made, made_of_labels, void

from lightning_sanity.cli import main
from lightning_sanity.release import Policy, gate, model_card
from lightning_sanity.release.record import statement

pytest.importorskip("huggingface_hub")

PLAIN = "# Scans\n\nWhat it is for.\n"
FULL = """---
license: mit
pipeline_tag: image-classification
widget:
- text: a
model-index:
- name: scans
  results:
  - task:
      type: image-classification
    dataset:
      name: Scans
      type: scans
    metrics:
    - type: accuracy
      value: 0.93
---
# Scans

Überschrift & <b>markup</b>
"""
CARDS = {
    "plain": PLAIN,
    "with metadata": FULL,
    "of Windows": FULL.replace("\n", "\r\n"),
    "empty metadata": "---\n{}\n---\n# S\n",
}


def record(*results):
    return statement(gate(list(results)), Policy(), now=NOW)


def metadata(card):
    return yaml.safe_load(card.replace("\r\n", "\n").split("---\n")[1])


def ours(card):
    """Indices by name."""
    return {
        metric["name"]: metric["value"]
        for entry in metadata(card)["model-index"][0]["results"]
        for metric in entry["metrics"]
        if entry["dataset"]["type"] == "lightning-sanity-probe"
    }


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_says_it_once_however_often_it_is_merged(card):
    first = model_card.merged(card, record(made()))
    assert model_card.merged(first, record(made())) == first
    assert first.count("## Saliency maps") == 1
    assert ours(first) == {"PSI of gradcam": round(made().verdicts["gradcam"].psi, 6)}
    assert ("\r\n" in first) == ("\r\n" in card)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_another_record_takes_the_place_of_the_first_and_nothing_else(card):
    first = model_card.merged(card, record(made({"gradcam": FAILING, "lime": PASSING})))
    assert model_card.merged(first, record(made())) == model_card.merged(card, record(made()))
    tail = card.split("---\n")[-1].split("---\r\n")[-1].rstrip()
    assert tail in first
    assert metadata(first).get("license") == ("mit" if "license" in card else None)
    assert "**FAIL**" in first


def test_evaluations_of_others_stay():
    entries = metadata(model_card.merged(FULL, record(made())))["model-index"][0]
    assert entries["name"] == "scans"
    assert entries["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.93}]


def test_both_tests_are_told_apart():
    card = model_card.merged(PLAIN, record(made(), made_of_labels()))
    assert set(ours(card)) == {"PSI of gradcam", "DRI of gradcam"}
    assert "data randomization test of" in card


def test_numbers_of_an_invalid_run_are_no_evaluation():
    invalid = record(void(made(), "the control 'random' passed"))
    first = model_card.merged(model_card.merged(FULL, record(made())), invalid)
    assert ours(first) == {}
    assert "**INCONCLUSIVE**" in first
    assert "model-index" not in model_card.merged(PLAIN, invalid)


def test_text_from_files_is_text():
    hostile = made({"<script>|x": PASSING})
    card = model_card.section(record(hostile))
    assert "<script>" not in card
    assert "&lt;script&gt;\\|x" in card


@pytest.mark.parametrize(
    "card", [f"a {model_card._BEGIN} b", f"{model_card._END}{model_card._BEGIN}", "---\nmodel-index: 3\n---\n"]
)
def test_a_damaged_card_is_refused(card):
    with pytest.raises(ValueError, match="model card"):
        model_card.merged(card, record(made()))


def test_the_command_merges_into_a_card_that_is_there(tmp_path, capsys):
    result, card = made().to_json(tmp_path / "result.json"), tmp_path / "README.md"
    assert main(["gate", str(result), "--model-card", str(card)]) == 2
    assert "there is no model card" in capsys.readouterr().err
    card.write_text(FULL)
    assert main(["gate", str(result), "--model-card", str(card), "--record", str(tmp_path / "release.json")]) == 0
    assert ours(card.read_text())
    assert main(["gate", str(result), "--model-card", str(result)]) == 2


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .lightning-sanity\[card\]"):
        model_card.merged(PLAIN, record(made()))
