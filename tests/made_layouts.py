"""Small networks that take their input in other ways, and what the axes of that input are."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


class Turned(nn.Module):
    """A network whose input lies in another order; under one name, so that its weights are drawn alike."""

    def __init__(self, model, *order):
        super().__init__()
        self.model, self.order = model, order

    def forward(self, x):
        return self.model(x.permute(self.order) if self.order else x)


class Called(nn.Module):
    """A function of the input and of some modules."""

    def __init__(self, run, *modules):
        super().__init__()
        self.run, self.held = run, nn.ModuleList(modules)

    def forward(self, *inputs):
        return self.run(*inputs, *self.held)


class Last(nn.Module):
    """A recurrent network's mean state, classified."""

    def __init__(self, features, kind=nn.LSTM, batch_first=True):
        super().__init__()
        self.cells, self.head = kind(features, 6, batch_first=batch_first), nn.Linear(6, 3)
        self.time = 1 if batch_first else 0

    def forward(self, x):
        return self.head(self.cells(x)[0].mean(self.time))


class Attending(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(features, 2, 8, batch_first=True)
        self.head = nn.Linear(features, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def convolved(channels, dims):
    convolution, pool = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1], dims
    return Called(
        lambda x, first, head: head(F.relu(first(x)).flatten(2).mean(2)),
        convolution(channels, 4, 3 if pool < 3 else 2),
        nn.Linear(4, 3),
    )


def pooled(features):
    """Every node, point or step by itself, then their mean."""
    return Called(lambda x, a, b: b(torch.tanh(a(x)).flatten(1, -2).mean(1)), nn.Linear(features, 6), nn.Linear(6, 3))


def flattened(numbers):
    return nn.Sequential(nn.Flatten(), nn.Linear(numbers, 6), nn.Tanh(), nn.Linear(6, 3))


def graph(features, nodes=7, product="matmul"):
    """A graph convolution: neighbours are averaged, then features mixed."""
    torch.manual_seed(5)
    neighbours = torch.rand(nodes, nodes).softmax(1)

    def run(x, a, b):
        met = neighbours @ x if product == "matmul" else torch.einsum("vw,nwf->nvf", neighbours, x)
        return b(torch.tanh(a(met)).mean(1))

    return Called(run, nn.Linear(features, 6), nn.Linear(6, 3))


def patched(channels, side):
    """A vision transformer's patches by views and a linear layer."""

    def run(x, embed, head):
        x = x if x.ndim == 4 else x[:, None]
        patches = x.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return head(torch.tanh(embed(patches)).mean(1))

    return Called(run, nn.Linear(channels * side * side, 6), nn.Linear(6, 3))


def spectrogram(waves):
    """How strong each of 9 frequencies is over time, ``(N, 9, frames)`` of waves ``(N, T)``."""
    return torch.stft(waves, 16, 4, window=torch.hann_window(16).to(waves), return_complex=True).abs()


@dataclass(frozen=True)
class Case:
    """A network, the shape of one sample, and what is right: the axis that is summed, and whether it is an image."""

    build: object
    shape: tuple
    summed: int | None
    kind: str
    told: str = "first"


def unsqueezed(model, dim=1):
    return Called(lambda x, inner: inner(x.unsqueeze(dim)), model)


def standardised(x, inner):
    x = x.permute(0, 3, 1, 2)
    return inner(
        (x / 255 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.2, 0.3])[:, None, None]
    )


CASES = {
    "image": Case(lambda: convolved(3, 2), (3, 12, 10), 1, "image"),
    "image, channels last": Case(lambda: Turned(convolved(3, 2), 0, 3, 1, 2), (12, 10, 3), 3, "image"),
    "image, many channels last": Case(lambda: Turned(convolved(13, 2), 0, 3, 1, 2), (9, 10, 13), 3, "image"),
    "image without channels": Case(lambda: unsqueezed(convolved(1, 2)), (12, 10), None, "image"),
    "image of width, height": Case(lambda: Turned(unsqueezed(convolved(1, 2)), 0, 2, 1), (10, 12), None, "image"),
    "image standardised inside": Case(lambda: Called(standardised, convolved(3, 2)), (12, 10, 3), 3, "image"),
    "image resized inside": Case(
        lambda: Called(lambda x, inner: inner(F.interpolate(x, size=(14, 14))), convolved(2, 2)), (2, 9, 8), 1, "image"
    ),
    "image padded inside": Case(
        lambda: Called(lambda x, inner: inner(F.pad(x[:, None], (2, 2, 2, 2))), convolved(1, 2)), (9, 8), None, "image"
    ),
    "image in patches": Case(lambda: patched(3, 4), (3, 12, 8), 1, "image"),
    "image in patches, channels last": Case(lambda: Turned(patched(5, 4), 0, 3, 1, 2), (12, 8, 5), 3, "image"),
    "image in patches, no channels": Case(lambda: patched(1, 4), (12, 8), None, "image"),
    "image by pixels": Case(lambda: pooled(3), (12, 10, 3), 3, "image"),
    "square image, flattened": Case(lambda: flattened(64), (8, 8), None, "image", "taken for"),
    "colours, flattened": Case(lambda: flattened(288), (12, 8, 3), 3, "image", "colours"),
    "one channel, flattened": Case(lambda: flattened(96), (1, 12, 8), 1, "image", "length 1"),
    "spectrogram as an image": Case(lambda: unsqueezed(convolved(1, 2)), (20, 30), None, "image"),
    "spectrogram by its bands": Case(lambda: convolved(20, 1), (20, 30), 1, "signal"),
    "signal": Case(lambda: convolved(4, 1), (4, 20), 1, "signal"),
    "signal, channels last": Case(lambda: Turned(convolved(4, 1), 0, 2, 1), (20, 4), 2, "signal"),
    "waveform": Case(lambda: unsqueezed(convolved(1, 1)), (30,), None, "signal"),
    "waveform, standardised inside": Case(
        lambda: Called(
            lambda x, inner: inner(((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))[:, None]), convolved(1, 1)
        ),
        (30,),
        None,
        "signal",
    ),
    "waveform to its spectrogram": Case(
        lambda: Called(lambda x, inner: inner(spectrogram(x)[:, None]), convolved(1, 2)), (64,), None, "signal"
    ),
    "waveform in stretches": Case(
        lambda: Called(lambda x, inner: inner(x.unfold(1, 8, 4)), pooled(8)), (32,), None, "signal"
    ),
    "waveform to an LSTM": Case(lambda: unsqueezed(Last(1), 2), (20,), None, "signal"),
    "waveform with its channel": Case(lambda: convolved(1, 1), (1, 30), 1, "signal"),
    "waveform with its channel, to a spectrogram": Case(
        lambda: Called(lambda x, inner: inner(spectrogram(x[:, 0])[:, None]), convolved(1, 2)),
        (1, 64),
        1,
        "signal",
        "length 1",
    ),
    "spectrogram with its channel": Case(lambda: convolved(1, 2), (1, 20, 30), 1, "image"),
    "steps to an LSTM": Case(lambda: Last(4), (20, 4), 2, "signal"),
    "steps to an LSTM, features first": Case(lambda: Turned(Last(4), 0, 2, 1), (4, 20), 1, "signal"),
    "steps to a GRU, time first": Case(lambda: Turned(Last(4, nn.GRU, False), 1, 0, 2), (20, 4), 2, "signal"),
    "rows of a square to an RNN": Case(lambda: Last(8, nn.RNN), (8, 8), 2, "signal"),
    "steps to an attention": Case(lambda: Attending(8), (20, 8), 2, "signal"),
    "steps normalised first": Case(lambda: nn.Sequential(nn.LayerNorm(4), Last(4)), (20, 4), 2, "signal"),
    "steps through a filter bank": Case(
        lambda: Called(lambda x, inner: inner(x @ torch.ones(9, 5)), Last(5)), (20, 9), 2, "signal"
    ),
    "the mean of steps": Case(lambda: Called(lambda x, a: a(x.mean(1)), nn.Linear(4, 3)), (20, 4), 2, "signal"),
    "weights on the left": Case(
        lambda: Called(lambda x, a: (a.weight @ x).mean(2), nn.Linear(4, 3)), (4, 20), 1, "signal"
    ),
    "weight-normalised features": Case(
        lambda: Turned(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), pooled(6)), 0, 2, 1),
        (4, 20),
        1,
        "signal",
    ),
    "points": Case(lambda: Turned(convolved(3, 1), 0, 2, 1), (30, 3), 2, "signal"),
    "nodes of a graph": Case(lambda: graph(5), (7, 5), 2, "signal"),
    "nodes of a graph, by einsum": Case(lambda: graph(5, product="einsum"), (7, 5), 2, "signal"),
    "nodes of a graph, features first": Case(lambda: Turned(graph(5), 0, 2, 1), (5, 7), 1, "signal"),
    "joints over time": Case(lambda: convolved(3, 2), (3, 20, 17), 1, "image"),
    "volume": Case(lambda: convolved(2, 3), (2, 6, 7, 8), 1, "volume"),
    "volume, channels last": Case(lambda: Turned(convolved(2, 3), 0, 4, 1, 2, 3), (6, 7, 8, 2), 4, "volume"),
    "volume without channels": Case(lambda: unsqueezed(convolved(1, 3)), (6, 7, 8), None, "array"),
    "film, frame by frame": Case(
        lambda: Called(lambda x, a: a(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1), convolved(3, 2)),
        (5, 3, 8, 9),
        2,
        "volume",
    ),
    "film, frames as channels": Case(
        lambda: Called(lambda x, a: a(x.flatten(1, 2)), convolved(15, 2)), (5, 3, 8, 9), None, "array", "nothing shows"
    ),
    "steps and features, flattened": Case(lambda: flattened(80), (20, 4), None, "array", "nothing shows"),
    "steps and features, mixed alike": Case(
        lambda: Called(
            lambda x, a, b: b(x + a(x.transpose(1, 2)).transpose(1, 2)).mean(1), nn.Linear(20, 20), nn.Linear(4, 3)
        ),
        (20, 4),
        None,
        "array",
        "nothing shows",
    ),
    "table, each column embedded": Case(lambda: unsqueezed(pooled(1), 2), (9,), None, "table", "table"),
    "table, a step for an LSTM": Case(lambda: unsqueezed(Last(9)), (9,), None, "table", "table"),
    "table": Case(lambda: nn.Linear(9, 3), (9,), None, "table", "table"),
}
