"""The release record says what was decided about which bytes, and no longer holds when one of these changes."""

import hashlib
import json
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest
import torch
from made_results import FAILING, NOW, OPEN, PASSING, made, void
from torch import nn

from lightning_sanity.cli import main
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.release import Policy, gate
from lightning_sanity.release.record import differences, statement

SCHEMA = json.loads(
    resources.files("lightning_sanity").joinpath("release", "record.schema.json").read_text(encoding="utf-8")
)
# What the specification of the in-toto Statement, version 1, asks of its four fields.
HEX = {"type": "string", "pattern": "^[0-9a-f]+$"}
IN_TOTO = {
    "type": "object",
    "required": ["_type", "subject", "predicateType"],
    "additionalProperties": False,
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["digest"],
                "properties": {
                    "name": {"type": "string"},
                    "digest": {
                        "type": "object",
                        "minProperties": 1,
                        "additionalProperties": {"pattern": "^[0-9a-f]+$"},
                    },
                },
            },
        },
        "predicateType": {"type": "string", "pattern": "^[a-z]+:"},
        "predicate": {"type": "object"},
    },
}


@pytest.fixture
def release(tmp_path):
    """A checkpoint, a result about it, an accepted result, and the policy that asks for all of it."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "best.pt")
    made({"gradcam": PASSING}, weights_digest=weights_digest(model)).to_json(tmp_path / "result.json")
    made({"gradcam": PASSING}, weights_digest="0" * 64).to_json(tmp_path / "accepted.json")
    policy = Policy(("gradcam",), weights=tmp_path / "best.pt", baseline=tmp_path / "accepted.json", max_age="7d")
    return tmp_path, policy


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "result",
    [made(), made({"gradcam": FAILING, "lime": OPEN}), void(made(), "a control passed"), made(grounds={})],
    ids=["pass", "fail", "invalid", "old"],
)
def test_a_record_is_an_in_toto_statement_of_its_own_kind(result):
    record = json.loads(json.dumps(statement(gate(result), Policy(), now=NOW), allow_nan=False))
    jsonschema.Draft202012Validator(IN_TOTO).validate(record)
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    assert record["predicate"]["decision"]["decided"] == NOW.isoformat()
    assert record["predicate"]["decision"]["exit_code"] == gate(result).exit_code


def test_the_subjects_are_the_bytes_and_the_weights(release):
    folder, policy = release
    record = statement(gate(folder / "result.json", policy, now=NOW), policy)
    raw = hashlib.sha256((folder / "best.pt").read_bytes()).hexdigest()
    weights = json.loads((folder / "result.json").read_text())["weights_digest"]
    assert [subject["digest"]["sha256"] for subject in record["subject"]] == [raw, weights]


def test_a_record_holds_as_long_as_nothing_changes(release):
    folder, policy = release
    record = json.loads(json.dumps(statement(gate(folder / "result.json", policy, now=NOW), policy, now=NOW)))
    assert differences(record, gate(folder / "result.json", policy, now=NOW), policy) == []


def other_weights(folder, policy):
    torch.save(nn.Linear(2, 2).state_dict(), folder / "best.pt")
    return policy


def same_weights_in_other_bytes(folder, policy):
    torch.save({"state_dict": torch.load(folder / "best.pt", weights_only=True)}, folder / "best.pt")
    return policy


def another_result(folder, policy):
    digest = json.loads((folder / "result.json").read_text())["weights_digest"]
    made({"gradcam": OPEN}, weights_digest=digest).to_json(folder / "result.json")
    return policy


def another_baseline(folder, policy):
    made({"gradcam": FAILING}, weights_digest="0" * 64).to_json(folder / "accepted.json")
    return policy


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (other_weights, "subject[0].digest.sha256"),
        (same_weights_in_other_bytes, "subject[0].digest.sha256"),
        (another_result, "predicate.results[0].verdicts.gradcam.outcome"),
        (another_result, "predicate.results[0].evidence_sha256"),
        (another_baseline, "predicate.policy.baseline.sha256"),
        (lambda folder, policy: replace(policy, min_psi=0.5), "predicate.policy.min_psi"),
        (lambda folder, policy: replace(policy, max_age="8d"), "predicate.policy.max_age"),
        (lambda folder, policy: replace(policy, require=()), "predicate.policy.require"),
    ],
)
def test_a_record_no_longer_holds_when_something_changed(change, where, release):
    folder, policy = release
    record = statement(gate(folder / "result.json", policy, now=NOW), policy, now=NOW)
    policy = change(folder, policy)
    assert where in differences(record, gate(folder / "result.json", policy, now=NOW), policy)


def test_the_command_writes_a_record(release, capsys):
    folder, _ = release
    arguments = ["gate", str(folder / "result.json"), "--weights", str(folder / "best.pt")]
    assert main([*arguments, "--record", str(folder / "out" / "release.json")]) == 0
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((folder / "out" / "release.json").read_text()))
    assert main([*arguments, "--record", str(folder / "best.pt")]) == 2
    assert "would be written over" in capsys.readouterr().err
