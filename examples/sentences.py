"""Real sentences that every installation holds, and a small transformer that tells where they come from.

The text of the examples and tests: Python's language reference, the documentation of PyTorch and of scikit-image.
Nothing is downloaded.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SOURCES = ("Python", "PyTorch", "scikit-image")
PAD, UNKNOWN = 0, 1
_MODULES = {
    "PyTorch": ("torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.linalg", "torch.distributions"),
    "scikit-image": (
        "skimage.filters",
        "skimage.morphology",
        "skimage.measure",
        "skimage.segmentation",
        "skimage.transform",
        "skimage.feature",
        "skimage.restoration",
        "skimage.exposure",
        "skimage.graph",
    ),
}


@dataclass(frozen=True)
class Sentences:
    """Sentences as padded ids.

    Attributes:
        ids: ``(N, T)``; 0 is padding, 1 an unknown word.
        labels: Index into ``SOURCES`` ``(N,)``.
        words: Of every id.
    """

    ids: Tensor
    labels: Tensor
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, start: int, stop: int) -> Sentences:
        """Sentences ``start`` to ``stop``."""
        return Sentences(self.ids[start:stop], self.labels[start:stop], self.words)


def sentences(per_source: int = 600, length: int = 20, vocabulary: int = 2000, seed: int = 0) -> Sentences:
    """As many different sentences of 6 to ``length`` words from every source, shuffled."""
    draw = random.Random(seed)
    found: list[tuple[list[str], int]] = []
    for label, source in enumerate(SOURCES):
        texts = topics.values() if source == "Python" else _docstrings(_MODULES[source])
        pool = sorted({tuple(words) for words in _split(texts) if 6 <= len(words) <= length})
        found += [(list(words), label) for words in draw.sample(pool, min(per_source, len(pool)))]
    draw.shuffle(found)
    counts = Counter(word for words, _ in found for word in words)
    words = ("<pad>", "<unknown>", *(word for word, _ in counts.most_common(vocabulary - 2)))
    number = {word: index for index, word in enumerate(words)}
    ids = torch.full((len(found), length), PAD)
    for row, (line, _) in enumerate(found):
        ids[row, : len(line)] = torch.tensor([number.get(word, UNKNOWN) for word in line])
    return Sentences(ids, torch.tensor([label for _, label in found]), words)


def _docstrings(modules: Sequence[str]) -> Iterator[str]:
    for name in modules:
        for member in vars(importlib.import_module(name)).values():
            if callable(member):
                yield inspect.getdoc(member) or ""


def _split(texts: object) -> Iterator[list[str]]:
    for text in texts:  # type: ignore[attr-defined]
        for sentence in re.split(r"[.:!?]\s|\n\s*\n", text):
            words = re.findall(r"[a-z]+", sentence.lower())
            if len(re.findall(r"[^A-Za-z\s,;'()*-]", sentence)) < len(words):  # prose, not code
                yield words


class SentenceClassifier(nn.Module):
    """A transformer encoder of word and position embeddings, averaged over words; scores ``(N, classes)``."""

    def __init__(self, words: int, classes: int = 3, width: int = 32, layers: int = 2, length: int = 20) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=PAD)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores of ids ``(N, T)``."""
        real = ids != PAD
        encoded = self.encoder(self.embedding(ids) + self.position[: ids.shape[1]], src_key_padding_mask=~real)
        mean = (encoded * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
        scores: Tensor = self.head(mean)
        return scores


def train(data: Sentences, steps: int = 300, seed: int = 0) -> SentenceClassifier:
    """A classifier trained on these sentences, in eval mode."""
    torch.manual_seed(seed)
    model = SentenceClassifier(len(data.words), length=data.ids.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(data), (64,))
        loss = F.cross_entropy(model(data.ids[rows]), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
