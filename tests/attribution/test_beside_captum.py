"""Methods beside captum's own, number by number, on an image network and on a signal network."""

import captum.attr as captum
import pytest
import torch
from captum.attr._utils.lrp_rules import EpsilonRule
from made_networks import cnn
from reference import error, quietly
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution import (
    deeplift,
    deepshap,
    gradcam,
    guided_gradcam,
    integrated_gradients,
    internal_influence,
    lrp_epsilon,
    occlusion,
    resolve,
)

TARGET = torch.tensor([0, 1, 2])


def image():
    return cnn().double(), torch.randn(3, 3, 12, 12).double(), "3"


def signal():
    model = nn.Sequential(
        nn.Conv1d(3, 6, 3), nn.ReLU(), nn.Conv1d(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(40, 5)
    )
    return model.double().eval(), torch.randn(3, 3, 13).double(), "3"


def enlarged(found, x):
    mode = "bilinear" if x.ndim == 4 else "linear"
    return F.interpolate(found, size=x.shape[2:], mode=mode, align_corners=False)


def by_layer(model, layer):
    return model.get_submodule(layer)


def relevance(model, x):
    for module in model.modules():
        module.rule = EpsilonRule(1e-9)
    return captum.LRP(model).attribute(x, target=TARGET)


METHODS = {
    "gradient": (
        lambda layer, x: resolve("gradient"),
        lambda model, x, layer: captum.Saliency(model).attribute(x, target=TARGET, abs=False),
    ),
    "input times gradient": (
        lambda layer, x: resolve("input_x_gradient"),
        lambda model, x, layer: captum.InputXGradient(model).attribute(x, target=TARGET),
    ),
    "integrated gradients": (
        lambda layer, x: integrated_gradients(12, 0.2, tolerance=9.0),
        lambda model, x, layer: captum.IntegratedGradients(model).attribute(x, 0.2, target=TARGET, n_steps=12),
    ),
    "integrated gradients without inputs": (
        lambda layer, x: integrated_gradients(12, 0.2, multiply_by_inputs=False, tolerance=9.0),
        lambda model, x, layer: captum.IntegratedGradients(model, multiply_by_inputs=False).attribute(
            x, 0.2, target=TARGET, n_steps=12
        ),
    ),
    "guided backpropagation": (
        lambda layer, x: resolve("guided_backprop"),
        lambda model, x, layer: captum.GuidedBackprop(model).attribute(x, target=TARGET),
    ),
    "deconvnet": (
        lambda layer, x: resolve("deconvnet"),
        lambda model, x, layer: captum.Deconvolution(model).attribute(x, target=TARGET),
    ),
    "Grad-CAM": (
        lambda layer, x: gradcam(layer),
        lambda model, x, layer: enlarged(
            captum.LayerGradCam(model, by_layer(model, layer)).attribute(x, target=TARGET, relu_attributions=True), x
        ),
    ),
    "guided Grad-CAM": (
        lambda layer, x: guided_gradcam(layer),
        lambda model, x, layer: (
            enlarged(
                captum.LayerGradCam(model, by_layer(model, layer)).attribute(x, target=TARGET, relu_attributions=True),
                x,
            )
            * captum.GuidedBackprop(model).attribute(x, target=TARGET)
        ),
    ),
    "internal influence": (
        lambda layer, x: internal_influence(layer, n_steps=10),
        lambda model, x, layer: enlarged(
            captum.InternalInfluence(model, by_layer(model, layer))
            .attribute(x, target=TARGET, n_steps=10)
            .sum(1, keepdim=True),
            x,
        ),
    ),
    "DeepLIFT": (
        lambda layer, x: deeplift(x.flip(0)[:1]),
        lambda model, x, layer: captum.DeepLift(model).attribute(x, x.flip(0)[:1], target=TARGET),
    ),
    "DeepSHAP": (
        lambda layer, x: deepshap(x.flip(0) / 2),
        lambda model, x, layer: captum.DeepLiftShap(model).attribute(x, x.flip(0) / 2, target=TARGET),
    ),
    "occlusion": (
        lambda layer, x: occlusion(window=3, stride=2, baseline=0.1),
        lambda model, x, layer: captum.Occlusion(model).attribute(
            x, (3, *[3] * (x.ndim - 2)), (3, *[2] * (x.ndim - 2)), baselines=0.1, target=TARGET
        ),
    ),
    "relevance": (
        lambda layer, x: lrp_epsilon(1e-9),
        lambda model, x, layer: relevance(model, x),
    ),
}


@pytest.mark.parametrize("network", [image, signal])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_numbers_of_captum(name, network):
    model, x, layer = network()
    ours, theirs = METHODS[name]
    assert error(ours(layer, x)(model, x, TARGET), quietly(lambda: theirs(model, x.clone(), layer))) < 1e-7
