"""Layer-wise relevance propagation against zennit, captum and the gradient, on networks as they are published."""

import copy
import re

import pytest
import torch
from made_networks import Functional, as_modules
from reference import error
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.resnet import BasicBlock

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.relevance import lrp_epsilon

NAMES = ("lrp_epsilon", "lrp_z_plus", "lrp_alpha_beta", "excitation_backprop")


def moved(model):
    """Statistics and scales of normalisation layers as training might have left them."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model.double().eval()


def by_zennit(name, model, x, target):
    composites, layer = pytest.importorskip("zennit.composites"), pytest.importorskip("zennit.layer")
    from zennit.attribution import Gradient
    from zennit.rules import AlphaBeta, Epsilon, Norm, Pass, ZPlus
    from zennit.torchvision import ResNetCanonizer
    from zennit.types import Activation, AvgPool, BatchNorm, Linear

    rule = dict(zip(NAMES, (Epsilon(), ZPlus(), AlphaBeta(), ZPlus(zero_params="bias")), strict=True))[name]
    passing, summed = (
        [(kind, Pass()) for kind in (Activation, BatchNorm)],
        [(kind, Norm()) for kind in (layer.Sum, AvgPool)],
    )
    composite = composites.LayerMapComposite([*passing, *summed, (Linear, rule)], canonizers=[ResNetCanonizer()])
    model = copy.deepcopy(model)  # its canonizer changes it for good where it fails
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    outputs = model(x).detach()
    start = F.one_hot(target, outputs.shape[1]).to(x) * (1 if name == "excitation_backprop" else outputs)
    with Gradient(model, composite) as attributor:
        return attributor(x, start)[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", ["residual", "squeezenet"])
def test_relevance_has_the_numbers_of_zennit(network, name):
    residual = network == "residual"
    model = moved(
        models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5) if residual else models.squeezenet1_1(num_classes=5)
    )
    x, target = torch.randn(1, 3, 32, 32).double(), torch.tensor([2])
    # zennit leaves a factor of 1 - 5e-6 of every batch normalisation, which small denominators enlarge.
    within = (1e-3 if name == "lrp_epsilon" else 1e-4) if residual else 1e-9
    assert error(resolve(name)(model, x, target), by_zennit(name, model, x, target)) < within


def test_lrp_epsilon_is_input_times_gradient_on_rectifiers():
    model = moved(models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5))
    x = torch.randn(1, 3, 32, 32).double()
    target = model(x).argmax(1)
    assert error(lrp_epsilon(1e-12)(model, x, target), resolve("input_x_gradient")(model, x, target)) < 1e-6


def test_excitation_backprop_is_a_distribution():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.ReLU(), nn.Linear(9, 5))
    x, target = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 2])
    found = resolve("excitation_backprop")(model, x, target)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_function_calls_have_the_rules_of_their_modules(name, batch):
    model = Functional().eval()
    torch.testing.assert_close(resolve(name)(model, *batch), resolve(name)(as_modules(model), *batch))


def vgg():
    """VGG-11 with a small head: the published one has 124 million weights."""
    features = models.vgg.make_layers(models.vgg.cfgs["A"], batch_norm=True)
    return nn.Sequential(
        features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 5)
    )


CONVERTED = {
    "densenet121": 48,
    "mobilenet_v2": 48,
    "efficientnet_b0": 48,
    "vgg11_bn": 32,
    "regnet_y_400mf": 48,
    "mobilenet_v3_small": 48,
    "convnext_tiny": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize("network", CONVERTED)
def test_relevance_applies_to_image_networks_as_they_are(network):
    model, side = moved(vgg() if network == "vgg11_bn" else getattr(models, network)(num_classes=5)), CONVERTED[network]
    x = torch.randn(1, 3, side, side).double()
    for name in NAMES:
        method = resolve(name)
        assert method.refuses(model, x, torch.tensor([1])) is None
        found = method(model, x, torch.tensor([1]))
        assert bool(found.isfinite().all())
        assert bool((found != 0).any())


@pytest.mark.parametrize(
    ("operation", "says"),
    [
        (lambda x: x.cumprod(1), r"no rule for cumprod: pass a zennit composite .*'lightning-sanity\[zennit\]'"),
        (lambda x: torch.fft.rfft(x).abs(), r"no rule for fft_rfft: .*'lightning-sanity\[zennit\]'"),
        (lambda x: x.softmax(1), "no rule for softmax: explain the scores before it"),
    ],
)
def test_an_operation_without_a_rule_is_named_with_the_way_out(operation, says):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 6)

        def forward(self, x):
            return operation(self.first(x))

    found = resolve("lrp_epsilon").refuses(Model().eval(), torch.randn(3, 6), torch.tensor([0, 1, 2]))
    assert re.search(says, found), found
