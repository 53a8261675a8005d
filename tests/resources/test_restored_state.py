import contextlib
import itertools
import random
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from lightning_sanity.resources.restored_state import put_back, streams

of_module = np.random.default_rng(0)
calls = 0


class Attribute(Dataset):
    def __init__(self, made):
        self.made = made

    def __getitem__(self, index):
        return draw(self.made)


def draw(made):
    if isinstance(made, torch.Generator):
        return torch.rand(1, generator=made).item()
    return made.random() if hasattr(made, "random") else made.random_sample()


def of_closure():
    made, drawn = random.Random(0), 0

    def act():
        nonlocal drawn
        drawn += 1
        return made.random() + drawn

    return act


def of_globals():
    global calls
    calls += 1
    return of_module.random() + calls


class OfClass:
    made = np.random.RandomState(0)
    drawn = []  # noqa: RUF012  # shared by all, which is the point

    def __call__(self):
        self.drawn.append(self.made.random_sample())
        return len(self.drawn) + self.drawn[-1]


class Counting:
    def __init__(self):
        self.calls, self.seen, self.total, self.array = 0, {}, torch.zeros(2), np.zeros(2)

    def __call__(self):
        self.calls += 1
        self.seen[self.calls] = self.calls
        self.total += 1
        self.array += 1
        self.late = self.calls
        return self.calls, len(self.seen), float(self.total.sum()), float(self.array.sum())


class OfMany:
    def __init__(self):
        self.parts = {"a": [partial(draw, np.random.default_rng(1))]}

    def __call__(self):
        return self.parts["a"][0]()


def item(dataset):
    return partial(dataset.__getitem__, 0)


HELD = {
    "NumPy's generator": lambda: item(Attribute(np.random.default_rng(0))),
    "NumPy's older kind": lambda: item(Attribute(np.random.RandomState(0))),
    "Python's": lambda: item(Attribute(random.Random(0))),
    "torch's": lambda: item(Attribute(torch.Generator())),
    "in a subset of a union": lambda: item(Subset(ConcatDataset([Attribute(np.random.default_rng(0))]), [0])),
    "in a closure": of_closure,
    "in globals": lambda: of_globals,
    "in a class": OfClass,
    "counters, dictionaries, arrays": Counting,
    "deep in containers": OfMany,
}


class Once(Dataset):
    """``len`` is that of what it wraps."""

    def __len__(self):
        return 1


Attribute.__len__ = Once.__len__


@pytest.mark.parametrize("kind", HELD)
def test_what_calls_change_is_put_back(kind):
    act = HELD[kind]()
    with put_back(act):
        first = [act(), act()]
    assert [act(), act()] == first


def test_it_is_put_back_after_an_error():
    act = Counting()
    with contextlib.suppress(RuntimeError), put_back(act):
        act()
        raise RuntimeError("broken")
    assert act() == (1, 1, 2.0, 2.0)


def test_a_network_is_left_alone():
    network = torch.nn.Linear(2, 2)
    with put_back([network]):
        network.note = "set meanwhile"
    assert network.note == "set meanwhile"


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ([iter([1, 2])], ["list_iterator"]),
        ((number for number in range(3)), ["generator"]),
        ({"counter": itertools.count()}, ["count"]),
        (Attribute(np.random.default_rng(0)), []),
    ],
    ids=["iterator", "generator", "count", "none"],
)
def test_what_cannot_be_put_back_is_named(held, named):
    assert streams(held) == named


def test_an_open_file_is_named(tmp_path):
    with (tmp_path / "data").open("w") as file:
        assert streams([file]) == ["TextIOWrapper"]
