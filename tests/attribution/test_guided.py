"""Guided backpropagation and the deconvnet against captum and a hand-written pass."""

import captum.attr as captum
import pytest
import reference
import torch
from made_networks import Functional, as_modules, cnn
from reference import error, quietly
from torch import nn
from torch.nn import functional as F
from torchvision import models

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.attribution.guided import rectifiers_in


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


# ------------------------------------------------------------------------------------------------ written out


class Hidden(nn.Module):
    """A network with one rectifier as a function and two as somebody wrote them out."""

    def __init__(self, rectify):
        super().__init__()
        self.rectify = rectify
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.rectify(F.relu(self.first(x)) - 0.05)
        x = self.rectify(self.second(x))
        return self.head(self.rectify(self.third(x)).mean((2, 3)))


class _OfItsOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (ctx.saved_tensors[0] > 0)


def into_itself(x):
    x = x.clone()
    x *= x > 0
    return x


WRITTEN_OUT = {
    "where": lambda x: torch.where(x > 0, x, 0),
    "where, by its method": lambda x: x.where(x > 0, torch.zeros_like(x)),
    "where it is below": lambda x: torch.where(x <= 0, torch.tensor(0.0), x),
    "times its sign": lambda x: x * (x > 0),
    "times its sign as numbers": lambda x: (x >= 0).to(x.dtype) * x,
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "max": lambda x: torch.max(x.new_zeros(()), x),
    "masked": lambda x: x.masked_fill(x < 0, 0.0),
}
OUT_OF_REACH = {"an autograd function": _OfItsOwn.apply, "in place": into_itself}


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
@pytest.mark.parametrize("rectify", WRITTEN_OUT.values(), ids=WRITTEN_OUT)
def test_rectifiers_that_are_written_out_are_guided(rectify, method):
    torch.manual_seed(0)
    model, x, target = Hidden(F.relu).eval(), torch.randn(3, 3, 12, 12), torch.arange(3)
    expected = resolve(method)(model, x, target)
    plain = resolve("gradient")(model, x, target)
    model.rectify = rectify
    assert resolve(method).refuses(model, x, target) is None
    torch.testing.assert_close(resolve(method)(model, x, target), expected)
    assert not torch.allclose(plain, expected)


@pytest.mark.parametrize("rectify", OUT_OF_REACH.values(), ids=OUT_OF_REACH)
def test_rectifiers_out_of_reach_are_counted(rectify):
    torch.manual_seed(0)
    model, x, target = Hidden(rectify).eval(), torch.randn(3, 3, 12, 12), torch.arange(3)
    reason = resolve("guided_backprop").refuses(model, x, target)
    assert "only 1 of the network's 4 rectifiers can be guided" in reason


def test_what_is_no_rectifier_is_not_guided():
    torch.manual_seed(0)
    mask, x, target = torch.rand(10, 10) > 0.5, torch.randn(3, 3, 12, 12), torch.arange(3)
    forms = [lambda x: torch.where(mask[: x.shape[2], : x.shape[3]], x, 0), lambda x: x * (x > 0.1), torch.abs]
    for rectify in forms:
        model = Hidden(rectify).eval()
        assert rectifiers_in(model, x) == 1
        assert resolve("guided_backprop").refuses(model, x, target) is None


@pytest.mark.parametrize("rectify", [*list(WRITTEN_OUT.values())[:4], *OUT_OF_REACH.values()])
def test_one_walk_for_all_depths_guides_what_is_written_out_as_well(rectify):
    torch.manual_seed(0)
    model, x, target = Hidden(rectify).eval(), torch.randn(4, 3, 12, 12), torch.arange(4)
    options = {"methods": ["gradient", "guided_backprop"], "trials": 1, "repeats": 1, "controls": False}
    shared = parameter_randomization_test(model, x, target, **options)
    plain = parameter_randomization_test(model, x, target, engine="plain", **options)
    assert shared.curves.keys() == plain.curves.keys()
    if rectify in OUT_OF_REACH.values():
        assert "only 1 of the network's 4" in shared.verdicts["guided_backprop"].reason
    for key, curve in plain.curves.items():
        torch.testing.assert_close(shared.curves[key].values, curve.values, rtol=0, atol=1e-4, equal_nan=True)
