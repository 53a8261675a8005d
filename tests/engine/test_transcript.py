"""What symbolic tracing cannot take apart is written down while it runs, and walked like any other network."""

import pytest
import torch
from made_untraceable import SEQUENCES, UNTRACEABLE
from made_walks import IMAGES, assert_equal_at_all_depths, walked
from torch import nn
from torch.nn import functional as F

from lightning_sanity.attribution.method import first
from lightning_sanity.engine.path import NotTraceable
from lightning_sanity.engine.streams import TwoStream
from lightning_sanity.randomization import units

WRITTEN_DOWN = {name: network for name, network in UNTRACEABLE.items() if name != "halves"}


class Body(nn.Module):
    """Two layers around something that a subclass does."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def between(self, x):
        raise NotImplementedError

    def forward(self, x):
        assert isinstance(x, torch.Tensor)  # no symbol
        return self.head(self.between(self.stem(x)).mean((2, 3)))


class Overwriting(Body):
    def between(self, x):
        x[:, 0] = 0
        x.mul_(2).masked_fill_(x > 3, 3.0)
        F.relu(x, inplace=True)
        return x


class Numbering(Body):
    """Picks by the place that a row has in the batch."""

    def between(self, x):
        place = torch.arange(len(x))
        return x[place, :, place.new_zeros(len(x))][..., None] * torch.ones(len(x), 1, 1, 1)


class Parting(Body):
    """Makes several values at once and shapes that hold the number of samples twice."""

    def between(self, x):
        low, high = x.chunk(2, 1)
        values, _ = torch.stack([low, high]).max(0)
        x = torch.cat([values, values.flatten(1).reshape(len(x), 3, -1).reshape(values.shape)], 1)
        return x.view(len(x) * 2, 3, -1).view(len(x), 6, x.shape[2], x.shape[3])


class Constant(Body):
    """Reads a tensor that is neither a parameter nor a buffer."""

    def __init__(self):
        super().__init__()
        self.scale = [torch.linspace(1, 2, 6).reshape(1, 6, 1, 1)]

    def between(self, x):
        return x * self.scale[0]


class Masked(nn.Module):
    """Goes by the mask of the whole batch, as language models do."""

    def __init__(self):
        super().__init__()
        self.inward, self.head = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x, mask):
        x = self.inward(x)
        if not mask.all():
            x = torch.tanh(x) * mask[..., None]
        return self.head(x.mean(1))


MASK = torch.ones(5, 6, dtype=torch.long).index_fill(1, torch.tensor([5]), 0) | (torch.arange(5) < 3)[:, None]
"""Padding in the last samples only."""
OTHERS = {
    "overwrites": (Overwriting, IMAGES),
    "numbers rows": (Numbering, IMAGES),
    "parts": (Parting, IMAGES),
    "constant": (Constant, IMAGES),
    "mask": (Masked, (SEQUENCES, MASK)),
}


@pytest.mark.parametrize("name", [*WRITTEN_DOWN, *OTHERS])
def test_every_depth_equals_a_pass_of_its_own(name):
    networks = {**WRITTEN_DOWN, **OTHERS}
    engine, *found = walked(name, networks=networks, paths=(TwoStream,))
    assert_equal_at_all_depths(engine, *found)


@pytest.mark.parametrize("order", ["bottom_up", "independent", "full"])
def test_every_order_equals_passes_of_its_own(order):
    assert_equal_at_all_depths(*walked("attention", order=order, networks=UNTRACEABLE, paths=(TwoStream,)))


def test_altered_copies_and_rectifiers_are_walked_too():
    methods = ("smoothgrad", "integrated_gradients", "guided_backprop")
    assert_equal_at_all_depths(*walked("shapes", methods, networks=UNTRACEABLE, paths=(TwoStream,)))


def test_the_way_is_that_of_all_samples_where_it_hangs_on_them():
    mine = torch.ones(5, 6, dtype=torch.long)
    for mask, goes in ((MASK, True), (mine, False)):
        model = Masked().eval()
        network = TwoStream(model, (SEQUENCES, mask), units(model, (SEQUENCES, mask)), model)
        assert any(node.target is torch.tanh for node in network.operations) == goes


class Looking(Body):
    def between(self, x):
        return x if x.sum() > 0 else -x


class Unrecorded(Body):
    def between(self, x):
        with torch.no_grad():
            shift = x * 2
        return x + shift


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, slope):
        return slope * 2


class Unseen(Body):
    """An operation of one's own, whose way down is not that of what it calls."""

    def between(self, x):
        return Doubling.apply(x)


class Viewing(Body):
    """Reads what it has overwritten through another view."""

    def between(self, x):
        low = x[:, :3]
        x.mul_(2)
        return torch.cat([low, low], 1)


class Counting(Body):
    """Does something else for every other number of samples."""

    def between(self, x):
        return x.tanh() if len(x) % 2 else x


class Hooked(Body):
    def between(self, x):
        if x.requires_grad:
            x.register_hook(lambda slope: slope.sign())
        return x


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Looking, "looks at values that become random"),
        (Unrecorded, "without a gradient"),
        (Unseen, "without a gradient"),
        (Viewing, "a view of what was overwritten"),
        (Counting, "makes other calls"),
        (Hooked, "hooks"),
    ],
)
def test_what_cannot_be_repeated_call_by_call_is_refused(make, reason):
    model = make().eval()
    with pytest.raises(NotTraceable, match=reason):
        TwoStream(model, IMAGES, units(model, IMAGES), model)


def test_a_network_that_minds_many_samples_goes_their_way():
    class Large(Body):
        def between(self, x):
            return x.tanh() if len(x) > 3 else x

    model = Large().eval()
    network = TwoStream(model, IMAGES, units(model, IMAGES), model)
    assert any(getattr(node.target, "__name__", "") == "tanh" for node in network.operations)
    assert len(first(IMAGES)) > 3
