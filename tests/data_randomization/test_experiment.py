import json
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from lightning_sanity import Outcome, RandomLabelDataModule, SanityResult, targets
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


@pytest.mark.parametrize(
    ("make_module", "changes", "message"),
    [
        (partial(Counted, 0.5), {}, r"the optimizer \(Adam.*lr=0\.001.* there, Adam.*lr=0\.5.* here\)"),
        (Counted, {"data": Digits(80)}, r"the training data \(\w+ there, \w+ here\)"),
        (
            Counted,
            {"trainer": {"gradient_clip_val": 1.0}},
            r"Trainer\(gradient_clip_val=\) \(not set there",
        ),
        (Counted, {"stop_at": 0.9}, r"stop_at \(0\.96 there, 0\.9 here"),
        (Counted, {"trainer": {"max_epochs": 2}}, r"max_epochs \(\d+ were trained, 2 are allowed\)"),
        (Counted, {"permuted": None}, r"the permutation \(permuted there, permute here\)"),
    ],
)
def test_what_differs_from_the_experiment_of_a_folder_is_named(experiment, make_module, changes, message):
    with pytest.raises(ValueError, match=message):
        run(experiment[0], make_module, **{"stop_at": 0.96, **changes})


def test_what_does_not_change_the_weights_may_differ(experiment):
    Counted.steps = 0
    run(experiment[0], Counted, stop_at=0.96, trainer={"log_every_n_steps": 5, "max_epochs": 60})
    assert Counted.steps == 0


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


ONE = demo.DigitsClassifier()


def seeded():
    pl.seed_everything(0, verbose=False)
    return demo.DigitsClassifier()


class SplitsAtRandom(Digits):
    def setup(self, stage):
        super().setup(stage)
        self.training, _ = random_split(self.training, [80, 16])


class Unlabelled(Digits):
    def train_dataloader(self):
        return DataLoader(TensorDataset(self.training.tensors[0]), 16)


WRONG = {
    "no models": ({"models": 0}, "models must be an integer of at least 1"),
    "more than all": ({"stop_at": 1.5}, "stop_at must be an accuracy"),
    "a seeded factory": ({"make_module": seeded, "models": 2}, "models 0 and 1 start from the same weights"),
    "one object": ({"make_module": lambda: ONE}, "returns one and the same object each time"),
    "a module": ({"make_module": ONE}, "make_module must be a function that makes an untrained LightningModule"),
    "a factory with arguments": ({"make_module": lambda width: ONE}, "called without arguments.*'width'"),
    "no LightningModule": ({"make_module": lambda: torch.nn.Linear(2, 2)}, "must return a LightningModule, not Linear"),
    "a loader": ({"data": DataLoader([1])}, r"must be a LightningDataModule .* not DataLoader: .*from_datasets"),
    "random labels": ({"data": RandomLabelDataModule(DataLoader([1]))}, "has random labels already"),
    "no validation": ({"data": pl.LightningDataModule.from_datasets([1])}, r"has no val_dataloader\(\)"),
    "another split each time": ({"data": SplitsAtRandom()}, "other training data each time setup"),
    "no labels": ({"data": Unlabelled()}, r"no label at target_key=1: the sample is a tuple of 1"),
    "an unknown method": ({"methods": "gradeint"}, "unknown attribution method 'gradeint'"),
    "an unknown option": ({"trials": 5}, "unexpected keyword argument 'trials'"),
    "its own evidence": ({"memorization": None}, "makes 'memorization' itself"),
    "a wrong target": ({"target": 12}, "target 12 is out of range"),
    "a wrong place": ({"target_key": "label"}, "no label at target_key='label'"),
    "too small a probe": ({"probe": 1}, "probe must be an integer of at least 2"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_told_before_training(tmp_path, wrong):
    changes, message = WRONG[wrong]
    with pytest.raises((ValueError, TypeError), match=message):
        run(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ labels of every kind


class Net(pl.LightningModule):
    """A network for labels of any kind."""

    def __init__(self, outputs, loss, last=torch.nn.Identity):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), *outputs, last())
        self.loss = loss

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        labels = batch["y"] if isinstance(batch, dict) else batch[1]
        return self.loss(self(batch["x"] if isinstance(batch, dict) else batch[0]), labels)

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def head(count):
    return torch.nn.Flatten(), torch.nn.Linear(4 * 256, count)


LOGITS = torch.nn.functional.binary_cross_entropy_with_logits
SQUARES = torch.nn.functional.mse_loss
PROBABILITIES = torch.nn.functional.binary_cross_entropy
BITS = torch.tensor([8, 4, 2, 1])
KINDS_OF_LABELS = {
    "several": (lambda: Net(head(4), LOGITS), lambda x, y: ((y[:, None] & BITS) > 0).float(), "exact match", {}),
    "numbers": (
        lambda: Net(head(1), torch.nn.functional.mse_loss),
        lambda x, y: x.mean((2, 3)),
        "explained variance",
        {},
    ),
    "one sigmoid": (
        lambda: Net(head(1), PROBABILITIES, torch.nn.Sigmoid),
        lambda x, y: (y > 4).float()[:, None],
        "accuracy",
        {},
    ),
    "masks": (
        lambda: Net([torch.nn.Conv2d(4, 1, 1)], LOGITS),
        lambda x, y: (x > 0.5).float(),
        "IoU",
        {"target": targets.class_mask(0, torch.ones(8, 16, 16))},
    ),
    "one-hot, by name": (
        lambda: Net(head(10), torch.nn.functional.cross_entropy),
        lambda x, y: torch.nn.functional.one_hot(y, 10).float(),
        "accuracy",
        {"target_key": "y"},
    ),
}


class Of(Digits):
    """Digits with other labels, as tuples or dictionaries."""

    def __init__(self, label, named=False):
        super().__init__(48)
        self.label, self.named = label, named

    def setup(self, stage):
        super().setup(stage)
        parts = [(tensors[0], self.label(*tensors)) for tensors in (self.training.tensors, self.validation.tensors)]
        self.training, self.validation = (TensorDataset(*part) for part in parts)
        if self.named:
            self.training, self.validation = map(Named, (self.training, self.validation))


class Named(Dataset):
    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return dict(zip("xy", self.inner[index], strict=True))


@pytest.mark.parametrize("kind", KINDS_OF_LABELS)
def test_what_memorised_means_follows_the_labels(tmp_path, kind):
    make, label, measure, changes = KINDS_OF_LABELS[kind]
    data = Of(label, named="target_key" in changes)
    result = run(tmp_path, make, data, {"max_epochs": 1}, permuted=None, controls=False, **changes)
    known = result.settings["memorization"]
    assert known["measure"] == measure
    assert known["label_samples"] == 48
    assert known["label_agreement"][0] < 0.8
    verdict = result.verdicts["gradient"]
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert f"{measure}: train it longer" in verdict.reason


# ---------------------------------------------------------------------------------------------------------- the probe


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_the_probe_passes_the_transfer_hooks_as_in_validation(tmp_path):
    class Normalised(demo.DigitsClassifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            assert self.trainer.training or self.trainer.validating
            return [(batch[0] - 0.5) / 0.25, *batch[1:]]

    seen = []

    def spy(model, inputs, target):
        seen.append(inputs.detach().clone())
        return inputs * 1.0

    run(tmp_path, Normalised, methods={"spy": spy}, trainer={"max_epochs": 1}, controls=False)
    assert float(seen[0].min()) == -2
    assert float(seen[0].max()) == 2


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
