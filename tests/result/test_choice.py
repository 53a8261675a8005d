"""The answer as a noun: its file, what it refuses to read."""

import copy
import json
from importlib import resources

import jsonschema
import pytest

from lightning_sanity import Choice
from tests.made_choices import answer

SCHEMA = json.loads(
    resources.files("lightning_sanity").joinpath("result", "choice.schema.json").read_text(encoding="utf-8")
)


def written():
    return json.loads(json.dumps(answer().to_dict()))


def test_a_real_choice_fits_the_schema_and_comes_back_whole(tmp_path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(written(), SCHEMA)
    assert set(written()) <= set(SCHEMA["properties"])
    read = Choice.from_json(answer().to_json(tmp_path / "choice.json"))
    assert read.to_dict() == answer().to_dict()
    assert read.recommended_set == answer().recommended_set


def test_keys_that_a_later_version_adds_are_ignored():
    assert Choice.from_dict({**written(), "later": 1}).recommended == answer().recommended


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(recommended="guided_backprop"), "which did not pass"),
        (lambda data: data.update(recommended="nobody"), "which did not pass"),
        (lambda data: data["tied"].append("input_x_gradient"), "which did not pass"),
        (lambda data: [row["scores"].clear() for row in data["table"]], "beats no baseline"),
        (lambda data: data.update(schema="lightning_sanity.result"), "not a lightning_sanity choice"),
        (lambda data: data.update(version=99), "upgrade"),
        (lambda data: data.pop("table"), "missing"),
        (lambda data: data["table"][0].update(standing="splendid"), "must be one of"),
    ],
)
def test_a_file_that_contradicts_itself_is_not_read(change, said):
    data = copy.deepcopy(written())
    change(data)
    with pytest.raises(ValueError, match=said):
        Choice.from_dict(data)


def test_rows_become_records_with_a_column_per_metric():
    records = answer().to_records()
    first = records[0]
    assert first["method"] == answer().recommended
    assert {"fidelity", "fidelity_low", "deletion", "psi", "cost", "reason"} <= set(first)
    assert len(records) == len(answer().table)
