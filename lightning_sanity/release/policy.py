"""What a release asks of a result: a policy, from keywords or from a YAML or TOML file."""

from __future__ import annotations

import os
import re
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_sanity.resources.files import regular
from lightning_sanity.resources.plain_yaml import read_yaml
from lightning_sanity.result.evidence import TESTS

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LARGEST = 1 << 15  # bytes of a policy file, which a parser in Python reads in a second
_DEEPEST = 4


@dataclass(frozen=True)
class Policy:
    """What must hold for a release; None asks nothing.

    Args:
        require: Methods that must have been measured and must pass, controls too if named; the others are then left
            out. Empty: every gated method.
        min_psi: Every method is judged anew by this threshold. None: by the one it was measured with, or the library's
            own if that is stricter.
        alpha: Every method is judged anew by this level of the noise guard, or the one it was measured with if that
            is stricter.
        max_dead_rate: The same for dead maps.
        min_separation: The same for the distance of ceiling and floor.
        max_undefined_rate: The same for undefined pairs.
        min_trials: The test must have had as many trials.
        min_samples: And as many samples.
        weights: Checkpoint file whose weights the result must be about.
        max_age: How old the result may be, such as ``"36h"`` or ``"7d"`` or a ``timedelta``.
        baseline: Result file of an accepted model, on the same probe: no method may have become worse.
        max_drop: By more than this in PSI, that is.
        tests: Tests of which there must be results, ``"parameter_randomization"``, ``"data_randomization"`` or both;
            results of another are left out. Every method must hold in each of them: neither test stands for the other.
            Empty: whatever test there are results of.
        several_models: Whether the results may be about several models. Each of them must then meet the whole policy.

    Raises:
        ValueError: If a value is out of its range.
    """

    require: tuple[str, ...] = ()
    min_psi: float | None = None
    alpha: float | None = None
    max_dead_rate: float | None = None
    min_separation: float | None = None
    max_undefined_rate: float | None = None
    min_trials: int | None = None
    min_samples: int | None = None
    weights: str | os.PathLike[str] | None = None
    max_age: timedelta | str | None = None
    baseline: str | os.PathLike[str] | None = None
    max_drop: float = 0.1
    tests: tuple[str, ...] = ()
    several_models: bool = False

    def __post_init__(self) -> None:
        for name, what in (("require", "method names"), ("tests", f"tests, of {' and '.join(TESTS)}")):
            value = getattr(self, name)
            given = [value] if isinstance(value, str) else value
            fits = isinstance(given, (list, tuple)) and all(isinstance(each, str) and each for each in given)
            if not fits or (name == "tests" and not set(given) <= set(TESTS)):
                raise ValueError(f"policy: {name} must be a list of {what}, not {shown(value)}")
            object.__setattr__(self, name, tuple(dict.fromkeys(given)))
        for name in ("min_psi", "alpha", "max_dead_rate", "min_separation", "max_undefined_rate", "max_drop"):
            value = getattr(self, name)
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
            if not fits and not (value is None and name != "max_drop"):
                raise ValueError(f"policy: {name} must be a number between 0 and 1, not {shown(value)}")
        for name in ("min_trials", "min_samples"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"policy: {name} must be an integer of at least 1, not {shown(value)}")
        for name in ("weights", "baseline"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (str, os.PathLike)) and os.fspath(value).strip()):
                raise ValueError(f"policy: {name} must be a file name, not {shown(value)}")
        if not isinstance(self.several_models, bool):
            raise ValueError(f"policy: several_models must be true or false, not {shown(self.several_models)}")
        if self.max_age is not None:
            object.__setattr__(self, "max_age", duration(self.max_age))


def duration(text: Any) -> timedelta:
    """A span of time from a number with its unit, ``s``, ``m``, ``h``, ``d`` or ``w``; a ``timedelta`` as it is.

    Raises:
        ValueError: If it is not one.

    >>> duration("36h")
    datetime.timedelta(days=1, seconds=43200)
    """
    if isinstance(text, timedelta):
        return text
    found = (
        re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*([smhdw])", text, flags=re.ASCII) if isinstance(text, str) else None
    )
    if found is None:
        raise ValueError(f"a span of time is a number and one of s, m, h, d, w, such as 36h or 7d, not {shown(text)}")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})


def shown(value: Any) -> str:
    """A value in an error message, cut to a few words however large it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no number of many thousand digits
        return "a huge number"


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """The policy in a file; names of files in it are relative to its folder.

    Args:
        path: A YAML file, or a TOML file by its suffix ``.toml``; its keys are the arguments of ``Policy``.

    Raises:
        ValueError: If it is not such a file.
        OSError: If it cannot be read.
    """
    regular(path, _LARGEST)
    try:
        toml = Path(path).suffix.lower() == ".toml"
        # A policy needs neither aliases nor depth, which can make a short file endless.
        data = _toml(path) if toml else read_yaml(path, largest=_LARGEST, deepest=_DEEPEST, strict=True)
        if not isinstance(data, Mapping):
            raise ValueError("there are no keys in it")
        known = [field.name for field in fields(Policy)]
        unknown = [str(key) for key in data if key not in known]
        if unknown:
            raise ValueError(f"unknown key {shown(unknown[0])}; choose from: {', '.join(known)}")
        beside = {
            key: Path(path).parent / data[key]
            for key in ("weights", "baseline")
            if isinstance(data.get(key), str) and data[key].strip()
        }
        return Policy(**{**data, **beside})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"policy file '{path}': {str(error).removeprefix('policy: ')}") from error


def _toml(path: str | os.PathLike[str]) -> Any:
    if sys.version_info < (3, 11):
        raise ValueError("TOML needs Python 3.11; write it as YAML")
    import tomllib

    return tomllib.loads(regular(path, _LARGEST).read_bytes().decode())
