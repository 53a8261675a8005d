"""Steps by distance at every granularity, and what a list of names makes of them."""

import pytest
import torch
import torchvision
from made_paths import Branches, Drawn, Mean, Squeezing, WideAndDeep
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.model.graph import trace
from lightning_sanity.randomization import units
from lightning_sanity.randomization.unit import plan
from lightning_sanity.resources.random_streams import generator

VECTORS = torch.randn(3, 6)
IMAGES = torch.rand(2, 1, 8, 8)


def names(model, inputs, granularity="layer"):
    model = model.eval()
    return [step.name for step in plan(model, trace(model, (inputs,)), granularity).steps]


@pytest.mark.parametrize("seed", range(6))
def test_a_step_is_all_layers_at_one_longest_distance(seed):
    rng = generator(seed)
    arrows = [[k for k in range(node) if torch.rand((), generator=rng) < 0.35] for node in range(9)]
    readers = {node: [k for k in range(9) if node in arrows[k]] for node in range(9)}

    def distances(node):  # all paths to the last layer, one by one
        return [0] if node == 8 else [1 + far for reader in readers[node] for far in distances(reader)]

    expected = {f"nodes.{node}": max(distances(node)) for node in range(9) if distances(node)}
    model = Drawn(arrows)
    planned = plan(model, trace(model, (torch.randn(2, 4),)))
    found = {unit.name: far for far, step in enumerate(planned.steps) for unit in step.units}
    assert found == expected
    dead = {f"nodes.{node}" for node in range(9)} - set(expected)
    assert {name.rpartition(".")[0] for unit in planned.aside for name in unit.parameters} == dead


def test_members_of_an_ensemble_become_random_together():
    members = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(8)]
    assert names(Mean(members), VECTORS) == ["members.*.2", "members.*.0"]


def test_members_of_an_ensemble_have_the_blocks_of_one():
    blocks = names(Mean([Branches(), Branches(), Branches()]), VECTORS, "block")
    assert blocks == ["members.*.head", "members.*.two", "members.*.one", "members.*.stem"]


def test_a_wide_path_becomes_random_with_the_head_of_the_deep_one():
    deep = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert names(WideAndDeep(nn.Linear(6, 3), deep), VECTORS) == ["wide + deep.2", "deep.0"]


def test_branches_of_different_lengths_are_aligned_at_their_end():
    found = names(Branches(), VECTORS)
    assert found == [
        "head",
        "two (4 branches)",
        "two.middle.0 + long.2",
        "two.long.0",
        "one (4 branches)",
        "one.middle.0 + long.2",
        "one.long.0",
        "stem",
    ]
    assert names(Branches(), VECTORS, "block") == ["head", "two", "one", "stem"]


def test_a_shortcut_joins_the_layer_that_it_is_added_to():
    found = names(torchvision.models.resnet18(), torch.rand(2, 3, 32, 32))
    assert len(found) == 18
    assert "layer2.0.conv2 + downsample.0" in found


@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_names_of_steps_are_different(granularity):
    found = names(
        torchvision.models.googlenet(init_weights=False, aux_logits=False), torch.rand(2, 3, 64, 64), granularity
    )
    assert len(set(found)) == len(found)
    assert "inception4a (4 branches)" in found or granularity == "block"


def test_a_pattern_makes_one_unit_of_all_that_it_matches():
    found = units(torchvision.models.resnet18().eval(), torch.rand(2, 3, 32, 32), [r"layer\d\.\d\.conv2"])
    assert [len(unit.weights) for unit in found if unit.name.startswith("layer\\d")] == [8]


def test_a_listed_name_gets_its_step_even_where_it_only_shifts_or_scales():
    assert names(Squeezing(), IMAGES, ["mask", "norm", "scale"]) == ["mask", "scale", "expand..squeeze", "norm", "body"]


def test_the_more_exact_of_two_names_is_served_first():
    found = units(torchvision.models.resnet18().eval(), torch.rand(2, 3, 32, 32), ["layer4", "layer4.1.conv2"])
    assert [unit.name for unit in found][1:3] == ["layer4.1.conv2", "layer4"]
    assert found[1].parameters == tuple(f"layer4.1.{name}" for name in ("conv2.weight", "bn2.weight", "bn2.bias"))


def test_a_listed_normalisation_before_the_first_layer_is_the_last_step():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    assert names(model, VECTORS, ["0"]) == ["3..1", "0"]


def test_a_normalisation_ahead_of_its_convolution_belongs_to_the_listed_module_that_holds_it():
    class Ahead(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x):
            return x + self.linear(torch.relu(self.norm(x)))

    found = units(nn.Sequential(Ahead(), Ahead(), nn.Linear(6, 2)).eval(), VECTORS, ["0", "1", "2"])
    assert [{name[0] for name in unit.parameters} for unit in found] == [{"2"}, {"1"}, {"0"}]


@pytest.mark.parametrize("granularity", ["layer", "block", ["head", "one"], ["one", "head", "two", "stem"]])
def test_every_parameter_has_one_step(granularity):
    model = Branches().eval()
    planned = plan(model, trace(model, (VECTORS,)), granularity)
    found = [name for step in planned.steps for unit in step.units for name in unit.parameters]
    assert sorted(found) == sorted(name for name, _ in model.named_parameters())


def test_listed_layers_are_drawn_as_they_are_by_default():
    model = Branches().eval()
    drawn = [
        {unit.name: unit.parameters for unit in plan(model, trace(model, (VECTORS,)), granularity).units}
        for granularity in ("layer", "block", ["two", "stem"])
    ]
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_listed_name_that_the_explained_output_does_not_need_is_refused():
    model = nn.ModuleDict({"body": nn.Linear(6, 4), "head": nn.Linear(4, 2), "other": nn.Linear(4, 2)}).eval()
    model.forward = lambda x: (model["head"](model["body"](x)), model["other"](model["body"](x)))
    graph = trace(model, (VECTORS,), explained=lambda outputs: outputs[0])
    with pytest.raises(
        ValueError, match="nothing is left for 'other', which matches other: no parameter there reaches"
    ):
        plan(model, graph, ["head", "other"])
    assert [step.name for step in plan(model, graph, ["head"]).steps] == ["head", "body"]


@pytest.mark.parametrize("pattern", [".*", r"[01]\b.*", r"1.*"])
def test_a_pattern_that_matches_parameters_as_well_cuts_no_layer_in_two(pattern):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    planned = plan(model, trace(model, (torch.rand(2, 1, 8, 8),)), [pattern])
    names = [unit.name for unit in planned.units]
    assert len(names) == len(set(names))  # each has a random stream of its own
    assert all(unit.parameters != ("4.bias",) for unit in planned.units)


def test_one_step_of_everything_is_drawn_and_proven_on_both_paths():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    given = {"trials": 1, "repeats": 1, "granularity": [".*"], "progress": False, "controls": False}
    for engine in ("auto", "plain"):
        result = parameter_randomization_test(
            model, torch.rand(4, 1, 8, 8), 1, methods="gradient", engine=engine, **given
        )
        assert result.units == (".*",)
        assert result.coverage.share == 1
