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


def test_probe_larger_than_the_data_is_refused(imbalanced):
    with pytest.raises(ProbeError, match="probe=200 samples were asked for, but the data set has only 100"):
        probes.form(200, DataLoader(imbalanced, 10))


def test_probe_without_a_validation_set_is_refused():
    with pytest.raises(ProbeError, match="there is none"):
        probes.form(8, None)


def test_inputs_of_different_lengths_are_refused():
    with pytest.raises(ProbeError, match="one common, non-empty first dimension"):
        probes.batch_size((torch.ones(2, 1), torch.ones(3, 1)))
