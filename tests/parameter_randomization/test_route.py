"""Which steps are walked, and which of them left the outputs as they were."""

from argparse import Namespace
from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli.options import given_options
from lightning_sanity.parameter_randomization.options import DEFAULTS, settled
from lightning_sanity.parameter_randomization.route import ENOUGH, Route, chosen, most_steps

CASCADE = [("c",), ("c", "b"), ("c", "b", "a")]
ALONE = [("c",), ("b",), ("a",)]
TRAINED = torch.arange(6.0).reshape(3, 2)  # (N, classes)


def route(steps):
    return Route(steps, tuple(range(len(steps))), len(steps))


def outputs(*depths):
    """Outputs ``(1, depths, N, classes)`` that are so far from the trained model's."""
    return torch.stack([TRAINED + moved for moved in depths])[None]


def test_a_cascade_is_nested_and_single_layers_are_not():
    assert route(CASCADE).nested
    assert not route(ALONE).nested


def test_a_part_of_a_route_keeps_its_places_in_the_whole():
    part = route(CASCADE).only([0, 2])
    assert (part.steps, part.places, part.of, len(part)) == ([CASCADE[0], CASCADE[2]], (0, 2), 3, 2)
    assert part.only([1]).places == (2,)


@pytest.mark.parametrize(
    ("steps", "moved", "silent"),
    [
        (CASCADE, (1, 1, 2), {1}),  # the second step changed nothing of what the first had left
        (CASCADE, (0, 1, 2), {0}),
        (CASCADE, (1, 2, 3), set()),
        (ALONE, (1, 1, 2), set()),  # each from the trained model
        (ALONE, (1, 0, 0), {1, 2}),
    ],
)
def test_a_step_that_changes_nothing_is_silent(steps, moved, silent):
    assert route(steps).silent(TRAINED, outputs(*moved), lambda depth: False) == silent


def test_of_a_thinned_cascade_all_steps_up_to_a_silent_depth_are_silent():
    assert route(CASCADE).only([0, 2]).silent(TRAINED, outputs(1, 1), lambda depth: False) == {1, 2}


def test_rounding_is_looked_into():
    asked = []
    near = outputs(1, 1 + 1e-6, 2)
    assert route(CASCADE).silent(TRAINED, near, lambda depth: asked.append(depth) or True) == {1}
    assert asked == [1]


def test_a_step_has_to_be_silent_in_every_trial():
    both = torch.cat([outputs(1, 1, 2), outputs(1, 2, 3)])
    assert route(CASCADE).silent(TRAINED, both, lambda depth: False) == set()


# ---------------------------------------------------------------------------------------------- at most a dozen steps


@pytest.mark.parametrize("of", [13, 14, 25, 50, 157, 1000])
def test_a_dozen_steps_are_spread_with_both_ends_and_their_neighbours(of):
    places = chosen(ENOUGH, of)
    assert len(set(places)) == ENOUGH
    assert list(places) == sorted(places)
    assert {0, 1, of - 2, of - 1} <= set(places)
    gaps = {after - before for before, after in pairwise(places[1:-1])}
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("most", [None, 12, 13, 50])
def test_no_more_steps_are_left_out_than_there_are(most):
    assert chosen(most, 12) == tuple(range(12))


def test_a_default_leaves_small_networks_and_single_layers_whole():
    assert most_steps("auto", "cascading", 12) is None
    assert most_steps("auto", "independent", 100) is None
    assert most_steps("auto", "cascading", 13) == most_steps("auto", "bottom_up", 13) == 12
    assert most_steps(None, "cascading", 100) is None
    assert most_steps(3, "independent", 100) == 3


def test_all_steps_can_be_asked_for_on_the_command_line():
    asked = Namespace(**{**dict.fromkeys(DEFAULTS), "max_steps": "all"})
    assert settled(given_options(asked, None), "check")["max_steps"] is None
    asked.max_steps = "auto"
    assert given_options(asked, None)["max_steps"] == "auto"


def chain(layers):
    torch.manual_seed(0)
    inner = [part for _ in range(layers - 1) for part in (nn.Linear(8, 8), nn.Tanh())]
    model = nn.Sequential(*inner, nn.Linear(8, 4)).eval()
    for layer in model[::2]:  # whose signal reaches the end
        nn.init.orthogonal_(layer.weight, 1.3)
    return model


def walked(model, **changes):
    given = {"methods": "gradient", "trials": 2, "repeats": 2, "pictures": False, "progress": False, "controls": False}
    return parameter_randomization_test(model, torch.randn(6, 8), torch.arange(6) % 4, **{**given, **changes})


def test_of_a_deep_network_a_dozen_steps_are_walked_and_all_of_it_becomes_random():
    model = chain(30)
    torch.manual_seed(1)
    some = walked(model)
    torch.manual_seed(1)
    whole = walked(model, max_steps=None)
    places = list(chosen(ENOUGH, 30))
    assert some.settings["walked"] == [place + 1 for place in places]
    assert some.units == tuple(whole.units[place] for place in places)
    assert some.coverage.share == whole.coverage.share == 1.0
    named = {name for unit in some.coverage.units for name in unit.parameters}
    assert named == {name for name, _ in model.named_parameters()}
    for key, curve in some.curves.items():
        expected = whole.curves[key].values[:, places]
        torch.testing.assert_close(curve.values, expected, equal_nan=True, atol=1e-5, rtol=0)
    assert any("12 of 30 steps walked" in note and "max_steps=None" in note for note in some.coverage.notes)
    assert (some.settings["max_steps"], whole.settings["max_steps"]) == (12, None)


def test_a_network_of_a_dozen_layers_is_walked_as_if_all_were_asked_for():
    model = chain(12)
    results = []
    for changes in ({}, {"max_steps": None}):
        torch.manual_seed(1)
        results.append(walked(model, **changes))
    assert results[0].settings == results[1].settings
    assert len(results[0].units) == 12
    for key, curve in results[0].curves.items():
        assert curve.values.nan_to_num(9.0).equal(results[1].curves[key].values.nan_to_num(9.0))
