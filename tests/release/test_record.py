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


def shipped(name):
    return json.loads(resources.files("lightning_sanity").joinpath("release", name).read_text(encoding="utf-8"))


SCHEMA, IN_TOTO = shipped("record.schema.json"), shipped("in_toto_statement.schema.json")


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


@pytest.mark.parametrize("schema", [SCHEMA, IN_TOTO], ids=["ours", "in-toto"])
def test_the_schema_is_one(schema):
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record.pop("_type"),
        lambda record: record.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda record: record.update(subject=[]),
        lambda record: record["subject"][0].pop("digest"),
        lambda record: record["subject"][0].update(digest={"sha256": "XY"}),
        lambda record: record.update(predicateType="release"),
        lambda record: record.update(signature="none of the statement's business"),
    ],
)
def test_what_is_no_statement_does_not_fit_the_schema(edit):
    record = json.loads(json.dumps(statement(gate(made()), Policy(), now=NOW)))
    edit(record)
    assert not jsonschema.Draft202012Validator(IN_TOTO).is_valid(record)


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


def verifying(folder, *more):
    return main(["gate", str(folder / "result.json"), "--weights", str(folder / "best.pt"), *more])


@pytest.fixture
def recorded(release):
    folder, _ = release
    assert verifying(folder, "--record", str(folder / "release.json")) == 0
    return folder, folder / "release.json"


def test_the_command_verifies_a_record_of_before_wherever_the_files_lie_now(recorded, capsys):
    folder, record = recorded
    assert verifying(folder, "--verify", str(record)) == 0
    moved = folder.rename(folder.parent / "moved")
    assert verifying(moved, "--verify", str(moved / "release.json")) == 0
    assert "the record says what was decided now" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (lambda record: record["subject"][0]["digest"].update(sha256="0" * 64), "subject[0].digest.sha256"),
        (lambda record: record["predicate"]["policy"].update(min_psi=0.9), "predicate.policy.min_psi"),
        (
            lambda record: record["predicate"]["results"][0]["verdicts"]["gradcam"].update(psi=0.9),
            "predicate.results[0].verdicts.gradcam.psi",
        ),
        (lambda record: record["predicate"]["decision"].update(outcome="FAIL"), "predicate.decision.outcome"),
        (lambda record: record["predicate"]["checks"].pop(), "predicate.checks"),
    ],
)
def test_a_record_that_was_edited_does_not_verify(edit, where, recorded, capsys):
    folder, path = recorded
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    assert verifying(folder, "--verify", str(path)) == 1
    assert where in capsys.readouterr().out


def test_other_weights_or_another_policy_do_not_verify(recorded, capsys):
    folder, path = recorded
    assert verifying(folder, "--verify", str(path), "--min-psi", "0.7") == 1
    assert "made under other rules" in " ".join(capsys.readouterr().out.split())
    torch.save(nn.Linear(2, 2).state_dict(), folder / "best.pt")
    assert verifying(folder, "--verify", str(path)) == 1
    assert "the checkpoint is not the one of the record" in " ".join(capsys.readouterr().out.split())
    assert verifying(folder, "--verify", str(folder / "result.json")) == 2
    assert "is no release record" in capsys.readouterr().err


def test_a_record_is_signed_and_verified_as_it_is(recorded):
    pytest.importorskip("cryptography")
    dsse = pytest.importorskip("securesystemslib.dsse")
    signer = pytest.importorskip("securesystemslib.signer")
    folder, path = recorded
    key, other = (signer.CryptoSigner.generate_ed25519() for _ in range(2))
    envelope = dsse.Envelope(path.read_bytes(), "application/vnd.in-toto+json", {})
    envelope.sign(key)
    read = dsse.Envelope.from_dict(json.loads(json.dumps(envelope.to_dict())))
    assert list(read.verify([key.public_key], 1)) == [key.public_key.keyid]
    (folder / "unsigned.json").write_bytes(read.payload)
    assert verifying(folder, "--verify", str(folder / "unsigned.json")) == 0
    for keys, payload in (([other.public_key], read.payload), ([key.public_key], read.payload + b" ")):
        with pytest.raises(Exception, match=r"[Ss]ignature"):
            dsse.Envelope(payload, read.payload_type, read.signatures).verify(keys, 1)
