"""The command ``compare``: did a method get worse from one result to the next?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_sanity.cli.terminal import path, say, table
from lightning_sanity.release.decision import one_line
from lightning_sanity.release.finding import read
from lightning_sanity.release.gating import EXIT_CODES
from lightning_sanity.resources.files import check_outputs, write_whole
from lightning_sanity.result.comparison import compared


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser(
        "compare",
        help="did a method get worse from A to B?",
        description="Compares results on the same probe, the last with the first; those between are shown on the way. "
        "Exits with 0 if no gated method of the first is worse in the last by more than --max-drop with its whole 95 % "
        "interval and every method that is new passes, 1 if one is worse or fails, 3 if that cannot be told or one is "
        "gone.",
        epilog="example: lightning-sanity compare accepted.json candidate.json --max-drop 0.05 --html compare.html",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("reference", type=path, metavar="A.json", help="of the model that was accepted")
    parser.add_argument("later", type=path, nargs="+", metavar="B.json", help="of newer models; the last is judged")
    parser.add_argument("--max-drop", type=float, default=0.1, metavar="X", help="in PSI (default: %(default)s)")
    parser.add_argument("--html", type=path, metavar="FILE", help="write a page: a dumbbell per method, worst first")
    parser.add_argument("--markdown", type=path, metavar="FILE", help="write a summary for a pull request")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.max_drop <= 1:
        raise ValueError(f"--max-drop must be a number between 0 and 1, not {arguments.max_drop}")
    files = [arguments.reference, *arguments.later]
    check_outputs({"--html": arguments.html, "--markdown": arguments.markdown}, files)
    comparison = compared([read(file) for file in files], arguments.max_drop)
    from lightning_sanity.report import comparison_page, comparison_text

    names = told_apart(files)
    say(table(comparison_text.headings(comparison), comparison_text.rows(comparison), leading=1))
    if len(files) > 2:
        marks = comparison_text.letters(len(files))
        say("\n" + "  ".join(f"{mark} = {one_line(name)}" for mark, name in zip(marks, names, strict=True)))
    say(f"\n{comparison.outcome.value}: {one_line(comparison.reason)}")
    if arguments.html is not None:
        comparison_page.write(comparison, arguments.html, names)
        say(f"wrote {one_line(str(arguments.html))}")
    if arguments.markdown is not None:
        write_whole(arguments.markdown, comparison_text.markdown(comparison, names))
        say(f"wrote {one_line(str(arguments.markdown))}")
    return EXIT_CODES[comparison.outcome]


def told_apart(files: Sequence[Path]) -> list[str]:
    """The files' names, with as many of their folders as tell them apart.

    >>> told_apart([Path("runs/1/latest.json"), Path("runs/2/latest.json")])
    ['1/latest.json', '2/latest.json']
    """
    longest = max(len(file.parts) for file in files)
    found = (["/".join(file.parts[-parts:]) for file in files] for parts in range(1, longest + 1))
    return next((names for names in found if len(set(names)) == len(set(files))), list(map(str, files)))
