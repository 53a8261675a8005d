"""The data randomization test from start to end: trains both kinds of models with a Trainer and compares them.

Each run leaves its weights and a record behind, so that an interrupted experiment goes on where it stopped.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils.data import IterableDataset

from lightning_sanity.attribution import resolve_all
from lightning_sanity.data_randomization import fingerprint
from lightning_sanity.data_randomization.datamodule import RandomLabelDataModule
from lightning_sanity.data_randomization.distinct import SEEDED
from lightning_sanity.data_randomization.drt import check_explainable, data_randomization_test
from lightning_sanity.data_randomization.idle_trainer import loaders_in, on_the_bench
from lightning_sanity.data_randomization.label_access import (
    LabelError,
    TargetKey,
    all_labels,
    label_of,
    path_of,
    usual_path,
)
from lightning_sanity.data_randomization.label_access import Path as LabelPath
from lightning_sanity.data_randomization.learned_labels import Memorization, all_known
from lightning_sanity.data_randomization.recorder import RECORD, WEIGHTS, Question, Recorder, Run
from lightning_sanity.explanation import probe as probes
from lightning_sanity.explanation.options import DEFAULTS, METHODS, check_common, check_integer, known
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.resources.random_streams import isolated_rng, stream_seed
from lightning_sanity.result.sanity_result import SanityResult

KINDS = ("true", "permuted")

_TRAINER = {
    "max_epochs": 100,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
_TEST = {"target": None, "methods": METHODS, "min_train_accuracy": 0.95, "pictures": True, "progress": None}


def random_label_experiment(
    make_module: Callable[[], pl.LightningModule],
    datamodule: pl.LightningDataModule,
    *,
    out: str | Path,
    models: int = 3,
    probe: Any = 64,
    trainer: Mapping[str, Any] | None = None,
    permuted: Callable[[pl.LightningDataModule, int], pl.LightningDataModule] | None = None,
    target_key: TargetKey | None = None,
    stop_at: float = 0.99,
    seed: int = 0,
    device: torch.device | str = "cpu",
    forward: Callable[..., Any] | None = None,
    **test: Any,
) -> SanityResult:
    """Train models on the true and on random labels, and compare their attributions.

    A training ends early once the labels are memorised. Its weights and record go to ``<out>/<kind>-labels-<index>/``;
    a finished run is not trained again, and one that missed ``stop_at`` only if more epochs are allowed than before.
    The folder belongs to one experiment: a run is taken up again only if data, network, optimizer, permutation and
    trainer are the same. What can be wrong with an argument is told before the first training. Works with every
    strategy whose checkpoint is one file; every process returns the result.

    Args:
        make_module: Makes an untrained module; called once per model, under another seed each.
        datamodule: Training data, and validation data for the accuracy on unseen samples.
        out: Folder of this experiment; ``result.json`` is written there.
        models: How many models of each kind; three are needed for a PASS.
        probe: What is explained: that many samples of the validation set, balanced over its classes, or any of what
            ``SaliencySanityCallback`` takes. Samples pass the transfer hooks, as in validation; tensors do not.
        trainer: Arguments for ``Trainer``; by default 100 epochs at most, without loggers and checkpoints.
        permuted: ``(datamodule, seed) -> datamodule`` with random training labels; ``RandomLabelDataModule`` if None.
        target_key: Where a sample, and a batch, carries its label; see ``RandomLabelDataModule``. If None under a usual
            name, else second. Labels may be classes, several per sample, numbers or masks; see ``tallies.Score`` for
            what "memorised" means for each.
        stop_at: Training accuracy at which a training ends.
        seed: Of initial weights, permutations, the probe and the test.
        device: Where the trained models are compared.
        forward: ``forward(module, *inputs) -> scores`` where calling the module is not enough.
        **test: Further arguments of ``data_randomization_test``: methods, criterion ...

    Returns:
        The result of ``data_randomization_test``, with the measured accuracies.

    Raises:
        ValueError: If an argument is wrong, two modules start from the same weights, or ``out`` holds the runs of
            another experiment.
        RuntimeError: If a training was interrupted.
    """
    _check(make_module, datamodule, models, stop_at, seed, test)
    probes.check_probe(probe)
    arguments = {**_TRAINER, **(trainer or {})}
    keys = {(kind, index): stream_seed(seed, kind, index) for kind in KINDS for index in range(models)}
    modules = _made(make_module, keys)
    ready = _prepared(modules, datamodule, probe, target_key, permuted, seed)
    given = {**test, "seed": seed, "forward": forward}
    check_explainable(modules[0].to(device), ready.inputs, given)
    modules[0].to("cpu")
    print_ = {**fingerprint.of_networks(modules), **ready.fingerprint, **fingerprint.of_trainer(arguments)}
    print_ |= {"seed": repr(seed)}
    question = Question(stop_at, ready.path, forward, ready.true_labels)
    runs: list[Run] = []
    for module, ((kind, index), key) in zip(modules, keys.items(), strict=True):
        folder = Path(out) / f"{kind}-labels-{index}"
        recorder = Recorder(folder, question, weights_digest(module), print_)
        run = _finished(recorder, arguments)
        if run is None:
            shuffle = permuted or _random_labels(ready.path)
            with isolated_rng(stream_seed(key, "training")):
                data = datamodule if kind == "true" else shuffle(datamodule, key % 2**31)
                run = _train(recorder, module, data, arguments)
        _load(module, folder)
        module.to(device)
        runs.append(run)
    result = data_randomization_test(
        modules[:models], modules[models:], ready.inputs, memorization=_memorization(runs, models), **given
    )
    rank_zero_only(result.to_json)(Path(out) / "result.json")
    return result


# ----------------------------------------------------------------------------------------------------- before training


def _check(make_module: Any, datamodule: Any, models: Any, stop_at: Any, seed: Any, test: Mapping[str, Any]) -> None:
    """Refuse wrong arguments; each in a sentence."""
    if not isinstance(models, int) or isinstance(models, bool) or models < 1:
        raise ValueError(f"models must be an integer of at least 1, not {models!r}")
    if not isinstance(stop_at, (int, float)) or not 0 < stop_at <= 1:
        raise ValueError(f"stop_at must be an accuracy above 0 and at most 1, not {stop_at!r}")
    check_integer("seed", seed, None)
    if isinstance(make_module, nn.Module) or not callable(make_module):
        raise TypeError(
            f"make_module must be a function that makes an untrained LightningModule, such as lambda: Net(lr=0.1), not "
            f"{type(make_module).__name__}: each of the models needs first weights of its own"
        )
    try:
        inspect.signature(make_module).bind()
    except ValueError:  # a builtin without a signature
        pass
    except TypeError as error:
        raise TypeError(f"make_module is called without arguments, and that does not fit it: {error}") from error
    if isinstance(datamodule, RandomLabelDataModule):
        raise TypeError(
            "datamodule has random labels already: pass the data module with the true ones, random ones are made of it"
        )
    if not isinstance(datamodule, pl.LightningDataModule):
        raise TypeError(
            f"datamodule must be a LightningDataModule with a train_dataloader() and a val_dataloader(), not "
            f"{type(datamodule).__name__}: LightningDataModule.from_datasets(train, val, batch_size=64) makes one"
        )
    for hook in ("train_dataloader", "val_dataloader"):
        if not is_overridden(hook, datamodule):
            raise ValueError(
                f"{type(datamodule).__name__} has no {hook}(): training data are learned, and the accuracy on unseen "
                "samples is needed"
            )
    taken = sorted({"memorization", "model", "random_label_model", "inputs"} & set(test))
    if taken:
        raise TypeError(f"random_label_experiment() makes '{taken[0]}' itself: leave it out")
    given = known(test, {**_TEST, **DEFAULTS}, "random_label_experiment()")
    check_common(given)  # type: ignore[arg-type]
    resolve_all(given["methods"], given["layer"])


def _made(
    make_module: Callable[[], pl.LightningModule], keys: Mapping[tuple[str, int], int]
) -> list[pl.LightningModule]:
    """An untrained module for each key.

    Raises:
        TypeError: If the factory makes no LightningModules.
        ValueError: If it returns one object again, or modules of one kind have the same first weights.
    """
    made: list[pl.LightningModule] = []
    for key in keys.values():
        with isolated_rng(key):
            made.append(make_module())
    for module in made:
        if not isinstance(module, pl.LightningModule):
            raise TypeError(f"make_module must return a LightningModule, not {type(module).__name__}")
    if len({id(module) for module in made}) < len(made):
        raise ValueError("make_module returns one and the same object each time: let it make a new module")
    digests = [weights_digest(module) if any(True for _ in module.parameters()) else None for module in made]
    per_kind = len(made) // len(KINDS)
    for start in range(0, len(made), per_kind):
        seen: dict[str, int] = {}
        for index, digest in enumerate(digests[start : start + per_kind]):
            if digest is not None and seen.setdefault(digest, index) != index:
                raise ValueError(
                    f"models {seen[digest]} and {index} start from the same weights, so that they would be one model: "
                    f"{SEEDED}"
                )
    return made


@dataclass(frozen=True)
class _Ready:
    """What was found out about the data, and the probe.

    Attributes:
        inputs: What is explained.
        path: Where samples and batches carry their label.
        true_labels: Of the training set, where a user's own function makes random labels, and they can be read.
        fingerprint: Of data and permutation.
    """

    inputs: Any
    path: LabelPath
    true_labels: Sequence[Any] | None
    fingerprint: Mapping[str, str]


def _prepared(
    modules: Sequence[pl.LightningModule],
    datamodule: pl.LightningDataModule,
    probe: Any,
    target_key: TargetKey | None,
    permuted: Callable[..., Any] | None,
    seed: int,
) -> _Ready:
    digests = []
    for again in range(2):  # another global seed each
        with on_the_bench(modules[0], datamodule, stream_seed(seed, "data", again)) as transfer:
            training = _dataset(datamodule.train_dataloader(), "train_dataloader")
            sample = _first_sample(training)
            path = usual_path(sample) if target_key is None else path_of(target_key)
            label_of(sample, path)
            digests.append(fingerprint.of_data(training, path))
            if again:
                loader = next(iter(loaders_in(datamodule.val_dataloader())), None)
                inputs = probes.form(probe, loader, seed=seed, transfer=transfer).inputs
                true_labels = None if permuted is None else _labels(training, path)
    if digests[0] != digests[1]:
        raise ValueError(
            f"{type(datamodule).__name__} gives other training data each time setup() is called, so that the models "
            "would not be trained on one data set: give random_split (or what draws them) a seeded generator"
        )
    how = "permute" if permuted is None else fingerprint.described(permuted)
    return _Ready(
        inputs,
        path,
        true_labels,
        {"the training data": digests[0], "the permutation": how, "target_key": repr(list(path))},
    )


def _dataset(loaders: Any, hook: str) -> Any:
    found = loaders_in(loaders)
    if not found or not hasattr(found[0], "dataset"):
        raise ValueError(f"{hook}() returns no DataLoader but {type(loaders).__name__}")
    return found[0].dataset


def _first_sample(dataset: Any) -> Any:
    return next(iter(dataset)) if isinstance(dataset, IterableDataset) else dataset[0]


def _labels(dataset: Any, path: LabelPath) -> Sequence[Any] | None:
    try:
        return None if isinstance(dataset, IterableDataset) else all_labels(dataset, path)
    except LabelError:
        return None


def _random_labels(path: LabelPath) -> Callable[[pl.LightningDataModule, int], pl.LightningDataModule]:
    return lambda datamodule, seed: RandomLabelDataModule(datamodule, seed=seed, target_key=list(path))


# ------------------------------------------------------------------------------------------------------------ training


def _finished(recorder: Recorder, arguments: Mapping[str, Any]) -> Run | None:
    """The stored run, if there is one and training it again would change nothing.

    Raises:
        ValueError: If it belongs to another experiment.
    """
    record, stop_at = recorder.folder / RECORD, recorder.question.stop_at
    if not record.exists():
        return None
    run = Run.read(record)
    different = fingerprint.differences(run.fingerprint, recorder.fingerprint)
    if not different and run.origin != recorder.origin:
        different = "its first weights"
    allowed = arguments["max_epochs"]
    unlimited = allowed in (-1, None)
    if not different and stop_at < run.stop_at:
        different = f"stop_at ({run.stop_at} there, {stop_at} here, which would have ended earlier)"
    if not different and not unlimited and run.epochs > allowed:
        different = f"max_epochs ({run.epochs} were trained, {allowed} are allowed)"
    if different:
        raise ValueError(
            f"'{recorder.folder}' holds a run of another experiment: {different}. Choose another out=, or remove it"
        )
    if not run.train_accuracy >= stop_at and (unlimited or allowed > run.max_epochs >= 0):
        return None
    rank_zero_info(f"{recorder.folder.name} was trained before: {run}")
    return run


def _train(
    recorder: Recorder, module: pl.LightningModule, data: pl.LightningDataModule, arguments: Mapping[str, Any]
) -> Run:
    folder = recorder.folder
    record = folder / RECORD
    record.unlink(missing_ok=True)
    own = copy.deepcopy(dict(arguments))  # callbacks have a state, and the next run needs fresh ones
    given = own.pop("callbacks", None) or []
    callbacks = [*(given if isinstance(given, list) else [given]), recorder]
    trainer = pl.Trainer(**{"default_root_dir": folder, **own, "callbacks": callbacks})
    trainer.fit(module, datamodule=data)
    if not record.exists():
        raise RuntimeError(f"the training of {folder.name} did not finish; call again to train it anew")
    run = Run.read(record)
    rank_zero_info(f"{folder.name} is trained: {run}")
    return run


def _load(module: pl.LightningModule, folder: Path) -> None:
    module.configure_model()
    module.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True)["state_dict"])


def _memorization(runs: Sequence[Run], models: int) -> Memorization:
    true, permuted = runs[:models], runs[models:]
    found = [run.agreement for run in permuted]
    told = [each for each in found if each is not None] if None not in found else []
    by_chance = permuted[0].chance
    return Memorization(
        tuple(run.train_accuracy for run in true),
        tuple(run.train_accuracy for run in permuted),
        tuple(run.test_accuracy for run in permuted),
        min(run.test_samples for run in permuted),
        float("nan") if by_chance is None else by_chance,
        tuple(each.share for each in told),
        min(max(each.chance for each in told), 1 - 1e-9) if told else float("nan"),
        min(each.samples for each in told) if told else 0,
        permuted[0].measure,
        tuple(each.association for each in told) if all_known(told) else (),
    )
