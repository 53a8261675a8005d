"""What a test returns: frozen nouns, and their round trip through JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_sanity.result import file as result_file
from lightning_sanity.result.curve import MOST, Curve, packed, unpacked
from lightning_sanity.result.shapes import check_shapes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SanityCheckFailed(RuntimeError):
    """A gated attribution method did not pass and the caller asked for an error."""


class Outcome(str, Enum):
    """What a verdict says about a method."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


WORST_FIRST = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS)


@dataclass(frozen=True)
class Verdict:
    """The decision on one method.

    Attributes:
        outcome: ``PASS``, ``FAIL`` or ``INCONCLUSIVE``.
        reason: One sentence that a person can act on.
        psi: Parameter sensitivity index of the measure that decided: 1 = as different as unrelated maps, 0 = the map
            ignores the model. NaN if undefined.
        psi_low: Lower end of the 95 % interval of ``psi``.
        psi_high: Upper end.
        measure: Name of the similarity that decided: of a FAIL the one whose interval has the lowest upper end, else
            that with the lowest lower end.
        psi_first: PSI of ``measure`` after the first step alone.
        psi_last: PSI of ``measure`` at the last step alone.
        p_dependence: Diagnostic: probability of maps this different if they did not depend on the weights at all;
            None if not computed.
        gated: Whether the method counts for ``SanityResult.passed``; controls do not.
        psi_of: PSI of every measure with its interval, ``{measure: (psi, low, high)}``.
    """

    outcome: Outcome
    reason: str
    psi: float = math.nan
    psi_low: float = math.nan
    psi_high: float = math.nan
    measure: str | None = None
    psi_first: float = math.nan
    psi_last: float = math.nan
    p_dependence: float | None = None
    gated: bool = True
    psi_of: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether every field is equal; what is undefined (NaN) in both is."""
        if not isinstance(other, Verdict):
            return NotImplemented
        return all(_same(getattr(self, each.name), getattr(other, each.name)) for each in fields(self))

    @property
    def passed(self) -> bool:
        """Whether the outcome is ``PASS``."""
        return self.outcome is Outcome.PASS


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other or (one != one and other != other))


@dataclass(frozen=True)
class Grounds:
    """What a verdict rests on besides the curves: enough to judge anew.

    Attributes:
        noise: Similarity of the trained model's maps to those of slightly noisy inputs, float32 ``(repeats, N)``.
        cross: The same to other samples' maps, float32 ``(K, N)``.
        dead: Share of the trained model's maps that are constant or not finite.
        unsigned: Whether the trained model's maps have no negative value, so that their sign says nothing.
        trivial: Why no measurement could decide (not applicable, an error, ...), or None.
        half: Whether it was measured in 16-bit precision.
    """

    noise: Tensor | None = None
    cross: Tensor | None = None
    dead: float = 0.0
    unsigned: bool = False
    trivial: str | None = None
    half: bool = False


@dataclass(frozen=True)
class UnitCoverage:
    """What re-initialising one step changed.

    Attributes:
        name: The step.
        parameters: Names of its parameters.
        count: Number of scalar parameters.
        strategy: How each parameter was drawn, in the order of ``parameters``.
        relative_change: ``|new - trained| / |trained|`` of each parameter, smallest over trials.
        kept: Parameters that kept their trained value.
    """

    name: str
    parameters: tuple[str, ...]
    count: int
    strategy: tuple[str, ...]
    relative_change: tuple[float, ...]
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Coverage:
    """Which of the parameters that the forward pass uses were proven to have changed.

    Attributes:
        share: Changed scalars / scalars that reach the explained output, ``hidden`` ones included; 1.0 = everything
            trained that matters.
        units: One entry per step, in the order of ``SanityResult.units`` and with the same names.
        unused: Parameters that no pass was seen to read; they became random with the first step all the same.
        notes: What a reader should know, for example which twin was used or refused and why.
        aside: Parameters that the forward pass reads but whose result never reaches the explained output; they were
            re-initialised with the first step and have no part in ``share``.
        hidden: Trained tensors that passes computed with and that are no registered parameters: where they hang. They
            stayed trained, so that no method passes.
    """

    share: float
    units: tuple[UnitCoverage, ...]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the used parameters, and of ``hidden`` tensors, that kept their trained value."""
        return tuple(name for unit in self.units for name in unit.kept) + self.hidden


@dataclass(frozen=True)
class OutputChange:
    """How the predictions moved along the cascade, against the trained model's.

    Attributes:
        agreement: Share of samples with the same predicted class; ``(trials, depths)``, NaN for a single output.
        correlation: Pearson correlation of the outputs over samples and classes; ``(trials, depths)``.
        gradient_ratio: Norm of the input gradient at full randomization over the trained model's; ``(trials,)``.
        spread_ratio: Spread of the outputs over inputs at full randomization over the trained model's; ``(trials,)``.
    """

    agreement: Tensor
    correlation: Tensor
    gradient_ratio: Tensor
    spread_ratio: Tensor


@dataclass(frozen=True)
class Pictures:
    """Small copies of inputs and maps for figures and reports.

    Attributes:
        inputs: ``(K, H, W, 3)`` uint8.
        depths: Number of randomised units of each column after the trained one.
        maps: Per method int8 ``(K, 1 + len(depths), H, W)``: signed maps, trained one first; +-127 is the
            99th percentile of each one's magnitudes, and all beyond.
        kind: What ``inputs`` show: an "image"; three slices of a "volume" side by side; of a "signal" a row for each
            channel; one row of a "table" or of "tokens". Their maps are one row high.
        words: Of tokens, one tuple for each input.
    """

    inputs: Tensor
    depths: tuple[int, ...]
    maps: Mapping[str, Tensor]
    kind: str = "image"
    words: tuple[tuple[str, ...], ...] = ()

    @property
    def in_rows(self) -> bool:
        """Whether a map is a row of numbers and no picture."""
        return self.kind in ("signal", "table", "tokens")


_MAPPINGS = (
    "curves",
    "verdicts",
    "settings",
    "environment",
    "diagnostics",
    "trained_maps",
    "grounds",
    "reproducibility",
)


@dataclass(frozen=True, repr=False)
class SanityResult:
    """Everything a randomization test found.

    Attributes:
        units: Names of the steps in the order in which they were re-initialised; one curve point each.
        curves: ``curves[method, similarity]``.
        verdicts: ``verdicts[method]``.
        output_change: How the predictions moved along the cascade.
        coverage: Proof of what changed.
        valid: False if the run shows nothing, as where a control came out wrong: then no verdict can be trusted.
        validity: One sentence on that.
        settings: Everything needed to run the test again: plain values.
        environment: Library versions and device.
        weights_digest: SHA-256 over the measured ``state_dict``.
        probe_digest: SHA-256 over the probe's inputs and targets.
        probe_ids: Dataset indices of the probe, where known.
        step: The trainer's step when measured, where known.
        seconds: Wall time of the test.
        pictures: Small copies of inputs and maps, or None.
        diagnostics: Second opinions, ``diagnostics[method][name]``; see ``diagnostics.diagnose``. They never gate.
        trained_maps: Per method the trained model's maps of the whole probe, uint8 magnitudes ``(N, h, w)`` of at most
            32 pixels a side, each scaled by its own largest value: what ``drift`` compares. As inputs can be read from
            some maps, they go into a file only where pictures do.
        created: When the test ended, ISO 8601 in UTC; empty where unknown.
        grounds: ``grounds[method]``: what the verdict rests on besides the curves. Files of version 1 have none, so
            that nothing in them can be judged anew.
        depth_weights: How much each step counts in an index, see ``psi.depth_weights``: 0 for one that changed nothing,
            unequal where only some steps were walked; empty = all alike.
        reproducibility: ``reproducibility[method]``: of methods that draw, rank correlation between the trained model's
            maps and those of further runs under other seeds, float32 ``(repeats, N)``.
    """

    units: tuple[str, ...]
    curves: Mapping[tuple[str, str], Curve]
    verdicts: Mapping[str, Verdict]
    output_change: OutputChange
    coverage: Coverage
    valid: bool
    validity: str
    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    weights_digest: str
    probe_digest: str
    probe_ids: tuple[int, ...] | None = None
    step: int | None = None
    seconds: float = math.nan
    pictures: Pictures | None = None
    diagnostics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    trained_maps: Mapping[str, Tensor] = field(default_factory=dict)
    created: str = ""
    grounds: Mapping[str, Grounds] = field(default_factory=dict)
    depth_weights: tuple[float, ...] = ()
    reproducibility: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __getstate__(self) -> dict[str, Any]:
        # A read-only view can neither be pickled nor copied; what it shows can.
        return {**self.__dict__, **{name: dict(getattr(self, name)) for name in _MAPPINGS}}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        gated = [verdict for verdict in self.verdicts.values() if verdict.gated]
        counts = [f"{sum(v.outcome is outcome for v in gated)} {outcome.value}" for outcome in Outcome]
        facts = [] if self.valid else ["not valid"]
        facts += [] if self.step is None else [f"step {self.step}"]
        return f"<SanityResult: {', '.join([*counts, *facts, f'weights {self.weights_digest[:12]}'])}>"

    def _repr_html_(self) -> str:
        from lightning_sanity.report import text  # results are read where nothing is shown

        return text.markup(self)

    def summary(self) -> str:
        """The verdicts as a table, how to read it, why a method did not pass, what to do next: what ``print`` shows."""
        from lightning_sanity.report import text  # results are read where nothing is shown

        return text.account(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know beside the verdicts: how weights were drawn, what was left out, what looked odd."""
        return self.coverage.notes

    @property
    def passed(self) -> bool:
        """True only if there is a gated method and every gated method passed."""
        gated = [verdict for verdict in self.verdicts.values() if verdict.gated]
        return bool(gated) and all(verdict.passed for verdict in gated)

    @property
    def engine(self) -> dict[str, str]:
        """How each method's depths were explained: "two_stream" or "full_batch" (many at once), "plain" (one by one).

        Empty for a test that walks no cascade.
        """
        return dict(self.settings.get("engine", {}))

    def maps(self, method: str) -> Tensor:
        """Small signed maps of the samples that were kept, along the cascade; ``(K, 1 + len(pictures.depths), h, w)``.

        The trained model's come first, then those after ``pictures.depths`` steps; each is scaled by the 99th
        percentile of its magnitudes, cut to ``[-1, 1]``, and 0 everywhere if it is blank.

        Raises:
            ValueError: If none were kept of this method; says of which.
        """
        kept = {} if self.pictures is None else self.pictures.maps
        if method not in kept:
            there = (
                f"there are maps of {', '.join(kept)}" if kept else "the test ran without pictures, or measured nothing"
            )
            raise ValueError(f"the result holds no maps of '{method}': {there}")
        return kept[method].float() / 127

    def to_records(self) -> list[dict[str, Any]]:
        """One flat dictionary per (method, similarity, depth), ready for a data frame or a logger's table."""
        records = []
        for (method, similarity), curve in self.curves.items():
            values = curve.values.transpose(0, 1).flatten(1)  # (depths, trials * N)
            columns = {
                "mean": curve.values.nanmean((0, 2)),
                "low": values.nanquantile(0.025, dim=1),
                "high": values.nanquantile(0.975, dim=1),
                "floor": curve.floor.nanmean((0, 2)),
                "ceiling": curve.ceiling.nanmean().expand(len(values)),
                "undefined": values.isnan().sum(1),
            }
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            for depth, row in enumerate(rows):
                place = {"method": method, "similarity": similarity, "depth": depth + 1, "unit": self.units[depth]}
                numbers = dict(zip(columns, row, strict=True))
                records.append({**place, **numbers, "outcome": self.verdicts[method].outcome.value})
        return records

    def to_frame(self) -> Any:
        """The rows of ``to_records`` as a ``pandas.DataFrame``.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_frame() makes a pandas.DataFrame: pip install pandas, or use to_records(), a list of dictionaries"
            ) from error
        return pandas.DataFrame(self.to_records())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; tensors as base64 of little-endian values with their shape."""
        encoded: dict[str, Any] = result_file.encode(self._keys())
        return encoded

    def _keys(self) -> dict[str, Any]:
        """What the keys of a file hold."""
        shown = self if self.pictures is not None else replace(self, trained_maps={})
        own = {f.name: getattr(shown, f.name) for f in fields(self) if f.name != "curves"}
        curves = [
            {"method": method, "similarity": similarity, **vars(packed(curve))}
            for (method, similarity), curve in self.curves.items()
        ]
        rounded = any(curve.step is not None for curve in self.curves.values())
        version = result_file.VERSION if rounded else result_file.UNROUNDED
        head = {"schema": result_file.SCHEMA, "version": version, "passed": self.passed}
        return {**head, **own, "curves": curves}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SanityResult:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: If ``data`` is not a result, is damaged, or was written by a newer version of the library.
        """
        data = result_file.header(data)
        decoder = result_file.Decoder()
        try:
            entries = decoder.decode(tuple[_CurveEntry, ...], data.get("curves"), "curves")
            curves = {
                (entry.method, entry.similarity): decoder.decode(Curve, item, f"curves[{i}]")
                for i, (entry, item) in enumerate(zip(entries, data["curves"], strict=True))
            }
            if sum(curve.size for curve in curves.values() if curve.step is not None) > MOST:
                raise ValueError(f"'curves' holds more than {MOST} similarities")
            curves = {key: unpacked(curve) for key, curve in curves.items()}
            if len(curves) < len(entries):
                raise ValueError("'curves' holds one of its entries twice")
            result: SanityResult = decoder.record(cls, data, "", curves=curves)
            check_shapes(result)
        except ValueError as error:
            sentence = " ".join(str(error).split())  # which may quote the file
            raise ValueError(f"damaged lightning_sanity result: {sentence}") from error
        return result

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the result; the file appears whole or not at all.

        Raises:
            ValueError: If ``from_json`` would refuse the file, because it is too large; what was there before stays.
            OSError: If it cannot be written.
        """
        size = sum(curve.size for curve in self.curves.values())
        if size > MOST:
            raise ValueError(
                f"the result holds {size / 1e6:.0f} million similarities, and a file at most {MOST / 1e6:.0f} million: "
                "test fewer methods, steps (max_steps=), trials or samples at once"
            )
        return result_file.write(self._keys(), path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> SanityResult:
        """Read a result that ``to_json`` wrote.

        Raises:
            ValueError: If the file is not such a result, is damaged, or is too new.
            OSError: If it cannot be read.
        """
        return cls.from_dict(result_file.read(path))

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report, one self-contained page; see ``report.html``."""
        from lightning_sanity.report import html  # the template engine is needed by nothing else

        return html.write(self, path)

    def plot(self) -> Figure:
        """The curves over depth with their intervals; see ``report.figures.curves``."""
        from lightning_sanity.report import figures  # matplotlib takes a second to import

        return figures.curves(self)


@dataclass(frozen=True)
class _CurveEntry:
    """What names a curve in a file."""

    method: str
    similarity: str
