"""The templates beside this module, ``*.html.j2``: what is put into them is escaped, and nothing may be missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str, filters: Mapping[str, Callable[..., Any]]) -> Template:
    """A template of this package, which may use these filters."""
    environment = Environment(
        loader=PackageLoader("lightning_sanity", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
