"""What rounding may excuse, and what it may not."""

import pytest
import torch
from torch import nn

from lightning_sanity.attribution import resolve
from lightning_sanity.engine.rounding import in_double, relative, rounding_explains
from lightning_sanity.explanation.maps import Explanation


def test_a_difference_is_a_share_of_the_plain_maps_norm():
    assert relative(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("off", "error", "excused"),
    [(0.01, 0.01, True), (0.039, 0.01, True), (0.05, 0.01, False), (0.2, 0.5, True), (0.3, 0.5, False)],
)
def test_maps_may_lie_apart_as_far_as_the_plain_one_from_the_exact_one(off, error, excused):
    plain = torch.tensor([1.0, 0.0])
    assert rounding_explains(off, plain, lambda: plain + torch.tensor([0.0, error])) is excused


def test_undefined_maps_and_devices_without_doubles_are_no_excuse():
    plain = torch.ones(2)

    def fails():
        raise TypeError("no float64 here")

    assert not rounding_explains(0.01, plain, fails)
    assert not rounding_explains(float("nan"), plain, lambda: plain)
    assert not rounding_explains(0.01, plain, lambda: plain * torch.nan)


def test_the_exact_map_is_that_of_the_same_copies():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Flatten(), nn.Linear(144, 3)).eval()
    what = Explanation(model, torch.rand(3, 1, 8, 8), torch.arange(3))
    smoothgrad = resolve("smoothgrad")
    function = smoothgrad.prepare(model, what.inputs) if smoothgrad.prepare else smoothgrad.attribute
    maps = []
    for each in (what, in_double(what)):
        torch.manual_seed(1)
        maps.append(function(each.model, each.inputs, each.target).detach())
    assert maps[1].dtype is torch.float32
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-6)
    assert next(model.parameters()).dtype is torch.float32
