"""Guided backpropagation and the deconvnet against captum and a hand-written pass."""

import captum.attr as captum
import pytest
import reference
import torch
from made_networks import Functional, as_modules, cnn
from reference import error, quietly
from torchvision import models

from lightning_sanity.attribution import resolve


def test_guided_backprop_matches_captum_on_vgg():
    model, x, target = models.vgg11_bn(num_classes=5).eval(), torch.randn(2, 3, 32, 32), torch.tensor([0, 3])
    theirs = quietly(lambda: captum.GuidedBackprop(model).attribute(x.clone(), target=target))
    assert error(resolve("guided_backprop")(model, x, target), theirs) < 1e-5


@pytest.mark.parametrize(("name", "masked"), [("guided_backprop", True), ("deconvnet", False)])
def test_guided_methods_match_the_hand_written_pass(batch, name, masked):
    model = cnn()
    expected = torch.stack([reference.guided(model, x, int(t), masked) for x, t in zip(*batch, strict=True)])
    torch.testing.assert_close(resolve(name)(model, *batch), expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_guided_methods_reach_functional_inplace_and_bounded_relus(batch, name):
    model = Functional()
    found = resolve(name)(model, *batch)
    torch.testing.assert_close(found, resolve(name)(as_modules(model), *batch), atol=1e-7, rtol=1e-4)
    assert error(found, resolve("gradient")(model, *batch)) > 0.05


def test_guided_backprop_differs_from_the_gradient_on_inception():
    model = models.inception_v3(init_weights=False, num_classes=5).eval()
    x, target = torch.randn(1, 3, 96, 96), torch.tensor([1])
    method = resolve("guided_backprop")
    assert method.refuses(model, x, target) is None
    assert error(method(model, x, target), resolve("gradient")(model, x, target)) > 0.1
