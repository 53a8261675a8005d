"""Thirty networks in which what is computed of a sample depends on the other samples of its batch."""

import torch
from torch import nn
from torch.nn import functional as F


class Mixing(nn.Module):
    """Three layers; between the first two, samples meet."""

    def __init__(self, mix, at=0, width=10):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.mix, self.at = mix, at

    def forward(self, x):
        for place, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            x = self.mix(x) if place == self.at else x
        return x


def _halves(h):
    first, second = h.chunk(2)
    return torch.cat([first + second, second - first])


def _pairs(h):
    return (h.unflatten(0, (-1, 2)) + h.unflatten(0, (-1, 2)).flip(1)).flatten(0, 1)


def _attention(h):
    return (h @ h.T).softmax(1) @ h


def _nearest(h):
    near = torch.cdist(h, h) + torch.eye(len(h)) * 1e6
    return h + h[near.argmin(1)]


def _sorted(h):
    return h + h.sort(0).values


def _ring(h):
    away = torch.arange(len(h))
    neighbours = ((away[:, None] - away).abs() % (len(h) - 1) <= 1).to(h)
    return neighbours @ h / neighbours.sum(1, keepdim=True)


def _in_place(h):
    mixed = h.clone()
    mixed[1:] += h[:-1]
    return mixed


def _scattered(h):
    return h + torch.zeros_like(h).index_add(0, (torch.arange(len(h)) + 2) % len(h), h)


WAYS = {
    "turned round": lambda h: h + h.flip(0),
    "turned round, scaled": lambda h: h + 0.01 * h.flip(0),
    "turned round, hardly": lambda h: h + 1e-4 * h.flip(0),
    "rolled by one": lambda h: h + h.roll(1, 0),
    "rolled back by one": lambda h: h + h.roll(-1, 0),
    "rolled by half": lambda h: h + h.roll(len(h) // 2, 0),
    "rolled by three": lambda h: h + h.roll(3, 0),
    "both halves": _halves,
    "pairs": _pairs,
    "less the mean": lambda h: h - h.mean(0),
    "less a little of the mean": lambda h: h - 1e-3 * h.mean(0, keepdim=True),
    "standardised": lambda h: (h - h.mean(0)) / (h.std(0) + 0.1),
    "batch statistics": lambda h: F.batch_norm(h, None, None, training=True),
    "half of them normalised": lambda h: torch.cat(
        [F.batch_norm(h[: len(h) // 2], None, None, training=True), h[len(h) // 2 :]]
    ),
    "softmax over samples": lambda h: h * h.softmax(0),
    "normed over samples": lambda h: F.normalize(h, dim=0),
    "the largest": lambda h: h - h.amax(0),
    "the median": lambda h: h - h.median(0).values,
    "the sum of those before": lambda h: h.cumsum(0) / 3,
    "the sum of those behind": lambda h: h.flip(0).cumsum(0).flip(0) / 3,
    "the first": lambda h: h + h[:1],
    "the last": lambda h: h + h[-1:],
    "the one before": _in_place,
    "attention over samples": _attention,
    "similar samples": lambda h: F.normalize(h, dim=1) @ F.normalize(h, dim=1).T @ h,
    "the nearest neighbour": _nearest,
    "ranks": _sorted,
    "a ring of nodes": _ring,
    "messages": _scattered,
    "a recurrence over samples": lambda h: torch.stack(list(_states(h))),
    "an outer product": lambda h: h + torch.einsum("nf,mf->nm", h, h).sum(1, keepdim=True) / 50,
    "a convolution over samples": lambda h: F.conv1d(h.T[:, None], torch.ones(1, 1, 3).to(h) / 3, padding=1)[:, 0].T,
}


def _states(h):
    state = torch.zeros_like(h[0])
    for row in h:
        state = torch.tanh(0.5 * state + row)
        yield state
