"""What a test returns: frozen nouns, and their round trip through JSON."""

from __future__ import annotations

import base64
import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "lightning_sanity.result"
SCHEMA_VERSION = 1


class SanityCheckFailed(RuntimeError):
    """A gated attribution method did not pass and the caller asked for an error."""


class Outcome(str, Enum):
    """What a verdict says about a method."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Curve:
    """One similarity of one method along a cascade.

    Attributes:
        values: Trained model's map against the map at each depth, same sample; float32 ``(trials, depths, N)``.
        floor: The same against the map of another sample: unrelated model and unrelated input; ``(trials, depths, N)``.
        ceiling: Trained model's map against a second run of the explanation with another explainer seed; ``(R, N)``,
            all ones for a deterministic method.

    NaN marks a pair in which a map was constant or not finite.
    """

    values: Tensor
    floor: Tensor
    ceiling: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over trials and samples at each depth, NaN pairs left out; ``(depths,)``."""
        return self.values.nanmean(dim=(0, 2))


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
        measure: Name of the similarity with the smallest PSI.
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

    @property
    def passed(self) -> bool:
        """Whether the outcome is ``PASS``."""
        return self.outcome is Outcome.PASS


@dataclass(frozen=True)
class UnitCoverage:
    """What re-initialising one unit changed.

    Attributes:
        name: The unit.
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
        share: Changed scalars / used scalars; 1.0 = every used parameter.
        units: One entry per unit, in the order of ``SanityResult.units``.
        unused: Parameters that the forward pass never read; they were left alone.
        notes: What a reader should know, for example which twin was used or refused and why.
    """

    share: float
    units: tuple[UnitCoverage, ...]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the used parameters that kept their trained value."""
        return tuple(name for unit in self.units for name in unit.kept)


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
        maps: Per method int8 ``(K, 1 + len(depths), H, W)``: signed maps scaled to +-127 each, trained one first.
    """

    inputs: Tensor
    depths: tuple[int, ...]
    maps: Mapping[str, Tensor]


@dataclass(frozen=True)
class SanityResult:
    """Everything a randomization test found.

    Attributes:
        units: Unit names in the order in which they were re-initialised; one curve point each.
        curves: ``curves[method, similarity]``.
        verdicts: ``verdicts[method]``.
        output_change: How the predictions moved along the cascade.
        coverage: Proof of what changed.
        valid: False if a control came out wrong: then no verdict can be trusted.
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
            32 pixels a side, each scaled by its own largest value: what ``drift`` compares.
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

    def __post_init__(self) -> None:
        for name in ("curves", "verdicts", "settings", "environment", "diagnostics", "trained_maps"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def passed(self) -> bool:
        """True only if there is a gated method and every gated method passed."""
        gated = [verdict for verdict in self.verdicts.values() if verdict.gated]
        return bool(gated) and all(verdict.passed for verdict in gated)

    def to_records(self) -> list[dict[str, Any]]:
        """One flat dictionary per (method, similarity, depth), ready for a data frame or a logger's table."""
        return [
            {
                "method": method,
                "similarity": similarity,
                "depth": depth + 1,
                "unit": self.units[depth],
                "mean": float(curve.values[:, depth].nanmean()),
                "low": _quantile(curve.values[:, depth], 0.025),
                "high": _quantile(curve.values[:, depth], 0.975),
                "floor": float(curve.floor[:, depth].nanmean()),
                "ceiling": float(curve.ceiling.nanmean()),
                "undefined": int(curve.values[:, depth].isnan().sum()),
                "outcome": self.verdicts[method].outcome.value,
            }
            for (method, similarity), curve in self.curves.items()
            for depth in range(len(self.units))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; tensors as base64 of little-endian values with their shape."""
        return {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "passed": self.passed,
            "valid": self.valid,
            "validity": self.validity,
            "units": list(self.units),
            "verdicts": {name: _encode_verdict(verdict) for name, verdict in self.verdicts.items()},
            "output_change": {k: _encode(getattr(self.output_change, k)) for k in _OUTPUT_CHANGE},
            "coverage": {
                "share": self.coverage.share,
                "unused": list(self.coverage.unused),
                "notes": list(self.coverage.notes),
                "units": [
                    vars(unit) | {key: list(getattr(unit, key)) for key in _UNIT_LISTS} for unit in self.coverage.units
                ],
            },
            "curves": [
                {"method": method, "similarity": similarity, **{k: _encode(getattr(curve, k)) for k in _CURVE}}
                for (method, similarity), curve in self.curves.items()
            ],
            "settings": dict(self.settings),
            "environment": dict(self.environment),
            "weights_digest": self.weights_digest,
            "probe_digest": self.probe_digest,
            "probe_ids": None if self.probe_ids is None else list(self.probe_ids),
            "step": self.step,
            "seconds": _number(self.seconds),
            "pictures": None if self.pictures is None else _encode_pictures(self.pictures),
            "diagnostics": {
                method: {name: _number(value) for name, value in row.items()}
                for method, row in self.diagnostics.items()
            },
            "trained_maps": {method: _encode(maps) for method, maps in self.trained_maps.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SanityResult:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: If ``data`` is not a result, or was written by a newer version of the library.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ValueError("not a lightning_sanity result: the key 'schema' is missing or foreign")
        if not isinstance(data.get("version"), int) or data["version"] > SCHEMA_VERSION:
            raise ValueError(
                f"result has schema version {data.get('version')!r}; this library reads up to {SCHEMA_VERSION}: "
                "upgrade it"
            )
        try:
            return cls(
                units=tuple(data["units"]),
                curves={
                    (c["method"], c["similarity"]): Curve(**{k: _decode(c[k]) for k in _CURVE}) for c in data["curves"]
                },
                verdicts={name: _decode_verdict(verdict) for name, verdict in data["verdicts"].items()},
                output_change=OutputChange(**{k: _decode(data["output_change"][k]) for k in _OUTPUT_CHANGE}),
                coverage=_decode_coverage(data["coverage"]),
                valid=data["valid"],
                validity=data["validity"],
                settings=data["settings"],
                environment=data["environment"],
                weights_digest=data["weights_digest"],
                probe_digest=data["probe_digest"],
                probe_ids=None if data["probe_ids"] is None else tuple(data["probe_ids"]),
                step=data["step"],
                seconds=_nan(data["seconds"]),
                pictures=None if data["pictures"] is None else _decode_pictures(data["pictures"]),
                diagnostics={
                    method: {name: _nan(value) for name, value in row.items()}
                    for method, row in data.get("diagnostics", {}).items()
                },
                trained_maps={method: _decode(maps) for method, maps in data.get("trained_maps", {}).items()},
            )
        except (KeyError, TypeError, AttributeError, ValueError, zlib.error, RuntimeError) as error:
            raise ValueError(f"damaged lightning_sanity result: {type(error).__name__}: {error}") from error

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the result; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> SanityResult:
        """Read a result that ``to_json`` wrote.

        Raises:
            ValueError: If the file is not such a result, is damaged, or is too new.
            OSError: If it cannot be read.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"'{path}' is not JSON: {error}") from error
        return cls.from_dict(data)

    def plot(self) -> Figure:
        """The curves over depth with their intervals; see ``report.figures.curves``."""
        from lightning_sanity.report import figures  # matplotlib takes a second to import

        return figures.curves(self)


_CURVE = ("values", "floor", "ceiling")
_OUTPUT_CHANGE = ("agreement", "correlation", "gradient_ratio", "spread_ratio")
_UNIT_LISTS = ("parameters", "strategy", "relative_change", "kept")
_DTYPES = {"float32": torch.float32, "int8": torch.int8, "uint8": torch.uint8}


def _quantile(values: Tensor, q: float) -> float:
    kept = values[~values.isnan()]
    return float(kept.quantile(q)) if kept.numel() else math.nan


def _number(value: float) -> float | None:
    """JSON has no NaN or infinity."""
    return value if math.isfinite(value) else None


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _encode(tensor: Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous().numpy()
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "zlib": base64.b64encode(zlib.compress(array.tobytes())).decode("ascii"),
    }


def _decode(data: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[data["dtype"]], [int(n) for n in data["shape"]]
    expected = math.prod(shape) * dtype.itemsize
    # max_length bounds what a hostile file can make us allocate.
    raw = zlib.decompressobj().decompress(base64.b64decode(data["zlib"]), max(expected, 1))
    if len(raw) != expected:
        raise ValueError(f"a tensor of shape {shape} holds {len(raw)} bytes instead of {expected}")
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape) if expected else torch.empty(shape, dtype=dtype)


_PSI = ("psi", "psi_low", "psi_high", "psi_first", "psi_last")


def _encode_verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "outcome": verdict.outcome.value,
        "reason": verdict.reason,
        "measure": verdict.measure,
        "gated": verdict.gated,
        "p_dependence": None if verdict.p_dependence is None else _number(verdict.p_dependence),
        "psi_of": {name: [_number(x) for x in interval] for name, interval in verdict.psi_of.items()},
        **{name: _number(getattr(verdict, name)) for name in _PSI},
    }


def _decode_verdict(data: Mapping[str, Any]) -> Verdict:
    intervals = {name: [_nan(x) for x in interval] for name, interval in data["psi_of"].items()}
    return Verdict(
        outcome=Outcome(data["outcome"]),
        reason=data["reason"],
        measure=data["measure"],
        gated=data["gated"],
        p_dependence=data["p_dependence"],
        psi_of={name: (psi, low, high) for name, (psi, low, high) in intervals.items()},
        **{name: _nan(data[name]) for name in _PSI},
    )


def _decode_coverage(data: Mapping[str, Any]) -> Coverage:
    units = tuple(UnitCoverage(**{**unit, **{k: tuple(unit[k]) for k in _UNIT_LISTS}}) for unit in data["units"])
    return Coverage(data["share"], units, tuple(data["unused"]), tuple(data["notes"]))


def _encode_pictures(pictures: Pictures) -> dict[str, Any]:
    return {
        "inputs": _encode(pictures.inputs),
        "depths": list(pictures.depths),
        "maps": {method: _encode(maps) for method, maps in pictures.maps.items()},
    }


def _decode_pictures(data: Mapping[str, Any]) -> Pictures:
    return Pictures(
        _decode(data["inputs"]), tuple(data["depths"]), {method: _decode(maps) for method, maps in data["maps"].items()}
    )
