"""The command line: ``main(argv) -> exit code``. 0 pass, 1 fail, 2 usage or unreadable input, 3 inconclusive."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

PASS, USAGE = 0, 2


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed help (0) or what is wrong (2)
        return int(stop.code or 0)
    try:
        code: int = arguments.run(arguments)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        print(f"lightning-sanity: {error}", file=sys.stderr)
        return USAGE
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-sanity",
        description="Do your saliency maps depend on your model? Randomization tests with a verdict.",
        epilog="Exit codes: 0 pass, 1 fail, 2 usage or unreadable input, 3 inconclusive.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a small CNN on real digits with the callback, test eight methods, write pictures",
        description="Trains a small CNN on scikit-learn's digits with the callback, then tests eight attribution "
        "methods on it. Exits with 0 if every verdict agrees with the literature, 1 if one does not, 3 if the run is "
        "invalid.",
    )
    demo.add_argument("--out", type=Path, default=Path("sanity_demo"), help="output folder (default: %(default)s)")
    demo.add_argument("--epochs", type=int, default=8, help="training epochs (default: %(default)s)")
    demo.add_argument("--trials", type=int, default=10, help="trials of the final test (default: %(default)s)")
    demo.add_argument("--samples", type=int, default=32, help="images of the final test (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of training and test (default: %(default)s)")
    demo.set_defaults(run=_demo)
    methods = commands.add_parser("methods", help="list the attribution methods")
    methods.set_defaults(run=_methods)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from lightning_sanity import demo  # trains: needs the extra

    return demo.run(arguments.out, arguments.epochs, arguments.trials, arguments.samples, arguments.seed)


def _methods(arguments: argparse.Namespace) -> int:
    from lightning_sanity import attribution

    print(f"{'name':32s}{'signed':8s}{'random':8s}{'passes':8s}{'needs':8s}what it is")
    for row in attribution.table():
        kind = "control: " if row["control"] else ""
        signed, random = ("yes" if row[key] else "no" for key in ("signed", "stochastic"))
        needs = row["needs"] or "-"
        print(f"{row['name']:32s}{signed:8s}{random:8s}{row['passes']:<8g}{needs:8s}{kind}{row['summary']}")
    return PASS
