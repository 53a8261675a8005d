"""The command ``choose``: which method to show for the weights of a checkpoint, with a configuration or without one."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_sanity.callback.fixed_probe import form_probe
from lightning_sanity.callback.sanity_callback import SaliencySanityCallback
from lightning_sanity.choice import choose_methods
from lightning_sanity.choice.options import DEFAULTS
from lightning_sanity.cli.check import (
    add_source,
    check_configuration,
    current_folder_first,
    load_weights,
    named,
    require_checkpoint,
    samples_of,
)
from lightning_sanity.cli.terminal import folder, say
from lightning_sanity.release.decision import one_line
from lightning_sanity.resources.files import check_outputs, write_whole
from lightning_sanity.result.choice import Choice

_USAGE = """\
lightning-sanity choose --config CONFIG.yaml --ckpt_path CKPT [option ...] [option of LightningCLI ...]
       lightning-sanity choose MODULE:FACTORY --ckpt CKPT --data MODULE:DATA [option ...]"""
_EPILOG = """\
Takes the model, its weights and the data as lightning-sanity check does. Every method that applies goes through the
randomization test; those that pass are scored by what removing parts of the input does to the output, beside a random
map and the edge detector. Writes choice.json, choice.html and choice.md to --out.

exit codes: 0 a method is recommended, 2 the search could not be run, 3 nothing is recommended.

examples:
  lightning-sanity choose --config lightning_logs/version_3/config.yaml --ckpt_path best.ckpt \\
      --model-class my_project.models:Classifier --data-class my_project.data:Scans
  lightning-sanity choose my_project.models:classifier --ckpt best.pt --data my_project.data:validation_set --budget 300
"""
_INCONCLUSIVE = 3


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser(
        "choose",
        help="which method to show for the weights of a checkpoint",
        description="Finds the attribution method to show for the weights of a checkpoint, with the evidence.",
        usage=_USAGE,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_source(parser)
    parser.add_argument("--out", type=folder, default=Path("choice"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--candidates", metavar="A,B", help="methods to choose from (default: all that apply)")
    parser.add_argument("--samples", type=int, metavar="N", help="default: 32")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="about how long it may take, once all is loaded"
    )
    parser.add_argument("--quality", metavar="A,B", help="metrics: fidelity, deletion (default: both)")
    parser.add_argument("--by-class", action="store_true", help="give the answer for every class of the labels, too")
    parser.add_argument("--tune", action="store_true", help="search parameters of the methods that passed")
    parser.add_argument("--trials", type=int, metavar="N", help=f"default: {DEFAULTS['trials']}")
    parser.add_argument("--max-steps", "--max_steps", type=int, metavar="N", help=f"default: {DEFAULTS['max_steps']}")
    parser.add_argument("--layer", metavar="NAME", help="module for class activation maps")
    parser.add_argument("--seed", type=int, metavar="N", help=f"default: {DEFAULTS['seed']}")
    parser.set_defaults(run=_choose, passes_on=True)


def _choose(arguments: argparse.Namespace) -> int:
    require_checkpoint(arguments, "choose")
    files = {f"--out, '{end}',": arguments.out / f"choice.{end}" for end in ("json", "html", "md")}
    check_outputs(files, [arguments.ckpt, *(arguments.config or ())])
    with current_folder_first():
        choice = _by_configuration(arguments) if arguments.config else _by_factory(arguments)
    say(str(choice))
    say()
    page = arguments.out / "choice.html"
    written = [choice.to_json(arguments.out / "choice.json"), choice.to_html(page)]
    written.append(write_whole(arguments.out / "choice.md", choice.to_markdown()))
    for file in written:
        say(f"wrote {one_line(str(file))}")
    return 0 if choice.recommended is not None else _INCONCLUSIVE


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("budget", "trials", "max_steps", "layer", "seed")
    found = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    for name in ("candidates", "quality"):
        if getattr(arguments, name) is not None:
            found[name] = [part.strip() for part in getattr(arguments, name).split(",")]
    return found | {"tune": arguments.tune}


def _answer(model: nn.Module, inputs: Any, labels: torch.Tensor | None, arguments: argparse.Namespace) -> Choice:
    if arguments.by_class and labels is None:
        raise ValueError("--by-class needs labels, and the data has none")
    groups = labels if arguments.by_class else None
    return choose_methods(model, inputs, groups=groups, labels=labels, **_options(arguments))


class _Chooser(pl.Callback):
    """Chooses once a validation has loaded the weights and read the data."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.choice: Choice | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Form the probe as the callback of the test does, and choose."""
        samples, seed = samples_of(self._arguments, 32), self._arguments.seed or 0
        probe = form_probe(trainer, pl_module, samples, None, seed, single_precision=False)
        self.choice = _answer(pl_module, probe.inputs, probe.labels, self._arguments)


def _by_configuration(arguments: argparse.Namespace) -> Choice:
    check_configuration(arguments)
    from lightning.pytorch.cli import LightningCLI  # needs jsonargparse

    chooser = _Chooser(arguments)

    class Validation(LightningCLI):
        """Puts the search in the place of the tests that the configuration names."""

        def before_validate(self) -> None:
            callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
            callbacks[:] = [chooser, *(each for each in callbacks if not isinstance(each, SaliencySanityCallback))]

    data = [] if arguments.data is None else [f"--data={arguments.data}"]
    configs = [f"--config={path}" for path in arguments.config]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # between lightning and its own parser
        Validation(
            named(arguments.model_class, "--model-class"),
            named(arguments.data_class, "--data-class"),
            None,
            args=["validate", *configs, f"--ckpt_path={arguments.ckpt}", "--verbose=false", *data, *arguments.rest],
        )
    if chooser.choice is None:
        raise ValueError("validation never ran: it needs a loader, a validation_step, and limit_val_batches above 0")
    return chooser.choice


def _by_factory(arguments: argparse.Namespace) -> Choice:
    model, probe = load_weights(arguments, "choose", samples_of(arguments, 32), arguments.seed or 0)
    return _answer(model, probe.inputs, probe.labels, arguments)
