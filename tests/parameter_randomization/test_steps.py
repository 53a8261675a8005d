"""Networks that compute the same are judged the same, however their layers are written or stand side by side."""

import copy

import pytest
import torch
from made_paths import Flat, Mean, WideAndDeep, in_modules
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test
from lightning_sanity.result.sanity_result import SanityResult

METHODS = ("gradient", "guided_backprop", "input_x_gradient")


class Small(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.c1, self.c2, self.fc = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.Linear(16, classes),
        )
        self.r1, self.r2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.fc(self.r2(self.c2(F.max_pool2d(self.r1(self.c1(x)), 2))).mean((2, 3)))


def trained(model, images, labels, loss=F.cross_entropy, steps=250):
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        loss(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


def check(model, images, target=None, trials=8, **changes):
    given = {"methods": METHODS, "trials": trials, "repeats": 1, "controls": False, "pictures": False, **changes}
    return parameter_randomization_test(model, images, target, progress=False, **given)


def by_shape(scale):
    """New values that are the same whatever a parameter is called."""

    def reset(module):
        for parameter in module.parameters(recurse=False):
            values = torch.arange(1.0, 1 + parameter.numel()).mul(12.9898).sin().mul(43758.5).frac()
            with torch.no_grad():
                parameter.copy_(scale * (values.reshape(parameter.shape) - values.mean()) / parameter[0].numel() ** 0.5)

    return reset


def psi(result):
    """The smallest index of every method."""
    return {
        name: min((value for value, *_ in verdict.psi_of.values()), default=verdict.psi)
        for name, verdict in result.verdicts.items()
    }


@pytest.fixture(scope="module")
def digits(digits_network):
    return digits_network[1:]


def test_one_logit_is_judged_as_two_logits_of_the_same_function(digits):
    images, labels = digits
    torch.manual_seed(0)
    one = trained(
        Small(1), images, (labels > 4).float(), lambda out, y: F.binary_cross_entropy_with_logits(out[:, 0], y), 150
    )
    two, state = Small(2).eval(), one.state_dict()
    for name in ("fc.weight", "fc.bias"):  # the second logit is half the single one, the first its negative
        state[name] = torch.cat([-state[name] / 2, state[name] / 2])
    two.load_state_dict(state)

    def drawn(module):  # so are the random heads
        for parameter in module.parameters(recurse=False):
            single = torch.randn(1 if len(parameter) == 2 else len(parameter), *parameter.shape[1:])
            with torch.no_grad():
                parameter.copy_(torch.cat([-single / 2, single / 2]) if len(parameter) == 2 else single)

    given = {"methods": ("gradient", "guided_backprop", "deconvnet"), "trials": 3, "reinitialize": drawn}
    results = [check(model, images[:16], target, **given) for model, target in ((one, 0), (two, 1))]
    assert results[0].units == results[1].units == ("fc", "c2", "c1")
    for method in given["methods"]:
        assert psi(results[0])[method] == pytest.approx(psi(results[1])[method], abs=1e-3)


@pytest.mark.parametrize("count", [3, 8])
def test_an_ensemble_of_copies_has_the_curves_of_one(digits, count):
    images, labels = digits
    torch.manual_seed(0)
    member = trained(Small(), images, labels, steps=100)
    together = Mean([copy.deepcopy(member) for _ in range(count)]).eval()
    one, several = (
        check(model, images[:8], target=labels[:8], trials=1, reinitialize=by_shape(5.0))
        for model in (member, together)
    )
    assert one.units == ("fc", "c2", "c1")
    assert several.units == ("members.*.fc", "members.*.c2", "members.*.c1")
    for method in METHODS:
        measured, expected = (r.curves[method, "spearman"].values for r in (several, one))
        torch.testing.assert_close(measured, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_an_ensemble_is_judged_as_its_members(digits):
    images, labels = digits
    members = []
    for seed in range(3):  # benchmarks/ensembles.py has eight
        torch.manual_seed(seed)
        members.append(trained(Small(), images, labels))
    methods = ("gradient", "gradcam", "guided_backprop")
    alone = [psi(check(member, images[:16], trials=4, methods=methods)) for member in members]
    together = check(Mean(members), images[:16], methods=methods)
    assert together.units == ("members.*.fc", "members.*.c2", "members.*.c1")
    for method in ("gradient", "gradcam"):
        expected = sum(found[method] for found in alone) / len(alone)
        assert psi(together)[method] == pytest.approx(expected, abs=0.05)
    assert psi(together)["guided_backprop"] < 0.5


def test_a_wide_path_beside_a_deep_one_makes_a_valid_run(digits):
    images, labels = digits
    torch.manual_seed(0)
    model = trained(WideAndDeep(nn.Linear(256, 10), Small()), images, labels, steps=150)
    result = check(model, images[:16], methods="gradient", controls=True)
    assert result.units == ("wide + deep.fc", "deep.c2", "deep.c1")
    assert result.valid
    assert result.passed


@pytest.mark.parametrize("wrapped", [False, True])
def test_layers_in_one_module_have_the_curves_of_the_same_layers_in_modules(wrapped):
    flat = Flat().eval()
    parts = in_modules(copy.deepcopy(flat)).eval()
    model = nn.Sequential(flat).eval() if wrapped else flat
    inputs = torch.randn(8, 6)
    one, two = (check(net, inputs, trials=2, reinitialize=by_shape(1.0)) for net in (model, parts))
    assert len(one.units) == len(two.units) == 3
    assert psi(one).keys() == psi(two).keys()
    for key, curve in two.curves.items():
        torch.testing.assert_close(one.curves[key].values, curve.values, equal_nan=True)


def test_what_stood_aside_is_kept_in_the_file(tmp_path):
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.other = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x):
            features = torch.relu(self.body(x))
            return self.head(features), self.other(features)

    result = check(Beside().eval(), torch.randn(8, 6), target=1, output=0, trials=2, methods="gradient")
    assert result.coverage.aside == ("other.weight", "other.bias")
    result.to_json(tmp_path / "result.json")
    assert SanityResult.from_json(tmp_path / "result.json").coverage == result.coverage
