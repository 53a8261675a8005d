"""Every call of W&B and of MLflow that the callback makes fails once: training does not notice."""

import functools
import os
import warnings

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from made_hostile import Images, Small, drawing, loader, quiet, trainer
from made_trainings import assert_identical

from lightning_sanity import SaliencySanityCallback, SanityResult


class Fault(OSError):
    """The one that is injected."""


class Injection:
    """Counts the outermost calls of a library during the callback's first measurement, and lets one of them fail."""

    def __init__(self, at=None):
        self.at, self.done, self.active, self._inside = at, [], False, False

    def into(self, patch, owner, name):
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*arguments, **named):
            if not self.active or self._inside:
                return real(*arguments, **named)
            self.done.append(name if name != "__init__" else owner.__name__)
            if len(self.done) - 1 == self.at:
                raise Fault(f"injected into {self.done[-1]}")
            self._inside = True
            try:
                return real(*arguments, **named)
            finally:
                self._inside = False

        patch.setattr(owner, name, call)


class Watched(SaliencySanityCallback):
    """The callback, with faults while it measures for the first time."""

    def __init__(self, injection):
        super().__init__("gradient", probe=4, trials=1, repeats=1, max_steps=1, max_time=None)
        self.injection, self.results = injection, []

    def on_validation_epoch_end(self, trainer, pl_module):
        self.injection.active = not self.results
        try:
            super().on_validation_epoch_end(trainer, pl_module)
        finally:
            self.injection.active = False
        self.results.append(self.result)


def wandb_logger(folder, patch, injection):
    import wandb

    patch.setenv("WANDB_MODE", "offline")
    for owner in (wandb.Image, wandb.Table, wandb.Html, wandb.Artifact):
        injection.into(patch, owner, "__init__")
    for name in ("log", "define_metric", "log_artifact"):
        injection.into(patch, wandb.Run, name)
    return WandbLogger(save_dir=folder, project="sanity")


def mlflow_logger(folder, patch, injection):
    from mlflow.tracking import MlflowClient

    for name in [name for name in dir(MlflowClient) if name.startswith("log_") or name == "set_tag"]:
        injection.into(patch, MlflowClient, name)
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return MLFlowLogger(tracking_uri=f"file:{folder}/mlflow")


MADE = {"wandb": wandb_logger, "mlflow": mlflow_logger}


def run(folder, which, at=None, *, callback=True):
    """The model, the callback, what it warned of, and what was done."""
    injection = Injection(at)
    pl.seed_everything(0, verbose=False)
    watched = [Watched(injection)] if callback else []
    with pytest.MonkeyPatch.context() as patch, quiet(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = trainer(folder, watched, logger=MADE[which](folder, patch, injection) if callback else None)
        model = Small()
        made.fit(model, loader(Images(drawing("none"))), loader(Images(drawing("none"))))
        if which == "wandb" and callback:
            import wandb

            wandb.finish()
            wandb.teardown()
    said = [str(w.message) for w in caught if "injected" in str(w.message)]
    return model, watched, said, injection.done, made


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a training without the callback."""
    return dict(run(tmp_path_factory.mktemp("without"), "wandb", callback=False)[0].state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("which", MADE)
def test_one_call_that_fails_is_one_warning_and_nothing_else(tmp_path, weights, which):
    pytest.importorskip(which)
    *_, said, done, _ = run(tmp_path / "whole", which)
    assert said == []
    assert len(done) >= 4
    first = {name: done.index(name) for name in done}  # every kind of call once; all of them with SANITY_EVERY_FAULT
    for at in range(len(done)) if os.environ.get("SANITY_EVERY_FAULT") else first.values():
        model, (watched,), said, now, made = run(tmp_path / str(at), which, at)
        assert len(said) == 1, (done[at], said)
        assert now[: at + 1] == done[: at + 1]
        assert made.global_step == 12
        assert_identical(dict(model.state_dict()), weights)
        assert watched.results[1] is not None
        (latest,) = (tmp_path / str(at)).rglob("latest.json")
        assert SanityResult.from_json(latest).step == 12
