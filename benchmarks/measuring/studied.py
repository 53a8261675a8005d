"""Two dozen small networks of many families, trained in seconds on data that scikit-learn or scikit-image carry."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import targets
from lightning_sanity.cli import demo
from lightning_sanity.resources.random_streams import isolated_rng

# ----------------------------------------------------------------------------------------------------------- the data

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "immunohistochemistry")


@cache
def digits():
    """Digits ``(N, 1, 16, 16)``."""
    return [data.tensors for data in demo.digits()]


@cache
def rows():
    """Digits as 16 steps of 16 numbers."""
    return [(x[:, 0], y) for x, y in digits()]


@cache
def odd():
    """Is a digit odd?"""
    return [(x, (y % 2).float()) for x, y in digits()]


@cache
def ink():
    """Is a pixel ink?"""
    return [(x, (x[:, 0] > 0.5).long()) for x, _ in digits()]


@cache
def photographs(side=32, per_class=200, seed=0):
    """Standardised patches of photographs, labelled by these; the right quarter of each is kept for validation."""
    from skimage import data

    rng, sets = torch.Generator().manual_seed(seed), ([], [])
    for label, name in enumerate(PHOTOGRAPHS):
        image = torch.as_tensor(getattr(data, name)().copy()).permute(2, 0, 1).float()[None] / 255
        image = F.interpolate(image, scale_factor=0.5, mode="area")[0]
        edge = int(0.75 * image.shape[2])
        for part, count, columns in ((0, per_class, (0, edge - side)), (1, 60, (edge, image.shape[2] - side))):
            for _ in range(count):
                y = int(torch.randint(image.shape[1] - side, (), generator=rng))
                x = int(torch.randint(columns[0], columns[1], (), generator=rng))
                sets[part].append((image[:, y : y + side, x : x + side], label))
    images = [torch.stack([x for x, _ in part]) for part in sets]
    mean, spread = (moment(images[0], (0, 2, 3), keepdim=True) for moment in (torch.mean, torch.std))
    labels = [torch.tensor([y for _, y in part]) for part in sets]
    return [((x - mean) / spread, y) for x, y in zip(images, labels, strict=True)]


@cache
def sentences(length=16):
    """Runs of words from the descriptions of five data sets, as ids; which data set do they describe?"""
    from sklearn import datasets

    loaders = (datasets.load_iris, datasets.load_wine, datasets.load_breast_cancer, datasets.load_digits)
    texts = [re.findall(r"[a-z]+", loader().DESCR.lower()) for loader in (*loaders, datasets.load_diabetes)]
    places = {word: place for place, word in enumerate(sorted({word for text in texts for word in text}))}
    found = [
        (torch.tensor([places[word] for word in text[k : k + length]]), label)
        for label, text in enumerate(texts)
        for k in range(0, len(text) - length, 3)
    ]
    return _halves(torch.stack([ids for ids, _ in found]), torch.tensor([label for _, label in found]))


@cache
def tumours():
    """Thirty standardised columns of 569 tumours of two kinds."""
    from sklearn.datasets import load_breast_cancer

    values, labels = load_breast_cancer(return_X_y=True)
    values = (values - values.mean(0)) / values.std(0)
    return _halves(torch.as_tensor(values, dtype=torch.float32), torch.as_tensor(labels))


@cache
def series():
    """Noisy steps of three series, 36 long: which of two rose at the end?"""
    signals = torch.randn(600, 3, 36, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    rose = signals[..., -1] > signals[..., -3]
    return _halves(signals, rose[:, 0].long() + 2 * rose[:, 1].long())


def _halves(values, labels):
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    cut = 3 * len(values) // 4
    return [(values[part], labels[part]) for part in (order[:cut], order[cut:])]


# ------------------------------------------------------------------------------------------------------- the networks


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a normalisation around a shortcut; ``before`` puts it before them."""

    def __init__(self, channels_in, channels, stride=1, norm=nn.BatchNorm2d, before=False):
        super().__init__()
        one, two = (nn.Conv2d(a, channels, 3, s, 1, bias=False) for a, s in ((channels_in, stride), (channels, 1)))
        layers = [norm(channels_in), nn.ReLU(), one, norm(channels), nn.ReLU(), two]
        self.body = nn.Sequential(*(layers if before else [one, norm(channels), nn.ReLU(), two, norm(channels)]))
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride)
        self.end = nn.Identity() if before else nn.ReLU()

    def forward(self, x):
        """Same shape, or half the side."""
        return self.end(self.body(x) + self.shortcut(x))


class Mixing(nn.Module):
    """A ConvNeXt block: depthwise convolution, normalisation, two pointwise layers with GELU, layer scale."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.widen, self.narrow = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(3 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x):
        """Same shape."""
        return x + self.gamma * self.narrow(F.gelu(self.widen(self.norm(self.depthwise(x)))))


class Inverted(nn.Module):
    """A MobileNet block: widen, depthwise, narrow, with BatchNorm and ReLU6."""

    def __init__(self, channels, out, stride=1):
        super().__init__()
        wide = 3 * channels
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.same = stride == 1 and channels == out

    def forward(self, x):
        """Same shape, or half the side."""
        return x + self.body(x) if self.same else self.body(x)


class Ensemble(nn.Module):
    """The mean of its members' scores."""

    def __init__(self, make, count):
        super().__init__()
        self.members = nn.ModuleList(make() for _ in range(count))

    def forward(self, x):
        """Class scores."""
        return torch.stack([member(x) for member in self.members]).mean(0)


class TwoHeads(nn.Module):
    """Ten classes, and a reconstruction beside them."""

    def __init__(self):
        super().__init__()
        blocks = [Residual(16, 24), Residual(24, 32, 2), nn.AdaptiveAvgPool2d(1)]
        self.trunk = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *blocks)
        self.classes, self.others = nn.Linear(32, 10), nn.Linear(32, 256)

    def forward(self, x):
        """Class scores, and what is reconstructed."""
        features = self.trunk(x).flatten(1)
        return self.classes(features), self.others(features)


class WideAndDeep(nn.Module):
    """Scores of a linear path plus those of a deep one."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(256, 10)
        self.deep = nn.Sequential(nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        """Class scores."""
        return self.wide(x.flatten(1)) + self.deep(x.flatten(1))


class Attending(nn.Module):
    """A transformer over vectors ``(N, T, width)``, and the classes from their mean."""

    def __init__(self, make, places, width, classes, depth):
        super().__init__()
        self.vectors, self.places = make, nn.Parameter(0.02 * torch.randn(1, places, width))
        layer = partial(nn.TransformerEncoderLayer, width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks, self.norm = nn.Sequential(*(layer() for _ in range(depth))), nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        """Class scores."""
        return self.head(self.norm(self.blocks(self.vectors(x) + self.places)).mean(1))


class Patches(nn.Module):
    """Vectors of 4 x 4 patches."""

    def __init__(self, channels, width):
        super().__init__()
        self.cut = nn.Conv2d(channels, width, 4, 4)

    def forward(self, x):
        """``(N, T, width)``."""
        return self.cut(x).flatten(2).mT


class Recurrent(nn.Module):
    """Two layers of LSTM; the classes from the last state."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 48, 2, batch_first=True), nn.Linear(48, 10)

    def forward(self, x):
        """Class scores."""
        return self.head(self.lstm(x)[0][:, -1])


class Causal(nn.Module):
    """Two causal convolutions; a forecast from the last step, which sees seven."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 16, 3, padding=2), nn.Conv1d(16, 16, 3, padding=4, dilation=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        """Class scores."""
        h = self.second(self.first(x)[..., : x.shape[-1]].relu())[..., : x.shape[-1]].relu()
        return self.head(h[..., -1])


class UNet(nn.Module):
    """Two levels and a skip; scores ``(N, 2, H, W)``."""

    def __init__(self, width=12):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.inner = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Conv2d(2 * width, width, 1))
        self.out = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, x):
        """A score of both classes at every pixel."""
        skipped = self.down(x).relu()
        return self.out(torch.cat([skipped, F.interpolate(self.inner(skipped).relu(), scale_factor=2)], 1))


def plain(activation, channels=1, classes=10):
    """Four convolutions without normalisation, two maximum poolings, two linear layers."""
    layers = []
    for number, (before, after) in enumerate(((channels, 16), (16, 16), (16, 32), (32, 32))):
        layers += [nn.Conv2d(before, after, 3, padding=1), activation()]
        layers += [nn.MaxPool2d(2)] if number % 2 else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), activation(), nn.Linear(64, classes))


def resnet(channels=1, classes=10, norm=nn.BatchNorm2d):
    """A residual network of eleven 3 x 3 convolutions."""
    widths = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1))
    blocks = [Residual(before, after, stride, norm) for before, after, stride in widths]
    stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), norm(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def preactivation(blocks):
    """A residual network on one resolution with the normalisation before each convolution."""
    body = [Residual(16, 16, before=True) for _ in range(blocks)]
    ends = [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), *body, *ends)


def convnext():
    """Six ConvNeXt blocks on two scales."""
    first, second = [Mixing(24) for _ in range(3)], [Mixing(32) for _ in range(3)]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(1, 24, 2, 2), *first, nn.Conv2d(24, 32, 2, 2), *second, *ends)


def mobilenet():
    """Five inverted residuals."""
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    blocks = [Inverted(16, 16), Inverted(16, 24, 2), Inverted(24, 24), Inverted(24, 32, 2), Inverted(32, 32)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, len(PHOTOGRAPHS)))


def perceptron(inputs=256, classes=10):
    """Three hidden layers."""
    widths = (inputs, 256, 128, 64)
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, classes))


def single():
    """One logit."""
    return nn.Sequential(plain(nn.ReLU, classes=1), nn.Flatten(0))


def text(depth=2, width=48):
    """A transformer over words."""
    words = 1 + max(int(ids.max()) for ids, _ in sentences())
    return Attending(nn.Embedding(words, width), 16, width, 5, depth)


def bag():
    """The mean of the words' vectors, through two layers."""
    words = 1 + max(int(ids.max()) for ids, _ in sentences())

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(words, 48)
            self.net = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 5))

        def forward(self, ids):
            """Class scores."""
            return self.net(self.table(ids).mean(1))

    return Bag()


# ------------------------------------------------------------------------------------------------- what is studied


def _first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


@dataclass(frozen=True)
class Study:
    """A network, its data, and what is explained.

    Attributes:
        make: The network.
        data: Training and validation.
        loss: Of outputs and labels.
        right: Which samples are classified correctly.
        given: Further arguments of the test.
        epochs: Of training.
        batch: Of training.
        agreed: Whether the literature's verdicts are about such networks: convolutional ones on images. On
            transformers the gradient's magnitude survives random upper blocks; a linear path shows all weights at
            once; and an input that is no image does not outshine what it is multiplied with.
    """

    make: Callable
    data: Callable = digits
    loss: Callable = field(default=lambda outputs, labels: F.cross_entropy(_first(outputs), labels))
    right: Callable = field(default=lambda outputs, labels: _first(outputs).argmax(1) == labels)
    given: Callable = field(default=lambda: {})
    epochs: int = 6
    batch: int = 64
    agreed: bool = True


def _reconstructing(outputs, labels):
    return F.cross_entropy(outputs[0], labels) + outputs[1].square().mean()


NETWORKS = {
    "demo": Study(demo.DigitsClassifier),
    "plain_relu": Study(lambda: plain(nn.ReLU)),
    "plain_silu": Study(lambda: plain(nn.SiLU)),
    "plain_tanh": Study(lambda: plain(nn.Tanh)),
    "mlp": Study(perceptron, agreed=False),
    "convnext": Study(convnext, epochs=10),
    "resnet": Study(resnet),
    "resnet_group_norm": Study(partial(resnet, norm=partial(nn.GroupNorm, 4)), epochs=10),
    "preactivation_10": Study(partial(preactivation, 10)),
    "preactivation_20": Study(partial(preactivation, 20)),
    "resnet_photos": Study(partial(resnet, 3, len(PHOTOGRAPHS)), photographs, epochs=4),
    "mobilenet_photos": Study(mobilenet, photographs, epochs=8),
    "vit_digits": Study(lambda: Attending(Patches(1, 48), 16, 48, 10, 3), epochs=12, agreed=False),
    "vit_photos": Study(
        lambda: Attending(Patches(3, 48), 64, 48, len(PHOTOGRAPHS), 3), photographs, epochs=8, agreed=False
    ),
    "ensemble": Study(lambda: Ensemble(lambda: plain(nn.ReLU), 3)),
    "two_heads": Study(TwoHeads, loss=_reconstructing, given=lambda: {"output": 0}),
    "wide_and_deep": Study(WideAndDeep, epochs=10, agreed=False),
    "single_logit": Study(
        single,
        odd,
        loss=F.binary_cross_entropy_with_logits,
        right=lambda outputs, labels: (outputs > 0) == (labels > 0),
    ),
    "unet": Study(
        UNet,
        ink,
        right=lambda outputs, labels: (outputs.argmax(1) == labels).flatten(1).float().mean(1) > 0.95,
        given=lambda: {"target": targets.class_mask(1)},
        epochs=2,
    ),
    "lstm": Study(Recurrent, rows, epochs=15, agreed=False),
    "causal": Study(Causal, series, epochs=80, agreed=False),
    "text_transformer": Study(text, sentences, epochs=15, agreed=False),
    "text_bag": Study(bag, sentences, epochs=15, agreed=False),
    "table": Study(partial(perceptron, 30, 2), tumours, epochs=15, agreed=False),
}


def fitted(name, seed=0, epochs=None):
    """The trained network, the validation samples that it classifies correctly in random order, and their share."""
    study = NETWORKS[name]
    training, validation = study.data()
    with isolated_rng(seed):
        model = study.make()
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        for _ in range(epochs or study.epochs):
            for batch in torch.randperm(len(training[0])).split(study.batch):
                optimizer.zero_grad()
                study.loss(model(training[0][batch]), training[1][batch]).backward()
                optimizer.step()
    model.eval()
    with torch.no_grad():
        right = study.right(model(validation[0]), validation[1])
    order = torch.randperm(int(right.sum()), generator=torch.Generator().manual_seed(seed))
    return model, validation[0][right][order], float(right.float().mean())
