"""Networks whose parameters are held, tied, shared or computed in unusual ways."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from lightning_sanity.resources.random_streams import generator


class SequenceEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.embedding, self.encoder = nn.Embedding(11, 16), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.recurrent, self.head = kind(4, 8, num_layers=2, bidirectional=True, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class TiedDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.middle, self.decoder = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(self.middle(self.embedding(tokens)).tanh().mean(1))  # else every token has one gradient


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(8, 3), nn.Linear(6, 8)

    def forward(self, x):
        return self.head(F.relu(self.body(x)))


class LowRank(nn.Module):
    """An adapter on a frozen layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(0.1 * torch.randn(2, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


class SharedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.first(x))
        for _ in range(3):
            x = F.relu(self.block(x))
        return self.head(x)


class Listed(nn.Module):
    """Parameters in a list and a dictionary."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 6)) for _ in range(2)])
        self.named = nn.ParameterDict({"out": nn.Parameter(torch.randn(3, 6))})

    def forward(self, x):
        for weight in self.weights:
            x = F.relu(x @ weight.T)
        return x @ self.named["out"].T


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter, self.head = nn.Parameter(torch.randn(4, dtype=torch.complex64)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=6))


def mlp(*wrap):
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    for index in (0, 2):
        for wrapper in wrap:
            layers[index] = wrapper(layers[index])
    return nn.Sequential(*layers)


def pruned():
    model = mlp()
    prune.l1_unstructured(model[2], "weight", 0.5)
    return model


def lora():
    model = mlp()
    model[0], model[2] = LowRank(model[0]), LowRank(model[2])
    return model


def old_weight_norm():
    with pytest.warns(FutureWarning, match="weight_norm"):
        return mlp(torch.nn.utils.weight_norm)


def bags():
    return nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.GroupNorm(2, 4), nn.Linear(4, 3))


def decoder():
    layers = [nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6]), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.RMSNorm(128), nn.Linear(128, 3))


VECTORS, TOKENS = torch.randn(2, 6, generator=generator(0)), torch.randint(9, (2, 5), generator=generator(0))

EXOTIC = {
    "transformer encoder": (SequenceEncoder, TOKENS),
    "lstm": (Recurrent, torch.randn(2, 5, 4, generator=generator(0))),
    "gru": (lambda: Recurrent(nn.GRU), torch.randn(2, 5, 4, generator=generator(0))),
    "tied decoder": (TiedDecoder, TOKENS),
    "head first": (HeadFirst, VECTORS),
    "shared block": (SharedBlock, VECTORS),
    "pruned": (pruned, VECTORS),
    "lora": (lora, VECTORS),
    "weight_norm": (lambda: mlp(parametrizations.weight_norm), VECTORS),
    "old weight_norm": (old_weight_norm, VECTORS),
    "spectral_norm": (lambda: mlp(parametrizations.spectral_norm), VECTORS),
    "orthogonal": (lambda: mlp(parametrizations.orthogonal), VECTORS),
    "parameter list": (Listed, VECTORS),
    "complex": (Complex, VECTORS),
    "embedding bag": (bags, TOKENS),
    "transposed convolution": (decoder, torch.randn(2, 3, 8, 8, generator=generator(0))),
    "half precision": (lambda: mlp().to(torch.bfloat16), VECTORS.to(torch.bfloat16)),
    "quantisation stubs": (lambda: nn.Sequential(torch.ao.quantization.QuantStub(), mlp()), VECTORS),
}
