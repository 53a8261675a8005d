import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import attribution, parameter_randomization_test
from lightning_sanity.quality import log_sum_exp_pool, smooth


class Functional(nn.Module):
    """Rectifiers as functions and in place, one bounded, and pools of all sorts."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 3, 2, padding=1)
        x = torch.relu_(self.second(x))
        x = F.relu6(4 * torch.max_pool2d(x, (2, 1)))
        return self.head(F.adaptive_max_pool2d(x, 1).flatten(1))


def test_sharp_smoothing_gives_the_original_outputs(digits_network):
    model, images, _ = digits_network
    assert torch.allclose(smooth(model, 1e4, 1e4)(images[:16]), model(images[:16]), atol=1e-2)


def test_sharp_smoothing_reaches_functional_inplace_and_bounded_calls():
    model, images = Functional(), torch.randn(4, 1, 12, 12)
    assert torch.allclose(smooth(model, 1e5, 1e5)(images), model(images), atol=1e-3)


@pytest.mark.parametrize(("beta", "sharpness"), [(2.0, None), (None, 2.0)])
def test_either_replacement_changes_the_outputs_alone(beta, sharpness):
    model, images = Functional(), torch.randn(4, 1, 12, 12)
    assert not torch.allclose(smooth(model, beta, sharpness)(images), model(images), atol=1e-3)


def test_softplus_takes_the_place_of_each_kind_of_rectifier():
    x = torch.linspace(-3, 9, 40)[None]
    for rectifier, expected in (
        (nn.ReLU(), F.softplus(x, 2)),
        (nn.ReLU6(), F.softplus(x, 2) - F.softplus(x - 6, 2)),
        (nn.Hardtanh(0, 1), F.softplus(x, 2) - F.softplus(x - 1, 2)),
    ):
        assert torch.allclose(smooth(nn.Sequential(nn.Identity(), rectifier), 2.0)(x), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        ((2, 2), (2, 2), (0, 0), (1, 1), False),
        ((3, 2), (2, 1), (1, 0), (1, 1), False),
        ((3, 3), (2, 3), (1, 1), (1, 1), True),
        ((2, 2), (3, 2), (1, 0), (1, 2), True),
        ((2, 2), (2, 2), (1, 1), (1, 1), True),
    ],
)
def test_log_sum_exp_pool_matches_a_slow_loop_and_bounds_the_maximum(kernel, stride, padding, dilation, ceil_mode):
    x = torch.randn(2, 3, 11, 10, dtype=torch.float64)
    maxima = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
    found = log_sum_exp_pool(x, kernel, stride, padding, dilation, ceil_mode, sharpness=3.0)
    assert found.shape == maxima.shape
    expected = torch.empty_like(maxima)
    for row in range(maxima.shape[2]):
        for column in range(maxima.shape[3]):
            inside = [
                x[:, :, i, j]
                for i in (row * stride[0] - padding[0] + a * dilation[0] for a in range(kernel[0]))
                for j in (column * stride[1] - padding[1] + b * dilation[1] for b in range(kernel[1]))
                if 0 <= i < 11 and 0 <= j < 10
            ]
            expected[:, :, row, column] = sum((3 * value).exp() for value in inside).log() / 3
    assert torch.allclose(found, expected)
    above = found - maxima
    assert above.min() > -1e-12
    assert above.max() < math.log(math.prod(kernel)) / 3 + 1e-12


@pytest.mark.parametrize("count", [1, 3])
def test_log_sum_exp_pool_works_in_other_dimensions(count):
    x = torch.randn(2, 3, *[6] * count, dtype=torch.float64)
    pool = {1: nn.MaxPool1d, 3: nn.MaxPool3d}[count](2)
    assert torch.allclose(smooth(nn.Sequential(pool), None, 1e5)(x), pool(x), atol=1e-3)


def test_gradient_of_a_smoothed_network_has_no_kinks():
    x = torch.tensor([[-0.2, 0.0, 0.3]], requires_grad=True)
    smooth(nn.Sequential(nn.ReLU()), 2.0)(x).sum().backward()
    assert torch.allclose(x.grad, torch.sigmoid(2 * x.detach()))


def test_smoothing_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    smoothed = smooth(model)
    with torch.no_grad():
        smoothed.model[0].weight.zero_()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_smoothed_networks_can_be_randomised_and_explained(digits_network):
    model, images, _ = digits_network
    smoothed = smooth(model, 10.0, 10.0)
    methods = {"local": attribution.integrated_gradients_local(n_steps=4)}
    result = parameter_randomization_test(smoothed, images[:8], methods=methods, trials=2, repeats=1, pictures=False)
    assert result.coverage.share == 1.0
    assert result.verdicts["local"].psi > 0.5


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (nn.Sequential(nn.ReLU()), {"softplus_beta": 0}, "softplus_beta must be a positive number or None, not 0"),
        (nn.Sequential(nn.ReLU()), {"logsumexp": math.inf}, "logsumexp must be a positive number"),
        (nn.Sequential(nn.ReLU()), {"softplus_beta": None, "logsumexp": None}, "nothing to replace"),
    ],
)
def test_smoothing_refuses_what_has_no_meaning(model, settings, message):
    with pytest.raises(ValueError, match=message):
        smooth(model, **settings)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GELU(), "calls neither a rectifier nor a maximum pool"),
        (nn.MaxPool2d(2, return_indices=True), "returns the places of maxima"),
        (nn.AdaptiveMaxPool2d(3), "windows of several sizes"),
    ],
)
def test_smoothing_says_what_it_cannot_replace(layer, message):
    with pytest.raises(ValueError, match=message):
        smooth(nn.Sequential(layer))(torch.rand(2, 1, 8, 8))
