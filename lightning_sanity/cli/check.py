"""The command ``check``: tests the weights of a checkpoint, with a LightningCLI configuration or without one."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_sanity.callback.sanity_callback import SaliencySanityCallback
from lightning_sanity.cli.options import add_options, given_options
from lightning_sanity.cli.terminal import folder, print_decision, say
from lightning_sanity.explanation import probe
from lightning_sanity.explanation.options import METHODS
from lightning_sanity.model import checkpoint
from lightning_sanity.parameter_randomization.mprt import parameter_randomization_test
from lightning_sanity.parameter_randomization.options import DEFAULTS, settled
from lightning_sanity.release.decision import one_line
from lightning_sanity.release.gating import gate
from lightning_sanity.resources.files import check_outputs
from lightning_sanity.resources.plain_yaml import read_yaml
from lightning_sanity.result.sanity_result import SanityResult

_TRIALS = 20
_LARGEST, _DEEPEST = 1 << 17, 64  # bytes and levels of a configuration
_USAGE = """\
lightning-sanity check --config CONFIG.yaml --ckpt_path CKPT [option ...] [option of LightningCLI ...]
       lightning-sanity check MODULE:FACTORY --ckpt CKPT --data MODULE:DATA [option ...]"""

_EPILOG = """\
With a configuration of LightningCLI, the checkpoint goes through Trainer.validate with the callbacks of the
configuration. If SaliencySanityCallback is not among them, one is added with the options below. What this parser does
not know goes on to LightningCLI, such as --trainer.accelerator=cpu. A configuration that was written by
LightningCLI(Model, Data) does not name these classes: name them by --model-class and --data-class.

Without one, FACTORY returns the model, its weights are loaded from the checkpoint, and DATA is a data set, a loader,
a LightningDataModule, tensors, or a function that returns one of these. Modules are looked for in the current folder
first.

Results are written to the folder --out; those of a callback also to <log_dir>/sanity/.

exit codes: 0 every method passed, 1 one failed, 2 the test could not be run, 3 inconclusive.

examples:
  lightning-sanity check --config lightning_logs/version_3/config.yaml --ckpt_path best.ckpt \\
      --model-class my_project.models:Classifier --data-class my_project.data:Scans
  lightning-sanity check my_project.models:classifier --ckpt best.pt --data my_project.data:validation_set \\
      --methods gradcam,integrated_gradients_local --trials 20 --samples 64
"""


def add_to(commands: Any) -> None:
    """Add the command to a parser's subparsers."""
    parser = commands.add_parser(
        "check",
        help="test the weights of a checkpoint",
        description="Runs the randomization test on the weights of a checkpoint.",
        usage=_USAGE,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_source(parser)
    parser.add_argument("--out", type=folder, default=Path("sanity"), metavar="DIR", help="default: %(default)s")
    test = parser.add_argument_group("the test, unless a callback in the configuration says")
    test.add_argument("--methods", metavar="A,B", help="default: gradient,gradcam,guided_backprop")
    test.add_argument("--samples", type=int, metavar="N", help="default: 64")
    add_options(test, {"trials": f"default: {_TRIALS}, as for a release"})
    parser.set_defaults(run=_check, passes_on=True)


def add_source(parser: Any) -> None:
    """Add what says where the model, its weights and the data come from."""
    parser.add_argument("--config", action="append", metavar="FILE", help="configuration of LightningCLI; repeatable")
    parser.add_argument(
        "--ckpt", "--ckpt_path", "--ckpt-path", metavar="FILE", help="the checkpoint, or its folder; needed"
    )
    parser.add_argument("--data", metavar="MODULE:DATA", help="what samples are taken from, without a configuration")
    parser.add_argument("--model-class", metavar="MODULE:CLASS", help="of the configuration's model")
    parser.add_argument("--data-class", metavar="MODULE:CLASS", help="of the configuration's data")


def _check(arguments: argparse.Namespace) -> int:
    require_checkpoint(arguments, "check")
    with current_folder_first():
        results = _by_configuration(arguments) if arguments.config else {"result": _by_factory(arguments)}
    files = {name: arguments.out / f"{name}.json" for name in results}
    read = [arguments.ckpt, *(arguments.config or ())]
    check_outputs({f"--out, '{name}',": path for name, path in files.items()}, read)
    decision = gate(list(results.values()))
    print_decision(decision)  # first, for a file may not be written
    for name, result in results.items():
        say(f"wrote {one_line(str(result.to_json(files[name])))}")
    return decision.exit_code


def require_checkpoint(arguments: argparse.Namespace, command: str) -> None:
    """Make sure of --ckpt: a file, or for a factory a folder too.

    Raises:
        ValueError: If none is named, or if a Trainer would have to load a folder.
        FileNotFoundError: If it is not there.
    """
    if arguments.ckpt is None:
        raise ValueError(f"{command} needs the checkpoint: --ckpt FILE")
    given = Path(arguments.ckpt)
    if not given.exists():
        raise FileNotFoundError(f"there is no checkpoint file '{given}'")
    if given.is_dir() and arguments.config:
        raise ValueError(
            f"'{given}' is a folder, which a Trainer on one device does not load: name MODULE:FACTORY in place of "
            f"--config, or one file, which `python -m lightning.fabric.utilities.consolidate_checkpoint {given}` makes "
            "of the folders of FSDP"
        )


def _test(arguments: argparse.Namespace) -> dict[str, Any]:
    methods = ",".join(METHODS) if arguments.methods is None else arguments.methods
    chosen = {"methods": [name.strip() for name in methods.split(",")]}
    options = {"trials": _TRIALS} | given_options(arguments, named)
    settled(options, "check")  # before anything is read or trained
    return chosen | options


def samples_of(arguments: argparse.Namespace, default: int) -> int:
    """How many samples are asked for.

    Raises:
        ValueError: If they are too few to compare.
    """
    samples = default if arguments.samples is None else arguments.samples
    if samples < 2:
        raise ValueError(f"--samples must be at least 2, not {samples}")
    return int(samples)


# --------------------------------------------------------------------------------------------- with a configuration


def _by_configuration(arguments: argparse.Namespace) -> dict[str, SanityResult]:
    """The results of every callback of the test, by the name of their files."""
    check_configuration(arguments)
    from lightning.pytorch.cli import LightningCLI  # needs jsonargparse

    class Validation(LightningCLI):
        """Makes sure of a callback, and that it neither hides nor doubles what this command says."""

        def before_validate(self) -> None:
            tests = _tests_of(self.trainer)
            if tests and given:
                raise ValueError(f"the configuration has a SaliencySanityCallback: set {given[0]} there")
            if not tests:
                tests = [SaliencySanityCallback(probe=samples_of(arguments, 64), log_images=False, **_test(arguments))]
                self.trainer.callbacks.insert(0, tests[0])  # type: ignore[attr-defined]  # before weight averaging
            for test in tests:
                test.on_fail, test.on_error, test.verbose = "warn", "raise", False  # the command prints its own table
                test.settle_trials(_TRIALS)

    options = ("methods", "samples", *DEFAULTS)
    given = [f"--{name.replace('_', '-')}" for name in options if getattr(arguments, name) is not None]
    configs = [f"--config={path}" for path in arguments.config]
    data = [] if arguments.data is None else [f"--data={arguments.data}"]
    with warnings.catch_warnings():
        said_by_the_table = (
            "saliency maps failed|no verdict of the randomization|the randomization test is inconclusive"
        )
        warnings.filterwarnings("ignore", said_by_the_table)
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # between lightning and its own parser
        cli = Validation(
            named(arguments.model_class, "--model-class"),
            named(arguments.data_class, "--data-class"),
            None,  # the configuration is there already: do not save it again
            args=["validate", *configs, f"--ckpt_path={arguments.ckpt}", "--verbose=false", *data, *arguments.rest],
        )
    results = {}
    for test in _tests_of(cli.trainer):
        if test.result is None:
            raise ValueError(
                "the test never ran: validation needs a loader, a validation_step, and limit_val_batches above 0"
            )
        results["result" if test.name is None else f"result-{test.name}".replace("/", "-")] = test.result
    return results


def check_configuration(arguments: argparse.Namespace) -> None:
    """Refuse at once what LightningCLI would complain about in its own words.

    Raises:
        ModuleNotFoundError: If jsonargparse is not installed.
        ValueError: If a configuration names no class, and the command line neither, or it is none.
        OSError: If a configuration cannot be read.
    """
    if importlib.util.find_spec("jsonargparse") is None:
        raise ModuleNotFoundError(
            'reading a configuration of LightningCLI needs jsonargparse: pip install "lightning-sanity[cli]"'
        )
    configured: dict[str, Any] = {}
    for path in arguments.config:
        try:
            read = read_yaml(path, largest=_LARGEST, deepest=_DEEPEST)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"configuration '{path}': {error}") from error
        if not isinstance(read, dict):
            raise ValueError(f"'{path}' is no configuration of LightningCLI: it holds no names with values")
        configured |= read
    given = [word for word in arguments.rest if word.startswith(("--model", "--data"))]
    missing = []
    for key in ("model", "data"):
        section = configured.get(key, {})
        known = getattr(arguments, f"{key}_class") or any(word.startswith(f"--{key}") for word in given)
        there = key in configured or key == "model"
        if not known and there and isinstance(section, dict) and "class_path" not in section:
            missing.append(key)
    if missing:
        raise ValueError(
            f"the configuration names no class for its {' and its '.join(missing)}, as LightningCLI(Model, Data) "
            f"writes it: add {' '.join(f'--{key}-class MODULE:CLASS' for key in missing)}, where MODULE is the file "
            "with the class, without .py"
        )


def _tests_of(trainer: pl.Trainer) -> list[SaliencySanityCallback]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, SaliencySanityCallback)]


# ------------------------------------------------------------------------------------------- without a configuration


def _by_factory(arguments: argparse.Namespace) -> SanityResult:
    samples, test = samples_of(arguments, 64), _test(arguments)
    model, probe_ = load_weights(arguments, "check", samples, test.get("seed", 0))
    return parameter_randomization_test(model, probe_.inputs, **test)


def load_weights(arguments: argparse.Namespace, command: str, samples: int, seed: int) -> tuple[nn.Module, probe.Probe]:
    """The model that a factory builds, with the checkpoint's weights, and samples of the data.

    Args:
        arguments: Of a command that takes MODULE:FACTORY, --ckpt and --data.
        command: Its name.
        samples: How many are wanted.
        seed: Of the choice of samples.

    Raises:
        ValueError: What is missing, or does not fit.
    """
    if len(arguments.rest) != 1 or arguments.rest[0].startswith("-") or arguments.data is None:
        unknown = [word for word in arguments.rest if word.startswith("-")]
        if unknown:
            raise ValueError(f"{command} does not know {unknown[0]} without --config")
        raise ValueError(
            f"{command} needs --config FILE, or MODULE:FACTORY and --data MODULE:DATA; see {command} --help"
        )
    model = named(arguments.rest[0], "the model")
    model = model if isinstance(model, nn.Module) else model()
    if not isinstance(model, nn.Module):
        raise ValueError(f"'{arguments.rest[0]}' gave a {type(model).__name__}, not a torch.nn.Module")
    _load(model, arguments.ckpt)
    return model, _probe(named(arguments.data, "--data"), samples, seed, arguments.data)


def _load(model: nn.Module, path: str) -> None:
    """Load a checkpoint's weights: as they are named, or without the wrapper that they were saved in."""
    state = checkpoint.load(path)
    inner = checkpoint.without_wrapper(state)
    if inner is not None and not set(state) & set(model.state_dict()):
        state = inner
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first, *more = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        beside = f" (and {len(more)} more)" if more else ""
        raise ValueError(f"'{path}' does not fit the model: {first}{beside}") from error


def _probe(data: Any, samples: int, seed: int, name: str) -> probe.Probe:
    kinds = (Dataset, DataLoader, Tensor, tuple, list, pl.LightningDataModule)
    if isinstance(data, type) or (callable(data) and not isinstance(data, kinds)):
        data = data()
    if isinstance(data, pl.LightningDataModule):
        data.prepare_data()
        data.setup("validate")
        data = data.val_dataloader()
    if isinstance(data, Dataset):
        return probe.from_dataset(data, samples, seed=seed)
    if isinstance(data, (Tensor, tuple, list)):
        return probe.first_of([probe.from_batch(data)], samples)
    if hasattr(data, "__iter__"):
        return probe.from_loader(data, samples, seed=seed)
    raise ValueError(f"'{name}' gave a {type(data).__name__}: it must give a data set, a loader or tensors")


# ------------------------------------------------------------------------------------------------------------- imports


def named(name: str | None, option: str) -> Any:
    """What ``module:attribute`` names; None for None.

    Raises:
        ValueError: If it is not such a name, or there is no such thing.
    """
    if name is None:
        return None
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{option} must be MODULE:NAME, such as my_project.models:classifier, not '{name}'")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{option}: '{name}' cannot be imported: {error}") from error
    return found


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Modules beside the user, as ``python program.py`` finds them and a console script would not."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
