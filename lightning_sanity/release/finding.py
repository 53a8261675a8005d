"""Which results count: of a file, of a folder, of several of them, and whether they are about one model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lightning_sanity.model.digest import PARTIAL
from lightning_sanity.result import evidence
from lightning_sanity.result import file as result_file
from lightning_sanity.result.sanity_result import SanityResult

NEVER_RAN = "never ran is not a pass"
_OF_A_SERIES = re.compile(r"(latest|step=\d+)(?=.*\.json$)")


@dataclass(frozen=True)
class Found:
    """A result and the file it comes from; an empty ``source`` if it came from memory."""

    source: str
    result: SanityResult


def read(path: str | os.PathLike[str]) -> SanityResult:
    """A result that a decision may rest on: its words do not contradict its numbers.

    Raises:
        ValueError: If it is no result, damaged, or contradicts itself; says which file.
        OSError: If it cannot be read.
    """
    return _result(str(path), result_file.read(path))


def consistent(result: SanityResult, source: str = "") -> SanityResult:
    """The result, unless its words contradict its numbers.

    Raises:
        ValueError: Which number contradicts which.
    """
    try:
        first = next(evidence.contradictions(result), None)
    except ValueError as error:
        first = str(error)
    if first is not None:
        raise ValueError(f"{f'{source!r} ' if source else 'the result '}contradicts itself: {first}")
    return result


def find(path: Path, digests: Sequence[str]) -> tuple[list[Found], list[str]]:
    """The results that count at a path, and files that were left out because they are about other weights.

    Of a folder every series counts: the files ``latest.json`` and ``step=<n>.json`` of one callback, there or in a
    folder in it, are one, by their newest; any other file is one of its own.

    Args:
        path: Of a file or a folder.
        digests: Only results about these weights are looked for in a folder; any if empty.

    Raises:
        LookupError: If there is none.
        ValueError: If a file is damaged.
        OSError: If one cannot be read.
    """
    if not path.exists():
        raise LookupError(f"there is no result at '{path}': {NEVER_RAN}")
    if not path.is_dir():
        return [Found(str(path), read(path))], []
    series: dict[tuple[Path, str], list[_Entry]] = {}
    for entry in _entries(path):
        series.setdefault((entry.file.parent, _OF_A_SERIES.sub("*", entry.file.name)), []).append(entry)
    if not series:
        raise LookupError(f"there is no result in '{path}': {NEVER_RAN}")
    found: list[Found] = []
    others: list[str] = []
    for entries in series.values():
        about = [entry for entry in entries if not digests or entry.about(digests)]
        found += _newest(about)
        others += [] if about else [str(entry.file) for entry in entries]
    if not found:
        raise LookupError(
            f"none of the {len(others)} results in '{path}' is about these weights: {NEVER_RAN}; "
            "lightning-sanity check measures a checkpoint"
        )
    return found, others


def models(results: Iterable[SanityResult]) -> dict[tuple[str, str], list[SanityResult]]:
    """Results by the model they are about: its weights, and what of it no checkpoint holds.

    The data randomization test compares several trained models; it is about each of them.
    """
    groups: dict[tuple[str, str], list[SanityResult]] = {}
    by_test = sorted(results, key=lambda result: evidence.TESTS.index(evidence.test_of(result)))
    for result in by_test:
        about, unsaved = evidence.weights_of(result), str(result.settings.get("unsaved_buffers") or "")
        of_one_of_them = next((key for key in groups if key[0] in about), None) if len(about) > 1 else None
        groups.setdefault(of_one_of_them or (result.weights_digest, unsaved), []).append(result)
    return groups


@dataclass(frozen=True)
class _Entry:
    """What tells the results in a folder apart; a folder may hold more of them than fit into memory."""

    file: Path
    date: datetime | None
    step: int | None
    weights: tuple[Any, ...]

    def about(self, digests: Sequence[str]) -> bool:
        """Whether it may be about one of these weights, as any may whose digest leaves something out."""
        return any(each in digests or (isinstance(each, str) and each.startswith(PARTIAL)) for each in self.weights)


def _entries(folder: Path) -> Iterator[_Entry]:
    """Every result in a folder; other JSON files are none of our business, damaged results are.

    Of the folders in it, what a callback writes.
    """
    below = [path for path in folder.glob("*/*.json") if _OF_A_SERIES.search(path.name)]
    for path in sorted([*folder.glob("*.json"), *below]):
        data = result_file.read(path)
        if isinstance(data, Mapping) and data.get("schema") == result_file.SCHEMA:
            step = data["step"] if type(data.get("step")) is int else None
            settings = data.get("settings")
            several = settings.get("weights_digests") if isinstance(settings, Mapping) else None
            weights = (data.get("weights_digest"), *(several if isinstance(several, list) else ()))
            yield _Entry(path, created(data.get("created")), step, weights)


def _result(source: str, data: Any) -> SanityResult:
    try:
        result = SanityResult.from_dict(data)
    except ValueError as error:
        raise ValueError(f"'{source}': {error}") from error
    return consistent(result, source)


def _newest(entries: Sequence[_Entry]) -> list[Found]:
    """The newest of a series by date, or else by step; all of those that only their contents tell apart."""
    dated = all(entry.date is not None for entry in entries)
    if dated or all(entry.step is not None for entry in entries):
        keys = [(entry.date if dated else None, -1 if entry.step is None else entry.step) for entry in entries]
        newest = max(keys, default=None) if dated else max(keys, key=lambda key: key[1], default=None)
        entries = [entry for entry, key in zip(entries, keys, strict=True) if key == newest]
    found: list[Found] = []
    seen: list[Any] = []
    for entry in entries:
        data = result_file.read(entry.file)
        if data not in seen:  # latest.json is a copy of another
            seen.append(data)
            found.append(Found(str(entry.file), _result(str(entry.file), data)))
    return found


def created(text: Any) -> datetime | None:
    """The date that a result states, in UTC if it names no zone; None if it states none."""
    try:
        date = datetime.fromisoformat(text.replace("Z", "+00:00")) if isinstance(text, str) else None
        return date if date is None or date.tzinfo else date.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        return None
