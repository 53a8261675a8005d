"""Whatever module is brought is measured, or refused with what to do instead."""

import re

import pytest
import torch
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.explanation.inputs import as_tensors
from lightning_sanity.explanation.preparation import differentiable_recurrence
from tests.made_modules import IMAGES, OTHER_WEIGHTS, REFUSED, WORKS, net

METHODS = ["gradient", "integrated_gradients", "occlusion"]


def measured(model, inputs, target):
    options = {"trials": 1, "repeats": 1, "controls": False, "pictures": False}
    return parameter_randomization_test(model, inputs, target, methods=METHODS, **options)


@pytest.fixture(scope="module")
def plain():
    return measured(net(), IMAGES, torch.arange(6) % 3)


def test_thirty_kinds_are_tried():
    assert len(WORKS) + len(REFUSED) >= 30


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", WORKS)
def test_a_module_of_this_kind_is_measured(plain, kind):
    model, inputs = WORKS[kind]()
    result = measured(model, inputs, None if kind == "one score (N,)" else torch.arange(6) % 3)
    assert {name for name, _ in result.curves} == set(METHODS)
    assert result.coverage.share == 1
    if kind not in OTHER_WEIGHTS:
        for name in METHODS:
            mine, theirs = result.trained_maps[name].int(), plain.trained_maps[name].int()  # of 256 shades
            assert int((mine - theirs).abs().max()) <= 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_a_module_of_this_kind_is_refused_with_what_to_do(kind):
    make, said = REFUSED[kind]
    model, inputs = make()
    assert re.search(said, reason_of(model, inputs))


def reason_of(model, inputs):
    """What the test says against it, as an error or in the verdicts."""
    try:
        result = measured(model, inputs, torch.arange(len(inputs)) % 3)
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return " ".join(verdict.reason for verdict in result.verdicts.values())


def test_what_is_noted_of_inputs_that_had_to_be_changed():
    def notes(kind):
        model, inputs = WORKS[kind]()
        return " ".join(measured(model, inputs, torch.arange(6) % 3).coverage.notes)

    assert "writes into its inputs" in notes("normalisation in place")
    assert "converted to torch.float32" in notes("float64 images")
    assert "as the same numbers in torch.float32" in notes("uint8 images")


def test_inputs_are_the_users_own_after_a_test_of_a_model_that_writes_into_them():
    model, inputs = WORKS["normalisation in place"]()
    before = inputs.clone()
    measured(model, inputs, torch.arange(6) % 3)
    assert torch.equal(inputs, before)


def test_lists_in_a_tuple_reach_the_model_as_lists():
    seen = []
    values, forward = as_tensors(([IMAGES, IMAGES * 2], IMAGES * 3), None)
    forward(lambda pair, single: seen.append((pair, single)), *values)
    torch.testing.assert_close(seen, [([IMAGES, IMAGES * 2], IMAGES * 3)])


def test_of_a_dictionary_in_a_tuple_the_image_is_explained_and_the_rest_rides_along():
    seen = []
    given = {"label": torch.arange(6), "mask": IMAGES > 0.5, "image": IMAGES, "name": ["a"] * 6}
    values, forward = as_tensors((given,), None)
    assert values[0] is IMAGES
    forward(seen.append, *values)
    assert seen[0]["name"] == ["a"] * 6
    assert all(torch.equal(seen[0][key], given[key]) for key in ("label", "mask", "image"))


def test_a_model_of_a_whole_batch_is_measured_as_the_model_of_its_images(plain):
    class OfBatch(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, batch):
            assert len(batch["name"]) > 0
            return self.net(batch["image"])

    batch = {"label": torch.arange(6) % 3, "image": IMAGES, "name": ["a"] * 6}
    result = measured(OfBatch().eval(), (batch,), torch.arange(6) % 3)
    for name in METHODS:
        shades = result.trained_maps[name].int() - plain.trained_maps[name].int()
        assert int(shades.abs().max()) <= 1


@pytest.mark.parametrize(
    ("kind", "device", "off"), [(nn.GRU, "cuda", True), (nn.GRU, "cpu", False), (None, "cuda", False)]
)
def test_cudnn_is_off_for_recurrent_networks_on_a_gpu(kind, device, off):
    model = nn.Sequential(nn.Linear(2, 2), *([kind(2, 2)] if kind else []))
    before = torch.backends.cudnn.enabled
    with differentiable_recurrence(model, torch.device(device)):
        assert torch.backends.cudnn.enabled is (before and not off)
    assert torch.backends.cudnn.enabled is before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recurrent_network_on_a_gpu_is_explained_by_gradients():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.head = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.read(x)[0][:, -1])

    torch.manual_seed(0)
    model, x = Reader().cuda().eval(), torch.randn(6, 10, 3, device="cuda")
    result = measured(model, x, torch.arange(6) % 3)
    assert ("gradient", "spearman") in result.curves
