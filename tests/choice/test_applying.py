"""What screening lets through does not crash on other samples: convolutions, attention, recurrence, token ids."""

import warnings

import pytest
import torch
from made_networks import cnn, vit
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from lightning_sanity.attribution import available, resolve
from lightning_sanity.choice.screening import screen
from lightning_sanity.choice.subject import cost_of, subject
from lightning_sanity.explanation.request import asked_of
from lightning_sanity.parameter_randomization.options import settled


class Recurrent(nn.Module):
    """A series ``(N, 9, 4)`` to three classes."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


class Words(nn.Module):
    """Token ids ``(N, 7)`` to three classes, by attention."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, ids):
        return self.head(self.body(self.table(ids)).mean(1))


FAMILIES = {
    "convolutional": (lambda: cnn(4), lambda n: torch.randn(n, 3, 16, 16)),
    "ResNet": (lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4), lambda n: torch.randn(n, 3, 32, 32)),
    "vision transformer": (vit, lambda n: torch.randn(n, 3, 32, 32)),
    "LSTM": (lambda: Recurrent(nn.LSTM), lambda n: torch.randn(n, 9, 4)),
    "GRU": (lambda: Recurrent(nn.GRU), lambda n: torch.randn(n, 9, 4)),
    "token ids": (Words, lambda n: torch.randint(20, (n, 7))),
}


def crashes(model, samples, most):
    """Methods of up to so many passes that screening lets through and that raise on other samples, with the error."""
    names = [name for name in available() if not resolve(name).control]
    given = settled({}, "a test")
    found, tried = {}, 0
    with (
        warnings.catch_warnings(),
        subject(model, asked_of(model, samples(4), None, given), {n: resolve(n) for n in names}, given, None) as on,
    ):
        warnings.simplefilter("ignore")
        cheap = [name for name in names if not cost_of(on.methods[name]) > most]
        applying = list(screen(on, cheap, lambda name: None).costs)
    other = asked_of(model, samples(5), None, given)
    with subject(model, other, {name: resolve(name) for name in applying}, given, None) as on:
        for name in applying:
            tried += 1
            try:
                maps = next(maps for _, maps in on.maps([name]))
                assert len(maps.magnitude) == 5
            except Exception as error:
                found[name] = error
    assert tried >= 5
    return found


SLOW = ("ResNet", "vision transformer")


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FAMILIES])
def test_what_applies_does_not_crash_on_other_samples(family):
    build, samples = FAMILIES[family]
    torch.manual_seed(3)
    assert crashes(build().eval(), samples, 2.0) == {}


@pytest.mark.slow
def test_nor_on_a_pretrained_network():
    pytest.importorskip("efficientnet_lite_pytorch")
    from lightning_sanity.cli import photos

    views = photos.standardised(photos.photographs(64))
    assert crashes(photos.pretrained(), lambda n: views[:n], 2.0) == {}
