"""The axioms of Sundararajan et al. 2017, Kindermans et al. 2019: which method satisfies which; known failures fail."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import attribution
from lightning_sanity.attribution.differences import deeplift, deeplift_local
from lightning_sanity.attribution.gradients import gradient, input_x_gradient, smoothgrad
from lightning_sanity.attribution.guided import deconvnet, guided_backprop
from lightning_sanity.attribution.path import expected_gradients, integrated_gradients, integrated_gradients_local

ZERO = torch.zeros(1, 4, dtype=torch.float64)

METHODS = {
    "gradient": gradient(),
    "input_x_gradient": input_x_gradient(),
    "smoothgrad": smoothgrad(),
    "integrated_gradients": integrated_gradients(300),
    "integrated_gradients_local": integrated_gradients_local(300),
    "expected_gradients": expected_gradients(4000, baselines=ZERO, max_batch=100_000),
    "deeplift": deeplift(),
    "deeplift_local": deeplift_local(),
    "guided_backprop": guided_backprop(),
    "deconvnet": deconvnet(),
}
COMPLETE = {"integrated_gradients", "expected_gradients", "deeplift"}
SENSITIVE = {"integrated_gradients", "integrated_gradients_local", "expected_gradients", "deeplift", "deeplift_local"}
INVARIANT = {
    "gradient", "input_x_gradient", "smoothgrad", "integrated_gradients", "integrated_gradients_local",
    "expected_gradients",
}  # fmt: skip
LINEAR = INVARIANT | {"deeplift", "deeplift_local"}
SHIFT_INVARIANT = {"gradient", "guided_backprop", "deconvnet"}


class Function(nn.Module):
    """A function of x ``(N, 4)`` with one output."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def explain(name, model, x):
    torch.manual_seed(0)
    return METHODS[name](model, x, None)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 1)).double()


def inputs():
    torch.manual_seed(5)
    return torch.randn(6, 4, dtype=torch.float64)


@pytest.mark.parametrize("name", METHODS)
def test_completeness(name):
    model, x = network(), inputs()
    difference = (model(x) - model(torch.zeros_like(x)))[:, 0].detach()
    gap = (explain(name, model, x).sum(1) - difference).abs()
    tolerance = 1e-2 if name == "expected_gradients" else 1e-3
    assert bool((gap <= tolerance * difference.abs() + 1e-3).all()) == (name in COMPLETE)


@pytest.mark.parametrize("name", METHODS)
def test_sensitivity_to_the_one_feature_that_matters(name):
    saturated = Function(lambda x: 1 - F.relu(1 - x[:, 0]))
    x = torch.tensor([[2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = float(explain(name, saturated, x)[0, 0])
    if name == "smoothgrad":
        assert found < 0.5  # noise may cross the kink, but does not reach the whole difference of 1
    else:
        assert (abs(found) > 0.1) == (name in SENSITIVE)


def test_integrated_gradients_give_the_whole_difference_to_the_one_feature():
    saturated = Function(lambda x: 1 - F.relu(1 - x[:, 0]))
    x = torch.tensor([[2.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    for name in COMPLETE:
        assert float(explain(name, saturated, x)[0, 0]) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("name", METHODS)
def test_a_feature_without_influence_gets_nothing(name):
    model = network()
    with torch.no_grad():
        model[0].weight[:, 2] = 0
    assert float(explain(name, model, inputs())[:, 2].abs().max()) <= 1e-8


@pytest.mark.parametrize("name", METHODS)
def test_implementation_invariance(name):
    first = Function(lambda x: F.relu(x[:, 0] - 1) * 2 - F.relu(x[:, 1] * 1.5 + x[:, 0]) + F.relu(x[:, 2]))
    # relu(a - 1) = relu(relu(a) - 1), and relu(v) = (v + |v|) / 2.
    second = Function(
        lambda x: (
            F.relu(F.relu(x[:, 0]) - 1) * 2
            - (x[:, 1] * 1.5 + x[:, 0] + (x[:, 1] * 1.5 + x[:, 0]).abs()) / 2
            + F.relu(x[:, 2])
        )
    )
    x = inputs() * 2
    x[:, 0] = x[:, 0].abs() + 1.5
    torch.testing.assert_close(first(x), second(x))
    same = torch.allclose(explain(name, first, x), explain(name, second, x), atol=1e-5)
    assert same == (name in INVARIANT or name in {"deeplift", "deeplift_local"})


@pytest.mark.parametrize("name", ["integrated_gradients", "gradient", "deeplift"])
def test_only_deeplift_sees_how_a_function_is_composed(name):
    # min(a, b) of positive numbers, written in two ways.
    first = Function(lambda x: x[:, 0] - F.relu(x[:, 0] - x[:, 1]))
    second = Function(lambda x: x[:, 1] - F.relu(x[:, 1] - x[:, 0]))
    x = torch.tensor([[3.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(first(x), second(x))
    assert torch.allclose(explain(name, first, x), explain(name, second, x), atol=1e-5)
    # Nested differences of positive numbers: Rescale spreads each rectifier's change over what is inside it.
    nested = Function(lambda x: F.relu(F.relu(x[:, 0] - 1) - x[:, 1]))
    plain = Function(lambda x: F.relu(x[:, 0] - 1 - F.relu(x[:, 1])))
    y = torch.tensor([[3.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(nested(y), plain(y))
    same = torch.allclose(explain(name, nested, y), explain(name, plain, y), atol=1e-3)
    assert same == (name != "deeplift")


@pytest.mark.parametrize("name", METHODS)
def test_linearity(name):
    f, g, x = network(1), network(2), inputs()
    both = Function(lambda x: 2 * f(x) - 3 * g(x))
    expected = 2 * explain(name, f, x) - 3 * explain(name, g, x)
    assert torch.allclose(explain(name, both, x), expected, atol=1e-6) == (name in LINEAR)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "smoothgrad"])
def test_symmetric_features_are_treated_alike(name):
    model = Function(lambda x: F.relu(x[:, 0] + x[:, 1] - 0.5) + torch.sigmoid(x[:, 0]) + torch.sigmoid(x[:, 1]))
    x = inputs()
    x[:, 1] = x[:, 0]
    found = explain(name, model, x)
    torch.testing.assert_close(found[:, 0], found[:, 1])


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("smoothgrad", "expected_gradients")])
def test_input_invariance(name):
    model, x, shift = network(), inputs(), torch.tensor([0.7, -0.4, 0.2, 1.1], dtype=torch.float64)
    moved = nn.Sequential(nn.Linear(4, 9), *list(network())[1:]).double()
    with torch.no_grad():
        moved[0].weight.copy_(model[0].weight)
        moved[0].bias.copy_(model[0].bias - model[0].weight @ shift)
        for a, b in zip(moved[2:], model[2:], strict=True):
            if isinstance(a, nn.Linear):
                a.load_state_dict(b.state_dict())
    torch.testing.assert_close(moved(x + shift), model(x))
    same = torch.allclose(explain(name, moved, x + shift), explain(name, model, x), atol=1e-6)
    # A zero baseline does not move with the input, so what starts from it is not invariant.
    assert same == (name in SHIFT_INVARIANT)


def test_a_baseline_that_moves_with_the_input_restores_invariance():
    model, x = network(), inputs()
    shift = torch.tensor([0.7, -0.4, 0.2, 1.1], dtype=torch.float64)
    moved = Function(lambda y: model(y - shift))
    expected = integrated_gradients(100, 0.0)(model, x, None)
    torch.testing.assert_close(integrated_gradients(100, shift[None])(moved, x + shift, None), expected)


def test_every_method_of_the_axioms_is_registered():
    assert set(METHODS) <= set(attribution.available())
