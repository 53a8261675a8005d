"""Small networks with drawn weights and images with drawn pixels, for oracles that need no training."""

import torch
from torch import nn

QUARTERS = torch.arange(2).repeat_interleave(4)[:, None] * 2 + torch.arange(2).repeat_interleave(4)  # (8, 8)


def convolutional(channels=1, classes=4):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    ).eval()


def linear(channels=1, side=8, classes=3):
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side * side, classes)).double()


def weights_of(model, shape, target):
    return torch.stack([model[1].weight[int(c)].reshape(shape) for c in target]).detach()


def images(count=3, channels=1, side=16):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(3))


def classes(count, n=4):
    return torch.arange(count) % n


def seeded(method, model, inputs, target, seed=0):
    torch.manual_seed(seed)
    return method(model, inputs, target)
