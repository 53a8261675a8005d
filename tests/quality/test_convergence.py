"""Cosine similarity convergence on networks whose cosines are known, and on a trained one."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity.cli import demo
from lightning_sanity.quality import cosine_similarity_convergence, gaussian_baseline

BASELINE_32 = gaussian_baseline(32)


def pointwise(*weights):
    """1 x 1 convolutions with these matrices, one after the other."""
    network = nn.Sequential(*[nn.Conv2d(w.shape[1], w.shape[0], 1, bias=False) for w in weights])
    for layer, weight in zip(network, weights, strict=True):
        layer.weight.data = weight[:, :, None, None].clone()
    return network


def rectified(depth=3):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.LazyConv2d(8, 3, padding=1), nn.ReLU(inplace=True))]
    network = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4)).eval()
    network(torch.zeros(1, 1, 8, 8))
    return network


@pytest.fixture
def images():
    return torch.rand(4, 1, 8, 8)


@pytest.mark.parametrize("channels", [2, 3, 8, 64])
def test_gaussian_baseline_matches_a_simulation(channels):
    a, b = torch.randn(2, 200_000, channels)
    assert F.cosine_similarity(a, b).abs().median().item() == pytest.approx(gaussian_baseline(channels), abs=0.01)


def test_convergence_keeps_the_angles_that_rotations_keep():
    rotations = [torch.linalg.qr(torch.randn(16, 16)).Q for _ in range(3)]
    found = cosine_similarity_convergence(pointwise(*rotations), torch.rand(4, 16, 12, 12))
    assert (found.start, list(found.cosine)) == ("2", ["1", "0"])
    assert found.cosine["0"] == pytest.approx(found.cosine["1"], abs=1e-6)
    assert found.cosine["0"] == pytest.approx(found.baseline["0"], abs=0.02)


def test_convergence_is_complete_below_a_matrix_of_rank_one():
    weights = [torch.randn(16, 16), torch.outer(torch.randn(16), torch.randn(16)), torch.randn(16, 16)]
    found = cosine_similarity_convergence(pointwise(*weights), torch.rand(2, 16, 4, 4))
    assert found.cosine["1"] < 0.5
    assert found.cosine["0"] == pytest.approx(1, abs=1e-6)


def test_convergence_of_the_rules_differs_with_functional_rectifiers(images):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = rectified()

        def forward(self, x):
            for layer in self.network:
                x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            return x

    functional = Functional()
    for rule in ("gradient", "guided", "deconvnet"):
        found = cosine_similarity_convergence(functional, images, rule=rule)
        expected = cosine_similarity_convergence(functional.network, images, rule=rule)
        assert list(found.cosine.values()) == pytest.approx(list(expected.cosine.values()), abs=1e-6)
    assert len({*found.cosine.values()}) == len(found.cosine)


def test_convergence_starts_where_it_is_told_to(images):
    found = cosine_similarity_convergence(rectified(4), images, layer="5")
    assert (found.start, list(found.cosine), list(found.baseline)) == ("5", ["4", "2", "0"], ["4", "2", "0"])


def test_convergence_is_decided_by_its_seed_alone(images):
    network = rectified()
    torch.manual_seed(1)
    first = cosine_similarity_convergence(network, images, seed=3)
    state = torch.get_rng_state()
    assert cosine_similarity_convergence(network, images, seed=3) == first
    assert cosine_similarity_convergence(network, images, seed=4) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_convergence_leaves_the_model_untouched(images):
    network = rectified().train()
    cosine_similarity_convergence(network, images, rule="guided")
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_convergence_is_nan_where_nothing_arrives():
    class Bypassed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lower, self.dead = pointwise(torch.randn(4, 1), torch.zeros(4, 4))

        def forward(self, x):
            lower = self.lower(x)
            return lower + self.dead(lower)

    found = cosine_similarity_convergence(Bypassed(), torch.rand(2, 1, 4, 4), layer="dead")
    assert math.isnan(found.cosine["lower"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "lrp"}, "unknown rule 'lrp'; choose from: gradient, guided, deconvnet, z_plus"),
        ({"vectors": 1}, "vectors must be a whole number, at least 2, not 1"),
        ({"layer": "nowhere"}, "layer 'nowhere' is not a module"),
        ({"layer": "7"}, "no feature map"),
        ({"layer": "0"}, "no layer with a feature map lies below '0'"),
    ],
)
def test_convergence_refuses_what_has_no_meaning(images, settings, message):
    with pytest.raises(ValueError, match=message):
        cosine_similarity_convergence(rectified(), images, **settings)


def test_convergence_of_a_guided_rule_needs_rectifiers():
    with pytest.raises(ValueError, match="rule 'guided' means nothing on this model: the network has no rectifier"):
        cosine_similarity_convergence(
            pointwise(torch.randn(4, 2), torch.randn(4, 4)), torch.rand(2, 2, 4, 4), rule="guided"
        )


@pytest.fixture(scope="module")
def deep_network():
    """Eight convolutions trained on digits, and 32 validation images."""
    training, validation = demo.digits()
    torch.manual_seed(0)
    layers, channels = [], 1
    for index in range(8):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()]
        channels = 32
        if index in (1, 4):
            layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10))
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    images, labels = training.tensors
    for _ in range(5):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    network.eval()
    held_out, answers = validation.tensors
    assert (network(held_out).argmax(1) == answers).float().mean() > 0.93
    return network, held_out[:32]


def ends(deep_network, rule):
    """Median cosine right below the start, and at the lowest convolution."""
    cosines = list(cosine_similarity_convergence(*deep_network, rule=rule).cosine.values())
    return cosines[0], cosines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["guided", "z_plus"])
def test_convergence_of_rectifying_rules_is_complete_at_the_lowest_convolution(deep_network, rule):
    if rule == "z_plus":
        pytest.importorskip("zennit")
    assert ends(deep_network, rule)[1] > 0.95


@pytest.mark.slow
def test_convergence_of_the_gradient_stays_low(deep_network):
    top, lowest = ends(deep_network, "gradient")
    assert abs(top - BASELINE_32) < 0.15
    assert lowest < 0.85


@pytest.mark.slow
def test_convergence_rises_on_the_way_down_for_guided_backprop(deep_network):
    top, lowest = ends(deep_network, "guided")
    assert top < 0.5 < lowest
