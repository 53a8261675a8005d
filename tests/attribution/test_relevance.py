"""Layer-wise relevance propagation against zennit and the gradient."""

import pytest
import torch
from made_networks import Functional, cnn
from reference import error
from torch import nn
from torch.nn import functional as F
from torchvision import models

from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.relevance import lrp_epsilon


def test_lrp_epsilon_is_input_times_gradient_on_rectifiers(batch):
    pytest.importorskip("zennit")
    model = models.resnet18(num_classes=5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    model, x = model.double(), torch.randn(2, 3, 32, 32).double()
    target = model(x).argmax(1)
    found = lrp_epsilon(1e-9)(model, x, target)
    assert error(found, resolve("input_x_gradient")(model, x, target)) < 1e-3  # zennit stabilises sums by 1e-6


@pytest.mark.parametrize("name", ["lrp_z_plus", "lrp_alpha_beta", "excitation_backprop"])
def test_relevance_matches_zennit(batch, name):
    zennit = pytest.importorskip("zennit.composites")
    from zennit.attribution import Gradient
    from zennit.rules import AlphaBeta, Norm, Pass, ZPlus
    from zennit.types import Activation, AvgPool, Linear

    model, (x, target) = cnn(), batch
    rule = {
        "lrp_z_plus": ZPlus(),
        "lrp_alpha_beta": AlphaBeta(alpha=2, beta=1),
        "excitation_backprop": ZPlus(zero_params="bias"),
    }[name]
    composite = zennit.LayerMapComposite([(Activation, Pass()), (AvgPool, Norm()), (Linear, rule)])
    outputs = model(x).detach()
    chosen = F.one_hot(target, 5) * (1 if name == "excitation_backprop" else outputs)
    with Gradient(model, composite) as attributor:
        _, theirs = attributor(x, chosen.to(x))
    torch.testing.assert_close(resolve(name)(model, x, target), theirs, atol=1e-6, rtol=1e-4)


def test_excitation_backprop_is_a_distribution():
    pytest.importorskip("zennit")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.ReLU(), nn.Linear(9, 5))
    x, target = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 2])
    found = resolve("excitation_backprop")(model, x, target)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_relevance_refuses_functional_relus_with_the_reason(batch):
    pytest.importorskip("zennit")
    assert "relu" in resolve("lrp_z_plus").refuses(Functional(), *batch)


def test_relevance_refuses_batch_norm_that_follows_no_linear_layer(batch):
    pytest.importorskip("zennit")
    model = nn.Sequential(nn.BatchNorm2d(3), *cnn()).eval()
    model[0].running_mean += 0.3
    assert "'0' does not follow a linear layer" in resolve("lrp_z_plus").refuses(model, *batch)
