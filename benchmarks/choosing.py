"""Question: is nothing recommended where there is nothing to explain, and is the answer the same under other seeds?

"untrained": small convolutional networks, a residual network with batch normalisation, an LSTM, a transformer and a
network of columns, as they are built, 20 seeds each, with labels and without. "permuted": networks trained on permuted
labels until they know them, asked about samples they have not seen. "seeds": trained networks on digits, on a table,
and on token ids; the choice is made with several seeds. It is the same if both recommend one method, a stated tie if
each is in the other's set.

    python benchmarks/choosing.py [--question untrained permuted seeds] [--seeds 3] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from lightning_sanity import choose_methods
from lightning_sanity.choice.explainable import nothing_to_explain

CANDIDATES = (
    "gradient",
    "input_x_gradient",
    "integrated_gradients",
    "integrated_gradients_local",
    "gradcam",
    "deeplift_local",
    "guided_backprop",
    "occlusion",
)


class Words(nn.Module):
    """Token ids to classes, by an LSTM or a transformer."""

    def __init__(self, kind, classes=4):
        super().__init__()
        self.table = nn.Embedding(50, 24)
        block = nn.TransformerEncoderLayer(24, 2, 48, batch_first=True, dropout=0.0)
        self.body = nn.LSTM(24, 24, batch_first=True) if kind == "lstm" else nn.TransformerEncoder(block, 2)
        self.head = nn.Linear(24, classes)

    def forward(self, ids):
        found = self.body(self.table(ids))
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


def digits():
    raw = load_digits()
    return torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / 16, torch.as_tensor(raw.target)


def words(samples=1000):
    """Sentences with one telling word at a random place."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(8, 50, (samples, 16), generator=draw)
    labels = torch.randint(4, (samples,), generator=draw)
    ids[torch.arange(samples), torch.randint(16, (samples,), generator=draw)] = 2 * labels
    return ids, labels


def table():
    raw = load_breast_cancer()
    values = torch.as_tensor(raw.data, dtype=torch.float32)
    return (values - values.mean(0)) / values.std(0), torch.as_tensor(raw.target)


def convolutional():
    first = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
    return nn.Sequential(*first, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10))


def residual():
    net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    net.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    return net


def columns():
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


NETWORKS = {
    "convolutional": (convolutional, digits),
    "residual, BatchNorm": (residual, digits),
    "LSTM": (lambda: Words("lstm"), words),
    "transformer": (lambda: Words("transformer"), words),
    "table": (columns, table),
}


def fitted(build, values, labels, seed=0, steps=250):
    torch.manual_seed(seed)
    model = build().train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        rows = torch.randint(len(values), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(values[rows]), labels[rows]).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def told(model, values, labels):
    """Whether nothing is found to explain, with labels and without."""
    outputs = model(values)
    return [nothing_to_explain(model, outputs, given) is not None for given in (labels, None)]


def untrained(seeds=20, samples=32):
    for name, (build, data) in NETWORKS.items():
        values, labels = (each[-samples:] for each in data())
        found = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = build().eval()
            one_class = bool((model(values).argmax(1) == model(values).argmax(1)[0]).all())
            found.append([each or one_class for each in told(model, values, labels)])
        yield {
            "network": name,
            "seeds": seeds,
            "with labels": sum(f[0] for f in found),
            "without": sum(f[1] for f in found),
        }


def permuted(seeds=20, samples=32):
    values, labels = digits()
    found = []
    for seed in range(seeds):
        shuffled = labels[:300][torch.randperm(300, generator=torch.Generator().manual_seed(seed))]
        model = fitted(convolutional, values[:300], shuffled, seed, steps=200)
        found.append(told(model, values[-samples:], labels[-samples:]))
    yield {
        "network": "permuted labels",
        "seeds": seeds,
        "with labels": sum(f[0] for f in found),
        "without": sum(f[1] for f in found),
    }


def seeded(seeds=3, samples=32):
    for name in ("convolutional", "table", "LSTM"):
        build, data = NETWORKS[name]
        values, labels = data()
        model = fitted(build, values[:-samples], labels[:-samples])
        begun, choices = time.process_time(), []
        for seed in range(seeds):
            given = {"labels": labels[-samples:], "candidates": CANDIDATES, "profile": False, "progress": False}
            choices.append(choose_methods(model, values[-samples:], seed=seed, **given))
        pairs = list(itertools.combinations(choices, 2))
        same = sum(a.recommended == b.recommended for a, b in pairs)
        tied = sum(a.recommended in b.recommended_set and b.recommended in a.recommended_set for a, b in pairs)
        yield {
            "network": name,
            "recommended": [choice.recommended for choice in choices],
            "sets": [list(choice.recommended_set) for choice in choices],
            "pairs": len(pairs),
            "same": same,
            "same or tied": max(same, tied),
            "seconds": round((time.process_time() - begun) / seeds, 1),
        }


QUESTIONS = {"untrained": untrained, "permuted": permuted, "seeds": seeded}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", nargs="*", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--seeds", type=int, help="default: 20, and 3 for the question of that name")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="the untrained networks of one seed alone")
    given = parser.parse_args()
    if given.equality_only:
        given.question, given.seeds = ["untrained"], 1
    warnings.simplefilter("ignore")
    for question in given.question:
        for row in QUESTIONS[question](**({} if given.seeds is None else {"seeds": given.seeds})):
            print(json.dumps({"question": question, **row}) if given.json else f"{question}: {row}", flush=True)


if __name__ == "__main__":
    main()
