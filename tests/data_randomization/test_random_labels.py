"""Which labels are drawn, and how one takes the place of another in a sample."""

import copy
import dataclasses
import pickle
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lightning_sanity.cli import demo
from lightning_sanity.data_randomization.label_access import LabelError, all_labels, identity, label_of, with_label
from lightning_sanity.data_randomization.random_labels import RandomLabelDataset, draw

LABELS = demo.digits()[0].tensors[1].tolist()


class Listed(Dataset):
    """A data set of given samples."""

    def __init__(self, samples):
        self.given = samples

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        return self.given[index]


def test_permuting_keeps_how_often_each_label_occurs():
    labels = draw(LABELS)
    assert torch.equal(labels.true.bincount(), labels.assigned.bincount())
    assert labels.agreement == pytest.approx(labels.chance, abs=4 * (0.09 / len(LABELS)) ** 0.5)


def test_uniform_labels_are_equally_frequent_however_rare_a_class_is():
    labels = draw([0] * 9000 + [1] * 900 + [2] * 100, mode="uniform")
    assert labels.assigned.bincount() / 10000 == pytest.approx(torch.full((3,), 1 / 3), abs=0.02)
    assert labels.agreement == pytest.approx(labels.chance, abs=0.02)
    assert labels.chance == pytest.approx(1 / 3)


@pytest.mark.parametrize("mode", ["permute", "uniform", "fraction"])
@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_a_share_of_the_labels_is_randomised(mode, fraction):
    labels = draw(LABELS, mode=mode, fraction=fraction)
    assert labels.chance == pytest.approx(1 - 0.9 * fraction, abs=0.01)
    assert labels.agreement == pytest.approx(labels.chance, abs=0.03)


def test_a_larger_share_contains_the_smaller_one():
    changed = [
        set((d.true != d.assigned).nonzero().flatten().tolist()) for d in (draw(LABELS, fraction=f) for f in (0.3, 1))
    ]
    order = torch.arange(len(LABELS))
    small, large = (draw(order, fraction=f) for f in (0.3, 0.6))
    moved = [set((each.true != each.assigned).nonzero().flatten().tolist()) for each in (small, large)]
    assert len(moved[0] - moved[1]) <= 3  # of 420; the rest kept its own label by chance
    assert len(changed[0]) < len(changed[1])


def test_seeds_draw_different_labels():
    assert draw(LABELS, seed=0).digest == draw(LABELS, seed=0).digest != draw(LABELS, seed=1).digest


@pytest.mark.parametrize(
    "labels",
    [
        torch.eye(10)[LABELS],
        [np.eye(10, dtype=np.float32)[label] for label in LABELS],
        [f"digit {label}" for label in LABELS],
        [torch.tensor(label) for label in LABELS],
        [np.int64(label) for label in LABELS],
        (torch.tensor(LABELS)[:, None] >> torch.arange(4)) & 1,  # multi-label: the binary digits
    ],
    ids=["one-hot", "numpy rows", "strings", "tensors", "numpy scalars", "multi-label"],
)
def test_labels_of_every_form_are_permuted_alike(labels):
    data = RandomLabelDataset(Listed([(0, label) for label in labels]))
    plain = draw(LABELS)
    assert len(data.random_labels.classes) == 10
    assert not data.random_labels.continuous
    assert data.random_labels.agreement == plain.agreement
    for index in range(20):
        given, label = labels[index], data[index][1]
        source = LABELS.index(int(plain[index]))
        assert type(label) is type(given)
        assert getattr(label, "dtype", None) == getattr(given, "dtype", None)
        assert identity(label) == identity(labels[source])


def test_class_indices_in_floating_point_are_classes():
    assert not draw([float(label) for label in LABELS]).continuous
    assert draw(torch.rand(100)).continuous
    assert draw(list(np.random.default_rng(0).normal(size=(100, 3)))).continuous


Pair = namedtuple("Pair", "image label")


@dataclasses.dataclass
class Sample:
    image: int
    label: int


@pytest.mark.parametrize(
    ("sample", "path"),
    [
        ((7, 1), (1,)),
        ((7, 1), (-1,)),
        ([7, 1], (1,)),
        (Pair(7, 1), (1,)),
        (Pair(7, 1), ("label",)),
        (Sample(7, 1), ("label",)),
        (SimpleNamespace(image=7, label=1), ("label",)),
        ({"image": 7, "label": 1}, ("label",)),
        ((7, {"box": None, "class": 1}), (1, "class")),
        ({"annotation": (None, [0, 1])}, ("annotation", 1, 1)),
    ],
)
def test_the_label_alone_is_replaced_in_a_copy(sample, path):
    before = copy.deepcopy(sample)
    changed = with_label(sample, path, 5)
    assert label_of(changed, path) == 5
    assert sample == before
    assert type(changed) is type(sample)
    assert with_label(changed, path, 1) == before


def test_other_parts_of_a_sample_are_the_same_objects():
    image = torch.rand(3)
    data = RandomLabelDataset(Listed([(image, i % 5) for i in range(50)]))
    assert all(data[index][0] is image for index in range(50))


def test_in_place_changes_of_a_label_stay_with_the_sample():
    data = RandomLabelDataset(Listed([(0, torch.eye(5)[i % 5]) for i in range(50)]))
    before = [data[index][1].clone() for index in range(50)]
    for index in range(50):
        if not data.random_labels.keeps(index):
            data[index][1].zero_()
    assert all(torch.equal(data[index][1], before[index]) for index in range(50))


@pytest.mark.parametrize("index", [[0, 3, 5], slice(0, 9, 4), torch.tensor([2, 1]), np.array([4])])
def test_several_indices_at_once_give_a_batch(index):
    data = RandomLabelDataset(TensorDataset(torch.rand(100, 2), torch.tensor(LABELS[:100])))
    assert torch.equal(data[index][1], torch.stack([data[i][1] for i in range(100)])[index])


@pytest.mark.parametrize("index", [np.int64(7), torch.tensor(7), -93])
def test_an_index_may_be_any_integer(index):
    data = RandomLabelDataset(TensorDataset(torch.rand(100, 2), torch.tensor(LABELS[:100])))
    assert int(data[index][1]) == data.random_labels[7]


def test_a_copy_and_a_pickle_give_the_same_labels():
    data = RandomLabelDataset(TensorDataset(torch.rand(100, 2), torch.tensor(LABELS[:100])))
    for again in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert [int(label) for _, label in again] == [int(label) for _, label in data]


def test_attributes_reach_the_data_set_but_true_labels_do_not_leak():
    inner = Listed([(0, i % 5) for i in range(50)])
    inner.classes, inner.targets = list("abcde"), [i % 5 for i in range(50)]
    data = RandomLabelDataset(inner)
    assert data.classes == list("abcde")
    with pytest.raises(AttributeError, match=r"'targets' holds the true labels.*\.dataset\.targets"):
        data.targets  # noqa: B018


def test_known_labels_need_no_reading():
    class Unreadable(Listed):
        def __getitem__(self, index):
            raise AssertionError("was read")

    assert len(RandomLabelDataset(Unreadable([None] * 50), labels=[i % 5 for i in range(50)]).random_labels) == 50


def test_labels_are_read_by_workers():
    samples = [(torch.rand(4), torch.tensor(i % 5)) for i in range(200)]
    assert [int(label) for label in all_labels(Listed(samples), (1,), loading={"num_workers": 2})] == [
        i % 5 for i in range(200)
    ]


def test_whole_annotations_kept_by_a_data_set_are_no_obstacle():
    data = Listed([(0, {"class": i % 5, "box": [0, 1]}) for i in range(50)])
    data.targets = [target for _, target in data.given]
    assert list(all_labels(data, (1, "class"))) == [i % 5 for i in range(50)]
    with pytest.raises(LabelError, match=r"the label is a dict with the keys 'class', 'box': name the part"):
        all_labels(data, (1,))


ONES = TensorDataset(torch.arange(100), torch.tensor(LABELS[:100]))
LISTED = {
    "oversampled": Subset(ONES, [*range(100), *range(30), *range(30)]),
    "counted from the end": Subset(ONES, [*range(100), *range(-20, 0)]),
    "overlapping subsets": ConcatDataset([Subset(ONES, range(70)), Subset(ONES, range(40, 100))]),
    "a subset of a subset": Subset(Subset(ONES, range(0, 100, 2)), [*range(50), *range(50)]),
    "twice the whole": ConcatDataset([ONES, ONES]),
}


@pytest.mark.parametrize("dataset", LISTED.values(), ids=LISTED)
@pytest.mark.parametrize("mode", ["permute", "uniform"])
def test_a_sample_that_is_listed_several_times_has_one_label(dataset, mode):
    data = RandomLabelDataset(dataset, mode=mode)
    given = {}
    for index in range(len(data)):
        sample, label = data[index]
        assert given.setdefault(int(sample), int(label)) == int(label)
    true = [LABELS[sample] for sample in given]
    assert 0 < sum(a == b for a, b in zip(given.values(), true, strict=True)) < 0.4 * len(given)


def test_samples_that_are_listed_once_get_the_labels_of_their_places():
    subset = Subset(ONES, range(99, -1, -1))
    assert torch.equal(RandomLabelDataset(subset).random_labels.assigned, draw(LABELS[99::-1]).assigned)
