"""Integrated and expected gradients against captum, Shapley values and closed forms."""

import ast
import re

import captum.attr as captum
import pytest
import reference
import torch
from made_networks import cnn
from reference import error, quietly
from torch import nn

from lightning_sanity.attribution.baselines import baseline_for
from lightning_sanity.attribution.path import (
    expected_gradients,
    integrated_gradients,
    integrated_gradients_local,
    smooth_integrated_gradients,
)


def test_expected_gradients_of_a_linear_model_is_exact_when_baselines_take_turns():
    model, x, baselines = nn.Linear(4, 2), torch.randn(3, 4), torch.randn(5, 4)
    found = expected_gradients(n_samples=20, baselines=baselines)(model, x, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found, (x - baselines.mean(0)) * model.weight[0].detach(), atol=1e-5, rtol=1e-4)


def test_expected_gradients_of_an_additive_model_are_its_shapley_values():
    class Additive(nn.Module):
        def forward(self, x):
            return (x**3 + torch.sin(2 * x)).sum(1)

    x, baselines = torch.randn(2, 4), torch.randn(6, 4)
    found = expected_gradients(n_samples=3000, baselines=baselines, max_batch=8192)(Additive(), x, None)
    for sample in range(2):

        def game(coalition, sample=sample):
            members = torch.tensor([player in coalition for player in range(4)])
            return float(Additive()(torch.where(members, x[sample], baselines)).mean())

        exact = torch.tensor(reference.shapley_values(game, 4))
        torch.testing.assert_close(found[sample], exact.to(found), atol=0.02, rtol=0.02)


def test_integrated_gradients_match_captum(batch):
    model, (x, target) = cnn(), batch
    baseline = torch.randn(1, 3, 12, 12)
    found = integrated_gradients(n_steps=20, baseline=baseline, max_batch=7)(model, x, target)
    theirs = quietly(lambda: captum.IntegratedGradients(model).attribute(x, baseline, target=target, n_steps=20))
    assert error(found, theirs) < 1e-5


@pytest.mark.parametrize("baseline", ["blur", "min", "max", "mean", 0.5])
def test_integrated_gradients_are_complete_from_every_baseline(batch, baseline):
    model, x, target = cnn().double(), batch[0].double(), batch[1]
    found = integrated_gradients(n_steps=200, baseline=baseline)(model, x, target)

    def score(inputs):
        return model(inputs).gather(1, target[:, None])[:, 0]

    with torch.no_grad():
        difference = score(x) - score(baseline_for(baseline, x))
    assert float(difference.abs().min()) > 1e-3  # else nothing would have to add up
    torch.testing.assert_close(found.flatten(1).sum(1), difference, rtol=0.02, atol=1e-4)


def test_incomplete_integrated_gradients_are_refused_with_advice():
    class Steep(nn.Module):
        def forward(self, x):
            return torch.tanh(80 * (x.sum(1) - 0.37))

    x = torch.rand(4, 3) + 1
    assert "raise n_steps, which is 2" in integrated_gradients_local(n_steps=2).refuses(Steep(), x, None)
    assert integrated_gradients(n_steps=300).refuses(Steep(), x, None) is None


class Slope(nn.Module):
    def __init__(self, steepness):
        super().__init__()
        self.steepness = steepness

    def forward(self, x):
        return torch.tanh(self.steepness * x.sum(1) / 9)


class Tanh(nn.Module):
    def __init__(self, steepness):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(steepness)))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tanh(self.weight * (x.sum(1) - 0.37))


@pytest.mark.parametrize("make", [integrated_gradients, integrated_gradients_local])
def test_steps_are_doubled_until_the_median_sample_adds_up(make):
    x, model = torch.rand(5, 3) + 1, Tanh(60)
    gaps = {n: float(integrated_gradients(n).completeness(model, x, None).quantile(0.5)) for n in (32, 64, 128, 256)}
    enough = next(n for n, gap in gaps.items() if gap <= 0.1)
    assert enough > 32  # else nothing had to be doubled
    settled = make().settle(model, x, None)
    assert settled.settled == {"n_steps": enough}
    assert settled.passes == enough
    assert settled.refuses(model, x, None) is None
    torch.testing.assert_close(settled(model, x), make(enough)(model, x))
    torch.testing.assert_close(make()(model, x), make(enough)(model, x))


def test_smoothed_paths_have_as_many_steps_as_plain_ones():
    x, model = torch.rand(5, 3) + 1, Tanh(60)
    plain = integrated_gradients().settle(model, x, None).settled["n_steps"]
    assert plain > 32
    method = smooth_integrated_gradients(n_samples=3)
    assert (method.stochastic, method.passes) == (True, 96)
    settled = method.settle(model, x, None)
    assert (settled.settled, settled.passes, settled.stochastic) == ({"n_steps": plain}, 3 * plain, True)
    assert method.refuses(model, x, None) is None
    assert "raise n_steps, which is 32" in smooth_integrated_gradients(32).refuses(model, x, None)


def test_a_settled_number_of_steps_stays_on_other_models():
    x = torch.rand(5, 3) + 1
    settled = integrated_gradients().settle(Tanh(0.1), x, None)
    assert settled.settled == {"n_steps": 32}
    torch.testing.assert_close(settled(Tanh(60), x), integrated_gradients(32)(Tanh(60), x))
    assert "raise n_steps, which is 32" in settled.refuses(Tanh(60), x, None)


def test_finding_the_number_of_steps_costs_the_check_alone():
    x, asked, settled = torch.rand(5, 3) + 1, Tanh(0.1), Tanh(0.1)
    assert integrated_gradients(32).refuses(asked, x, None) is None
    method = integrated_gradients().settle(settled, x, None)
    assert method.refuses(settled, x, None) is None
    assert settled.calls == asked.calls


def test_where_no_number_of_steps_helps_the_method_is_refused():
    method = integrated_gradients().settle(Tanh(1e4), torch.rand(5, 3) + 1, None)
    assert method.settled == {"n_steps": 256}
    reason = method.refuses(Tanh(1e4), torch.rand(5, 3) + 1, None)
    assert "more steps do not help (100% with 64, 100% with 256)" in reason
    assert "pass another baseline=" in reason


def test_where_more_steps_help_though_not_enough_either_way_out_is_said():
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) + 1
    method = integrated_gradients().settle(model := Tanh(170), x, None)
    gaps = [float(integrated_gradients(n).completeness(model, x, None).quantile(0.5)) for n in (64, 256)]
    assert 0.1 < gaps[1] <= gaps[0] / 2
    assert "or still more steps" in method.refuses(model, x, None)


class Residual(nn.Module):
    """Blocks that normalise what they read and add to it, as a transformer's do."""

    def __init__(self, norm):
        super().__init__()
        self.norms = nn.ModuleList(norm(8, eps=1e-12) for _ in range(3))
        self.layers, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Linear(8, 3)

    def forward(self, x):
        for norm, layer in zip(self.norms, self.layers, strict=False):
            x = x + torch.tanh(layer(norm(x)))
        return self.head(self.norms[-1](x))


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("n_steps", ["auto", 32])
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_a_network_that_normalises_its_input_is_told_to_move_the_baseline(norm, n_steps, scale):
    torch.manual_seed(0)
    model, x, target = Residual(norm).eval(), torch.randn(6, 8) * scale, torch.arange(6) % 3
    assert float(integrated_gradients(256).completeness(model, x, target).quantile(0.5)) > 0.1  # steps do not help
    reason = integrated_gradients(n_steps).refuses(model, x, target)
    assert "pass another baseline= than 0.0" in reason
    assert "raise n_steps" not in reason
    named = re.search(r"than 0\.0; (\S+) misses", reason)
    if named is None:
        assert "expected_gradients" in reason
        assert expected_gradients().refuses(model, x, target) is None
    else:
        baseline = ast.literal_eval(named[1])
        assert integrated_gradients(n_steps, baseline).refuses(model, x, target) is None


def test_a_baseline_is_named_only_where_something_is_explained_from_it():
    class OfTheMean(nn.Module):
        """Jumps at 0, and is the same for a row as for its mean."""

        def forward(self, x):
            return (x.mean(1) > 0.01).float() + 0 * x.sum(1)

    reason = integrated_gradients(32).refuses(OfTheMean(), torch.rand(4, 3) + 1, None)
    assert "pass another baseline= than 0.0, a tensor" in reason
    assert "misses 0%" not in reason


@pytest.mark.parametrize("steepness", [1500, 3000])
def test_a_change_close_to_the_baseline_is_no_jump(steepness):
    x, target = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) * 3 + 1, None
    method = integrated_gradients().settle(model := Slope(steepness), x, target)
    assert method.settled["n_steps"] > 32
    assert method.refuses(model, x, target) is None


@pytest.mark.parametrize("n_steps", ["auto", 40])
def test_a_network_that_does_not_see_scale_is_told_to_change_the_baseline(n_steps):
    class Normalised(nn.Module):
        def forward(self, x):
            return (x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)) @ torch.tensor([1.0, 2.0, 3.0])

    x, model = torch.rand(5, 3) + 1, Normalised()
    reason = integrated_gradients(n_steps).refuses(model, x, None)
    assert "pass another baseline= than 0.0" in reason
    assert "n_steps" not in reason
    assert integrated_gradients(n_steps, baseline=-1.0).refuses(model, x, None) is None
