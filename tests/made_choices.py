"""A small network trained on real digits, and the answer for it, made once."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_sanity import choose_methods

CANDIDATES = ("gradient", "gradcam", "integrated_gradients_local", "input_x_gradient", "guided_backprop", "cam")


@cache
def digits():
    """Images ``(N, 1, 8, 8)`` and their classes."""
    raw = load_digits()
    return torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / 16, torch.as_tensor(raw.target)


def network(seed=0):
    """An untrained one."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    ).eval()


def fitted(model, inputs, labels, steps=150):
    """The model, trained on these samples."""
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with torch.random.fork_rng():
        for _ in range(steps):
            batch = torch.randint(len(inputs), (64,), generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


@cache
def trained():
    """A network that knows digits; it has not seen the last 300."""
    images, labels = digits()
    return fitted(network(), images[:1400], labels[:1400])


def probe(samples=24):
    """Images that the network has not seen, and their classes."""
    images, labels = digits()
    return images[-samples:], labels[-samples:]


@cache
def answer(seed=0):
    """The choice for it."""
    images, labels = probe()
    return choose_methods(
        trained(), images, candidates=CANDIDATES, labels=labels, groups=labels >= 5, progress=False, seed=seed
    )
