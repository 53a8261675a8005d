"""The command ``random-labels``: the data randomization test of a LightningCLI configuration, trainings included."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_sanity.cli.check import check_configuration, current_folder_first, named
from lightning_sanity.cli.terminal import folder, print_decision, say
from lightning_sanity.data_randomization import RandomLabelDataModule
from lightning_sanity.data_randomization.experiment import random_label_experiment
from lightning_sanity.data_randomization.recorder import RECORD, Run
from lightning_sanity.release.decision import one_line
from lightning_sanity.release.gating import gate

_USAGE = "lightning-sanity random-labels --config CONFIG.yaml [option ...] [option of LightningCLI ...]"

_EPILOG = """\
Trains the configured model on the true labels and on permuted ones, several times each, until it has learned them by
heart, and compares the attributions of both kinds. A training that was interrupted is done anew, a finished one is kept
in --out, so that the command can be given again; a folder of another experiment is refused. Labels may be classes,
several per sample, numbers or masks. Of the configuration's trainer everything but its callbacks, loggers
and checkpoints is used. What this parser does not know goes on to LightningCLI, such as --trainer.max_epochs=200.

exit codes: 0 every method passed, 1 one failed, 2 the test could not be run, 3 inconclusive.

example:
  lightning-sanity random-labels --config config.yaml --model-class my_project.models:Classifier \\
      --data-class my_project.data:Scans --methods gradient,gradcam --out labels
"""

_NOT_TAKEN = ("callbacks", "logger", "default_root_dir", "enable_checkpointing", "fast_dev_run", "plugins", "profiler")


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser(
        "random-labels",
        help="train on permuted labels and compare the maps",
        description="Runs the data randomization test, trainings included.",
        usage=_USAGE,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", metavar="FILE", help="configuration of LightningCLI; repeatable")
    parser.add_argument("--model-class", metavar="MODULE:CLASS", help="of the configuration's model")
    parser.add_argument("--data-class", metavar="MODULE:CLASS", help="of the configuration's data")
    parser.add_argument("--out", type=folder, default=Path("random_labels"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--methods", default="gradient,gradcam,guided_backprop", metavar="A,B", help="%(default)s")
    parser.add_argument("--models", type=int, default=3, metavar="N", help="of each kind (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="explained (default: %(default)s)")
    parser.add_argument("--target-key", metavar="KEY", help="where a sample has its label: 1, label, or 1.class")
    parser.add_argument("--stop-at", type=float, default=0.99, metavar="X", help="accuracy that ends a training")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.set_defaults(run=_run, passes_on=True)


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.config:
        raise ValueError("random-labels needs --config FILE, a configuration of LightningCLI")
    with current_folder_first(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # between lightning and its own parser
        cli = _configured(arguments)
        if cli.datamodule is None:
            raise ValueError("the configuration has no data: the labels to permute are those of a LightningDataModule")
        data = cli.datamodule
        if isinstance(data, RandomLabelDataModule):  # the configuration of a training on random labels
            data = data.datamodule
        given = cli.config["trainer"].as_dict()
        result = random_label_experiment(
            lambda: _fresh_model(cli),
            data,
            out=arguments.out,
            models=arguments.models,
            probe=arguments.samples,
            trainer={key: value for key, value in given.items() if value is not None and key not in _NOT_TAKEN},
            seed=arguments.seed,
            target_key=_path(arguments.target_key),
            stop_at=arguments.stop_at,
            methods=[name.strip() for name in arguments.methods.split(",")],
        )
    say(f"wrote {one_line(str(arguments.out / 'result.json'))}")
    decision = gate([result])
    print_decision(decision)
    if not result.valid:
        _say_what_ended_early(arguments.out, arguments.stop_at)
    return decision.exit_code


def _say_what_ended_early(out: Path, stop_at: float) -> None:
    """The limit of a configuration is often meant for true labels alone, which are learned in fewer epochs."""
    runs = [Run.read(path) for path in sorted(out.glob(f"*-labels-*/{RECORD}"))]
    early = [run.max_epochs for run in runs if not run.train_accuracy >= stop_at]
    if early:
        say(
            f"\n{len(early)} of {len(runs)} trainings ended at max_epochs={max(early)} before they knew their labels. "
            "The same command with a larger --trainer.max_epochs trains these again and keeps the others."
        )


def _path(key: str | None) -> list[int | str] | None:
    """``"1.class"`` as a path: positions are numbers.

    >>> _path("1.class"), _path("label")
    ([1, 'class'], ['label'])
    """
    if key is None:
        return None
    return [int(part) if part.lstrip("-").isdigit() else part for part in key.split(".")]


def _configured(arguments: argparse.Namespace) -> Any:
    check_configuration(arguments)
    from lightning.pytorch.cli import LightningCLI  # needs jsonargparse

    return LightningCLI(
        named(arguments.model_class, "--model-class"),
        named(arguments.data_class, "--data-class"),
        None,  # the configuration is there already: do not save it again
        run=False,
        args=[*(f"--config={path}" for path in arguments.config), *arguments.rest],
    )


def _fresh_model(cli: Any) -> pl.LightningModule:
    """Another instance of the configured model, from the random streams as they are now."""
    model: pl.LightningModule = cli.parser.instantiate_classes(cli.config)["model"]
    return model
