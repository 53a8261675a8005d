"""Networks that compute with tensors which no ``parameters()`` lists, and networks that keep what they computed."""

import functools
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

FEATURES, WIDTH, CLASSES = 20, 16, 4
GLOBAL = torch.randn(WIDTH, FEATURES, generator=torch.Generator().manual_seed(7))


def rows(count=12):
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(3))


class Network(nn.Module):
    """A head that is registered; below it whatever the case hangs on the module and runs."""

    def __init__(self, hang, run):
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(WIDTH, CLASSES)
        hang(self)
        self.run = run

    def forward(self, x):
        return self.head(torch.relu(self.run(self, x)))


def drawn(*shape):
    return torch.randn(*shape)


def layer():
    return nn.Linear(FEATURES, WIDTH)


def sinusoids(length, width):
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def _closed_over():
    weight = drawn(WIDTH, FEATURES)
    return lambda x: F.linear(x, weight)


def _steered(model):
    model.layer, vector = layer(), drawn(WIDTH)
    model.layer.register_forward_hook(lambda module, given, made: made + vector)


def _setting(**held):
    """Hangs what the functions make on the model."""

    def hang(model):
        for name, make in held.items():
            setattr(model, name, make())

    return hang


def _buffer(make):
    return lambda model: model.register_buffer("held", make())


def _both(*hangs):
    return lambda model: [hang(model) for hang in hangs]


def _nibbles(packed):
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1).float() / 8 - 1


TRAINED = {
    "list": (_setting(held=lambda: [layer()]), lambda m, x: m.held[0](x), "held[0].weight"),
    "tuple": (_setting(held=lambda: (layer(),)), lambda m, x: m.held[0](x), "held[0].weight"),
    "dictionary": (
        _setting(held=lambda: {"a": {"b": drawn(WIDTH, FEATURES)}}),
        lambda m, x: F.linear(x, m.held["a"]["b"]),
        "held['a']['b']",
    ),
    "partial": (
        _setting(held=lambda: functools.partial(F.linear, weight=drawn(WIDTH, FEATURES))),
        lambda m, x: m.held(x),
        "held.keywords['weight']",
    ),
    "closure": (_setting(held=_closed_over), lambda m, x: m.held(x), "held: weight"),
    "global": (_setting(), lambda m, x: F.linear(x, GLOBAL), "made_hidden.GLOBAL"),
    "attribute": (_setting(held=lambda: drawn(WIDTH, FEATURES)), lambda m, x: F.linear(x, m.held), "held"),
    "object": (
        _setting(held=lambda: SimpleNamespace(inner=SimpleNamespace(weight=drawn(WIDTH, FEATURES)))),
        lambda m, x: F.linear(x, m.held.inner.weight),
        "held.inner.weight",
    ),
    "array": (
        _setting(held=lambda: drawn(WIDTH, FEATURES).numpy()),
        lambda m, x: F.linear(x, torch.from_numpy(m.held)),
        "held",
    ),
    "hook": (_steered, lambda m, x: m.layer(x), "layer._forward_hooks[0]: vector"),
    "float buffer": (_buffer(lambda: drawn(WIDTH, FEATURES).half()), lambda m, x: F.linear(x, m.held.float()), "held"),
    "int8 buffer": (
        _buffer(lambda: (40 * drawn(WIDTH, FEATURES)).to(torch.int8)),
        lambda m, x: F.linear(x, m.held.float() / 40),
        "held",
    ),
    "int4 buffer": (
        _buffer(lambda: torch.randint(0, 256, (WIDTH, FEATURES // 2), dtype=torch.uint8)),
        lambda m, x: F.linear(x, _nibbles(m.held)),
        "held",
    ),
    "product by hand": (
        _setting(held=lambda: drawn(WIDTH, FEATURES)),
        lambda m, x: (x[:, None] * m.held).sum(-1),
        "held",
    ),
    "weight below an adapter": (
        _setting(
            held=lambda: [drawn(WIDTH, FEATURES)],
            down=lambda: nn.Parameter(drawn(2, FEATURES)),
            up=lambda: nn.Parameter(drawn(WIDTH, 2)),
        ),
        lambda m, x: F.linear(x, m.held[0] + m.up @ m.down),
        "held[0]",
    ),
    "positions": (
        _both(_setting(layer=layer), _buffer(lambda: drawn(WIDTH))),
        lambda m, x: m.layer(x) + m.held,
        "held",
    ),
    "joined on": (
        _setting(layer=layer, held=lambda: [drawn(1, WIDTH)]),
        lambda m, x: torch.cat([m.held[0], m.layer(x)])[1:],
        "held[0]",
    ),
}
"""What a case hangs on the model, how it runs, and the name of what is trained."""

CONSTANT = {
    "scale of the inputs": (
        _both(_setting(layer=layer, mean=lambda: drawn(FEATURES)), _buffer(lambda: drawn(FEATURES).abs() + 1)),
        lambda m, x: m.layer((x - m.mean) / m.held),
    ),
    "mask": (
        _both(_setting(layer=layer), _buffer(lambda: (drawn(WIDTH, FEATURES) > 0).float())),
        lambda m, x: F.linear(x, m.layer.weight * m.held),
    ),
    "index table or mask": (
        _both(_setting(layer=layer), _buffer(lambda: torch.randperm(FEATURES))),
        lambda m, x: m.layer(x[:, m.held]),
    ),
    "table of a formula": (
        _both(_setting(layer=layer), _buffer(lambda: sinusoids(WIDTH, 8).T.contiguous())),
        lambda m, x: m.layer(x) + m.held.sum(0) + m.held[0],
    ),
    "whole numbers": (
        _both(_setting(layer=layer), _buffer(lambda: torch.randint(-9, 9, (WIDTH,)).float())),
        lambda m, x: m.layer(x) + m.held,
    ),
}
"""Per kind, what hangs on the model and how it runs."""


def trained(case):
    hang, run, _ = TRAINED[case]
    return Network(hang, run).eval()


def constant(kind):
    return Network(*CONSTANT[kind]).eval()


# --------------------------------------------------------------------------------------------------------------- caches


class Uncached(nn.Module):
    """Scales its features by something made of weights alone, anew in every pass."""

    def __init__(self):
        super().__init__()
        self.below, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.biases = nn.Parameter(torch.randn(9, WIDTH))
        self.register_buffer("order", torch.arange(9).flip(0))

    def made(self):
        return torch.tanh(self.biases[self.order].cumsum(0)[-1])

    def kept(self):
        return self.made()

    def forward(self, x):
        return self.head(torch.relu(self.below(x)) * self.kept())


class ByAttribute(Uncached):
    stored = None

    def kept(self):
        if self.stored is None:
            self.stored = self.made()
        return self.stored


class ByDevice(Uncached):
    def __init__(self):
        super().__init__()
        self.stored = {}

    def kept(self):
        return self.stored.setdefault(str(self.biases.device), self.made())


class BySize(Uncached):
    def __init__(self):
        super().__init__()
        self.stored = {}

    def forward(self, x):
        scale = self.stored.setdefault(len(x), self.made())
        return self.head(torch.relu(self.below(x)) * scale)


class ByFlag(Uncached):
    def __init__(self):
        super().__init__()
        self.ready, self.stored = False, torch.zeros(WIDTH)

    def kept(self):
        if not self.ready:
            self.stored, self.ready = self.made(), True
        return self.stored


class ByTuple(Uncached):
    stored = None

    def kept(self):
        if self.stored is None:
            self.stored = (self.made(), 2 * self.made())
        return self.stored[1] - self.stored[0]


class ByProperty(Uncached):
    @functools.cached_property
    def stored(self):
        return self.made()

    def kept(self):
        return self.stored


class ByBuffer(Uncached):
    def __init__(self):
        super().__init__()
        self.register_buffer("stored", None, persistent=False)

    def kept(self):
        if self.stored is None:
            self.stored = self.made().detach()
        return self.stored


class ByMode(Uncached):
    """Gathers once on its way into eval mode, as attention biases often are."""

    def train(self, mode=True):
        super().train(mode)
        self.stored = None if mode else self.made().detach()
        return self

    def kept(self):
        return self.made() if self.stored is None else self.stored


CACHES = {
    kind.__name__: kind for kind in (ByAttribute, ByDevice, BySize, ByFlag, ByTuple, ByProperty, ByBuffer, ByMode)
}


def inside(kind):
    """A network around one of these, with the same weights for every kind."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), kind()).eval()


# -------------------------------------------------------------------------------------------------------------- choices


class Experts(nn.Module):
    """Each row goes to the expert that the router likes best."""

    def __init__(self, collection=nn.ModuleList, count=6):
        super().__init__()
        self.below, self.router = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, count)
        self.experts = collection([nn.Linear(WIDTH, WIDTH) for _ in range(count)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        hidden = torch.relu(self.below(x))
        gates = self.router(hidden).softmax(1)
        best, made = gates.argmax(1), torch.zeros_like(hidden)
        for index in best.unique().tolist():
            where = (best == index).nonzero()[:, 0]
            made = made.index_copy(0, where, self.experts[index](hidden[where]) * gates[where, index, None])
        return self.head(torch.relu(made))


def experts(collection=nn.ModuleList):
    """Trained ones, whose router likes only the first."""
    torch.manual_seed(1)
    model = Experts(collection).eval()
    with torch.no_grad():
        model.router.weight *= 0.01
        model.router.bias[0] += 3
    return model


class ByItsWeights(nn.Module):
    """Goes another way where its own bias is small."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.below, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.ways = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])
        with torch.no_grad():
            self.below.bias.fill_(0.5)

    def forward(self, x):
        way = self.ways[int(self.below.bias.mean() < 0.499)]
        return self.head(torch.relu(way(torch.relu(self.below(x)))))


class OnTheWay(nn.Module):
    """Reads a tensor of its own only while its head is another one and what lies below is the trained one's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.below, self.head = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.held = [drawn(WIDTH, WIDTH)]
        with torch.no_grad():
            self.below.bias[0], self.head.bias[0] = 0.5, 0.25

    def forward(self, x):
        hidden = torch.relu(self.below(x))
        if bool(self.below.bias[0] == 0.5) and bool(self.head.bias[0] != 0.25):
            hidden = hidden @ self.held[0]
        return self.head(hidden)
