"""What the commands take and print: paths, lines that cannot break, and tables that look good where someone looks."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_sanity.release.decision import one_line
from lightning_sanity.release.gating import Check, Decision
from lightning_sanity.report.columns import coloured, fitted

_NARROWEST = 40  # columns

_FILES = {
    "bash": "_shtab_compgen_files",
    "zsh": "_files",
    "tcsh": "f",
    "fish": "(__fish_complete_path (commandline -ct))",
}
_FOLDERS = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d", "fish": "(__fish_complete_directories)"}


def path(text: str) -> Path:
    """A path from the command line; an empty one is an unset variable, and would mean the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty: is a variable unset?")
    return Path(text)


def folder(text: str) -> Path:
    """A folder from the command line that is there or can be made."""
    found = path(text)
    if found.exists() and not found.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}' is there and is no folder")
    return found


def complete_paths(parsers: Iterable[argparse.ArgumentParser]) -> None:
    """Say which arguments are files and folders, in the way that shtab reads when it makes a shell's completion."""
    for parser in parsers:
        for action in parser._actions:
            if action.type is folder:
                action.complete = _FOLDERS  # type: ignore[attr-defined]
            elif action.type is path or action.metavar == "FILE":
                action.complete = _FILES  # type: ignore[attr-defined]


def say(text: str = "") -> None:
    """Print to standard output. That nobody reads, or nothing can be written, must not change the exit code."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):  # ValueError: it was closed
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process


def complain(text: str) -> None:
    """One line on standard error."""
    try:
        print(f"lightning-sanity: {one_line(text)}", file=sys.stderr)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as above


def print_decision(decision: Decision) -> None:
    """The checks as a table, then the decision with its reason on a line of its own."""
    several = len({check.source for check in decision.checks}) > 1
    rows = [[check.outcome.value, _named(check, several), check.reason] for check in decision.worst_first]
    say(table(["outcome", "check", "why"], rows))
    say(f"\n{decision.outcome.value}: {one_line(decision.reason)}")


def _named(check: Check, several: bool) -> str:
    return f"{check.title} ({check.source})" if several and check.source else check.title


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, leading: int = 2) -> str:
    """Rows under headings: fitted to a terminal and in its colours, elsewhere a line per row however long.

    Args:
        headings: One per column.
        rows: Their cells.
        leading: See ``columns.fitted``.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    if sys.stdout is None or sys.stdout.closed or not sys.stdout.isatty():  # None: the process began without one
        return "\n".join(fitted(headings, cells))
    lines = fitted(headings, cells, max(shutil.get_terminal_size().columns, _NARROWEST), leading=leading)
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return "\n".join(lines if plain else map(coloured, lines))
