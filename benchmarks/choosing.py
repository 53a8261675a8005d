"""Question: is nothing recommended where there is nothing to explain, and is the answer the same under other seeds?

"untrained": small convolutional networks, a residual network with batch normalisation, an LSTM, a transformer and a
network of columns, as they are built, 20 seeds each, with labels and without. "permuted": networks trained on permuted
labels until they know them, asked about samples they have not seen. Both are timed, as a share of what the whole choice
takes for a trained network of that kind. "unlabelled": what a network shows without labels, trained on true labels, on
labels of which a part is permuted, and on permuted ones: how sure it is of unseen samples, and how often it keeps its
class when they are shifted by a pixel. "seeds": trained networks of seven kinds; the choice is made with several seeds.
It is the same if both recommend one method, a stated tie if each is in the other's set. "budget": a pretrained
ImageNet network, 16 images of 224 px, every method that applies, one thread; seconds are of processor time, as on a
machine that does nothing else.

    python benchmarks/choosing.py [--question untrained permuted unlabelled seeds budget] [--seeds 3]
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings

import torch
from measuring.studied import NETWORKS as STUDIED
from measuring.studied import fitted as studied
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


def chosen(model, values, labels, seed=0, **given):
    """The choice, and the processor time that it took."""
    options = {"candidates": CANDIDATES, "profile": False, "progress": False, **given}
    begun = time.process_time()
    return choose_methods(model, values, labels=labels, seed=seed, **options), time.process_time() - begun


def early(build, made, values, labels):
    """Of networks with nothing to explain: how many are told so, with labels and without, and what that takes."""
    data = values[-32:], labels[-32:]
    _, whole = chosen(fitted(build, values[:-32], labels[:-32]), *data)
    told, without, recommended, seconds = 0, 0, 0, []
    for model in made:
        with torch.no_grad():
            without += nothing_to_explain(model, model(data[0]), None) is not None
        choice, took = chosen(model, *data)
        told += choice.recommended is None and choice.spent == {}
        recommended += choice.recommended is not None
        seconds.append(took)
    return {
        "told with labels": told,
        "recommended": recommended,
        "told without labels": without,
        "longest, of the whole choice's time": round(max(seconds) / whole, 3),
        "whole choice, seconds": round(whole, 1),
    }


def untrained(seeds=20):
    for name, (build, data) in NETWORKS.items():

        def made(build=build):
            for seed in range(seeds):
                torch.manual_seed(seed)
                yield build().eval()

        yield {"network": name, "seeds": seeds, **early(build, made(), *data())}


def permuted(seeds=20):
    values, labels = digits()
    made = (fitted(convolutional, values[:300], mixed(labels[:300], 1.0, seed), seed, 200) for seed in range(seeds))
    yield {"network": "permuted labels", "seeds": seeds, **early(convolutional, made, values, labels)}


def mixed(labels, share, seed):
    """Labels of which a share is permuted."""
    draw = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(labels), generator=draw)[: round(share * len(labels))]
    found = labels.clone()
    found[some] = labels[some[torch.randperm(len(some), generator=draw)]]
    return found


@torch.no_grad()
def unlabelled(seeds=20, samples=200):
    values, labels = digits()
    unseen, known = values[-samples:], labels[-samples:]
    for share in (0.0, 0.5, 0.8, 1.0):
        rows = []
        for seed in range(seeds):
            with torch.enable_grad():
                model = fitted(convolutional, values[:300], mixed(labels[:300], share, seed), seed, 200)
            found = [model(unseen.roll(shift, 3)).softmax(1) for shift in (0, 1)]
            kept = found[0].argmax(1) == found[1].argmax(1)
            right = found[0].argmax(1) == known
            rows.append([float(each.float().mean()) for each in (right, found[0].amax(1), kept)])
        table = torch.tensor(rows)
        ranges = {
            name: [round(float(end), 2) for end in (column.min(), column.median(), column.max())]
            for name, column in zip(("accuracy", "confidence", "keeps its class"), table.T, strict=True)
        }
        yield {"permuted share": share, "seeds": seeds, **ranges}


def pretrained(side):
    """An ImageNet network and 16 views of six photographs."""
    from lightning_sanity.cli import photos

    values = photos.standardised(photos.photographs(side))
    return photos.pretrained(), torch.cat([values, values[:4].flip(3)])


def budgeted(seconds=(60, 300), side=224):
    torch.set_num_threads(1)
    model, values = pretrained(side)
    plain, time.perf_counter = time.perf_counter, time.process_time
    try:
        for budget in seconds:
            choice, took = chosen(model, values, None, candidates="auto", profile=True, budget=budget)
            standing = {}
            for row in choice.table:
                standing.setdefault(row.standing.value, []).append(row.method)
            yield {"budget": budget, "took": round(took, 1), "reason": choice.reason, **standing}
            print(choice, flush=True)
    finally:
        time.perf_counter = plain


def subjects(names):
    """``name -> (model, samples, labels or None, further options)`` of the networks whose choice is repeated."""
    for name in names:
        if name in NETWORKS:
            build, data = NETWORKS[name]
            values, labels = data()
            yield name, fitted(build, values[:-32], labels[:-32]), values[-32:], labels[-32:], {}
        elif name == "pretrained":
            yield name, *pretrained(64), None, {"max_steps": 4, "candidates": CANDIDATES[:5]}
        else:
            model, values, _ = studied(name)
            yield name, model, values[:32], None, STUDIED[name].given()


REPEATED = ("demo", "table", "LSTM", "text_transformer", "resnet_photos", "unet", "pretrained")


def seeded(seeds=3, networks=REPEATED):
    for name, model, values, labels, given in subjects(networks):
        found = [chosen(model, values, labels, seed, **given) for seed in range(seeds)]
        choices = [choice for choice, _ in found]
        pairs = list(itertools.combinations(choices, 2))
        same = sum(a.recommended == b.recommended for a, b in pairs)
        tied = sum(
            a.recommended == b.recommended
            or (a.recommended in b.recommended_set and b.recommended in a.recommended_set)
            for a, b in pairs
        )
        yield {
            "network": name,
            "recommended": [choice.recommended for choice in choices],
            "sets": [list(choice.recommended_set) for choice in choices],
            "reasons": [choice.reason for choice in choices if choice.recommended is None],
            "pairs": len(pairs),
            "same": same,
            "same or tied": max(same, tied),
            "seconds": round(sum(took for _, took in found) / seeds, 1),
        }


QUESTIONS = {
    "untrained": untrained,
    "permuted": permuted,
    "unlabelled": unlabelled,
    "seeds": seeded,
    "budget": budgeted,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", nargs="*", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--seeds", type=int, help="default: 20, and 3 for the question of that name")
    parser.add_argument("--networks", nargs="*", help="of the question 'seeds'", default=REPEATED)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="one untrained network alone")
    given = parser.parse_args()
    if given.equality_only:
        torch.manual_seed(0)
        values, labels = digits()
        choice, _ = chosen(convolutional().eval(), values[-32:], labels[-32:])
        assert choice.recommended is None, choice.reason
        print(choice.reason)
        return
    warnings.simplefilter("ignore")
    for question in given.question:
        options = {} if given.seeds is None else {"seeds": given.seeds}
        options = {} if question == "budget" else options
        options |= {"networks": given.networks} if question == "seeds" else {}
        for row in QUESTIONS[question](**options):
            print(json.dumps({"question": question, **row}) if given.json else f"{question}: {row}", flush=True)


if __name__ == "__main__":
    main()
