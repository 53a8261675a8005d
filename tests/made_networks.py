"""Small networks with drawn weights and images with drawn pixels, for oracles that need no training."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

QUARTERS = torch.arange(2).repeat_interleave(4)[:, None] * 2 + torch.arange(2).repeat_interleave(4)  # (8, 8)


def convolutional(channels=1, classes=4):
    """The same weights at every call."""
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


def cnn(classes=5):
    """Colour images to classes, the weights drawn from the current seed."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    ).eval()


class Functional(nn.Module):
    """Rectifies by function call, in place once, and once bounded."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.first(x), inplace=True)
        x = F.relu6(self.second(x))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def as_modules(functional):
    """The same network with a module for every rectifier."""
    return nn.Sequential(
        functional.first,
        nn.ReLU(),
        functional.second,
        nn.ReLU(),  # 6 is out of reach for these weights
        functional.third,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        functional.head,
    )


def vit():
    """A vision transformer of three layers for images of 32 x 32."""
    model = models.VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero
    return model
