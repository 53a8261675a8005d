"""Networks whose layers stand side by side, in one module, or have the shape of a vector."""

import torch
from torch import nn
from torch.nn import functional as F


class AttentionPooling(nn.Module):
    """Multiple instances, pooled by scores ``features @ w`` with a vector ``w``."""

    def __init__(self):
        super().__init__()
        self.features, self.score, self.head = nn.Linear(6, 8), nn.Parameter(torch.randn(8)), nn.Linear(8, 1)

    def forward(self, x):
        features = F.relu(self.features(x))
        weights = (features @ self.score).softmax(1)
        return self.head((weights[..., None] * features).sum(1))


class Squeezing(nn.Module):
    """A squeeze of all channels to one, a layer scale, a mask."""

    def __init__(self):
        super().__init__()
        self.body, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.squeeze, self.expand, self.mask = nn.Conv2d(4, 1, 1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x):
        x = F.relu(self.norm(self.body(x)))
        gate = torch.sigmoid(self.expand(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.mask(x * (gate * self.scale))


class RankOne(nn.Module):
    """A layer with an adapter of rank one, beside it or merged into it."""

    def __init__(self, merged=False):
        super().__init__()
        self.first, self.base, self.head, self.merged = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2), merged
        self.low, self.high = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.randn(6, 1))

    def forward(self, x):
        x = F.relu(self.first(x))
        if self.merged:
            return self.head(F.relu(F.linear(x, self.base.weight + self.high @ self.low, self.base.bias)))
        return self.head(F.relu(self.base(x) + x @ self.low.T @ self.high.T))


class ByHand(nn.Module):
    """A linear layer and distances to prototypes, both as sums of products."""

    def __init__(self):
        super().__init__()
        self.weight, self.prototypes = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        x = torch.tanh((x[:, None] * self.weight).sum(-1))
        return -((x[:, None] - self.prototypes) ** 2).sum(-1)


class Flat(nn.Module):
    """Three layers in one module."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(8))
        self.w2, self.b2 = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))
        self.w3, self.scale = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.rand(8))

    def forward(self, x):
        x = F.relu(F.linear(x, self.w1, self.b1))
        return F.relu(F.linear(x, self.w2, self.b2) * self.scale) @ self.w3.T


class _Scale(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x):
        return x * self.values


def in_modules(flat):
    """``Flat`` with a module per layer, on the same parameters."""
    first, second, third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3, bias=False)
    first.weight, first.bias, second.weight, second.bias, third.weight = flat.w1, flat.b1, flat.w2, flat.b2, flat.w3
    return nn.Sequential(first, nn.ReLU(), second, _Scale(flat.scale), nn.ReLU(), third)


class OwnRecurrent(nn.Module):
    """A recurrence written by hand."""

    def __init__(self):
        super().__init__()
        self.into, self.again = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5, 5))
        self.bias, self.head = nn.Parameter(torch.randn(5)), nn.Linear(5, 2)

    def forward(self, x):
        state = x.new_zeros(len(x), 5)
        for t in range(x.shape[1]):
            state = torch.tanh(x[:, t] @ self.into.T + state @ self.again.T + self.bias)
        return self.head(state)


class TiedWeights(nn.Module):
    """The first and the third layer have one weight and a bias each."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.head = (*(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 3))
        self.third.weight = self.first.weight

    def forward(self, x):
        for layer in (self.first, self.second, self.third):
            x = F.relu(layer(x))
        return self.head(x)


class TextTower(nn.Module):
    """Images compared with the embeddings of fixed words."""

    def __init__(self):
        super().__init__()
        self.image1, self.image2 = nn.Linear(6, 8), nn.Linear(8, 4)
        self.words, self.text1, self.text2 = nn.Embedding(3, 5), nn.Linear(5, 8), nn.Linear(8, 4)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        images = F.normalize(self.image2(F.relu(self.image1(x))), dim=1)
        texts = F.normalize(self.text2(F.relu(self.text1(self.words(torch.arange(3))))), dim=1)
        return self.temperature.exp() * images @ texts.T


class Branches(nn.Module):
    """Two blocks of branches of one, two and three layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(6, 6), _Branched(), _Branched()
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.two(self.one(F.relu(self.stem(x)))))


class _Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.short, self.plain = nn.Linear(6, 6), nn.Linear(6, 6)
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.long = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    def forward(self, x):
        return F.relu(self.short(x) + self.middle(x) + self.long(x) + self.plain(x))


class Drawn(nn.Module):
    """A network of layers that read the sums of earlier ones, as a drawn table of arrows says."""

    def __init__(self, arrows):
        super().__init__()
        self.arrows = arrows
        self.nodes = nn.ModuleList(nn.Linear(4, 4) for _ in arrows)

    def forward(self, x):
        made = []
        for node, reads in zip(self.nodes, self.arrows, strict=True):
            made.append(torch.tanh(node(sum(made[k] for k in reads) if reads else x)))
        return made[-1]


class Mean(nn.Module):
    """A deep ensemble."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        return sum(member(x) for member in self.members) / len(self.members)


class WideAndDeep(nn.Module):
    """A linear layer beside a deep network, both from the input to the scores."""

    def __init__(self, wide, deep):
        super().__init__()
        self.deep, self.wide = deep, wide

    def forward(self, x):
        return self.wide(x.flatten(1)) + self.deep(x)
