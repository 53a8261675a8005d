import copy
import random as python_random

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.model.clone import clone
from lightning_sanity.model.graph import trace
from lightning_sanity.randomization import RandomizationError, Unit, reinitialize_, units
from lightning_sanity.randomization.strategies import redraw
from lightning_sanity.randomization.twins import reinitializer
from lightning_sanity.randomization.unit import plan, subsets
from lightning_sanity.resources.random_streams import generator


class HeadFirst(nn.Module):
    """The head is declared before the body."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())

    def forward(self, x):
        return self.head(self.body(x))


class Token(nn.Module):
    """A bare parameter and an attention whose in-projection is a functional use."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.attention(x, x, x)[0][:, 0])


class Tied(nn.Module):
    """An embedding that is also the decoder."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.middle = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 7, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(self.middle(self.embedding(tokens).mean(1)))


def names(model, inputs, granularity="layer"):
    return [unit.name for unit in units(model.eval(), inputs, granularity)]


def test_units_follow_use_not_definition():
    assert names(HeadFirst(), torch.randn(2, 6)) == ["head", "body.0"]


def test_units_join_a_normalisation_to_the_layer_before_it():
    found = units(HeadFirst().eval(), torch.randn(2, 6))
    assert found[1].parameters == ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias")
    assert found[1].statistics == ("body.1.running_mean", "body.1.running_var")


def test_units_place_tied_weights_once_at_their_topmost_use():
    found = units(Tied().eval(), torch.randint(7, (2, 3)))
    assert [unit.name for unit in found] == ["embedding", "middle"]


def test_units_cover_bare_parameters_and_functional_projections():
    found = units(Token().eval(), torch.randn(2, 4, 8))
    assert {name for unit in found for name in unit.parameters} == {n for n, _ in Token().named_parameters()}
    assert [unit.name for unit in found][:2] == ["head", "attention.out_proj"]


def test_blocks_of_resnet50_are_those_of_its_paper():
    found = names(torchvision.models.resnet50(), torch.randn(2, 3, 64, 64), "block")
    assert len(found) == 18
    assert found[:2] == ["fc", "layer4.2"]
    assert found[-1] == "conv1"


def test_blocks_of_a_wrapped_network_are_those_of_the_network():
    wrapped = nn.Module()
    wrapped.net = torchvision.models.resnet18()
    wrapped.forward = lambda x: wrapped.net(x)
    assert len(names(wrapped, torch.randn(2, 3, 64, 64), "block")) == 10


def test_listed_granularity_takes_names_and_regexes_and_leaves_nothing_out():
    model = torchvision.models.resnet18().eval()
    found = units(model, torch.randn(2, 3, 64, 64), ["fc", r"layer\d"])
    assert [unit.name for unit in found] == ["fc", r"layer\d", "conv1"]
    assert {name for unit in found for name in unit.parameters} == {name for name, _ in model.named_parameters()}


def test_listed_granularity_refuses_a_name_without_a_module():
    with pytest.raises(ValueError, match="'layer9' matches no module"):
        units(torchvision.models.resnet18().eval(), torch.randn(2, 3, 64, 64), ["layer9"])


def test_units_refuse_a_model_without_parameters():
    with pytest.raises(RandomizationError, match="nothing to re-initialise"):
        units(nn.Flatten(), torch.randn(2, 4, 4))


def test_units_refuse_lazy_and_meta_parameters():
    with pytest.raises(RandomizationError, match="lazy"):
        plan(nn.LazyLinear(3), trace(nn.Identity(), (torch.randn(2, 3),)))
    with pytest.raises(RandomizationError, match="meta"):
        plan(nn.Linear(2, 2, device="meta"), trace(nn.Identity(), (torch.randn(2, 3),)))


@pytest.mark.parametrize("how", ["normal", "shuffle", "reset", "xavier", "kaiming"])
@pytest.mark.parametrize(("kind", "inputs"), [(HeadFirst, torch.randn(2, 6)), (Token, torch.randn(2, 4, 8))])
def test_every_used_parameter_changes_under_every_strategy(kind, inputs, how):
    model = kind().eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for unit in units(model, inputs):
        reinitialize_(model, unit, how, generator(unit.name))
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_normal_matches_the_moments_of_each_tensor():
    model = nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 3))
    nn.init.normal_(model[0].weight, 0.3, 0.02)
    reinitialize_(model, units(model, torch.randn(2, 200))[1], "normal", generator(0))
    assert model[0].weight.mean().item() == pytest.approx(0.3, abs=1e-3)
    assert model[0].weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_shuffle_keeps_the_values_of_a_tensor():
    model = nn.Sequential(nn.Linear(6, 5))
    before = model[0].weight.detach().flatten().sort().values
    reinitialize_(model, units(model, torch.randn(2, 6))[0], "shuffle", generator(0))
    assert torch.equal(model[0].weight.detach().flatten().sort().values, before)


def test_units_of_equal_shape_get_different_draws():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    inputs = torch.randn(2, 4)
    planned = plan(model, trace(model, (inputs,)))
    act = reinitializer("normal", model, planned, seed=0).start_trial(0)
    for layer in model:
        nn.init.constant_(layer.weight, 1.0)
    for unit in planned.units:
        act(model, unit)
    assert not torch.equal(model[0].weight, model[1].weight)


def test_a_draw_depends_on_seed_trial_and_unit_only():
    def draw(trial, only):
        model = HeadFirst().eval()
        model.load_state_dict(state)
        planned = plan(model, trace(model, (torch.zeros(2, 6),)))
        act = reinitializer("normal", model, planned, seed=3).start_trial(trial)
        for unit in planned.units:
            if only is None or unit.name == only:
                act(model, unit)
        return model.body[0].weight.detach()

    state = HeadFirst().state_dict()
    assert torch.equal(draw(1, None), draw(1, "body.0"))
    assert not torch.equal(draw(1, None), draw(2, None))


@pytest.mark.parametrize("how", ["normal", "shuffle", "reset", lambda module: nn.init.normal_(module.weight)])
def test_reinitialize_leaves_the_global_streams_alone(how):
    model = nn.Sequential(nn.Linear(4, 4, bias=False)).eval()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()
    reinitialize_(model, units(model, torch.randn(2, 4, generator=generator(0)))[0], how, generator(0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert python_random.getstate() == states[2]


def test_reinitialize_raises_for_a_parameter_that_kept_its_value():
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    unit = units(model, torch.randn(2, 4))[0]
    with pytest.raises(RandomizationError, match=r"cannot re-initialise '0\.bias' of unit '0'"):
        reinitialize_(model, unit, lambda module: nn.init.normal_(module.weight), generator(0))


def test_reinitialize_refuses_an_unknown_strategy():
    with pytest.raises(ValueError, match="unknown re-initialisation 'uniform'; choose from: normal"):
        reinitialize_(nn.Linear(2, 2), Unit("", ("weight",)), "uniform", generator(0))


def test_a_reset_of_one_unit_leaves_its_neighbours_alone():
    model = Token().eval()
    found = {unit.name: unit for unit in units(model, torch.randn(2, 4, 8))}
    nn.init.normal_(model.attention.out_proj.bias)
    before = model.attention.out_proj.bias.detach().clone()
    in_projection = next(unit for name, unit in found.items() if "attention.in_proj_weight" in unit.parameters)
    reinitialize_(model, in_projection, "reset", generator(0))
    assert torch.equal(model.attention.out_proj.bias, before)


def test_a_twin_factory_that_returns_pretrained_weights_is_refused():
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    pretrained = nn.Sequential(nn.Linear(4, 4)).state_dict()

    def factory():
        twin = nn.Sequential(nn.Linear(4, 4))
        twin.load_state_dict(pretrained)
        return twin

    planned = plan(model, trace(model, (torch.randn(2, 4),)))
    with pytest.raises(ValueError, match="comes out the same every time"):
        reinitializer(factory, model, planned, seed=0)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("cascading", ["a", "ab", "abc"]),
        ("bottom_up", ["c", "cb", "cba"]),
        ("independent", ["a", "b", "c"]),
        ("full", ["abc"]),
    ],
)
def test_orders_are_subsets_of_the_same_units(order, expected):
    found = subsets([Unit(name, (name,)) for name in "abc"], order)
    assert ["".join(unit.name for unit in step) for step in found] == expected


@pytest.mark.parametrize(("factor", "expected"), [(0.0, 1.0), (-1.0, 2.0), (2.0, 0.5), (1.0, 0.0)])
def test_a_change_is_a_share_of_the_larger_of_both_lengths(factor, expected):
    model = nn.Sequential(nn.Linear(30, 20))
    (change,) = redraw(lambda module: module.weight.data.mul_(factor))(model, Unit("l", ("0.weight",)), generator(0))
    assert float(change.relative) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("how", ["normal", "shuffle", "xavier", "reset"])
def test_a_change_is_the_same_against_a_trained_module_beside(how):
    model = nn.Sequential(nn.Conv2d(3, 600, 7), nn.Flatten(), nn.Linear(600, 4))
    unit = Unit("convolution", ("0.weight",))
    trained, again = copy.deepcopy(model), copy.deepcopy(model)
    (change,) = redraw(how)(model, unit, generator(0))
    (beside,) = redraw(how)(again, unit, generator(0), trained)  # measured against another module's values
    assert torch.equal(again[0].weight, model[0].weight)
    assert torch.equal(beside.relative, change.relative)


@pytest.mark.parametrize("value", [0.1, 1.0, -3.3e-7])
def test_a_constant_tensor_counts_as_one_whatever_rounding_its_mean_has(value):
    model = nn.Module()
    model.weight = nn.Parameter(torch.full((999, 101), value))
    (change,) = redraw("normal")(model, Unit("weight", ("weight",)), generator(0))
    assert change.strategy == "normal (around a constant)"
    assert torch.isclose(model.weight.std(), torch.tensor(0.1 * abs(value)), rtol=0.02)


# ------------------------------------------------------------------------------------------------- spectral norms


def normalised(wrapper):
    torch.manual_seed(0)
    layers = (
        wrapper(nn.Conv2d(2, 8, 3)),
        nn.ReLU(),
        nn.Flatten(),
        wrapper(nn.Linear(128, 16)),
        wrapper(nn.Linear(16, 3)),
    )
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    inputs, target = torch.randn(12, 2, 6, 6), torch.arange(12) % 3
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return model.eval(), inputs


WRAPPERS = {"hook": nn.utils.spectral_norm, "parametrization": nn.utils.parametrizations.spectral_norm}


@pytest.mark.parametrize("how", ["normal", "shuffle", "kaiming"])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_new_weights_are_divided_by_their_own_spectral_norm(kind, how):
    model, inputs = normalised(WRAPPERS[kind])
    copied = clone(model)
    for unit in units(copied, inputs[:2]):
        reinitialize_(copied, unit, how)
    copied(inputs)
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2) for layer in copied if hasattr(layer, "weight")]
    torch.testing.assert_close(torch.stack(norms), torch.ones(3), rtol=0.03, atol=0)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_shared_walks_see_new_spectral_norms(kind):
    model, inputs = normalised(WRAPPERS[kind])
    options = {"methods": "gradient", "trials": 2, "controls": False, "pictures": False}
    shared, plain = (
        parameter_randomization_test(model, inputs, engine=engine, **options) for engine in ("auto", "plain")
    )
    assert shared.engine == {"gradient": "two_stream"}
    ours, theirs = (result.curves["gradient", "spearman"].values for result in (shared, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert shared.coverage.hidden == ()
