import functools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from lightning_sanity.model.tensor_paths import places_of


def where(model, tensor, further=()):
    place = places_of(model, [tensor], further).get(tensor.data_ptr())
    return None if place is None else (place.name, place.shared)


def test_the_nearest_of_several_places_is_named():
    model, tensor = nn.Sequential(nn.Linear(2, 2)), torch.randn(3)
    model[0].deep, model.near = {"a": [{"b": tensor}]}, tensor
    assert where(model, tensor) == ("near", False)


def test_a_place_is_found_through_objects_and_partials():
    model, tensor = nn.Sequential(nn.Linear(2, 2)), torch.randn(3)
    model[0].kept = SimpleNamespace(function=functools.partial(torch.add, tensor))
    assert where(model, tensor) == ("0.kept.function.args[0]", False)


def test_what_a_closure_holds_is_shared_with_every_copy():
    model, tensor = nn.Linear(2, 2), torch.randn(3)
    model.scaled = lambda x: x * tensor
    assert where(model, tensor) == ("scaled: tensor", True)


def test_a_function_of_the_user_is_searched():
    tensor = torch.randn(3)

    def forward(model, x, scale=tensor):
        return model(x) * scale

    assert where(nn.Linear(2, 2), tensor, [forward]) == ("forward: default 0", True)


def test_an_array_is_found_by_its_memory():
    model = nn.Linear(2, 2)
    model.array = np.ones(3)
    assert where(model, torch.from_numpy(model.array)) == ("array", False)


def test_rings_of_objects_end_the_search():
    model = nn.Linear(2, 2)
    model.ring = SimpleNamespace()
    model.ring.itself = model.ring
    assert where(model, torch.randn(3)) is None
