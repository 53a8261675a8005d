"""Integrated and expected gradients against captum, Shapley values and closed forms."""

import captum.attr as captum
import pytest
import reference
import torch
from made_networks import cnn
from reference import error, quietly
from torch import nn

from lightning_sanity.attribution.baselines import baseline_for
from lightning_sanity.attribution.path import expected_gradients, integrated_gradients, integrated_gradients_local


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
