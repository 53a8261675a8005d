"""The networks that are timed: a ResNet-18, a tiny vision transformer and a small U-Net, with what is explained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

from lightning_sanity.explanation import Target
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.request import ask
from lightning_sanity.explanation.targets import class_mask
from lightning_sanity.model.clone import Adapted, clone

PATCHES = {32: 4, 64: 8, 224: 16}


@dataclass(frozen=True)
class Problem:
    """A model in eval mode, a batch ``(N, 3, side, side)``, and what is explained: classes ``(N,)`` or a target.

    Attributes:
        score: ``inputs -> (N,)`` where a target is explained; None for classes.
        layer: For class activation maps; None where there are none.
    """

    name: str
    model: nn.Module
    inputs: Tensor
    target: Tensor | Target
    score: object = None
    layer: str | None = None

    @property
    def explanation(self):
        """The same, as the engine wants it."""
        asked = ask(self.model, self.inputs, self.target)
        face = self.model if asked.forward is None else Adapted(self.model, asked.forward).eval()
        return Explanation(face, asked.inputs, asked.target)


def resnet(size, batch):
    """ResNet-18, 21 units."""
    model, inputs = _trained(resnet18(num_classes=100)), torch.rand(batch, 3, size, size)
    return Problem("resnet18", model, inputs, _classes(model, inputs), layer="layer3")


def vit(size, batch):
    """Four blocks of ViT-Tiny, width 192; 64 tokens at 32 and 64 pixels, 196 at 224."""
    model = VisionTransformer(size, PATCHES.get(size, 16), 4, 3, 192, 768, num_classes=100)
    nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts it at zero
    model, inputs = _trained(model), torch.rand(batch, 3, size, size)
    return Problem("vit_tiny", model, inputs, _classes(model, inputs))


def unet(size, batch):
    """Three levels with skip connections, explained is the score of one class over a mask."""
    model, inputs = _trained(UNet()), torch.rand(batch, 3, size, size)
    mask = torch.rand(batch, size, size).round()
    return Problem("unet", model, inputs, class_mask(0, mask), lambda x: (model(x)[:, 0] * mask).flatten(1).sum(1))


NETWORKS = {"resnet18": resnet, "vit_tiny": vit, "unet": unet}


class UNet(nn.Module):
    """Two convolutions per level; width 16 to 64."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([_level(3, 16), _level(16, 32), _level(32, 64)])
        self.up = nn.ModuleList([_level(64 + 32, 32), _level(32 + 16, 16)])
        self.pool, self.larger, self.head = nn.MaxPool2d(2), nn.Upsample(scale_factor=2), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        """Scores ``(N, 4, H, W)``."""
        skipped = []
        for level in self.down[:-1]:
            x = level(x)
            skipped.append(x)
            x = self.pool(x)
        x = self.down[-1](x)
        for level in self.up:
            x = level(torch.cat([self.larger(x), skipped.pop()], 1))
        return self.head(x)


def _level(channels, width):
    parts = []
    for before in (channels, width):
        parts += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts)


def _trained(model):
    """A live clone whose normalisation is as training would leave it, not at its neutral start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_var.uniform_(0.5, 1.5)
    return clone(model.eval())


@torch.no_grad()
def _classes(model, inputs):
    """A class of its own for each sample: untrained networks predict one for everything, and no test can begin."""
    return model(inputs).topk(len(inputs)).indices.diagonal().clone()
