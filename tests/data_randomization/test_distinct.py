"""Copies of one model count as one, and models of another architecture do not count at all."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import data_randomization_test
from lightning_sanity.data_randomization.distinct import (
    check_architectures,
    check_distinct,
    check_functions,
    of_one_function,
    of_one_run,
)


def net(seed=0, activation=nn.ReLU, slope=None):
    torch.manual_seed(seed)
    act = nn.LeakyReLU(slope) if slope else activation()
    return nn.Sequential(nn.Conv2d(1, 4, 3), act, nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)).eval()


def rounded(model, dtype):
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return made


def nudged(model, share):
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        parameter.data += share * parameter.std() * torch.randn_like(parameter)
    return made


COPIES = {
    "the object itself": lambda model: model,
    "a deep copy": copy.deepcopy,
    "rounded to half precision": lambda model: rounded(model, torch.float16),
    "rounded to bfloat16": lambda model: rounded(model, torch.bfloat16),
    "trained on with a tiny step": lambda model: nudged(model, 1e-4),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_of_one_model_are_refused(make):
    model = net()
    with pytest.raises(ValueError, match=r"true-label models 1 and 2 have (all but )?the same weights"):
        check_distinct([net(5), model, make(model)], "true")


def frozen(seed):
    made = net(0)
    torch.manual_seed(seed)
    made[4].reset_parameters()
    return made


def test_models_on_one_frozen_backbone_are_several():
    check_distinct([frozen(1), frozen(2), frozen(3)], "true")


def test_models_of_other_seeds_are_several():
    check_distinct([net(0), net(1), nudged(net(1), 0.1)], "random")


@pytest.mark.parametrize("side", [0, 1])
def test_the_test_itself_refuses_copies(side):
    groups = [[net(0), net(1)], [net(2), net(3)]]
    groups[side] = [groups[side][0], copy.deepcopy(groups[side][0])]
    kind = ("true", "random")[side]
    with pytest.raises(ValueError, match=f"{kind}-label models 0 and 1 have the same weights"):
        data_randomization_test(*groups, torch.rand(6, 1, 8, 8), methods="gradient")


# -------------------------------------------------------------------------------------------------------- architecture


class Own(nn.Module):
    """Its activation is no module."""

    def __init__(self, act=F.relu):
        super().__init__()
        self.first, self.last, self.act = nn.Linear(8, 6), nn.Linear(6, 3), act

    def forward(self, x):
        return self.last(self.act(self.first(x)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (net(1, nn.Tanh), r"layer '1' is ReLU\(\) in the first and Tanh\(\) in model 1"),
        (net(1, slope=0.2), r"layer '1' is ReLU\(\) in the first and LeakyReLU\(negative_slope=0\.2\)"),
        (net(1)[:4], r"parameter '4\.weight' is \(3, 144\) in the first and missing in model 1"),
    ],
)
def test_another_architecture_is_named(other, message):
    with pytest.raises(ValueError, match=message):
        check_architectures([net(0), other])


def test_another_rate_of_dropout_is_no_other_architecture():
    other = net(1)
    other[2].p = 0.1
    check_architectures([net(0), other])


def test_an_activation_that_is_called_as_a_function_is_noticed():
    x = torch.rand(2, 8)
    with pytest.raises(ValueError, match=r"model 1 calls torch\.nn\.functional\.gelu on the way .* first does not"):
        check_functions([lambda: Own()(x), lambda: Own(F.gelu)(x)])
    check_functions([lambda: Own()(x), lambda: Own()(x)])
    with pytest.raises(ValueError, match="one architecture"):
        data_randomization_test(Own(), Own(torch.tanh), torch.rand(6, 8), methods="gradient")


# ---------------------------------------------------------------------------------------------------- one as several


def turned(model):
    """The same function with the channels in another order."""
    made = copy.deepcopy(model)
    made[0].weight.data, made[0].bias.data = made[0].weight.data.flip(0), made[0].bias.data.flip(0)
    made[4].weight.data = made[4].weight.data.unflatten(1, (4, 36)).flip(1).flatten(1)
    return made


def test_weights_near_those_of_another_model_share_its_training():
    assert of_one_run({"true": [net(0), net(1), net(2)], "random": [frozen(1), frozen(2)]}) is None
    found = of_one_run({"true": [net(0), net(1)], "random": [net(2), net(3), nudged(net(3), 0.1)]})
    assert found.startswith("random-label models 1 and 2 come from one training")


def test_one_function_is_known_by_its_answers():
    models, x = [net(0), net(1), turned(net(0))], torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        outputs = torch.stack([model(x) for model in models])
    assert torch.allclose(outputs[0], outputs[2], atol=1e-6)
    check_distinct(models, "true")
    assert of_one_function(outputs, (2, 1)).startswith("true-label model 0 and random-label model 0 give the same")
    assert of_one_function(outputs[:2], (1, 1)) is None


def test_probabilities_that_saturate_are_no_sign_of_one_function():
    outputs = torch.eye(3).repeat(2, 1, 1)
    assert of_one_function(outputs, (1, 1)) is None
    assert of_one_function(9 * outputs, (1, 1)) is not None
