"""DeepLIFT and DeepSHAP against captum where it is right, and against completeness where it is not."""

import warnings

import captum.attr as captum
import torch
from made_networks import Functional, as_modules
from reference import error, quietly
from torch import nn
from torchvision import models

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.differences import deeplift, deepshap


def test_deeplift_matches_captum_on_modules(batch):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ELU(), nn.Flatten(), nn.Linear(384, 9), nn.Tanh(),
        nn.Linear(9, 5),
    ).double()  # fmt: skip
    x, target = batch[0].double(), batch[1]
    baseline = torch.randn(1, 3, 12, 12).double()
    theirs = quietly(lambda: captum.DeepLift(model).attribute(x, baseline, target=target))
    assert error(deeplift(baseline)(model, x, target), theirs) < 1e-9
    many = torch.randn(3, 3, 12, 12).double()
    theirs = quietly(lambda: captum.DeepLiftShap(model).attribute(x, many, target=target))
    assert error(deepshap(many)(model, x, target), theirs) < 1e-9


def test_deeplift_is_complete_through_overlapping_pools(batch):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(150, 5)
    ).double()
    gap = deeplift(0.3).completeness(model, batch[0].double(), batch[1])
    assert float(gap.max()) < 1e-9


def test_deeplift_is_complete_after_relu_and_pooling_where_captum_is_not(batch):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(150, 5)).double()
    x, target, baseline = batch[0].double(), batch[1], torch.randn(1, 3, 12, 12).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, missed = captum.DeepLift(model).attribute(x, baseline, target=target, return_convergence_delta=True)
    assert float(missed.abs().max()) > 1e-3
    assert float(deeplift(baseline).completeness(model, x, target).max()) < 1e-9


def test_deeplift_of_functional_relus_is_that_of_modules(batch):
    model = Functional()
    model.first.bias.data += 0.5
    found = deeplift()(model, *batch)
    torch.testing.assert_close(found, deeplift()(as_modules(model), *batch), atol=1e-6, rtol=1e-4)
    assert error(found, resolve("input_x_gradient")(model, *batch)) > 0.05


def test_deeplift_works_on_a_resnet_that_reuses_its_relus():
    model = models.resnet18(num_classes=5).eval()
    x, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    method = deeplift()
    assert method.refuses(model, x, target) is None
    assert float(method.completeness(model, x, target).max()) < 1e-3


def test_deeplift_refuses_what_its_rules_do_not_know(batch):
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(800, 5))

        def forward(self, x):
            return self.layers(x) ** 3

    model = Normalised()
    assert "no rule for group_norm" in deeplift().refuses(model, *batch)
