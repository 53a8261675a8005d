"""What can go wrong while a test runs: nothing is lost, and training ends as its user expects."""

import os
import signal
import time
import warnings

import lightning.pytorch as pl
import made_trainings
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from made_trainings import few_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import Outcome, SanityCheckFailed, SanityResult
from lightning_sanity.cli import demo

forking = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning",
    "ignore:.*use_distributed_sampler",
    "ignore:Using `DistributedSampler`",
    "ignore:.*sync_dist",
    "ignore:the randomization test could not be run",
)


@pytest.fixture(scope="module")
def loaders():
    return few_digits(128, 397)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "saliency maps failed")
        warnings.filterwarnings("ignore", ".*number of training batches.*")
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        yield


def callback(methods="gradient", **changes):
    return made_trainings.callback(methods, **changes)


def trainer(folder, *callbacks, **changes):
    return made_trainings.trainer(folder, *callbacks, **{"num_sanity_val_steps": 0, **changes})


class During:
    """A method that does something at one of its calls: by default at the second, in the middle of the test."""

    def __init__(self, act, at=2):
        self.act, self.at, self.calls = act, at, 0

    def __call__(self, model, inputs, target):
        self.calls += 1
        if self.calls == self.at:
            self.act()
        leaf = inputs.clone().requires_grad_()
        return torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)[0]


def send(number):
    return During(lambda: os.kill(os.getpid(), number), at=4)


def test_a_termination_signal_ends_the_test_and_is_never_a_pass(tmp_path, loaders):
    measured = callback({"signalled": send(signal.SIGTERM)}, trials=5, max_time=None)
    run = trainer(tmp_path, measured, max_epochs=3)
    with pytest.warns(UserWarning, match="interrupted.*termination signal"), pytest.raises(SIGTERMException):
        run.fit(demo.DigitsClassifier(), *loaders)
    assert measured.result is None
    assert measured._test["methods"]["signalled"].calls == 4  # not one more
    assert run.callback_metrics["sanity/passed"] == 0
    assert all(value.isfinite() for value in run.callback_metrics.values())


def test_a_request_to_stop_ends_the_test(tmp_path, loaders):
    measured = callback(During(lambda: setattr(run, "should_stop", True)), trials=5, on_fail="raise")
    run = trainer(tmp_path, measured, max_epochs=3)
    with (
        pytest.warns(UserWarning, match="told to stop"),
        pytest.raises(SanityCheckFailed, match="told to stop during the randomization test"),
    ):
        run.fit(demo.DigitsClassifier(), *loaders)
    assert run.current_epoch == 1


def test_a_stop_asked_for_before_the_last_test_does_not_end_it(tmp_path, loaders):
    class Stopping(demo.DigitsClassifier):
        def on_train_batch_end(self, *arguments):
            self.trainer.should_stop = True

    measured = callback()
    trainer(tmp_path, measured, max_epochs=3).fit(Stopping(), *loaders)
    assert measured.result is not None


def test_the_checkpoint_of_a_requeue_signal_holds_the_true_weights(tmp_path, loaders, monkeypatch):
    for name in ("JOB_ID", "JOB_NAME"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name, value in {"NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NNODES": 1}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    measured = callback(send(signal.SIGUSR1), max_steps=None)
    model = demo.DigitsClassifier()
    run = trainer(tmp_path, measured, plugins=[SLURMEnvironment(auto_requeue=True)])
    run.fit(model, *loaders)
    saved = torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    assert measured.result.coverage.share == 1.0  # and the test went on


def test_ctrl_c_during_the_test_leaves_the_weights_and_the_streams(tmp_path, loaders):
    def press():
        states["pressed"] = True
        os.kill(os.getpid(), signal.SIGINT)

    class Watch(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            states["weights"] = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
            states["stream"] = torch.get_rng_state()

        def on_exception(self, trainer, pl_module, exception):
            assert torch.equal(torch.get_rng_state(), states["stream"])
            states["exception"] = exception

    states = {}
    model = demo.DigitsClassifier()
    with pytest.raises(SystemExit) as left:
        trainer(tmp_path, Watch(), callback(During(press), target="labels")).fit(model, *loaders)
    assert left.value.code == 1
    assert isinstance(states["exception"], KeyboardInterrupt)
    assert all(torch.equal(states["weights"][name], tensor) for name, tensor in model.state_dict().items())


def test_a_slow_method_with_max_time_is_thinned_and_training_goes_on(tmp_path, loaders):
    def slow(model, inputs, target):
        time.sleep(0.03)
        return quick(model, inputs, target)

    quick = During(None, at=0)
    measured = callback({"slow": slow}, trials=50, max_steps=None, max_time=2)
    run = trainer(tmp_path, measured, max_epochs=1)
    run.fit(demo.DigitsClassifier(), *loaders)
    assert measured.result.settings["thinned"]["trials"][1] == 50
    assert run.callback_metrics["sanity/seconds"] < 8


def test_a_share_of_the_training_time_is_a_limit_too(tmp_path, loaders):
    class Pausing(demo.DigitsClassifier):
        def on_train_batch_start(self, *arguments):
            time.sleep(0.2)

    measured = callback(trials=100, max_steps=None, max_time=0.5)
    trainer(tmp_path, measured).fit(Pausing(), *loaders)
    assert measured.result.settings["thinned"]["trials"][0] < 100


def test_a_hung_method_with_max_time_costs_its_verdict_and_not_the_training(tmp_path, loaders):
    measured = callback({"hung": During(lambda: time.sleep(600))}, max_time=1.0)
    run = trainer(tmp_path, measured, max_epochs=2)
    with pytest.warns(UserWarning, match="method 'hung' did not return within|too short for this method"):
        run.fit(demo.DigitsClassifier(), *loaders)
    assert run.current_epoch == 2
    assert not measured.result.verdicts["hung"].passed


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_running_out_of_memory_halves_the_chunks_and_changes_nothing(tmp_path, loaders, error):
    def greedy(model, inputs, target):
        sizes.append(len(inputs))
        if len(inputs) > 3:
            raise error
        return whole(model, inputs, target)

    sizes, whole = [], During(None, at=0)
    measured = callback({"greedy": greedy, "whole": whole})
    trainer(tmp_path, measured).fit(demo.DigitsClassifier(), *loaders)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[3:]) == 2
    curves = measured.result.curves
    torch.testing.assert_close(
        curves["greedy", "spearman"].values, curves["whole", "spearman"].values, atol=1e-3, rtol=0
    )


def test_memory_that_never_suffices_is_not_measured_and_training_goes_on(tmp_path, loaders):
    def full(model):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 EB")

    measured = callback(clone_fn=full)
    run = trainer(tmp_path, measured, max_epochs=2)
    with pytest.warns(UserWarning, match="could not be run; training goes on.*can't allocate memory"):
        run.fit(demo.DigitsClassifier(), *loaders)
    assert run.current_epoch == 2
    assert measured.result is None
    assert "can't allocate" in measured.unmeasured


def test_nan_weights_are_inconclusive(tmp_path, loaders):
    class Exploding(demo.DigitsClassifier):
        def on_validation_start(self):
            with torch.no_grad():
                self.classifier[1].weight[0, 0] = torch.nan

    measured = callback()
    run = trainer(tmp_path, measured)
    run.fit(Exploding(), *loaders)
    assert measured.result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert "NaN or infinity" in measured.result.verdicts["gradient"].reason
    assert all(value.isfinite() for key, value in run.callback_metrics.items() if key.startswith("sanity/"))


class Failing(Logger):
    """A tracking server that has gone away when the first figure arrives."""

    name, version = "failing", 0
    experiment = property(lambda self: self)

    def add_image(self, *arguments, **named):
        raise ConnectionError("the server is gone")

    add_figure = add_image

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *arguments, **named):
        pass


def test_a_logger_that_raises_costs_a_warning(tmp_path, loaders):
    measured = callback(log_images=True)
    run = trainer(tmp_path, measured, logger=Failing(), max_epochs=2)
    with pytest.warns(UserWarning, match="Failing could not show.*the server is gone"):
        run.fit(demo.DigitsClassifier(), *loaders)
    assert run.current_epoch == 2
    assert measured.result is not None


def test_a_report_that_cannot_be_written_costs_a_warning(tmp_path, loaders):
    (tmp_path / "sanity").write_text("a file where the folder should be")
    measured = callback(report=True)
    run = trainer(tmp_path, measured, max_epochs=2)
    with pytest.warns(UserWarning, match="could not be written"):
        run.fit(demo.DigitsClassifier(), *loaders)
    assert run.current_epoch == 2
    assert measured.result is not None


def test_without_validation_batches_nothing_is_measured_or_logged(tmp_path, loaders):
    measured = callback()
    run = trainer(tmp_path, measured, limit_val_batches=0)
    with pytest.warns(UserWarning, match="will measure nothing: limit_val_batches=0"):
        run.fit(demo.DigitsClassifier(), *loaders)
    assert measured.result is None
    assert not any(key.startswith("sanity/") for key in run.callback_metrics)


def test_a_probe_of_one_class_is_inconclusive_and_says_why(tmp_path, digits_network):
    model, images, labels = digits_network
    one = images[(labels == 3) & (model(images).argmax(1) == 3)][:8]
    measured = callback(probe=one)
    run = trainer(tmp_path, measured)
    trained = demo.DigitsClassifier()
    trained.load_state_dict(model.state_dict())
    run.validate(trained, DataLoader(TensorDataset(images, labels), 397), verbose=False)
    assert measured.result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert "class 3 for all 8 samples" in measured.result.verdicts["gradient"].reason


def saved_run(folder, loaders):
    checkpoint = ModelCheckpoint(folder, filename="first")
    first = callback()
    trainer(folder, first, checkpoint).fit(demo.DigitsClassifier(), *loaders)
    return folder / "first.ckpt", first.result


def test_a_resumed_run_explains_the_same_samples(tmp_path, loaders):
    path, before = saved_run(tmp_path, loaders)
    after = callback(seed=1)  # would choose others
    trainer(tmp_path, after, max_epochs=2).fit(demo.DigitsClassifier(), *loaders, ckpt_path=path)
    assert after.result.probe_ids == before.probe_ids
    assert after.result.probe_digest == before.probe_digest


def test_a_data_set_that_shrank_before_a_resume_costs_a_warning(tmp_path, loaders):
    path, before = saved_run(tmp_path, loaders)
    fewer = TensorDataset(*(tensor[:50] for tensor in loaders[1].dataset.tensors))
    after = callback()
    run = trainer(tmp_path, after, max_epochs=2)
    with (
        pytest.warns(UserWarning, match="the probe of the checkpoint is gone"),
        pytest.warns(UserWarning, match="the curves before and after do not join"),
    ):
        run.fit(demo.DigitsClassifier(), loaders[0], DataLoader(fewer, 50), ckpt_path=path)
    assert after.result.probe_ids != before.probe_ids
    assert run.current_epoch == 2


def test_data_that_changed_before_a_resume_are_noticed(tmp_path, loaders):
    path, _ = saved_run(tmp_path, loaders)
    images, labels = loaders[1].dataset.tensors
    with pytest.warns(UserWarning, match="the curves before and after do not join"):
        trainer(tmp_path, callback(), max_epochs=2).fit(
            demo.DigitsClassifier(), loaders[0], DataLoader(TensorDataset(1 - images, labels), 397), ckpt_path=path
        )


@forking
def test_a_test_that_breaks_on_one_rank_is_given_up_on_both(tmp_path, loaders):
    def broken(model):
        if torch.distributed.get_rank() == 1:
            raise OSError("broken on rank 1")
        return _copy(model)

    measured = callback(clone_fn=broken, report=True)
    run = trainer(tmp_path, measured, devices=2, strategy="ddp_fork", max_epochs=2)
    run.fit(demo.DigitsClassifier(), *loaders)
    assert run.callback_metrics["sanity/age"] == 2  # steps: both epochs were trained
    assert run.callback_metrics["sanity/passed"] == 0
    assert not (tmp_path / "sanity").exists()


def _copy(model):
    twin = demo.DigitsClassifier()
    twin.load_state_dict(model.state_dict())
    return twin


@forking
def test_a_method_that_raises_on_one_rank_loses_its_verdict_only(tmp_path, digits_network):
    def broken(model, inputs, target):
        if torch.distributed.get_rank() == 1:
            raise ValueError("broken on rank 1")
        return F.relu(inputs)

    model, images, labels = digits_network
    measured = callback({"broken": broken, "gradient": "gradient"}, report=True)
    run = trainer(tmp_path, measured, devices=2, strategy="ddp_fork")
    run.validate(model, DataLoader(TensorDataset(images, labels), 397), verbose=False)
    result = SanityResult.from_json(tmp_path / "sanity" / "latest.json")
    assert "broken on rank 1" in result.verdicts["broken"].reason
    assert result.verdicts["gradient"].psi > 0.3
    assert run.callback_metrics["sanity/gradient/psi"] == pytest.approx(result.verdicts["gradient"].psi)
