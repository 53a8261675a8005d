"""What a layer is, and where it stands: by the operations that read its parameters, whatever module holds them."""

import pytest
import torch
from made_exotic import TiedDecoder
from made_paths import (
    AttentionPooling,
    ByHand,
    Flat,
    OwnRecurrent,
    RankOne,
    Squeezing,
    TextTower,
    TiedWeights,
    in_modules,
)
from torch import nn
from torch.nn import functional as F

from lightning_sanity.model.graph import trace
from lightning_sanity.randomization import units
from lightning_sanity.randomization.unit import plan

VECTORS = torch.randn(3, 6)


def steps(model, *inputs):
    """The parameters of each step, as sets."""
    model = model.eval()
    return [
        {name for unit in step.units for name in unit.parameters} for step in plan(model, trace(model, inputs)).steps
    ]


@pytest.mark.parametrize(
    "head", [nn.Linear(8, 1), nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.Conv2d(8, 1, 1), nn.Flatten())]
)
def test_a_head_of_one_output_is_a_layer(head):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), head)
    assert len(steps(model, VECTORS)) == 2


def test_a_1x1_convolution_to_one_mask_is_a_layer():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1))
    assert [unit.name for unit in units(model, torch.randn(2, 1, 8, 8))] == ["2", "0"]


def test_scores_that_attention_pools_by_are_a_layer():
    assert steps(AttentionPooling(), torch.randn(2, 5, 6)) == [
        {"head.weight", "head.bias"},
        {"score"},
        {"features.weight", "features.bias"},
    ]


def test_a_squeeze_to_one_channel_is_a_layer_and_a_layer_scale_is_none():
    found = steps(Squeezing(), torch.randn(2, 1, 8, 8))
    assert {"squeeze.weight", "squeeze.bias"} in found
    assert {"expand.weight", "expand.bias", "scale"} in found
    assert len(found) == 4


@pytest.mark.parametrize("merged", [False, True])
def test_adapters_of_rank_one_are_layers(merged):
    found = steps(RankOne(merged), VECTORS)
    mixing = {name for unit in units(RankOne(merged).eval(), VECTORS) for name in unit.weights}
    assert {"low", "high", "base.weight"} <= mixing
    assert found[1] >= {"high", "base.weight", "base.bias"}
    assert found[-1] == {"first.weight", "first.bias"}


def test_a_class_token_and_positions_belong_to_the_patches():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.head = nn.Linear(6, 8), nn.Linear(8, 2)
            self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 6, 8))

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], 1) + self.position
            return self.head(torch.tanh(x).mean(1))

    assert steps(Tokens(), torch.randn(2, 5, 6))[1] == {"patches.weight", "patches.bias", "token", "position"}


def test_products_that_are_summed_by_hand_mix_channels():
    assert steps(ByHand(), VECTORS) == [{"prototypes"}, {"weight"}]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_module_that_holds_several_layers_has_the_steps_of_the_same_network_in_modules(wrapped):
    flat = Flat()
    written = steps(nn.Sequential(flat) if wrapped else flat, VECTORS)
    expected = steps(in_modules(flat), VECTORS)
    assert [len(step) for step in written] == [len(step) for step in expected]
    prefix = "0." if wrapped else ""
    assert written == [{prefix + name for name in names} for names in ({"w3"}, {"w2", "b2", "scale"}, {"w1", "b1"})]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_each_layer_of_a_recurrent_network_is_a_step(kind, both):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = kind(4, 5, 3, batch_first=True, bidirectional=both)
            self.norm, self.head = nn.LayerNorm(10 if both else 5), nn.Linear(10 if both else 5, 2)

        def forward(self, x):
            return self.head(self.norm(self.body(x)[0][:, -1]))

    model = Recurrent()
    found = steps(model, torch.randn(2, 6, 4))
    layers = [{n for n, _ in model.named_parameters() if f"_l{layer}" in n} for layer in (2, 1, 0)]
    assert found == [{"head.weight", "head.bias"}, layers[0] | {"norm.weight", "norm.bias"}, *layers[1:]]
    assert [unit.name for unit in units(model.eval(), torch.randn(2, 6, 4))] == [
        "head",
        "body.l2",
        "body.l1",
        "body.l0",
    ]


def test_a_recurrent_cell_and_a_recurrence_by_hand_are_one_step():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(4, 5), nn.Linear(5, 2)

        def forward(self, x):
            state = x.new_zeros(len(x), 5), x.new_zeros(len(x), 5)
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return self.head(state[0])

    series = torch.randn(2, 6, 4)
    assert [len(step) for step in steps(Cell(), series)] == [2, 4]
    assert steps(OwnRecurrent(), series) == [{"head.weight", "head.bias"}, {"into", "again", "bias"}]


def test_a_bias_of_its_own_does_not_follow_a_tied_weight():
    assert steps(TiedWeights(), VECTORS) == [
        {"head.weight", "head.bias"},
        {"first.weight", "third.bias"},
        {"second.weight", "second.bias"},
        {"first.bias"},
    ]


def test_a_tied_weight_stands_where_it_is_used_nearest_to_the_output():
    assert steps(TiedDecoder(), torch.randint(9, (2, 5)))[0] == {"embedding.weight"}


def test_a_use_nearest_to_the_output_need_not_be_the_last():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.deep, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            near = self.shared(x)
            return self.head(near + self.deep(F.relu(self.shared(F.relu(x)))))

    found = steps(Twice(), VECTORS)
    assert found == [{"head.weight", "head.bias"}, {"shared.weight", "shared.bias", "deep.weight", "deep.bias"}]


def test_a_tower_on_fixed_tokens_becomes_random_beside_the_tower_on_the_data():
    tower = [{"image2.weight", "image2.bias", "text2.weight", "text2.bias", "temperature"}]
    tower += [{"image1.weight", "image1.bias", "text1.weight", "text1.bias"}, {"words.weight"}]
    assert steps(TextTower(), VECTORS) == tower


def test_running_statistics_follow_their_use_with_and_without_a_scale():
    layers = [nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 1)]
    found = units(nn.Sequential(nn.BatchNorm1d(6, affine=False), *layers).eval(), VECTORS)
    assert found[0].statistics == ()
    names = ("0.running_mean", "0.running_var", "2.running_mean", "2.running_var")
    assert found[1].statistics == names


def test_what_is_written_in_place_through_a_view_is_followed():
    class Assigning(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, x):
            joined = torch.zeros(len(x), 8)
            joined[:, :4] = self.left(x[:, :3])
            joined[:, 4:] = self.right(x[:, 3:])
            return self.head(joined)

    assert [len(step) for step in steps(Assigning(), VECTORS)] == [2, 4]


def test_attention_has_the_same_layers_where_its_fused_kernel_would_run():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    assert torch.backends.mha.get_fastpath_enabled()
    found = [unit.name for unit in units(nn.Sequential(layer), torch.randn(2, 5, 8))]
    assert found == ["0.linear2", "0.linear1", "0.self_attn.out_proj", "0.self_attn.in_proj_weight"]
    assert torch.backends.mha.get_fastpath_enabled()


def test_xavier_reaches_a_head_of_one_output_and_no_layer_scale():
    from lightning_sanity.randomization.strategies import redraw
    from lightning_sanity.resources.random_streams import generator

    model = Squeezing().eval()
    changes = [
        change
        for unit in units(model, torch.randn(2, 1, 8, 8))
        for change in redraw("xavier")(model, unit, generator(0, unit.name))
    ]
    strategies = {change.parameter: change.strategy for change in changes}
    assert {strategies[name] for name in ("squeeze.weight", "expand.weight", "mask.weight")} == {"xavier"}
    assert strategies["scale"] == "normal"
