"""Networks that use a weight in several places."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

WORDS, WIDTH = 30, 16


def ids(count=8, length=6):
    return torch.randint(WORDS, (count, length), generator=torch.Generator().manual_seed(5))


def rows(count=8, width=WIDTH):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(6))


class Language(nn.Module):
    """Words in, scores of words out; ``head`` says how the embedding table is used for the latter."""

    def __init__(self, head="tied"):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.decoder = None if head == "read" else nn.Linear(WIDTH, WORDS, bias=False)
        if head != "read":
            self.decoder.weight = self.embedding.weight
        if head == "untied":
            self.decoder.weight = nn.Parameter(self.embedding.weight.detach().clone())
        if head == "spectral":
            spectral_norm(self.decoder)

    def forward(self, words):
        hidden = torch.tanh(self.middle(torch.tanh(self.embedding(words)).mean(1)))
        return F.linear(hidden, self.embedding.weight) if self.decoder is None else self.decoder(hidden)


class Autoencoder(nn.Module):
    """Decodes by the transposed weight of its encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(WIDTH, 8)
        self.middle = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(torch.tanh(self.middle(torch.tanh(self.encoder(x)))), self.encoder.weight.t())


class Stack(nn.Module):
    """One layer three times: under three names, or in a loop."""

    def __init__(self, named):
        super().__init__()
        layer = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList([layer] * 3) if named else nn.ModuleList([layer])
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x):
        for k in range(3):
            x = torch.tanh(self.layers[k % len(self.layers)](x))
        return self.head(x)


class Translator(nn.Module):
    """A table that is called by its encoder and, behind a layer, by its decoder."""

    def __init__(self):
        super().__init__()
        self.source = self.target = nn.Embedding(WORDS, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, words):
        read = torch.tanh(self.middle(self.source(words).mean(1)))
        return self.head(read + self.target(words[:, :1]).mean(1))


class Siamese(nn.Module):
    """Two towers that share their weight, not their module."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8), nn.Linear(8, 4)
        self.right.weight = self.left.weight

    def forward(self, x):
        return self.head(torch.tanh(self.left(x)) * torch.tanh(self.right(x.flip(1))))


class Aliased(nn.Module):
    """A layer that is called twice, and bears a second name that nobody calls it by."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(WIDTH, WIDTH)
        self.network = nn.Sequential(self.backbone, nn.Tanh(), self.backbone, nn.Tanh())
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x):
        return self.head(self.network(x))


class Unrolled(nn.Module):
    """A recurrence by hand."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        hidden = torch.zeros(len(x), 8)
        for part in x.split(8, 1):
            hidden = torch.tanh(self.cell(hidden + part))
        return self.head(hidden)


class Attending(nn.Module):
    """An attention, whose output layer it reads past that layer's own forward pass, called twice."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = x[:, None] * torch.ones(1, 3, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


PARTED = {
    "two holders": (Language, ids, ("embedding.weight", "decoder.weight")),
    "read by the decoder": (lambda: Language("read"), ids, ("embedding.weight", "embedding.weight_within")),
    "behind a parametrisation": (
        lambda: Language("spectral"),
        ids,
        ("embedding.weight", "decoder.parametrizations.weight.original"),
    ),
    "transposed": (Autoencoder, rows, ("encoder.weight", "encoder.weight_within")),
    "under three names": (lambda: Stack(named=True), rows, tuple(f"layers.{k}.weight" for k in range(3))),
    "called at both ends": (Translator, ids, ("source.weight", "target.weight")),
}
"""Network, inputs, and the names of the tensors that its shared weight becomes."""

WHOLE = {
    "in a loop": (lambda: Stack(named=False), rows, True),
    "towers": (Siamese, rows, False),
    "unrolled": (Unrolled, rows, True),
    "attention": (Attending, rows, True),
    "nothing shared": (lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, 4)), rows, False),
}
"""Network, inputs, and whether a layer is used at several distances."""


def made(make):
    torch.manual_seed(0)
    return make().eval()
