"""Small data that is there without a network: digits, tables, the documentation of libraries; and sines and words.

Each function returns a training and a validation set.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from importlib import import_module

import torch
from sklearn.datasets import load_diabetes, load_wine
from torch.utils.data import TensorDataset

from lightning_sanity.cli import demo

LIBRARIES = ("scipy.stats", "scipy.signal", "sklearn.metrics")


def digit_images():
    """Grey digits ``(N, 1, 16, 16)``."""
    training, validation = demo.digits()
    return TensorDataset(*(tensor[:800] for tensor in training.tensors)), validation


def answered_digits():
    """The same; of each is known whether it is odd, at least five, and has a loop, as floats ``(N, 3)``."""

    def answers(labels):
        loops = (labels[:, None] == torch.tensor([0, 6, 8, 9])).any(1)
        return torch.stack([labels % 2 > 0, labels >= 5, loops], 1).float()

    return tuple(TensorDataset(data.tensors[0], answers(data.tensors[1])) for data in digit_images())


def digit_rows():
    """The same as sequences ``(N, 16, 16)``: at each of sixteen times, a row."""
    return tuple(TensorDataset(data.tensors[0][:, 0].transpose(1, 2), data.tensors[1]) for data in digit_images())


def waves():
    """Noisy sines ``(N, 1, 48)`` of three frequencies."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    phase = 6.3 * torch.rand(600, 1, generator=rng)
    time = torch.linspace(0, 6.3, 48)
    signals = torch.sin((1.0 + 2 * labels[:, None]) * time + phase) + 0.2 * torch.randn(600, 48, generator=rng)
    return halves(signals[:, None], labels)


def sentences():
    """Token ids ``(N, 12)`` in which one of four words is the class."""
    rng = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(4, 30, (600, 12), generator=rng), torch.arange(600) % 4
    ids[torch.arange(600), torch.randint(0, 12, (600,), generator=rng)] = labels
    return halves(ids, labels)


def documentation():
    """Sentences of docstrings, token ids ``(N, 24)`` filled up with 0; the class is which library they are from."""
    found = [(words, place) for place, name in enumerate(LIBRARIES) for words in _sentences(import_module(name))]
    known = Counter(word for words, _ in found for word in words).most_common(1998)
    place_of = {word: place for place, (word, _) in enumerate(known, start=2)}
    ids = torch.zeros(len(found), 24, dtype=torch.long)
    for row, (words, _) in zip(ids, found, strict=True):
        row[: len(words)] = torch.tensor([place_of.get(word, 1) for word in words])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return halves(ids[order], torch.tensor([label for _, label in found])[order])


def _sentences(library, most=500):
    """The first words of that many sentences."""
    texts = (inspect.getdoc(member) or "" for name, member in sorted(vars(library).items()) if callable(member))
    words = [re.findall("[a-z]+", text.lower())[:24] for doc in texts for text in re.split(r"\.\s", doc)]
    return [sentence for sentence in words if len(sentence) > 7][:most]


def wines():
    """Thirteen standardised columns of 178 wines of three kinds."""
    return _table(*load_wine(return_X_y=True))


def patients():
    """Ten columns of 442 patients; how far a disease came within a year, standardised."""
    values, progress = load_diabetes(return_X_y=True)
    return _table(values, (progress - progress.mean()) / progress.std())


def _table(values, labels):
    values = torch.as_tensor((values - values.mean(0)) / values.std(0), dtype=torch.float32)
    labels = torch.as_tensor(labels) if labels.dtype.kind == "i" else torch.as_tensor(labels, dtype=torch.float32)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return halves(values[order], labels[order])


def halves(values, labels):
    """Two thirds to train, one third to validate."""
    cut = 2 * len(values) // 3
    return TensorDataset(values[:cut], labels[:cut]), TensorDataset(values[cut:], labels[cut:])
