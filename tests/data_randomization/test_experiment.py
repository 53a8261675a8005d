import json
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import Outcome, SanityResult
from lightning_sanity.attribution import integrated_gradients
from lightning_sanity.cli import demo
from lightning_sanity.data_randomization import random_label_experiment

QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}


class Digits(pl.LightningDataModule):
    """Some digits; with a seed, their labels are permuted."""

    def __init__(self, size=96, seed=None):
        super().__init__()
        self.size, self.seed = size, seed

    def setup(self, stage):
        training, self.validation = demo.digits()
        images, labels = (tensor[: self.size] for tensor in training.tensors)
        if self.seed is not None:
            labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))]
        self.training = TensorDataset(images, labels)

    def train_dataloader(self):
        return DataLoader(self.training, 16 if self.size < 200 else 50, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.validation, 256)


def permuted(datamodule, seed):
    return Digits(datamodule.size, seed)


def run(out, make_module=demo.DigitsClassifier, data=None, trainer=None, **changes):
    given = {"models": 1, "probe": 8, "permuted": permuted, "methods": "gradient", "repeats": 1, **changes}
    arguments = {**QUIET, "max_epochs": 30, **(trainer or {})}
    return random_label_experiment(make_module, data or Digits(), out=out, trainer=arguments, **given)


class Counted(demo.DigitsClassifier):
    steps = 0

    def training_step(self, batch, batch_idx):
        Counted.steps += 1
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    out = tmp_path_factory.mktemp("experiment")
    Counted.steps = 0
    return out, run(out, Counted, stop_at=0.96), Counted.steps


def test_both_kinds_are_trained_to_memorisation_and_compared(experiment):
    out, result, _ = experiment
    known = result.settings["memorization"]
    assert known["true_train"][0] >= 0.96
    assert known["permuted_train"][0] >= 0.96
    assert known["permuted_test"][0] < 0.3
    assert result.valid, result.validity
    assert SanityResult.from_json(out / "result.json").verdicts == result.verdicts
    record = json.loads((out / "permuted-labels-0" / "run.json").read_text())
    assert record["epochs"] < 30


def test_a_finished_run_is_not_trained_again(experiment):
    out, result, steps = experiment
    Counted.steps = 0
    again = run(out, Counted, stop_at=0.96)
    assert steps > 0
    assert Counted.steps == 0
    assert again.verdicts == result.verdicts


def test_only_the_run_that_was_lost_is_trained_again(experiment):
    out, result, steps = experiment
    (out / "true-labels-0" / "run.json").unlink()
    Counted.steps = 0
    again = run(out, Counted, stop_at=0.96)
    assert 0 < Counted.steps < steps
    assert again.settings["weights_digests"] == result.settings["weights_digests"]


def test_runs_of_another_experiment_are_refused(experiment):
    with pytest.raises(ValueError, match=r"of another experiment: seed \(0 there, 1 here\)\. Choose another out="):
        run(experiment[0], Counted, stop_at=0.96, seed=1)


def test_the_callers_random_stream_is_left_alone(experiment):
    stream = torch.get_rng_state()
    run(experiment[0], Counted, stop_at=0.96)
    assert torch.equal(torch.get_rng_state(), stream)


def test_labels_that_were_not_learned_are_named_and_more_epochs_train_on(tmp_path):
    short = run(tmp_path, trainer={"max_epochs": 1})
    assert short.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert "random-label model 0 learned only" in short.verdicts["gradient"].reason
    run(tmp_path, trainer={"max_epochs": 2})
    assert json.loads((tmp_path / "permuted-labels-0" / "run.json").read_text())["epochs"] == 2


def test_an_interrupted_training_leaves_no_record(tmp_path):
    class Broken(demo.DigitsClassifier):
        def on_train_epoch_end(self):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, Broken)
    assert not list(tmp_path.rglob("run.json"))


def test_without_validation_data_the_experiment_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="accuracy on unseen samples is needed"):
        run(tmp_path, trainer={"limit_val_batches": 0})


def test_labels_that_do_not_fit_the_outputs_are_refused(tmp_path):
    class Regression(Digits):
        def setup(self, stage):
            super().setup(stage)
            self.training = TensorDataset(self.training.tensors[0], self.training.tensors[1] + 0.5)

    with pytest.raises(MisconfigurationException, match=r"labels of a train batch cannot be compared: .*do not fit"):
        run(tmp_path, data=Regression())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"models": 0}, "models must be an integer of at least 1"), ({"stop_at": 1.5}, "stop_at must be an accuracy")],
)
def test_wrong_arguments_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*sync_dist")
@pytest.mark.filterwarnings("ignore:.*use_distributed_sampler|.*fork.*:DeprecationWarning")
def test_two_processes_train_and_agree(tmp_path):
    result = run(tmp_path, trainer={"devices": 2, "strategy": "ddp_fork", "max_epochs": 2})
    assert result.settings["memorization"]["test_samples"] > 1
    assert json.loads((tmp_path / "true-labels-0" / "run.json").read_text())["epochs"] == 2


@pytest.mark.slow
def test_the_literature_is_reproduced_on_digits(tmp_path):
    methods = {name: name for name in ("gradient", "gradcam", "guided_backprop")}
    methods["integrated_gradients"] = integrated_gradients(n_steps=32)
    result = run(
        tmp_path,
        partial(demo.DigitsClassifier, 2e-3),
        Digits(350),
        {"max_epochs": 100},
        models=3,
        probe=48,
        methods=methods,
        stop_at=0.97,
        repeats=3,
    )
    psi = {name: verdict.psi for name, verdict in result.verdicts.items()}
    assert result.valid, result.validity
    assert min(psi["gradient"], psi["gradcam"]) > 0.6
    assert psi["guided_backprop"] < 0.6
    assert psi["integrated_gradients"] < 0.4
    assert psi["edge_detector"] == pytest.approx(0, abs=0.01)
    assert result.verdicts["guided_backprop"].outcome is Outcome.FAIL
    assert result.verdicts["integrated_gradients"].outcome is Outcome.FAIL
    assert Outcome.FAIL not in (result.verdicts["gradient"].outcome, result.verdicts["gradcam"].outcome)
