"""What ``choose_methods`` found: which method to show, on what grounds, and its round trip through JSON.

The same shape for other programs: ``choice.schema.json`` beside this module.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sanity.result import file as result_file
from lightning_sanity.result.sanity_result import Pictures, Verdict

SCHEMA = "lightning_sanity.choice"
VERSION = 1


class Standing(str, Enum):
    """Where a method stands in the answer."""

    RECOMMENDED = "recommended"
    TIED = "tied"
    PASSED = "passed"
    OPEN = "open"
    FAILED = "failed"
    UNMEASURED = "unmeasured"
    INAPPLICABLE = "does not apply"


@dataclass(frozen=True)
class Score:
    """One metric of one method.

    Attributes:
        value: Mean over samples; higher is better.
        low: Lower end of its 95 % interval.
        high: Upper end.
        over: Per baseline, the mean difference to it with a simultaneous interval ``(value, low, high)``.
        ahead: Methods that are better for certain.
    """

    value: float
    low: float
    high: float
    over: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    ahead: tuple[str, ...] = ()

    @property
    def beats_baselines(self) -> bool:
        """Whether the difference to every baseline is above 0 for certain."""
        return bool(self.over) and all(low > 0 for _, low, _ in self.over.values())


@dataclass(frozen=True)
class Row:
    """What is known of one candidate.

    Attributes:
        method: Its name, as ``attribution.resolve`` takes it.
        standing: Where it stands.
        reason: One sentence on that.
        verdict: Of the sanity test; None where it was not run.
        cost: Forward-plus-backward passes of one explanation; NaN where nobody knows.
        scores: Per metric.
        reading: How its maps were read by the metrics: "magnitude" or "signed".
    """

    method: str
    standing: Standing
    reason: str
    verdict: Verdict | None = None
    cost: float = math.nan
    scores: Mapping[str, Score] = field(default_factory=dict)
    reading: str = ""


@dataclass(frozen=True)
class Likeness:
    """How alike the maps of the methods are that passed.

    Attributes:
        names: The methods.
        by_measure: Mean over samples ``(methods, methods)`` of "top_k", "rank" and "sign".
        clusters: Methods whose maps go together.
        differing: Samples on which the two best methods differ most, the worst first.
        pair: These two.
        pictures: Small copies of these samples and of the two methods' maps of them, where the input is an image.
    """

    names: tuple[str, ...]
    by_measure: Mapping[str, Tensor]
    clusters: tuple[tuple[str, ...], ...]
    differing: tuple[int, ...] = ()
    pair: tuple[str, ...] = ()
    pictures: Pictures | None = None


@dataclass(frozen=True)
class Group:
    """The answer for one group of samples.

    Attributes:
        name: Of the group.
        samples: How many samples it has.
        tied: Per metric, the methods that cannot be told apart from the best one there.
        behind: Methods of the recommended set that are behind another one there for certain.
        keeps: Methods that keep their map there although the weights are random, with the sentence that says so.
    """

    name: str
    samples: int
    tied: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    behind: tuple[str, ...] = ()
    keeps: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """What of the weights the recommended method's map depends on, in one order of re-initialisation.

    Attributes:
        steps: Names of what was re-initialised.
        psi: Index at every step with its interval ``(3, steps)``.
        measure: The similarity.
    """

    steps: tuple[str, ...]
    psi: Tensor
    measure: str


@dataclass(frozen=True)
class Tuned:
    """A search over settings of one method.

    Attributes:
        method: The default.
        chosen: The setting that was best on the half of the samples that tunes.
        promised: Its gain there, too good by selection.
        gain: Its gain on the other half, with its interval ``(value, low, high)``.
        kept: The setting that stays in the race.
    """

    method: str
    chosen: str
    promised: float
    gain: tuple[float, float, float]
    kept: str


@dataclass(frozen=True, repr=False)
class Choice:
    """Which method to show for these weights, and the evidence.

    Everything but ``seconds``, ``created`` and ``environment`` is bitwise the same under the same seed, unless a budget
    in seconds cut the work short.

    Attributes:
        recommended: The cheapest method of those that passed, are not dominated and beat the baselines; None if there
            is none. A method everywhere: ``methods=choice.recommended``.
        tied: The others of these, which cannot be told apart from it on these samples.
        reason: One sentence on that.
        table: One row per candidate, the best first.
        baselines: Per metric and baseline, its own score.
        warnings: What a reader must not miss: metrics that contradict one another, groups with another best.
        notes: What a reader should know besides.
        likeness: How alike the maps are.
        groups: The answer by group.
        keeps: Samples on which a method that passed keeps its map: ``{method: places}``.
        profile: Per order, what the recommended method's map depends on.
        tuned: Searches over settings.
        settings: What was asked.
        spent: Explanations that were made, and what the whole test of all candidates would have made.
        environment: Library versions and device.
        weights_digest: SHA-256 over the ``state_dict`` for which this holds.
        probe_digest: SHA-256 over inputs and targets.
        seconds: Wall time.
        created: When it ended, ISO 8601 in UTC.
    """

    recommended: str | None
    tied: tuple[str, ...]
    reason: str
    table: tuple[Row, ...]
    weights_digest: str
    probe_digest: str
    baselines: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    likeness: Likeness | None = None
    groups: tuple[Group, ...] = ()
    keeps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    profile: Mapping[str, Profile] = field(default_factory=dict)
    tuned: tuple[Tuned, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = math.nan
    created: str = ""

    @property
    def recommended_set(self) -> tuple[str, ...]:
        """All methods that may be shown by this answer: the recommended one and those tied with it."""
        return () if self.recommended is None else (self.recommended, *self.tied)

    def __getitem__(self, method: str) -> Row:
        """The row of a candidate."""
        return {row.method: row for row in self.table}[method]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.table)

    def __str__(self) -> str:
        from lightning_sanity.report import choice_text  # answers are read where nothing is shown

        return choice_text.account(self)

    def __repr__(self) -> str:
        return f"<Choice: {self.recommended}, {len(self.tied)} tied, weights {self.weights_digest[:12]}>"

    def _repr_html_(self) -> str:
        from lightning_sanity.report import choice_page

        return choice_page.fragment(self)

    def to_markdown(self) -> str:
        """The answer and its table for a pull request or a model card."""
        from lightning_sanity.report import choice_text

        return choice_text.markdown(self)

    def to_records(self) -> list[dict[str, Any]]:
        """One flat dictionary per candidate, ready for a data frame."""
        records = []
        for row in self.table:
            verdict = row.verdict
            record: dict[str, Any] = {"method": row.method, "standing": row.standing.value, "cost": row.cost}
            record |= {
                "verdict": None if verdict is None else verdict.outcome.value,
                "psi": math.nan if verdict is None else verdict.psi,
            }
            for metric, score in row.scores.items():
                record |= {metric: score.value, f"{metric}_low": score.low, f"{metric}_high": score.high}
            records.append(record | {"reason": row.reason})
        return records

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; tensors as base64 of little-endian values with their shape."""
        own = {f.name: result_file.encode(getattr(self, f.name)) for f in fields(self)}
        return {"schema": SCHEMA, "version": VERSION, **own}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Choice:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: If ``data`` is not a choice, is damaged, or was written by a newer version of the library.
        """
        data = result_file.header(data, SCHEMA, VERSION)
        try:
            choice: Choice = result_file.Decoder().record(cls, data, "")
        except ValueError as error:
            raise ValueError(f"damaged lightning_sanity choice: {' '.join(str(error).split())}") from error
        _check(choice)
        return choice

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the choice; the file appears whole or not at all."""
        return result_file.write(self.to_dict(), path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Choice:
        """Read a choice that ``to_json`` wrote.

        Raises:
            ValueError: If the file is not such a choice, is damaged, or is too new.
            OSError: If it cannot be read.
        """
        return cls.from_dict(result_file.read(path))

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the answer as one self-contained page."""
        from lightning_sanity.report import choice_page

        return choice_page.write(self, path)


def _check(choice: Choice) -> None:
    """Raise ``ValueError`` where the words of a file contradict its numbers: what is shown must have passed."""
    pictures = None if choice.likeness is None else choice.likeness.pictures
    if pictures is not None:
        kinds = {pictures.inputs.dtype} == {torch.uint8} and {m.dtype for m in pictures.maps.values()} <= {torch.int8}
        shape = (*pictures.inputs.shape[:1], 1)
        fits = pictures.inputs.ndim == 4 and all(m.ndim == 4 and m.shape[:2] == shape for m in pictures.maps.values())
        if not (kinds and fits):
            raise ValueError("damaged lightning_sanity choice: 'pictures' does not hold one map per input")
    rows = {row.method: row for row in choice.table}
    for name in choice.recommended_set:
        row = rows.get(name)
        if row is None or row.verdict is None or not row.verdict.passed:
            raise ValueError(
                f"damaged lightning_sanity choice: it recommends '{name}', which did not pass in its own table"
            )
        if not any(score.beats_baselines for score in row.scores.values()):
            raise ValueError(
                f"damaged lightning_sanity choice: it recommends '{name}', which beats no baseline in its own table"
            )
