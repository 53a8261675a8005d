"""Every gradient, map, attention and relevance method on nine kinds of network: it works, or says why it cannot."""

import inspect

import made_families
import pytest
import torch
from made_methods import MINE
from made_networks import Functional
from torch import nn
from torchvision import models

from lightning_sanity import attribution

METHODS = [*MINE, "attention_rollout", "gradient_attention"]
QUICK = {"n_steps": 4, "n_samples": 2, "n_baselines": 2, "max_channels": 3}


def _cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def _vit():
    model = models.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model


SMALL = {"cnn": (_cnn, 16), "functional": (Functional, 16), "vit": (_vit, 32)}
LARGE = ("resnet18", "inception_v3", "mobilenet_v3_small", "densenet121", "convnext_tiny", "swin_t")
ATTENTION = {"attention_rollout", "gradient_attention"}
GUIDED = {"guided_backprop", "deconvnet", "guided_gradcam"}
# Whether these are refused for want of completeness is a matter of the weights, the steps and the baseline.
PATHS = {"integrated_gradients", "integrated_gradients_local", "smooth_integrated_gradients"}
LIFTED = {"deeplift", "deeplift_local", "deepshap", "deepshap_local"}
REFUSED = {
    "cnn": ATTENTION,
    "functional": ATTENTION,
    "resnet18": ATTENTION,
    "inception_v3": ATTENTION | {"cam"},
    "mobilenet_v3_small": ATTENTION | {"cam"},
    "densenet121": ATTENTION,
    "convnext_tiny": ATTENTION | GUIDED | {"cam"},
    "vit": GUIDED | {"cam"},
    "swin_t": ATTENTION | GUIDED,
}
NOT_DEEPLIFT = {"convnext_tiny": {"deeplift", "deeplift_local"}, "vit": LIFTED}


def table_of(name):
    """``method -> "ok" or the reason`` on one network; asserts what must hold of each."""
    if name in SMALL:
        make, size = SMALL[name]
        model = make().eval()
    else:
        model, size = made_families.build(name, 5)
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, size, size)
    target = model(x).argmax(1)
    plain = attribution.resolve("gradient")(model, x, target)
    rows = {}
    for key in METHODS:
        factory = attribution.registry._METHODS[key]
        wanted = inspect.signature(factory).parameters
        method = factory(**{parameter: value for parameter, value in QUICK.items() if parameter in wanted})
        reason = method.refuses(model, x, target) if method.refuses is not None else None
        rows[key] = reason or "ok"
        if reason is not None:
            continue
        found = method(model, x, target)
        assert found.shape in (x.shape, (2, 1, size, size)), key
        assert bool(found.isfinite().all()), key
        if key != "gradient":
            scaled = found / found.abs().max().clamp_min(1e-30) * plain.abs().max()
            assert not torch.allclose(
                scaled.expand_as(plain), plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max())
            ), key
    return rows


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_every_method_works_on_the_network_or_says_why_not(name):
    rows = table_of(name)
    refused = {key for key, outcome in rows.items() if outcome != "ok"}
    assert refused - PATHS - NOT_DEEPLIFT.get(name, set()) == REFUSED[name]
    assert all(len(rows[key]) > 20 for key in refused)
    assert NOT_DEEPLIFT.get(name, set()) <= refused
