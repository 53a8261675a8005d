"""The command line: ``main(argv) -> exit code``. 0 pass, 1 fail, 2 usage or unreadable input, 3 inconclusive.

check.py     tests the weights of a checkpoint
choose.py    which method to show for the weights of a checkpoint
options.py   the test's options as arguments of a command
labels.py    the data randomization test of a LightningCLI configuration, trainings included
release.py   gate, report: the commands that read a result
compare.py   did a method get worse from one result to the next?
methods.py   the attribution methods by kind
demo.py      a small CNN on real digits, watched while it trains and tested before its release
photos.py    a pretrained ImageNet network and photographs, carried by packages
terminal.py  lines that cannot break, and tables as wide as the terminal
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_sanity._version import __version__
from lightning_sanity.cli.terminal import complain, complete_paths, folder

USAGE = 2
_MODULE_OF = {
    "check": "check",
    "choose": "choose",
    "random-labels": "labels",
    "report": "release",
    "gate": "release",
    "compare": "compare",
    "methods": "methods",
}
"""Of each command; that of another one is not imported, so that those that read results need no Trainer."""
_EPILOG = """\
Exit codes: 0 pass, 1 fail, 2 usage or unreadable input, 3 inconclusive.
Where there is no result for the weights in question, that is a fail: never ran is not a pass.

a release, from checkpoint to decision:
  lightning-sanity check --config config.yaml --ckpt_path best.ckpt --out sanity
  lightning-sanity gate sanity --weights best.ckpt --require gradcam --max-age 7d
  lightning-sanity report sanity/result.json -o report.html

which method to show:
  lightning-sanity choose --config config.yaml --ckpt_path best.ckpt --out choice
"""


def entry_point() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without some letter is no error
    code = main()
    try:
        if sys.stdout is not None and not sys.stdout.closed:  # None: the process began without one
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; those of the process if None.

    Returns:
        The exit code; no exception leaves this function unless ``LIGHTNING_SANITY_DEBUG`` is set in the environment.
    """
    try:
        given = sys.argv[1:] if argv is None else argv
        made = parser(next(iter(given), None))
        arguments, rest = made.parse_known_args(given)
        if rest and not getattr(arguments, "passes_on", False):
            known = f"lightning-sanity {arguments.command} --help lists those there are"
            made.error(f"unrecognized arguments: {' '.join(rest)} ({known})")
        arguments.rest = rest
        code: int = arguments.run(arguments)
        return code
    except SystemExit as stop:  # a parser has printed help (0) or what is wrong (2)
        return 0 if stop.code in (0, None) else USAGE
    except KeyboardInterrupt:
        complain("interrupted")
        return USAGE
    except Exception as error:
        if os.environ.get("LIGHTNING_SANITY_DEBUG"):
            raise
        expected = _says_what_to_do(error)
        hint = "" if expected else " (LIGHTNING_SANITY_DEBUG=1 shows where)"
        complain(f"{error}" if expected and str(error) else f"{type(error).__name__}: {error}{hint}")
        return USAGE


def _says_what_to_do(error: Exception) -> bool:
    """Whether an error is of those that say what is wrong; others are named and need a traceback."""
    if isinstance(error, ImportError | OSError | ValueError):
        return True
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_sanity.model.clone import CloneError
    from lightning_sanity.randomization.strategies import RandomizationError

    return isinstance(error, CloneError | MisconfigurationException | RandomizationError)


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line, from which tools such as shtab make a shell's completion.

    Args:
        command: The one that is called, whose parser alone is filled then.

    Returns:
        A new parser of every command; ``parse_known_args`` leaves what ``check`` hands on to LightningCLI.
    """
    made = argparse.ArgumentParser(
        prog="lightning-sanity",
        description="Do your saliency maps depend on your model? Randomization tests with a verdict.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"lightning_sanity {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND", dest="command")
    demo = commands.add_parser(
        "demo",
        help="train a small CNN on real digits with the callback, test eight methods, write pictures",
        description="Trains a small CNN on scikit-learn's digits with the callback, then tests eight attribution "
        "methods on it. Exits with 0 if every verdict agrees with the literature, 1 if one does not, 3 if the run is "
        "invalid.",
    )
    demo.add_argument("--out", type=folder, default=Path("sanity_demo"), help="output folder (default: %(default)s)")
    demo.add_argument("--epochs", type=int, default=8, help="training epochs (default: %(default)s)")
    demo.add_argument("--trials", type=int, default=10, help="trials of the final test (default: %(default)s)")
    demo.add_argument("--samples", type=int, default=32, help="images of the final test (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of training and test (default: %(default)s)")
    demo.add_argument(
        "--photos", action="store_true", help="a pretrained ImageNet network on photographs instead; downloads nothing"
    )
    demo.set_defaults(run=_demo)
    wanted = [_MODULE_OF[command]] if command in _MODULE_OF else list(dict.fromkeys(_MODULE_OF.values()))
    for module in wanted:
        importlib.import_module(f"{__name__}.{module}").add_to(commands)
    complete_paths(commands.choices.values())
    return made


def _demo(arguments: argparse.Namespace) -> int:
    if arguments.photos:
        from lightning_sanity.cli import photos  # needs another extra

        return photos.run(arguments.out, arguments.trials, arguments.seed)
    from lightning_sanity.cli import demo  # trains: needs the extra

    return demo.run(arguments.out, arguments.epochs, arguments.trials, arguments.samples, arguments.seed)
