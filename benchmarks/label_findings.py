"""Question: does the data randomization test find what is expected, and do its 95 % intervals hold?

Two kinds of networks learn three sets of pictures by heart, with true labels and with random ones, many times each. A
study takes a few of these models and some pictures that no model was trained on. Its index is compared with that of all
models and pictures. Studies drawn from what they are compared with come out a little too well, and those compared with
the other models a little too badly, because few are left: the two shares enclose the coverage.

    python benchmarks/label_findings.py [--models 15] [--studies 300] [--sets digits faces figures] [--json]
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lightning_sanity import Criterion, Outcome, data_randomization_test
from lightning_sanity.attribution import integrated_gradients
from lightning_sanity.cli import demo
from lightning_sanity.data_randomization import memorization
from lightning_sanity.result.dri import judge_labels, label_sensitivity
from lightning_sanity.result.verdict import MEASURES, SIGNED, Evidence

SIZES = ((3, 32), (5, 32), (3, 64))
TRAINED_ON = 160


# ------------------------------------------------------------------------------------------------------------- pictures


def digits():
    training, unseen = demo.digits()
    return *(t[:TRAINED_ON] for t in training.tensors), *unseen.tensors


def faces():
    """Real faces and other parts of photographs, 16 x 16."""
    from skimage.data import lfw_subset

    images = F.interpolate(torch.tensor(lfw_subset(), dtype=torch.float32)[:, None], size=(16, 16), mode="area")
    labels = torch.arange(200) // 100
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    few = 120
    return images[order[:few]], labels[order[:few]], images[order[few:]], labels[order[few:]]


def figures():
    """Crosses, frames, bars and discs somewhere in noise, 16 x 16."""
    rng = torch.Generator().manual_seed(0)
    count = TRAINED_ON + 200
    labels = torch.randint(4, (count,), generator=rng)
    images = 0.3 * torch.rand(count, 1, 16, 16, generator=rng)
    places = torch.randint(1, 9, (count, 2), generator=rng)
    shapes = torch.zeros(4, 6, 6)
    shapes[0, 2:4], shapes[0, :, 2:4] = 1, 1
    shapes[1] = 1
    shapes[1, 1:5, 1:5] = 0
    shapes[2, :, 1:3] = 1
    shapes[3, 1:5, 1:5] = 1
    for image, label, (y, x) in zip(images, labels, places.tolist(), strict=True):
        image[0, y : y + 6, x : x + 6] += 0.6 * shapes[label]
    return images[:TRAINED_ON], labels[:TRAINED_ON], images[TRAINED_ON:], labels[TRAINED_ON:]


SETS = {"digits": digits, "faces": faces, "figures": figures}


# ------------------------------------------------------------------------------------------------------------- networks


class Transformer(nn.Module):
    """Patches of 4 x 4, two layers."""

    def __init__(self, classes, width=32):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.place = nn.Parameter(0.1 * torch.randn(1, 16, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).mT + self.place
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def convolutional(classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


NETWORKS = {"convolutional": convolutional, "transformer": Transformer}


def trained(make, images, labels, classes, seed, epochs=300):
    """A network that knows the labels by heart, in eval mode."""
    torch.manual_seed(seed)
    model = make(classes)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(images)).split(40):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            if bool((model(images).argmax(1) == labels).all()):
                break
    return model.eval()


# -------------------------------------------------------------------------------------------------------------- studies


def bank(name, network, models, samples, seed=0):
    """The test on all models at once."""
    images, labels, unseen, answers = SETS[name]()
    classes = int(labels.max()) + 1
    true, permuted, given = [], [], []
    for index in range(models):
        key = seed * 10_000 + index
        given.append(labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(key))])
        true.append(trained(NETWORKS[network], images, labels, classes, key))
        permuted.append(trained(NETWORKS[network], images, given[-1], classes, key + 5_000))
    known = memorization(true, permuted, (images, labels), given, (unseen, answers))
    methods = {"gradient": "gradient", "guided_backprop": "guided_backprop", "input_x_gradient": "input_x_gradient"}
    methods["integrated_gradients"] = integrated_gradients(n_steps=16)
    if network == "convolutional":
        methods["gradcam"] = "gradcam"
    return data_randomization_test(
        true,
        permuted,
        unseen[:samples],
        methods=methods,
        memorization=known,
        repeats=1,
        pictures=False,
        progress=False,
    )
