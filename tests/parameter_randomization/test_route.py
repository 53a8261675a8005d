"""Which steps are walked, and which of them left the outputs as they were."""

import pytest
import torch

from lightning_sanity.parameter_randomization.route import Route

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
