"""The weights of a head are drawn around 0: which of two classes a score counts for is a convention."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_sanity.model.graph import trace
from lightning_sanity.randomization import reinitialize_, units
from lightning_sanity.randomization.strategies import redraw
from lightning_sanity.randomization.unit import plan
from lightning_sanity.resources.random_streams import generator

HEADS = {
    "linear": lambda classes: nn.Linear(400, classes),
    "half precision": lambda classes: nn.Linear(400, classes).bfloat16(),
    "through a softmax": lambda classes: nn.Sequential(nn.Linear(400, classes), nn.Softmax(1)),
    "convolution": lambda classes: nn.Sequential(nn.Unflatten(1, (400, 1)), nn.Conv1d(400, classes, 1), nn.Flatten()),
    "weight normalisation": lambda classes: parametrizations.weight_norm(nn.Linear(400, classes)),
}


def one_size(values):
    return values.float().square().mean().sqrt()


def weights_of(head):
    (layer,) = (each for each in head.modules() if isinstance(each, (nn.Linear, nn.Conv1d)))
    return layer, layer.weight.detach().clone().squeeze(-1)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_drawn_around_zero_with_the_size_that_it_had(kind):
    head = HEADS[kind](5).eval()
    layer, before = weights_of(head)
    with torch.no_grad():
        layer.weight = nn.Parameter(layer.weight + 0.3) if kind != "weight normalisation" else layer.weight + 0.3
    layer, before = weights_of(head)
    (unit,) = units(head, torch.randn(2, 400, dtype=before.dtype))
    reinitialize_(head, unit, "normal", generator(kind))
    _, after = weights_of(head)
    assert before.mean().abs() > 0.25
    assert after.mean().abs() < 0.03
    assert one_size(after).item() == pytest.approx(one_size(before).item(), rel=0.1)


@pytest.mark.parametrize(
    "followed_by", [nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 2)], ids=["rectifier", "norm", "layer"]
)
def test_what_running_statistics_or_a_layer_follow_keeps_its_mean(followed_by):
    model = nn.Sequential(nn.Linear(900, 3), followed_by).eval()
    nn.init.normal_(model[0].weight, 0.5, 0.1)
    reinitialize_(model, units(model, torch.randn(2, 900))[-1], "normal", generator(0))
    head = isinstance(followed_by, nn.ReLU)
    assert model[0].weight.mean().item() == pytest.approx(0 if head else 0.5, abs=0.05)


@pytest.mark.parametrize("granularity", ["layer", "block", [".*"], ["2"], ["2.weight"]])
def test_the_head_is_known_at_every_granularity(granularity):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    found = units(model, torch.randn(2, 6), granularity)
    assert [name for unit in found for name in unit.scoring] == ["2.weight"]


def test_heads_of_all_members_are_heads_and_those_of_other_tasks_are_not():
    model = nn.ModuleDict({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3), "other": nn.Linear(6, 2)}).eval()
    graph = trace(
        model, (torch.randn(2, 6),), lambda x: (model["a"](x) + model["b"](x), model["other"](x)), lambda out: out[0]
    )
    planned = plan(model, graph)
    assert [unit.scoring for unit in planned.units] == [("b.weight",), ("a.weight",)]
    assert [unit.scoring for unit in planned.aside] == [()]


@pytest.mark.parametrize("share", [(-0.5, 0.5), (0.0, 1.0), (0.25, -0.75)], ids=str)
def test_heads_of_one_logit_and_of_two_of_the_same_function_follow_one_law(share):
    """Up to a factor, which is the same for the whole score."""
    one = nn.Linear(50, 1).eval()
    nn.init.normal_(one.weight, 0.2, 0.1)
    two = nn.Linear(50, 2).eval()
    two.weight = nn.Parameter(torch.cat([part * one.weight.detach() for part in share]))
    drawn = {}
    for model in (one, two):
        (unit,), act = units(model, torch.randn(2, 50)), redraw("normal")
        values = []
        for trial in range(200):
            act(model, unit, generator("law", trial))
            values.append(model.weight[-1].detach().clone())
        drawn[model] = torch.stack(values) / one_size(torch.stack(values))
    assert drawn[one].mean().abs() < 0.03
    assert drawn[two].mean().abs() < 0.03
    levels = torch.linspace(0.02, 0.98, 49)
    quantiles = [values.flatten().quantile(levels) for values in drawn.values()]
    torch.testing.assert_close(*quantiles, rtol=0, atol=0.06)


def test_a_random_head_of_one_logit_orders_samples_by_chance():
    """Features that rise and fall together are ordered by the mean of a head alone, however random its values are."""
    torch.manual_seed(0)
    features = torch.rand(64, 1) * (1 + 0.2 * torch.rand(64, 30))
    head = nn.Linear(30, 1).eval()
    nn.init.normal_(head.weight, 0.1, 0.2)
    before, (unit,), act = head(features).detach()[:, 0], units(head, features), redraw("normal")
    agreement = []
    for trial in range(100):
        act(head, unit, generator("order", trial))
        agreement.append(torch.corrcoef(torch.stack([before, head(features).detach()[:, 0]]))[0, 1])
    assert torch.stack(agreement).abs().mean() > 0.5  # each draw orders them, up or down
    assert torch.stack(agreement).mean().abs() < 0.3  # and none far more often than the other
