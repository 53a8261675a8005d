"""Twins from a factory: what they hold is copied, but what switches a part of the network off."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision import models

from lightning_sanity import parameter_randomization_test
from lightning_sanity.model.graph import trace
from lightning_sanity.randomization.strategies import stops_signal
from lightning_sanity.randomization.twins import reinitializer
from lightning_sanity.randomization.unit import plan


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("head.weight", torch.zeros(4, 8), True),
        ("block.layer_scale", torch.full((8, 1, 1), 1e-6), True),
        ("bn2.weight", torch.zeros(8), True),
        ("gate", torch.zeros(()), True),
        ("bn1.weight", torch.ones(8), False),
        ("head.bias", torch.zeros(4), False),
        ("attention.in_proj_bias", torch.zeros(12), False),
        ("logit_scale", torch.tensor(2.66), False),
        ("head.weight", torch.randn(4, 8), False),
    ],
)
def test_one_constant_that_multiplies_stops_the_signal(name, value, expected):
    assert stops_signal(name, value) is expected


class Adapted(nn.Module):
    """A low-rank adapter beside a layer, whose second factor starts at zero; a residual branch that starts at zero."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.norm, self.gate, self.head = nn.LayerNorm(8), nn.Parameter(torch.zeros(())), nn.Linear(8, 3)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        x = self.base(x) + self.up(self.down(x)).tanh()
        return self.head(x + self.gate * self.norm(x))


def drawer(make, x):
    torch.manual_seed(3)
    model = make().eval()
    for parameter in model.parameters():  # as training would leave it
        parameter.data += 0.1 * torch.randn_like(parameter)
    planned = plan(model, trace(model, (x,)))
    return model, planned, reinitializer(make, model, planned, seed=0)


def test_what_a_factory_switches_off_is_drawn_and_named():
    model, planned, twins = drawer(Adapted, torch.randn(4, 8))
    trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    act = twins.start_trial(0)
    changes = {change.parameter: change for unit in planned.units for change in act(model, unit)}
    switched = {"up.weight", "head.weight", "gate"}
    named = {name for name, change in changes.items() if "one constant that multiplies" in change.strategy}
    assert named == switched
    (note,) = twins.notes
    assert all(name in note for name in switched)
    assert float(model.head.weight.detach().std()) == pytest.approx(float(trained["head.weight"].std()), rel=0.5)
    assert all(bool(change.relative > 0) for change in changes.values())
    assert changes["norm.weight"].strategy == "twin"
    assert torch.equal(model.norm.weight, torch.ones(8))


def test_a_head_of_zeros_leaves_maps_that_can_be_compared():
    def make():  # torchvision starts the head of a vision transformer at zero
        return models.VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=4)

    torch.manual_seed(1)
    model = make().eval()
    nn.init.normal_(model.heads.head.weight)
    result = parameter_randomization_test(
        model, torch.rand(8, 3, 16, 16), torch.arange(8) % 4, methods="gradient", reinitialize=make, trials=2, repeats=1
    )
    assert not result.curves["gradient", "spearman"].values.isnan().any()
    assert any("heads.head.weight" in note for note in result.coverage.notes)


def test_a_factory_that_switches_nothing_off_is_not_annotated():
    _, _, twins = drawer(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)), torch.randn(4, 8))
    assert twins.notes == ()


class Scanned(nn.Module):
    """Positions by sines, a state-space model's decay rates, and a spectral norm: none of them is drawn."""

    def __init__(self):
        super().__init__()
        angle = torch.arange(8.0)[:, None] * 100.0 ** (-torch.arange(4) / 4)
        self.positions = nn.Parameter(torch.cat([angle.sin(), angle.cos()], 1))
        self.decay = nn.Parameter(torch.arange(1.0, 9.0).log().repeat(8, 1))
        self.layer, self.head = spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 3)

    def forward(self, x):
        x = self.layer(x + self.positions) @ torch.exp(-self.decay)
        return self.head(x.mean(1))


def test_tables_of_a_formula_do_not_stop_a_factory_and_are_named():
    model, planned, twins = drawer(Scanned, torch.randn(4, 8, 8))
    (note,) = twins.notes
    assert "positions" in note
    assert "decay" in note
    act = twins.start_trial(0)
    assert all(bool(change.relative > 0) for unit in planned.units for change in act(model, unit))
    assert torch.equal(model.decay, Scanned().decay)


def test_a_table_that_nobody_trained_is_drawn_all_the_same():
    torch.manual_seed(4)
    model = Scanned().eval()
    result = parameter_randomization_test(
        model, torch.randn(6, 8, 8), torch.arange(6) % 3, methods="gradient", reinitialize=Scanned, trials=1, repeats=1
    )
    strategies = {n: s for unit in result.coverage.units for n, s in zip(unit.parameters, unit.strategy, strict=True)}
    assert strategies["positions"].startswith("normal")
    assert result.coverage.share == 1


def test_a_twins_spectral_norm_is_that_of_its_own_weight():
    model, planned, twins = drawer(Scanned, torch.randn(4, 8, 8))
    act = twins.start_trial(0)
    for unit in planned.units:
        act(model, unit)
    assert float(torch.linalg.matrix_norm(model.layer.weight.detach(), 2)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("how", ["normal", "reset", "shuffle"])
def test_a_spectral_norm_keeps_to_one_however_its_weight_is_drawn(how):
    model, planned, _ = drawer(Scanned, torch.randn(4, 8, 8))
    trained = float(torch.linalg.matrix_norm(model.layer.weight.detach(), 2))
    act = reinitializer(how, model, planned, seed=0).start_trial(0)
    for unit in planned.units:
        act(model, unit)
    found = float(torch.linalg.matrix_norm(model.layer.weight.detach(), 2))
    assert 0.5 * min(trained, 1) < found < 2 * max(trained, 1)
