"""What is known of a module's structure is used again while only weights change, and changes no result."""

import gc
import json

import pytest
import torch
from made_walks import Branches, Residual, Shared
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.engine.network import Network
from lightning_sanity.engine.streams import TwoStream
from lightning_sanity.model import structure
from lightning_sanity.resources.random_streams import generator

IMAGES = torch.rand(5, 3, 12, 12, generator=generator("images"))


def checked(model, inputs=IMAGES, **options):
    given = {"methods": "gradient", "trials": 1, "repeats": 1, "progress": False} | options
    found = parameter_randomization_test(model.eval(), inputs, torch.arange(len(inputs)) % 4, **given).to_dict()
    found.pop("seconds"), found.pop("created")
    return json.loads(json.dumps(found))


@pytest.fixture
def taken_apart(monkeypatch):
    """Grows by one for every network that is taken apart."""
    counted, trace = [], Network._traced

    def traced(network, given):
        counted.append(network)
        return trace(network, given)

    monkeypatch.setattr(Network, "_traced", traced)
    return counted


@torch.no_grad()
def trained_on(model):
    for parameter in model.parameters():
        parameter.mul_(1.1).add_(0.01)


@pytest.mark.parametrize("make", [Residual, Branches, Shared])
@pytest.mark.parametrize("engine", ["auto", "folded"])
def test_other_weights_of_one_structure_have_the_result_of_a_first_test(make, engine, taken_apart):
    torch.manual_seed(0)
    model = make()
    first = checked(model, engine=engine)
    before = len(taken_apart)
    assert checked(model, engine=engine) == first
    trained_on(model)
    again = checked(model, engine=engine)
    assert len(taken_apart) == before, "the network was taken apart again"
    structure._kept.clear()
    assert again == checked(model, engine=engine) != first
    assert len(taken_apart) > before
    assert again["settings"]["engine"]["gradient"].startswith("two_stream")


class Scaled(nn.Module):
    """Whose pass follows a plain attribute, a setting, or a hook."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.power, self.config = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), 1, {"gain": 1.0}

    def forward(self, x):
        x = self.stem(x).relu() ** self.power
        return self.head(x.mean((2, 3)) * self.config["gain"])


CHANGES = {
    "attribute": lambda model: setattr(model, "power", 2),
    "setting": lambda model: model.config.update(gain=3.0),
    "hook": lambda model: model.stem.register_forward_hook(lambda module, given, output: output * 2),
    "part": lambda model: setattr(model, "stem", nn.Conv2d(3, 6, 3, stride=2)),
    "frozen": lambda model: model.stem.weight.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_but_weights_is_found_again(change, taken_apart):
    torch.manual_seed(0)
    model = Scaled()
    checked(model)
    before = len(taken_apart)
    CHANGES[change](model)
    changed = checked(model)
    assert len(taken_apart) > before or change == "frozen"  # no parameter of a copy wants a gradient
    structure._kept.clear()
    assert checked(model) == changed


def test_other_samples_are_looked_at_anew(taken_apart):
    model = Residual()
    checked(model)
    before = len(taken_apart)
    checked(model, IMAGES.flip(3))
    assert len(taken_apart) > before


class Gated(nn.Module):
    """Samples that meet behind a gate, which is shut before training."""

    def __init__(self):
        super().__init__()
        self.stem, self.head, self.gate = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        x = self.stem(x).relu().mean((2, 3))
        return self.head(x + self.gate * (x - x.mean(0)))


def test_a_way_between_samples_that_opens_is_seen():
    torch.manual_seed(0)
    model = Gated()
    assert not any("other samples of the batch" in note for note in checked(model)["coverage"]["notes"])
    model.gate.data.fill_(0.5)
    assert any("other samples of the batch" in note for note in checked(model)["coverage"]["notes"])


def test_what_is_wrong_by_now_is_caught_and_forgotten():
    torch.manual_seed(0)
    model = Residual()
    first = checked(model)
    _, known = structure._kept[model]
    (key,) = [key for key in known if key[0] is TwoStream]
    node = next(node for node in known[key][1] if node.target == "two")
    node.target = "drop"
    assert checked(model)["settings"]["engine"]["gradient"] == "plain"
    assert key not in known
    assert checked(model) == first


def test_nothing_keeps_a_module_alive():
    model = Residual()
    checked(model)
    kept = len(structure._kept)
    del model
    gc.collect()
    assert len(structure._kept) < kept
