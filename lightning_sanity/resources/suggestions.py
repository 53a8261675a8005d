"""A name that is none of the choices: what it may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping


def unknown(what: str, name: object, choices: Iterable[object], also: Mapping[str, str] | None = None) -> str:
    """The sentence that refuses a name: what it is, what may have been meant, and what there is.

    Args:
        what: What was to be named.
        name: What was given.
        choices: The names there are.
        also: Other names that people use, and what they are called here.

    >>> unknown("order", "cascadng", ("cascading", "full"))
    "unknown order 'cascadng'; did you mean cascading? choose from: cascading, full"
    >>> unknown("order", "sideways", ("cascading", "full"))
    "unknown order 'sideways'; choose from: cascading, full"
    """
    names = [str(choice) for choice in choices]
    close = alike(str(name), names, also)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"unknown {what} '{name}'; {meant}choose from: {', '.join(names)}"


def alike(name: str, names: Iterable[str], also: Mapping[str, str] | None = None) -> list[str]:
    """Up to three of the names that this one may have meant, the likeliest first.

    >>> alike("Grad-CAM", ["gradcam", "gradient"])
    ['gradcam']
    >>> alike("features.convl", ["features.conv1", "head"])
    ['features.conv1']
    """
    plain = {_plain(other): other for other in names}
    synonym = (also or {}).get(_plain(name))
    if synonym is not None:
        return [synonym]
    if _plain(name) in plain:
        return [plain[_plain(name)]]
    known = {**plain, **(also or {})}
    found = difflib.get_close_matches(_plain(name), known, n=3, cutoff=0.7)
    return list(dict.fromkeys(known[close] for close in found))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())
