"""What a network receives when its labels are randomised, and what stays as it was."""

import inspect
import warnings
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from made_trainings import Noisy, Regularised, assert_identical
from recorded_labels import (
    EXPECTED,
    QUIET,
    SHUFFLED,
    SIZE,
    Batched,
    Digits,
    Named,
    Recorder,
    assert_randomised,
    digits,
    label_by_index,
    received,
    validation_digits,
)
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, RandomSampler, Subset, random_split

from lightning_sanity import RandomLabelDataModule
from lightning_sanity.cli import demo

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use_distributed_sampler|.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*persistent_workers=True"),  # spawned workers
    pytest.mark.filterwarnings("ignore:.*sync_dist"),
]


# --------------------------------------------------------------------------------------- what the network receives


def split_in_two():
    return random_split(digits(), [200, 120], generator=torch.Generator().manual_seed(0))[0]


SETTINGS = {
    "plain": (Digits(), {}, SIZE),
    "workers": (Digits(load=partial(DataLoader, batch_size=32, shuffle=True, num_workers=2)), {}, SIZE),
    "reload": (Digits(), {"reload_dataloaders_every_n_epochs": 1}, SIZE),
    "getitems": (Digits(Batched), {}, SIZE),
    "subset": (Digits(lambda: Subset(digits(), range(0, SIZE, 2))), {}, SIZE // 2),
    "subset of getitems": (Digits(lambda: Subset(Batched(), range(0, SIZE, 2))), {}, SIZE // 2),
    "random_split": (Digits(split_in_two), {}, 200),
    "concat": (
        Digits(lambda: ConcatDataset([Subset(digits(), range(100)), Subset(Batched(), range(100, 320))])),
        {},
        SIZE,
    ),
    "batch sampler": (
        Digits(load=lambda data: DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 32, False))),
        {},
        SIZE,
    ),
    "lists of indices": (
        Digits(
            load=lambda data: DataLoader(data, sampler=BatchSampler(RandomSampler(data), 32, False), batch_size=None)
        ),
        {},
        SIZE,
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_network_receives_random_labels(tmp_path, setting):
    datamodule, changes, size = SETTINGS[setting]
    assert_randomised(received(tmp_path, RandomLabelDataModule(datamodule), **changes), size)


def test_the_network_receives_random_labels_of_dictionaries(tmp_path):
    assert_randomised(received(tmp_path, RandomLabelDataModule(Digits(Named), target_key="label")))


@pytest.mark.parametrize("make", [digits, lambda: Subset(Batched(), range(SIZE))], ids=["tensors", "subset"])
def test_two_processes_receive_the_labels_of_one(tmp_path, make):
    two = received(tmp_path / "two", RandomLabelDataModule(Digits(make)), devices=2, strategy="ddp_fork")
    assert {file.name for file in (tmp_path / "two").glob("*.pt")} == {"rank0.pt", "rank1.pt"}
    assert_randomised(two)
    assert label_by_index(two) == {index: EXPECTED[index] for index in range(SIZE)}


@pytest.mark.slow
def test_spawned_processes_receive_the_labels_of_one(tmp_path):
    rows = received(tmp_path, RandomLabelDataModule(Digits()), devices=2, strategy="ddp_spawn", max_epochs=1)
    assert_randomised(rows, epochs=1)
    assert label_by_index(rows) == {index: EXPECTED[index] for index in range(SIZE)}


@pytest.mark.slow
def test_a_spawned_worker_gives_the_labels_of_one_process(tmp_path):
    load = partial(DataLoader, batch_size=32, num_workers=1, multiprocessing_context="spawn", persistent_workers=True)
    rows = received(tmp_path, RandomLabelDataModule(Digits(load=load)), limit_val_batches=0)
    assert label_by_index(rows) == {index: EXPECTED[index] for index in range(SIZE)}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint|.*your dataloader is not resumable")
def test_training_resumed_in_mid_epoch_receives_the_same_labels(tmp_path):
    save = pl.callbacks.ModelCheckpoint(tmp_path / "saved", save_top_k=-1, every_n_train_steps=5, filename="{step}")
    kept = {"enable_checkpointing": True, "callbacks": [save]}
    before = received(tmp_path / "before", RandomLabelDataModule(Digits()), max_steps=15, **kept)
    datamodule = RandomLabelDataModule(Digits())
    trainer = pl.Trainer(**QUIET, max_epochs=2, default_root_dir=tmp_path)
    model = Recorder()
    # Lightning 2.5 has no such argument.
    strict = {"weights_only": True} if "weights_only" in inspect.signature(trainer.fit).parameters else {}
    trainer.fit(model, datamodule=datamodule, ckpt_path=tmp_path / "saved" / "step=5.ckpt", **strict)
    assert len(model.seen["train"]) == 15 * 32
    assert_randomised(before + model.seen["train"])


def test_resuming_with_other_labels_warns(tmp_path):
    trainer = pl.Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(Recorder(), datamodule=RandomLabelDataModule(Digits()))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = pl.Trainer(**QUIET, max_epochs=2, default_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="train labels are not those from before"):
        again.fit(Recorder(), datamodule=RandomLabelDataModule(Digits(), seed=1), ckpt_path=tmp_path / "last.ckpt")


def test_validation_and_test_labels_stay_true(tmp_path):
    model, datamodule = Recorder(), RandomLabelDataModule(Digits())
    trainer = pl.Trainer(**QUIET, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(model, datamodule=datamodule)
    trainer.test(model, datamodule=datamodule, verbose=False)
    true = validation_digits().tensors[1]
    for stage in ("val", "test"):
        assert model.seen[stage]
        assert all(label == true[index] for _, index, label in model.seen[stage])


def test_validation_labels_are_randomised_when_asked(tmp_path):
    model, datamodule = Recorder(), RandomLabelDataModule(Digits(), splits=("train", "val"))
    pl.Trainer(**QUIET, max_epochs=1, num_sanity_val_steps=0, default_root_dir=tmp_path).fit(
        model, datamodule=datamodule
    )
    true = validation_digits().tensors[1]
    assert sum(label == int(true[index]) for _, index, label in model.seen["val"]) < 20  # of 64
    assert datamodule.label_agreement.keys() == {"train", "val"}


@pytest.mark.parametrize("changes", [{}, {"strategy": "ddp_fork", "devices": 2}], ids=["one process", "two processes"])
def test_training_with_fraction_zero_is_bit_identical(tmp_path, changes):
    def trained(name, wrap):
        pl.seed_everything(7, verbose=False)
        load = partial(DataLoader, batch_size=16, shuffle=True, num_workers=0 if changes else 2)
        datamodule = Digits(lambda: Noisy(demo.digits()[0].tensors), load)
        datamodule.val_dataloader = lambda: DataLoader(Noisy(demo.digits()[1].tensors), 64)
        trainer = pl.Trainer(**{**QUIET, "max_epochs": 2, "default_root_dir": tmp_path, **changes})
        trainer.fit(Regularised(), datamodule=wrap(datamodule))
        trainer.save_checkpoint(tmp_path / name)
        saved = torch.load(tmp_path / name, weights_only=True)
        saved = {k: v for k, v in saved.items() if "datamodule" not in k and k != "RandomLabelDataModule"}
        return saved, torch.get_rng_state(), np.random.get_state()[1]

    plain = trained("plain.ckpt", lambda datamodule: datamodule)
    assert_identical(trained("wrapped.ckpt", partial(RandomLabelDataModule, fraction=0)), plain)
    assert_identical(trained("fraction.ckpt", partial(RandomLabelDataModule, mode="fraction", fraction=0.0)), plain)


def test_randomising_labels_leaves_the_random_streams_alone():
    loader = DataLoader(Noisy(demo.digits()[0].tensors), 16, shuffle=True)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    RandomLabelDataModule(loader).train_dataloader()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


# ----------------------------------------------------------------------------------------------- what stays as it was


def test_the_modules_own_transfer_hooks_keep_working(tmp_path):
    class Augmenting(Recorder):
        calls = 0

        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.calls += 1
            return batch

    model = Augmenting(tmp_path)
    trainer = pl.Trainer(**QUIET, max_steps=2, limit_val_batches=0, default_root_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have overridden `on_after_batch_transfer` in `LightningModule`")
        trainer.fit(model, datamodule=RandomLabelDataModule(Digits()))
    assert model.calls == 2


def test_hooks_of_the_data_module_are_delegated_where_it_has_them(tmp_path):
    calls = []

    class Hooked(Digits):
        def __init__(self):
            super().__init__()
            self.prepare_data_per_node = False

        def prepare_data(self):
            calls.append("prepare_data")

        def on_before_batch_transfer(self, batch, dataloader_idx):
            assert self.trainer.training
            calls.append("transfer")
            return batch

        def teardown(self, stage):
            calls.append(f"teardown {stage.value}")

        def state_dict(self):
            return {"position": 3}

        def load_state_dict(self, state_dict):
            calls.append(state_dict)

    datamodule = RandomLabelDataModule(Hooked())
    assert datamodule.prepare_data_per_node is False
    trainer = pl.Trainer(**QUIET, max_steps=1, limit_val_batches=0, default_root_dir=tmp_path)
    trainer.fit(Recorder(), datamodule=datamodule)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert calls == ["prepare_data", "transfer", "teardown fit"]
    again = pl.Trainer(**QUIET, max_steps=1, limit_val_batches=0, default_root_dir=tmp_path)
    again.fit(Recorder(), datamodule=RandomLabelDataModule(Hooked()), ckpt_path=tmp_path / "last.ckpt")
    assert calls[4] == {"position": 3}


def test_a_data_module_without_validation_trains(tmp_path):
    datamodule = pl.LightningDataModule.from_datasets(digits(), batch_size=32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
        warnings.filterwarnings("ignore", ".*pin_memory")  # from_datasets sets it
        assert_randomised(received(tmp_path, RandomLabelDataModule(datamodule)))


def test_attributes_of_the_data_module_are_read_and_set_through():
    inner = Digits()
    inner.classes, inner.batch_size = 10, 32
    datamodule = RandomLabelDataModule(inner)
    datamodule.batch_size = 64
    assert (datamodule.classes, inner.batch_size) == (10, 64)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        datamodule.nothing_like_it  # noqa: B018


def test_checkpoints_load_with_weights_only_and_tell_the_settings(tmp_path):
    class Odd(Digits):
        def __init__(self, transform, rate):
            super().__init__()
            self.save_hyperparameters()

    trainer = pl.Trainer(**QUIET, max_steps=1, default_root_dir=tmp_path)
    trainer.fit(Recorder(), datamodule=RandomLabelDataModule(Odd(SHUFFLED, np.float64(0.5)), seed=3))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved["random_labels/seed"] == 3
    assert saved["random_labels/splits"] == ["train"]
    assert saved["datamodule/batch_size"] == 32
    assert saved["datamodule/rate"] == 0.5
    assert "partial" in saved["datamodule/transform"]


def test_hyperparameters_of_the_module_with_the_same_names_do_not_clash(tmp_path):
    class Seeded(Recorder):
        def __init__(self, seed=11, mode="linear"):
            super().__init__()
            self.save_hyperparameters()

    trainer = pl.Trainer(**{**QUIET, "logger": CSVLogger(tmp_path)}, max_steps=1)
    trainer.fit(Seeded(), datamodule=RandomLabelDataModule(Digits()))
    assert "seed: 11" in (tmp_path / "lightning_logs" / "version_0" / "hparams.yaml").read_text()


class Configured(Digits):
    """Has arguments of the wrapper's names, and keeps them as hyper-parameters."""

    def __init__(self, seed: int = 5, mode: str = "easy", size: int = 64):
        pl.LightningDataModule.__init__(self)
        self.save_hyperparameters()
        self.make, self.load = digits, lambda data: DataLoader(data, self.hparams.size)


CONFIGURED = """
data:
  class_path: lightning_sanity.RandomLabelDataModule
  init_args:
    datamodule: {{class_path: {name}.Configured, init_args: {{seed: 11, size: 16}}}}
    mode: uniform
    seed: 3
"""


def test_a_configured_data_module_keeps_its_own_hyperparameters(tmp_path):
    pytest.importorskip("jsonargparse")
    (tmp_path / "config.yaml").write_text(CONFIGURED.format(name=__name__).replace("size: 16", "mode: hard"))
    arguments = [f"--config={tmp_path / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # between lightning and its own parser
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        cli = LightningCLI(demo.DigitsClassifier, run=False, args=arguments, seed_everything_default=False)
    inner = cli.datamodule.datamodule
    own = {key: value for key, value in inner.hparams.items() if key[0] != "_"}
    assert own == {"seed": 11, "mode": "hard", "size": 64}
    assert (cli.datamodule.seed, cli.datamodule.mode) == (3, "uniform")
    assert cli.datamodule.hparams["datamodule/seed"] == 11


@pytest.mark.filterwarnings("ignore:.*weights_only")
def test_a_checkpoint_restores_the_settings_and_so_the_labels(tmp_path):
    def labels(datamodule):
        trainer = pl.Trainer(**QUIET, max_steps=1, limit_val_batches=0, default_root_dir=tmp_path)
        trainer.fit(Recorder(), datamodule=datamodule)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return datamodule.random_labels["train"][0].digest

    given = {"mode": "uniform", "fraction": 0.5, "seed": 3, "splits": ("train", "val")}
    digest = labels(RandomLabelDataModule(Digits(), **given))
    again = RandomLabelDataModule.load_from_checkpoint(tmp_path / "last.ckpt", datamodule=Digits())
    assert {name: getattr(again, name) for name in given} == given
    other = RandomLabelDataModule.load_from_checkpoint(tmp_path / "last.ckpt", datamodule=Digits(), seed=4)
    assert (other.seed, other.fraction) == (4, 0.5)
    assert labels(again) == digest
    with pytest.raises(MisconfigurationException, match="holds the settings of random labels but no data"):
        RandomLabelDataModule.load_from_checkpoint(tmp_path / "last.ckpt")


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "arguments", "message"),
    [
        (Digits(), {"mode": "shuffle"}, "`mode` must be one of 'permute'"),
        (Digits(), {"fraction": 1.5}, r"`fraction` must be a number from 0 to 1, not 1\.5"),
        (Digits(), {"seed": 0.5}, "`seed` must be an integer"),
        (Digits(), {"splits": ("training",)}, "`splits` must be some of 'train', 'val', 'test'"),
        (Digits(), {"target_key": None}, "target_key must be a position"),
        (Digits(), {"splits": "train", "val_dataloaders": DataLoader([1])}, "go with plain loaders"),
        (pl.LightningDataModule(), {}, r"LightningDataModule has no `train_dataloader\(\)`"),
        (pl.LightningDataModule.from_datasets(digits()), {"splits": ("val",)}, r"no `val_dataloader\(\)`"),
        (RandomLabelDataModule(Digits()), {}, "is a RandomLabelDataModule already"),
        (digits(), {}, r"must be a `lightning\.pytorch\.LightningDataModule`, a `DataLoader`.*not TensorDataset"),
        (Digits, {}, "not type"),
    ],
)
def test_wrong_arguments_are_refused_at_once(given, arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        RandomLabelDataModule(given, **arguments)


def test_data_modules_of_the_other_package_are_named():
    other = pytest.importorskip("pytorch_lightning")
    with pytest.raises(MisconfigurationException, match=r"import `lightning\.pytorch` everywhere"):
        RandomLabelDataModule(other.LightningDataModule())
