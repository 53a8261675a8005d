"""What a network receives when its labels are randomised, how that is proven, and what stays as it was."""

import inspect
import logging
import warnings
from collections import Counter, defaultdict
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from test_undisturbed import Noisy, Regularised, assert_identical
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
    random_split,
)

from lightning_sanity import RandomLabelDataModule, demo
from lightning_sanity.datamodule import RandomLabelDataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use_distributed_sampler|.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*persistent_workers=True"),  # spawned workers
    pytest.mark.filterwarnings("ignore:.*sync_dist"),
]

SIZE = 320
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def digits(size=SIZE):
    """Real digits as (image, label, index)."""
    images, labels = demo.digits()[0].tensors
    return TensorDataset(images[:size], labels[:size], torch.arange(size))


def validation_digits():
    images, labels = demo.digits()[1].tensors
    return TensorDataset(images[:64], labels[:64], torch.arange(64))


TRUE = digits().tensors[1]
EXPECTED = RandomLabelDataset(digits()).random_labels


class Batched(Dataset):
    """Digits that are fetched in batches, as Hugging Face data sets are."""

    def __init__(self):
        self.inner = digits()

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]

    def __getitems__(self, indices):
        return [self.inner[index] for index in indices]


class Named(Batched):
    """Digits as dictionaries."""

    def __getitem__(self, index):
        return dict(zip(("image", "label", "index"), self.inner[index], strict=True))

    def __getitems__(self, indices):
        return [self[index] for index in indices]


SHUFFLED = partial(DataLoader, batch_size=32, shuffle=True)


class Digits(pl.LightningDataModule):
    """A data module whose data set and loader are given by functions."""

    def __init__(self, make=digits, load=SHUFFLED, batch_size=32):
        super().__init__()
        self.save_hyperparameters("batch_size")
        self.make, self.load = make, load

    def setup(self, stage):
        assert self.trainer is not None
        self.training, self.validation = self.make(), validation_digits()

    def train_dataloader(self):
        assert self.trainer is not None
        return self.load(self.training)

    def val_dataloader(self):
        return DataLoader(self.validation, 64)

    def test_dataloader(self):
        return DataLoader(self.validation, 64)


class Recorder(demo.DigitsClassifier):
    """Keeps the (epoch, index, label) of every sample that it is given, in a file per rank."""

    def __init__(self, folder=None):
        super().__init__()
        self.folder, self.seen = folder, defaultdict(list)

    def _step(self, stage, batch):
        images, labels, indices = batch.values() if isinstance(batch, dict) else batch
        rows = zip(indices.tolist(), labels.tolist(), strict=True)
        self.seen[stage] += [(self.current_epoch, *row) for row in rows]
        return F.cross_entropy(self(images), labels)

    def training_step(self, batch, batch_idx):
        return self._step("train", batch)

    def validation_step(self, batch, batch_idx):
        self._step("val", batch)

    def test_step(self, batch, batch_idx):
        self._step("test", batch)

    def teardown(self, stage):
        if self.folder is not None:
            torch.save(dict(self.seen), self.folder / f"rank{self.global_rank}.pt")


def received(folder, datamodule, **changes):
    """Every (epoch, index, label) that training steps of all ranks were given."""
    folder.mkdir(exist_ok=True)
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 2, "default_root_dir": folder, **changes})
    trainer.fit(Recorder(folder), datamodule=datamodule)
    return [row for file in sorted(folder.glob("rank*.pt")) for row in torch.load(file)["train"]]


def label_by_index(rows):
    labels = {index: label for _, index, label in rows}
    assert all(labels[index] == label for _, index, label in rows), "the label of a sample changed during training"
    return labels


def assert_randomised(rows, size=SIZE, epochs=2):
    """One label per sample for the whole training, as frequent as before, agreeing with the true ones by chance."""
    labels = label_by_index(rows)
    true = {index: int(TRUE[index]) for index in labels}
    assert {epoch for epoch, _, _ in rows} == set(range(epochs))
    assert len(labels) == size
    assert Counter(labels.values()) == Counter(true.values())
    agreement = sum(labels[index] == true[index] for index in labels) / size
    assert agreement < 0.1 + 4 * (0.09 / size) ** 0.5  # four standard errors above chance


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
def test_spawned_workers_give_the_labels_of_one_process(tmp_path):
    load = partial(DataLoader, batch_size=32, num_workers=2, multiprocessing_context="spawn", persistent_workers=True)
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


class Kept(DataLoader):
    """A loader with an argument of its own that it does not keep."""

    def __init__(self, data, note, **others):
        super().__init__(data, **others)
        self.length_of_note = len(note)


def collate(samples):
    return default_collate(samples)


def prepare_worker(number):
    get_worker_info().dataset.number_of_worker = number


def test_the_loader_is_rebuilt_with_everything_it_had():
    data, generator = digits(), torch.Generator()
    sampler = RandomSampler(data, generator=generator)
    given = {
        "batch_size": 7,
        "sampler": sampler,
        "num_workers": 2,
        "collate_fn": collate,
        "drop_last": True,
        "timeout": 3.0,
        "worker_init_fn": prepare_worker,
        "multiprocessing_context": "fork",
        "generator": generator,
        "prefetch_factor": 5,
        "persistent_workers": True,
        "in_order": False,
    }
    loader = RandomLabelDataModule(DataLoader(data, **given)).train_dataloader()
    assert isinstance(loader.dataset, RandomLabelDataset)
    assert loader.multiprocessing_context.get_start_method() == given.pop("multiprocessing_context")
    for name, value in given.items():
        assert getattr(loader, name) is value, name


def test_a_worker_init_fn_reaches_the_data_set_itself():
    loader = DataLoader(digits(), 32, num_workers=2, worker_init_fn=prepare_worker, collate_fn=lambda samples: (0, 0))
    data = RandomLabelDataset(digits())
    data.number_of_worker = 1
    assert data.dataset.number_of_worker == data.number_of_worker == 1
    assert len(list(RandomLabelDataModule(loader, fraction=0).train_dataloader())) == 10


def test_a_loader_class_with_its_own_arguments_is_kept(tmp_path):
    datamodule = RandomLabelDataModule(Digits(load=partial(Kept, note="four", batch_size=32)))
    assert_randomised(received(tmp_path, datamodule))
    trainer = datamodule.trainer
    assert type(trainer.train_dataloader) is Kept
    assert trainer.train_dataloader.length_of_note == 4


class Own(DataLoader):
    def __init__(self, **others):
        super().__init__(digits(), 32, **others)


def test_a_loader_that_makes_its_own_data_set_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"`Own`.*dataset"):
        received(tmp_path, RandomLabelDataModule(Digits(load=lambda data: Own())))


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


# ------------------------------------------------------------------------------------------------------------- loaders


def test_plain_loaders_train_with_their_validation_loader(tmp_path):
    model = Recorder(tmp_path)
    datamodule = RandomLabelDataModule(DataLoader(digits(), 32), val_dataloaders=DataLoader(validation_digits(), 64))
    pl.Trainer(**QUIET, max_epochs=2, default_root_dir=tmp_path).fit(model, datamodule=datamodule)
    assert_randomised(model.seen["train"])
    assert model.seen["val"]


@pytest.mark.parametrize("combined", [dict, partial(CombinedLoader, mode="max_size")], ids=["dictionary", "combined"])
def test_several_training_loaders_are_all_randomised(tmp_path, combined):
    class Pairs(Recorder):
        def training_step(self, batch, batch_idx):
            parts = batch[0] if isinstance(batch, tuple) else batch
            return sum(self._step(f"train {name}", part) for name, part in parts.items())

    halves = [Subset(digits(), range(160)), Subset(digits(), range(160, 320))]
    given = combined({"a": DataLoader(halves[0], 32), "b": DataLoader(halves[1], 32)})

    class Two(Digits):
        def train_dataloader(self):
            return given

    model, datamodule = Pairs(), RandomLabelDataModule(Two())
    trainer = pl.Trainer(
        **QUIET, max_epochs=2, reload_dataloaders_every_n_epochs=1, limit_val_batches=0, default_root_dir=tmp_path
    )
    trainer.fit(model, datamodule=datamodule)
    for name in "ab":
        assert_randomised(model.seen[f"train {name}"], 160)
    assert len(datamodule.random_labels["train"]) == 2


class ByClass(Sampler):
    """Draws the classes in turn, as samplers for metric learning do."""

    def __init__(self, labels):
        self.by_class = {int(c): (labels == c).nonzero().flatten().tolist() for c in labels.unique()}

    def __len__(self):
        return SIZE

    def __iter__(self):
        return iter([indices[i % len(indices)] for i in range(SIZE // 10) for indices in self.by_class.values()])


def weighted(data):
    weights = torch.where(data.tensors[1] == 1, 9.0, 0.1)
    return DataLoader(data, 32, sampler=WeightedRandomSampler(weights, 200))


@pytest.mark.parametrize(
    ("load", "name", "count"),
    [
        (weighted, "WeightedRandomSampler", 200),
        (lambda data: DataLoader(data, 32, sampler=ByClass(data.tensors[1])), "ByClass", SIZE),
        (
            lambda data: DataLoader(data, batch_sampler=BatchSampler(ByClass(data.tensors[1]), 32, False)),
            "ByClass",
            SIZE,
        ),
    ],
    ids=["weighted", "by class", "batches by class"],
)
def test_samplers_that_know_the_labels_are_replaced_by_uniform_ones(load, name, count):
    with pytest.warns(UserWarning, match=f"`{name}` draws train samples by their true labels"):
        loader = RandomLabelDataModule(load(digits())).train_dataloader()
    assert type(loader.sampler) is RandomSampler
    indices = torch.cat([indices for _, _, indices in loader])
    assert len(indices) == len(indices.unique()) == count
    assert loader.batch_size == 32


def test_samplers_that_do_not_know_the_labels_stay():
    class ByLength(Sampler):
        def __init__(self, lengths):
            self.lengths = lengths

        def __len__(self):
            return len(self.lengths)

        def __iter__(self):
            return iter(np.argsort(self.lengths).tolist())

    sampler = ByLength((digits().tensors[0].flatten(1) > 0).sum(1).tolist())
    loader = DataLoader(digits(), 32, sampler=sampler)
    assert RandomLabelDataModule(loader).train_dataloader().sampler is sampler


class Stream(IterableDataset):
    """Digits without an index, in another order at each pass, shared among workers."""

    def __iter__(self):
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        order = torch.randperm(SIZE) if worker is None else torch.arange(SIZE)
        data = digits()
        yield from (data[index] for index in order[start::step])


def index_of(sample):
    return int(sample[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_are_randomised_by_sample_id(tmp_path, workers):
    load = partial(DataLoader, batch_size=32, num_workers=workers)
    assert_randomised(received(tmp_path, RandomLabelDataModule(Digits(Stream, load), sample_id=index_of)))


def test_streams_are_refused_without_a_sample_id():
    with pytest.raises(MisconfigurationException, match=r"Stream is an IterableDataset.*sample_id="):
        RandomLabelDataModule(DataLoader(Stream(), 32)).train_dataloader()


def test_sample_ids_that_repeat_are_refused():
    with pytest.raises(MisconfigurationException, match="gives 0 to two samples"):
        RandomLabelDataModule(DataLoader(Stream(), 32), sample_id=lambda sample: 0).train_dataloader()


def test_hugging_face_data_sets_are_randomised(tmp_path):
    datasets, arrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    images, labels, indices = digits().tensors
    table = arrow.table({"image": images.tolist(), "label": labels.tolist(), "index": indices.tolist()})
    data = datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint="digits").with_format("torch")
    for name, make in {"whole": lambda: data, "subset": lambda: Subset(data, range(SIZE))}.items():
        rows = received(tmp_path / name, RandomLabelDataModule(Digits(make), target_key="label"))
        assert_randomised(rows)


# --------------------------------------------------------------------------------------------------------------- proof


def test_the_agreement_is_measured_said_and_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    datamodule = RandomLabelDataModule(Digits())
    trainer = pl.Trainer(**{**QUIET, "logger": CSVLogger(tmp_path)}, max_epochs=1, log_every_n_steps=1)
    trainer.fit(Recorder(), datamodule=datamodule)
    labels = datamodule.random_labels["train"][0]
    agreement = sum(int(labels[index]) == int(TRUE[index]) for index in range(SIZE)) / SIZE
    assert datamodule.label_agreement["train"] == pytest.approx(agreement)
    assert datamodule.chance_agreement["train"] == pytest.approx(float(((TRUE.bincount() / SIZE) ** 2).sum()))
    assert f"train labels are randomised: {agreement:.1%} of 320 agree with the true ones" in caplog.text
    assert "as frequent as before" in caplog.text
    logged = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert "random_labels/train_agreement" in logged


def test_a_collate_function_that_brings_the_true_labels_back_is_refused():
    def restoring(samples):
        images, _, indices = default_collate(samples)
        return images, TRUE[indices], indices

    with pytest.raises(MisconfigurationException, match="true labels still arrive"):
        RandomLabelDataModule(DataLoader(digits(), 32, collate_fn=restoring)).train_dataloader()


class Mixed(Batched):
    def __getitem__(self, index):
        image, _, index = super().__getitem__(index)
        return image, torch.rand(10), index


def test_data_sets_that_draw_their_labels_are_refused():
    with pytest.raises(MisconfigurationException, match="differs from one reading to the next"):
        RandomLabelDataModule(DataLoader(Mixed(), 32)).train_dataloader()


class Reading(Dataset):
    """Counts how many samples are read; its list of targets may be wrong."""

    def __init__(self, targets):
        self.targets, self.inner, self.reads = targets, digits(), 0

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        self.reads += 1
        image, label, index = self.inner[index]
        return image, int(label), index


def test_labels_are_taken_from_the_list_of_a_data_set_without_reading_it():
    data = Reading(TRUE.tolist())
    RandomLabelDataModule(DataLoader(Subset(data, range(300)), 32)).train_dataloader()
    assert data.reads < 100


def test_a_wrong_list_of_labels_is_not_believed():
    remapped = Reading([0 if label == 3 else label for label in TRUE.tolist()])  # right for nine classes
    loader = RandomLabelDataModule(DataLoader(remapped, 32)).train_dataloader()
    assert torch.equal(loader.dataset.random_labels.true, TRUE)


def test_labels_are_not_read_again_when_loaders_are_asked_for_again():
    data = Reading(None)
    datamodule = RandomLabelDataModule(DataLoader(data, 32))
    first = datamodule.train_dataloader().dataset
    reads = data.reads
    assert datamodule.train_dataloader().dataset is first
    assert data.reads == reads


# ----------------------------------------------------------------------------------------------------------- bad input


def tensors(labels):
    return TensorDataset(torch.zeros(len(labels), 2), labels)


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (TensorDataset(torch.zeros(50, 2)), {}, "no label at target_key=1: the sample is a tuple of 1"),
        (Named(), {}, r"a dict with the keys 'image', 'label', 'index'\. Pass target_key="),
        (Named(), {"target_key": "class"}, "no label at target_key='class'"),
        (tensors(torch.zeros(50, dtype=torch.long)), {}, "all 50 samples have the label 0: with one class"),
        (tensors(torch.rand(50)), {"mode": "uniform"}, "labels are not classes: 50 distinct floating-point values"),
        (tensors(torch.arange(50) % 2), {"fraction": 0.02}, "no label changed: fraction=0.02 of 50 samples is 1"),
        (tensors(torch.zeros(0)), {}, "TensorDataset.* is empty"),
        (RandomLabelDataset(digits()), {}, "randomised already"),
        (Subset(RandomLabelDataset(digits()), range(9)), {}, "randomised already"),
    ],
)
def test_labels_that_cannot_be_randomised_are_refused(data, arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        RandomLabelDataModule(DataLoader(data, 32), **arguments).train_dataloader()


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


def test_batches_that_are_no_loader_are_refused():
    inner = Digits(load=lambda data: [data[0]])
    inner.trainer, inner.training = object(), digits()
    with pytest.raises(MisconfigurationException, match=r"is not a `torch\.utils\.data\.DataLoader`"):
        RandomLabelDataModule(inner).train_dataloader()


def test_regression_labels_are_permuted_with_a_note(caplog):
    caplog.set_level(logging.INFO)
    values = torch.rand(100)
    loader = RandomLabelDataModule(DataLoader(tensors(values), 100)).train_dataloader()
    _, permuted = next(iter(loader))
    assert not torch.equal(permuted, values)
    assert torch.equal(permuted.sort().values, values.sort().values)
    assert "look continuous (regression)" in caplog.text


def test_a_class_that_dominates_is_pointed_out():
    with pytest.warns(UserWarning, match="96% of the randomised train labels are the true ones by chance"):
        RandomLabelDataModule(DataLoader(tensors((torch.arange(1000) < 20).long()), 100)).train_dataloader()
