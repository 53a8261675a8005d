import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_sanity.explanation import probe as probes
from lightning_sanity.explanation.probe import ProbeError


@pytest.fixture
def imbalanced():
    labels = torch.tensor([0] * 90 + [1] * 5 + [2] * 5)
    return TensorDataset(torch.arange(100.0)[:, None], labels)


def test_probe_from_an_int_is_balanced_over_classes(imbalanced):
    probe = probes.form(6, DataLoader(imbalanced, 10))
    assert torch.bincount(probe.labels).tolist() == [2, 2, 2]


def test_probe_is_the_same_however_the_loader_shuffles(imbalanced):
    first, second = (probes.form(8, DataLoader(imbalanced, 10, shuffle=True)) for _ in range(2))
    assert first.digest == second.digest
    assert first.ids == second.ids


def test_probe_ids_find_the_same_samples_again(imbalanced):
    probe = probes.form(8, DataLoader(imbalanced, 10))
    assert probes.from_ids(imbalanced, probe.ids).digest == probe.digest


def test_forming_a_probe_leaves_the_random_streams_alone(imbalanced):
    before = torch.get_rng_state()
    probes.form(8, DataLoader(imbalanced, 10, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_probe_from_an_iterable_data_set_takes_its_first_samples():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter((torch.tensor([float(i)]), i % 3) for i in range(50))

    probe = probes.form(6, DataLoader(Stream(), 4))
    assert probe.inputs[0].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert probe.ids is None


@pytest.mark.parametrize(
    "batch", [(torch.ones(3, 2), torch.arange(3)), {"image": torch.ones(3, 2), "label": torch.arange(3)}]
)
def test_probe_reads_tuples_and_dictionaries(batch):
    probe = probes.form(batch, None)
    assert torch.equal(probe.inputs[0], torch.ones(3, 2))
    assert probe.labels.tolist() == [0, 1, 2]


def test_a_probe_of_a_smaller_data_set_is_all_of_it(imbalanced):
    assert len(probes.form(101, DataLoader(imbalanced, 10))) == 100
    assert len(probes.first_of([probes.from_batch(torch.ones(3, 2))], 16)) == 3
    with pytest.raises(ProbeError, match="only 1: every map is compared"):
        probes.form(16, DataLoader(TensorDataset(torch.ones(1, 2)), 1))


@pytest.mark.parametrize("labels", [torch.rand(500), torch.rand(500, 3), torch.randint(2, (500, 4))])
def test_where_labels_are_no_classes_little_more_than_the_probe_is_read(labels):
    class Counting(TensorDataset):
        read = 0

        def __getitem__(self, index):
            Counting.read += 1
            return super().__getitem__(index)

    probe = probes.form(16, DataLoader(Counting(torch.rand(500, 2), labels), 10))
    assert len(probe) == 16
    assert Counting.read <= 20


def test_samples_of_different_sizes_are_refused_with_their_sizes():
    scans = [(torch.rand(1, side, 8), side % 2) for side in (8, 9, 10)]
    with pytest.raises(ProbeError, match=r"\(1, 8, 8\), \(1, 9, 8\), \(1, 10, 8\).*cropped, resized or padded"):
        probes.from_dataset(scans, 3)


A, B, Y = torch.rand(4, 3), torch.rand(4, 2), torch.arange(4)


@pytest.mark.parametrize(
    ("forward", "batch", "inputs", "labels"),
    [
        (lambda a, b: a, (A, B, Y), (A, B), Y),
        (lambda a, b: a, [A, B, Y], (A, B), Y),
        (lambda a, b: a, (A, B), (A, B), None),
        (lambda a, b: a, ((A, B), Y), (A, B), Y),
        (lambda a, b=None: a, (A, Y), (A,), Y),
        (lambda img, site: img, {"img": A, "site": B, "y": Y}, (A, B), Y),
        (lambda site, img: img, {"img": A, "site": B, "y": Y}, (B, A), Y),
        (lambda image, place: image, {"img": A, "site": B, "y": Y}, (A, B), Y),
        (lambda batch: batch, {"img": A, "y": Y}, ({"img": A, "y": Y},), Y),
        (lambda batch: batch, (A, Y), ((A, Y),), Y),
        (lambda x: x, {"image": A, "name": ["a"] * 4, "label": Y}, (A,), Y),
    ],
)
def test_a_batch_is_given_as_the_forward_takes_it(forward, batch, inputs, labels):
    probe = probes.from_batch(probes.as_called(batch, forward))
    torch.testing.assert_close(probe.inputs, inputs)
    torch.testing.assert_close(probe.labels, labels)


def test_probe_without_a_validation_set_is_refused():
    with pytest.raises(ProbeError, match="there is none"):
        probes.form(8, None)


def test_inputs_of_different_lengths_are_refused():
    with pytest.raises(ProbeError, match="one common, non-empty first dimension"):
        probes.batch_size((torch.ones(2, 1), torch.ones(3, 1)))
