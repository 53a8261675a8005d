"""The release record: a decision and what it rests on, as an in-toto Statement that signing tools take as it is.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md describes the envelope; what stands in the
predicate is described by ``record.schema.json`` beside this module.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from lightning_sanity._version import __version__
from lightning_sanity.release.gating import Decision, Judged
from lightning_sanity.release.policy import Policy
from lightning_sanity.result.evidence import test_of
from lightning_sanity.result.file import encode, read
from lightning_sanity.result.sanity_result import Verdict

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:lightning-sanity:release:v1"

_EVIDENCE = ("units", "curves", "grounds", "output_change", "coverage")
_TRUSTED = ("settings", "environment", "weights_digest", "probe_digest", "probe_ids", "step", "created", "validity")


def statement(decision: Decision, policy: Policy, *, now: datetime | None = None) -> dict[str, Any]:
    """An in-toto Statement about a decision, in plain JSON types.

    Its subjects are the checkpoint of the policy, by the SHA-256 of its bytes, and the weights in every result, by
    their digest, so that the same weights in another file are found as well.

    Args:
        decision: Of ``gate``.
        policy: What was asked of it.
        now: When it was decided; the clock's time if None.

    Raises:
        OSError: If the checkpoint, or the baseline, cannot be read any more.
    """
    subjects = [] if policy.weights is None else [_of_files(policy.weights)]
    subjects += [
        _subject(f"weights {d[:12]}", sha256=d) for d in dict.fromkeys(decision.weights_digests) if len(d) == 64
    ]
    return {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "decision": {
                "outcome": decision.outcome.value,
                "exit_code": decision.exit_code,
                "reason": decision.reason,
                "decided": (now or datetime.now(timezone.utc)).isoformat(timespec="seconds"),
                "decided_by": f"lightning-sanity {__version__}",
            },
            "policy": _policy(policy),
            "checks": [
                {"name": c.name, "test": c.test, "outcome": c.outcome.value, "reason": c.reason, "source": c.source}
                for c in decision.checks
            ],
            "results": [_result(judged) for judged in decision.judged],
        },
    }


def differences(record: Mapping[str, Any], decision: Decision, policy: Policy) -> list[str]:
    """Where a record says something else than a decision that was made again; empty if it still holds.

    Args:
        record: What ``statement`` returned, perhaps long ago.
        decision: Made again, on what is there now.
        policy: What was asked of it.
    """
    again = statement(decision, policy)
    kept = [_timeless(each) for each in (record, again)]
    return sorted(_differing(*kept))


def read_record(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """A record as it was written.

    Raises:
        ValueError: If the file is none.
        OSError: If it cannot be read.
    """
    data = read(path)
    if not isinstance(data, Mapping) or (data.get("_type"), data.get("predicateType")) != (STATEMENT, PREDICATE):
        raise ValueError(f"'{path}' is no release record: '_type' and 'predicateType' are missing or foreign")
    return data


def _timeless(record: Mapping[str, Any]) -> Any:
    """What holds whenever and wherever it is decided: no dates of the decision, no files' names, no ages in words."""
    plain = json.loads(json.dumps(record))
    predicate = plain.get("predicate")
    parts = predicate if isinstance(predicate, dict) else {}
    named = [parts.get("decision"), *_listed(parts.get("checks")), *_listed(parts.get("results"))]
    asked = parts.get("policy")
    files = [asked.get("weights"), asked.get("baseline")] if isinstance(asked, dict) else []
    for file in (*files, *_listed(plain.get("subject"))[:1]):
        if isinstance(file, dict):
            file.pop("name", None)
    for each in named:
        if isinstance(each, dict):
            dropped = ("decided", "decided_by", "source", *(("reason",) if each.get("name") == "age" else ()))
            for key in dropped:
                each.pop(key, None)
    return plain


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _differing(one: Any, two: Any, where: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        keys = one.keys() | two.keys()
        return [d for key in keys for d in _differing(one.get(key), two.get(key), f"{where}.{key}".lstrip("."))]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        return [d for i, pair in enumerate(zip(one, two, strict=True)) for d in _differing(*pair, f"{where}[{i}]")]
    return [] if one == two else [where]


def _subject(name: str, **digest: str) -> dict[str, Any]:
    return {"name": name, "digest": digest}


def _of_files(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file by its SHA-256; a folder by in-toto's ``dirHash1``, the SHA-256 over its files' own and their names."""
    given = Path(path)
    if not given.is_dir():
        return _subject(given.name, sha256=_sha256(given))
    files = sorted(each.relative_to(given).as_posix() for each in given.rglob("*") if each.is_file())
    lines = "".join(f"{_sha256(given / name)}  {name}\n" for name in files)
    return _subject(given.name, dirHash1=hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest())


def _sha256(path: str | os.PathLike[str]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slowly(file)


def _slowly(file: Any) -> str:
    sha = hashlib.sha256()
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


def _policy(policy: Policy) -> dict[str, Any]:
    """What was asked, files by their contents."""
    asked: dict[str, Any] = {}
    for field in fields(policy):
        value = getattr(policy, field.name)
        if isinstance(value, timedelta):
            value = value.total_seconds()
        elif field.name in ("weights", "baseline") and value is not None:
            held = _of_files(value)
            value = {"name": held["name"], **held["digest"]}
        asked[field.name] = list(value) if isinstance(value, tuple) else value
    return asked


def _result(judged: Judged) -> dict[str, Any]:
    result, data = judged.result, judged.result.to_dict()
    named = ("weights_digest", "probe_digest", "step", "created", "environment", "valid", "validity")
    return {
        "source": judged.source,
        "test": test_of(result),
        **{name: encode(data[name]) for name in named},
        "seed": result.settings.get("seed"),
        "criterion": asdict(judged.criterion),
        "measured_by": encode(result.settings.get("criterion")),
        "coverage": result.coverage.share,
        "verdicts": {name: _verdict(verdict) for name, verdict in judged.verdicts.items()},
        "evidence_sha256": fingerprint({key: data[key] for key in _EVIDENCE}),
        "taken_on_trust": list(judged.trusted),
        "taken_on_trust_sha256": fingerprint({key: data[key] for key in _TRUSTED}),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    numbers = {name: getattr(verdict, name) for name in ("psi", "psi_low", "psi_high")}
    return {
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        "gated": verdict.gated,
        "measure": verdict.measure,
        **{name: round(value, 6) if math.isfinite(value) else None for name, value in numbers.items()},
    }


def fingerprint(data: Any) -> str:
    """SHA-256 of the shortest JSON with sorted keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
