"""Loaders of all kinds: rebuilt with everything they had, each with random labels."""

from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import CombinedLoader
from recorded_labels import QUIET, SIZE, Digits, Recorder, assert_randomised, digits, received, validation_digits
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from lightning_sanity import RandomLabelDataModule
from lightning_sanity.data_randomization.datamodule import RandomLabelDataset

pytestmark = pytest.mark.filterwarnings("ignore:.*number of training batches")


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


def test_batches_that_are_no_loader_are_refused():
    inner = Digits(load=lambda data: [data[0]])
    inner.trainer, inner.training = object(), digits()
    with pytest.raises(MisconfigurationException, match=r"is not a `torch\.utils\.data\.DataLoader`"):
        RandomLabelDataModule(inner).train_dataloader()


class Balanced(Sampler):
    """Draws every class equally often, and keeps nothing that shows it."""

    def __init__(self, labels):
        rows = [(labels == c).nonzero().flatten() for c in (0, 1)]
        self.__draw = lambda: torch.stack([row[torch.randint(len(row), (SIZE // 2,))] for row in rows], 1).flatten()

    def __len__(self):
        return SIZE

    def __iter__(self):
        return iter(self.__draw().tolist())


class Rows(Sampler):
    """Keeps the indices of each class in a list of lists."""

    def __init__(self, labels):
        self.rows = [(labels == c).nonzero().flatten().tolist() for c in labels.unique()]

    def __len__(self):
        return SIZE

    def __iter__(self):
        return iter([row[i % len(row)] for i in range(SIZE // 10) for row in self.rows])


def rare(labels):
    return (labels == 3).long()


@pytest.mark.parametrize("sampler", [Balanced, Rows])
def test_samplers_that_draw_by_class_are_found_by_what_they_hold_or_draw(sampler):
    images, labels, _ = digits().tensors
    data = TensorDataset(images, rare(labels) if sampler is Balanced else labels)
    loader = DataLoader(data, 32, sampler=sampler(data.tensors[1]))
    with pytest.warns(UserWarning, match=f"`{sampler.__name__}` draws train samples by their true labels"):
        random = RandomLabelDataModule(loader).train_dataloader()
    assert type(random.sampler) is RandomSampler


class Half(Sampler):
    """Draws every second sample, whatever its class."""

    def __len__(self):
        return SIZE // 2

    def __iter__(self):
        return iter(range(0, SIZE, 2))


def test_agreement_is_told_of_the_samples_that_are_drawn():
    datamodule = RandomLabelDataModule(DataLoader(digits(), 32, sampler=Half()))
    loader = datamodule.train_dataloader()
    assert isinstance(loader.sampler, Half)
    labels = datamodule.random_labels["train"][0]
    expected = (labels.true == labels.assigned)[::2].double().mean()
    assert datamodule.label_agreement["train"] == pytest.approx(float(expected))
    assert datamodule.label_agreement["train"] != pytest.approx(labels.agreement)


def test_samples_of_several_loaders_that_get_several_labels_are_told():
    data = digits()
    loaders = [DataLoader(Subset(data, part), 32) for part in (range(200), range(100, SIZE))]
    with pytest.warns(UserWarning, match=r"\d+ train samples are in several loaders and have another random label"):
        RandomLabelDataModule(loaders).train_dataloader()
