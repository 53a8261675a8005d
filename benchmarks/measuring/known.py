"""Networks whose right attribution is known by construction, and samples that say where it lies.

Labels depend on a planted part of each input and on nothing else, so that a network that predicts them must look there.
Networks are trained, because one of two layers built by hand has nothing above the layer that finds the place, and the
sanity test rightly says of every method that its map ignores half of the network; the linear one is factorised by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TRAINING = 2400
"""Samples that a network is trained on."""


@dataclass(frozen=True)
class Known:
    """A network, its samples, and which positions its output depends on.

    Attributes:
        model: In eval mode.
        inputs: ``(N, ...)``, unseen in training.
        target: The class that is right of each ``(N,)``, which is explained.
        truth: True where the class lies in the input ``(N, *sides)``.
        accuracy: Share of these samples that the network predicts rightly.
    """

    model: nn.Module
    inputs: Tensor
    target: Tensor
    truth: Tensor
    accuracy: float


Samples = tuple[Tensor, Tensor, Tensor]
"""Inputs ``(N, ...)``, labels ``(N,)`` and truth ``(N, *sides)``."""


def _known(samples, made: Samples, model, seed, steps=500, lr=6e-3):
    """Train on all but the last samples, and keep these."""
    inputs, labels, truth = made
    training = len(inputs) - samples
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(training, (64,), generator=rng)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return _with_accuracy(model.eval(), inputs[training:], labels[training:], truth[training:])


def _with_accuracy(model, inputs, labels, truth):
    with torch.no_grad():
        right = float((model(inputs).argmax(1) == labels).float().mean())
    return Known(model, inputs, labels, truth, right)


def _patterns(count, side, rng, dims=2):
    """Patterns of +1 and -1 with little in common."""
    size = side**dims
    found: list[Tensor] = []
    while len(found) < count:
        drawn = torch.randint(2, (size,), generator=rng).float() * 2 - 1
        if all(abs(float(drawn @ other)) <= size / 3 for other in found) and abs(float(drawn.sum())) <= size / 3:
            found.append(drawn)
    return torch.stack(found).reshape(count, *[side] * dims)


def _blank(samples, sides, rng, noise=0.3):
    """Noise, and no truth yet."""
    return noise * torch.randn(samples, 1, *sides, generator=rng), torch.zeros(samples, *sides, dtype=torch.bool)


def _place(canvas, row, pattern, taken, rng):
    """Put a pattern where none is yet; returns where."""
    side, sides = pattern.shape[-1], canvas.shape[2:]
    while True:
        corner = [int(torch.randint(length - side + 1, (1,), generator=rng)) for length in sides]
        window = (row, *(slice(start, start + side) for start in corner))
        if not bool(taken[window].any()):
            canvas[(row, 0, *window[1:])] += pattern
            taken[window] = True
            return window


def _distract(canvas, row, patterns, taken, count, rng):
    """Put random patterns of the same size and contrast that mean nothing: what stands out is not yet the evidence."""
    for _ in range(count):
        drawn = torch.randint(2, patterns[0].shape, generator=rng).float() * 2 - 1
        _place(canvas[row : row + 1], 0, patterns.abs().max() * drawn, taken, rng)


def _images(classes, pool):
    """Three convolutions; what they find is pooled over the image and read by two layers."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        pool, nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes),
    )  # fmt: skip


def planted_pixels(samples, seed):
    """One of four patterns somewhere among others that mean nothing; the class is which."""
    rng = torch.Generator().manual_seed(seed)
    patterns = 2 * _patterns(4, 4, rng)
    images, truth = _blank(TRAINING + samples, (14, 14), rng)
    labels = torch.arange(len(images)) % 4
    for row, label in enumerate(labels.tolist()):
        _place(images, row, patterns[label], truth, rng)
        _distract(images, row, patterns, truth[row : row + 1].clone(), 2, rng)
    return _known(samples, (images, labels, truth), _images(4, nn.AdaptiveAvgPool2d(1)), seed, steps=800)


def sum_of_patches(samples, seed):
    """One to four copies of each of two patterns; the class is which is there more often."""
    rng = torch.Generator().manual_seed(seed)
    patterns = 2 * _patterns(2, 3, rng)
    images, truth = _blank(TRAINING + samples, (14, 14), rng)
    labels = torch.arange(len(images)) % 2
    for row, label in enumerate(labels.tolist()):
        fewer = int(torch.randint(1, 3, (1,), generator=rng))
        for which in [label] * (fewer + 2) + [1 - label] * fewer:
            _place(images, row, patterns[which], truth, rng)
        _distract(images, row, patterns, truth[row : row + 1].clone(), 2, rng)
    return _known(samples, (images, labels, truth), _images(2, nn.AdaptiveAvgPool2d(1)), seed, steps=800)


def xor_of_patches(samples, seed):
    """The class is whether one or both of two patterns are there; a third is there as well and means nothing."""
    rng = torch.Generator().manual_seed(seed)
    patterns = 2 * _patterns(3, 4, rng)
    images, truth = _blank(TRAINING + samples, (14, 14), rng)
    labels = torch.arange(len(images)) % 2
    for row, both in enumerate(labels.tolist()):
        taken = torch.zeros_like(truth[:1])
        for which in [0, 1] if both else [int(torch.randint(2, (1,), generator=rng))]:
            truth[(row, *_place(images[row : row + 1], 0, patterns[which], taken, rng)[1:])] = True
        _place(images[row : row + 1], 0, patterns[2], taken, rng)
    return _known(samples, (images, labels, truth), _images(2, nn.AdaptiveAvgPool2d(1)), seed, steps=1000)


def signal_pattern(samples, seed):
    """One of three short patterns in a long signal, among others that mean nothing; the class is which."""
    rng = torch.Generator().manual_seed(seed)
    patterns = 2 * _patterns(3, 10, rng, dims=1)
    signals, truth = _blank(TRAINING + samples, (64,), rng)
    labels = torch.arange(len(signals)) % 3
    for row, label in enumerate(labels.tolist()):
        _place(signals, row, patterns[label], truth, rng)
        _distract(signals, row, patterns, truth[row : row + 1].clone(), 2, rng)
    model = nn.Sequential(
        nn.Conv1d(1, 12, 5), nn.ReLU(), nn.Conv1d(12, 16, 5), nn.ReLU(), nn.Conv1d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    return _known(samples, (signals, labels, truth), model, seed)


def _table(columns, classes=2):
    return nn.Sequential(
        nn.Linear(columns, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
        nn.Linear(32, classes),
    )  # fmt: skip


def gated_columns(samples, seed):
    """A switch decides which four of sixteen columns are summed; the class is the sign of the sum."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(16, generator=rng)
    switch, first, second = order[0], order[1:5], order[5:9]
    values = torch.randn(2 * TRAINING + samples, 16, generator=rng)
    on = values[:, switch] > 0
    labels = torch.where(on, values[:, first].sum(1), values[:, second].sum(1)).gt(0).long()
    truth = torch.zeros(values.shape, dtype=torch.bool)
    truth[:, switch] = True
    truth[:, first] = on[:, None]
    truth[:, second] = ~on[:, None]
    return _known(samples, (values, labels, truth), _table(16), seed, steps=800)


def few_columns(samples, seed):
    """Three of twelve columns decide, two of them together."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(12, generator=rng)[:3]
    values = torch.randn(2 * TRAINING + samples, 12, generator=rng)
    a, b, c = (values[:, column] for column in order)
    truth = torch.zeros(values.shape, dtype=torch.bool)
    truth[:, order] = True
    return _known(samples, (values, (a * b + c > 0).long(), truth), _table(12), seed, steps=800)


def linear(samples, seed):
    """Six classes, each the sum of four columns of its own of forty; in three factors without a rectifier."""
    rng = torch.Generator().manual_seed(seed)
    order, weight = torch.randperm(40, generator=rng), torch.zeros(6, 40)
    for label in range(6):
        weight[label, order[4 * label : 4 * label + 4]] = 1.0 + torch.rand(4, generator=rng)
    first, second = (torch.randn(48, width, generator=rng) / width**0.5 for width in (40, 48))
    last = weight @ torch.linalg.pinv(second @ first)
    model = nn.Sequential(*(nn.Linear(each.shape[1], each.shape[0], bias=False) for each in (first, second, last)))
    with torch.no_grad():
        for layer, given in zip(model, (first, second, last), strict=True):
            layer.weight.copy_(given)
        values = torch.randn(samples, 40, generator=rng)
        labels = (values @ weight.T).argmax(1)
    return _with_accuracy(model.eval(), values, labels, weight[labels] > 0)


class Words(nn.Module):
    """Looks at every token through two layers, adds up, and reads the sum."""

    def __init__(self, words, classes):
        super().__init__()
        self.embedding = nn.Embedding(words, 16)
        self.token = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, ids):
        return self.head(self.token(self.embedding(ids)).mean(1))


def keyword_count(samples, seed):
    """Token ids; the class is whose keywords are there most often."""
    rng = torch.Generator().manual_seed(seed)
    keys = torch.randperm(60, generator=rng)[:12].reshape(3, 4)
    others = torch.tensor([word for word in range(60) if word not in keys.flatten().tolist()])
    ids = others[torch.randint(len(others), (TRAINING + samples, 20), generator=rng)]
    labels, truth = torch.arange(len(ids)) % 3, torch.zeros(ids.shape, dtype=torch.bool)
    for row, label in enumerate(labels.tolist()):
        places = torch.randperm(20, generator=rng)[:4]
        whose = [label] * 3 + [(label + 1 + int(torch.randint(2, (1,), generator=rng))) % 3]
        for place, which in zip(places, whose, strict=True):
            ids[row, place] = keys[which, int(torch.randint(4, (1,), generator=rng))]
            truth[row, place] = True
    return _known(samples, (ids, labels, truth), Words(60, 3), seed)


NETWORKS: dict[str, Callable[[int, int], Known]] = {
    "planted pixels": planted_pixels,
    "sum of patches": sum_of_patches,
    "xor of patches": xor_of_patches,
    "signal pattern": signal_pattern,
    "gated columns": gated_columns,
    "few columns": few_columns,
    "linear": linear,
    "keyword count": keyword_count,
}
"""Each ``(samples, seed) -> Known``; PyTorch's own initialisation follows the seed through ``made``."""


def made(name: str, samples: int, seed: int) -> Known:
    """The network of this name, whatever the global streams are at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](samples, seed)
