"""Everything that the callback asks of others fails once, one after the other: training does not notice."""

import os
import sys
import warnings
from contextlib import contextmanager

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from made_hostile import Images, Small, drawing, loader, quiet, trainer
from made_trainings import assert_identical

from lightning_sanity import SaliencySanityCallback, SanityResult


class Fault(OSError):
    """The one that is injected."""


class Injection:
    """Counts what the callback does at its first validation, and lets one of it fail."""

    def __init__(self):
        self.folder, self.at, self.done, self.active = None, None, [], False

    def meet(self, what):
        if self.active:
            self.done.append(what)
            if len(self.done) - 1 == self.at:
                raise Fault(f"injected into {what}")

    def file(self, event, arguments):
        """An audit hook: every file that is opened, renamed, linked or removed passes here, in C as well."""
        if self.active and event in _FILES and arguments and str(arguments[0]).startswith(self.folder):
            self.meet(event)


_FILES = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod"}
injection = Injection()
sys.addaudithook(injection.file)
to_disk = os.fsync


def flushed(descriptor):
    """``os.fsync``, which no audit hook hears of."""
    injection.meet("os.fsync")
    to_disk(descriptor)


class Watched(SaliencySanityCallback):
    """The callback, with faults at its first validation."""

    def __init__(self):
        super().__init__("gradient", probe=4, trials=1, repeats=1, max_steps=1)
        self.results, self.seen = [], 0

    def on_validation_epoch_end(self, trainer, pl_module):
        self.seen += 1
        injection.active = self.seen == 1
        try:
            super().on_validation_epoch_end(trainer, pl_module)
        finally:
            injection.active = False
        self.results.append(self.result)


class Writer:
    """A TensorBoard writer."""

    def __init__(self, *arguments, **named):
        injection.meet("Writer")

    def __getattr__(self, name):
        if name not in {"add_image", "add_figure", "add_text", "add_custom_scalars", "add_scalar", "close"}:
            raise AttributeError(name)
        return lambda *arguments, **named: injection.meet(name)


class Board(Logger):
    """A logger of whose calls one fails."""

    name, version, save_dir = "board", "1", None

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    @property
    def log_dir(self):
        injection.meet("log_dir")
        return str(self.folder)

    @property
    def experiment(self):
        injection.meet("experiment")
        return Writer()

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *arguments, **named):
        pass


class Moving(Small):
    """With every hook on the way of a batch to the device, of which one fails when the probe takes it."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        injection.meet("on_before_batch_transfer")
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        injection.meet("transfer_batch_to_device")
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        injection.meet("on_after_batch_transfer")
        return batch

    def on_validation_epoch_end(self):
        self.log("mine", 1.0)  # refused while Lightning believes to be in another hook


@contextmanager
def replaced(owner, name, act):
    before = getattr(owner, name)
    setattr(owner, name, act)
    try:
        yield
    finally:
        setattr(owner, name, before)


def run(folder, at=None, callback=True):
    """The model, the callback, what it warned of, and what was done."""
    injection.folder, injection.at, injection.done = str(folder), at, []
    pl.seed_everything(0, verbose=False)
    watched = [Watched()] if callback else []
    made = trainer(folder, watched, logger=Board(folder))
    model = Moving()
    with quiet(), replaced(os, "fsync", flushed), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.fit(model, loader(Images(drawing("none"))), loader(Images(drawing("none"))))
    said = [str(w.message) for w in caught if "injected" in str(w.message)]
    return model, watched, said, list(injection.done), made


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Weights without the callback, and how much there is to fail with it."""
    model, *_ = run(tmp_path_factory.mktemp("without"), callback=False)
    _, _, said, done, _ = run(tmp_path_factory.mktemp("with"))
    assert said == []
    return model.state_dict(), done


MOST = 56
SAMPLE = (0, 1, 2, 4, 9)


def test_there_are_faults_of_every_kind_and_all_are_enumerated(reference):
    _, done = reference
    files = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.fsync"}
    assert files | {"experiment", "add_image", "log_dir"} <= set(done)
    assert {name for name in done if name.endswith(("_transfer", "_device"))} == {
        "on_before_batch_transfer",
        "transfer_batch_to_device",
        "on_after_batch_transfer",
    }
    assert len(done) <= MOST


@pytest.mark.parametrize("at", [k if k in SAMPLE else pytest.param(k, marks=pytest.mark.slow) for k in range(MOST)])
def test_one_fault_is_one_warning_and_nothing_else(tmp_path, reference, at):
    weights, done = reference
    model, (watched,), said, now, made = run(tmp_path, at)
    files = {path.name for path in (tmp_path / "sanity").iterdir()}
    if at < len(done):
        # Nothing to say only where there was another way: a folder that was there, a file system without links.
        assert len(said) == 1 or (said == [] and done[at] in {"os.mkdir", "os.link"} and "step=6.json" in files)
        assert now[: at + 1] == done[: at + 1]
    assert made.global_step == 12
    assert made.callback_metrics["mine"] == 1
    assert_identical(dict(model.state_dict()), dict(weights))
    assert watched.results[1] is not None
    latest = SanityResult.from_json(tmp_path / "sanity" / "latest.json")
    assert (latest.step, latest.weights_digest) == (12, watched.results[1].weights_digest)
    removed = at < len(done) and done[at] == "os.remove"
    assert len(list(tmp_path.rglob("*.part*"))) <= removed  # a file that cannot be removed stays for a day


def leaving(model, inputs, target):
    sys.exit(3)


def exhausted(model, inputs, target):
    raise MemoryError


@pytest.mark.parametrize(("method", "words"), [(leaving, "SystemExit: 3"), (exhausted, "MemoryError")])
def test_a_method_that_leaves_loses_its_own_verdict(tmp_path, method, words):
    measured = SaliencySanityCallback(
        {"own": method, "gradient": "gradient"}, probe=4, trials=1, repeats=1, max_steps=1, report=False
    )
    made = trainer(tmp_path, [measured], max_epochs=1)
    with quiet():
        made.fit(Small(), loader(Images(drawing("none"))), loader(Images(drawing("none"))))
    assert words in measured.result.verdicts["own"].reason
    assert measured.result.curves["gradient", "ssim"].values.shape[0] == 1


@contextmanager
def broken(owner, name, error):
    def act(*arguments, **named):
        raise error

    with replaced(owner, name, act):
        yield


@pytest.mark.parametrize("error", [MemoryError("no room"), SystemExit(1), RuntimeError("odd")], ids=repr)
def test_logging_that_fails_costs_a_warning(tmp_path, error):
    class Refusing(Small):
        def log_dict(self, *arguments, **named):
            raise error

    measured = SaliencySanityCallback("gradient", probe=4, trials=1, repeats=1, max_steps=1, report=False)
    made = trainer(tmp_path, [measured], max_epochs=1)
    with quiet(), pytest.warns(UserWarning, match="could not be logged; training goes on"):
        made.fit(Refusing(), loader(Images(drawing("none"))), loader(Images(drawing("none"))))
    assert made.current_epoch == 1
    assert measured.result is not None


def test_ctrl_c_while_files_are_written_ends_training(tmp_path):
    measured = SaliencySanityCallback("gradient", probe=4, trials=1, repeats=1, max_steps=1)
    made = trainer(tmp_path, [measured], max_epochs=2)
    with quiet(), broken(SanityResult, "to_json", KeyboardInterrupt()), pytest.raises(SystemExit):
        made.fit(Small(), loader(Images(drawing("none"))), loader(Images(drawing("none"))))
    assert made.current_epoch == 0
    assert torch.is_grad_enabled()
