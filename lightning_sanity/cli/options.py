"""The test's options on the command line, taken from where they are stated: name, type and sentence of each."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from lightning_sanity.explanation.options import described
from lightning_sanity.explanation.tokens import Tokens
from lightning_sanity.parameter_randomization.options import DEFAULTS, WalkOptions
from lightning_sanity.result import Criterion

_LISTS = ("similarities", "diagnostics", "granularity", "constants")
_WHOLE = ("repeats", "seed", "max_steps", "trials", "max_batch", "max_memory")
_YES_NO = ("controls", "retarget")
_NAMED = ("forward", "clone_fn")
_KINDS = {"criterion": Criterion, "tokens": Tokens}


def add_options(parser: Any, stated: Mapping[str, str]) -> None:
    """Add every option of the test to a parser; all are None where they are not given.

    Args:
        parser: A parser or a group of one.
        stated: What to say of an option's default, where the command has another one.
    """
    texts = descriptions()
    for name, default in DEFAULTS.items():
        shown = stated.get(name, "" if default in (None, ()) else f"default: {_plain(default)}")
        text = f"{texts[name]} ({_kind(name)}{'; ' if shown else ''}{shown})".replace("%", "%%").replace("``", "")
        spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        parser.add_argument(*spellings, dest=name, metavar=_metavar(name), help=text)


def descriptions() -> dict[str, str]:
    """The sentences on every option, each on one line."""
    found = re.split(r"^ {4}(\w+): ", described(WalkOptions), flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(found[::2], found[1::2], strict=True)}


def given_options(arguments: argparse.Namespace, named: Any) -> dict[str, Any]:
    """The options that were given, as the test takes them.

    Args:
        arguments: What a parser of ``add_options`` found.
        named: ``(text, option) -> object`` imports what ``MODULE:NAME`` names.

    Raises:
        ValueError: Which option cannot be read, and how it is written.
    """
    values = {name: getattr(arguments, name) for name in DEFAULTS}
    return {name: _read(name, text, named) for name, text in values.items() if text is not None}


def _read(name: str, text: str, named: Any) -> Any:
    option = f"--{name.replace('_', '-')}"
    if name in _LISTS:
        return (
            text if name == "granularity" and text in ("layer", "block") else [part.strip() for part in text.split(",")]
        )
    if name == "max_steps" and text == "all":
        return None
    if name in _WHOLE and text != "auto":
        if re.fullmatch(r"-?\d+", text.strip()) is None:
            raise ValueError(f"{option} must be an integer, not '{text}'")
        return int(text)
    if name in _YES_NO:
        if text not in ("yes", "no"):
            raise ValueError(f"{option} must be yes or no, not '{text}'")
        return text == "yes"
    if name in _NAMED or (name == "reinitialize" and ":" in text):
        return named(text, option)
    if name in _KINDS:
        return _built(option, _KINDS[name], text)
    return int(text) if name == "explain" and text.isdigit() else text


def _built(option: str, kind: type, text: str) -> Any:
    """``a=1,b=x`` as the arguments of a dataclass."""
    values: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in getattr(kind, "__dataclass_fields__", {}):
            fields = ", ".join(getattr(kind, "__dataclass_fields__", {}))
            raise ValueError(f"{option} is written as NAME=VALUE,... with names of {fields}, not '{part}'")
        try:
            values[key.strip()] = float(value)
        except ValueError:
            values[key.strip()] = value.strip()
    return kind(**values)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _kind(name: str) -> str:
    if name in _LISTS:
        return "names, separated by commas"
    if name in _WHOLE:
        return {"trials": "integer or auto", "max_steps": "integer, auto or all"}.get(name, "integer")
    if name in _YES_NO:
        return "yes or no"
    if name in _NAMED:
        return "MODULE:NAME"
    return "NAME=VALUE,..." if name in _KINDS else "text"


def _metavar(name: str) -> str:
    if name in _LISTS:
        return "A,B"
    if name in _WHOLE:
        return "N"
    if name in _YES_NO:
        return "YES|NO"
    return "MODULE:NAME" if name in _NAMED else "K=V" if name in _KINDS else "X"
