"""Deep networks, trained for a minute or less on real digits or sentences; one is published with its weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models as zoo

from measuring.models import hugging

sys.path.append(str(Path(__file__).parent.parent.parent / "examples"))
CLASSES, WORDS = 10, 1000
IMAGE = ("gradient", "input_x_gradient", "gradcam", "guided_backprop", "guided_gradcam")
FLAT = ("gradient", "input_x_gradient", "guided_backprop")
_TEXT = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "num_labels": 3}


@dataclass(frozen=True)
class Deep:
    """A network, what it is asked about, and the methods that apply to it.

    Attributes:
        name: Of the architecture.
        model: In eval mode.
        inputs: A batch, as the test takes it.
        methods: Names of methods.
    """

    name: str
    model: nn.Module
    inputs: Any
    methods: tuple[str, ...]


def digits(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real digits as pictures ``(N, 3, side, side)`` and what they show."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=(side, side), mode="bilinear").expand(-1, 3, -1, -1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order].contiguous(), torch.tensor(loaded.target)[order]


def sentences() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Real sentences as ids with their mask, and the source of each."""
    import sentences as real

    data = real.sentences(per_source=200, length=16, vocabulary=WORDS)
    ids = torch.where(data.ids == real.PAD, 0, data.ids + 1)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}, data.labels


def _vit() -> nn.Module:
    model = zoo.VisionTransformer(32, 8, 12, 2, 32, 64, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # torchvision starts it at zero
    return model


_BUILD: dict[str, tuple[Any, int, int, tuple[str, ...]]] = {  # how, side, updates, methods
    "ResNet-18": (lambda: zoo.resnet18(num_classes=CLASSES), 32, 80, IMAGE),
    "ResNet-50": (lambda: zoo.resnet50(num_classes=CLASSES), 32, 60, IMAGE),
    "ResNet-152": (lambda: zoo.resnet152(num_classes=CLASSES), 32, 40, IMAGE),
    "DenseNet-121": (lambda: zoo.densenet121(num_classes=CLASSES), 32, 60, IMAGE),
    "Inception v3": (
        lambda: zoo.inception_v3(num_classes=CLASSES, init_weights=False, aux_logits=False),
        75,
        30,
        IMAGE,
    ),
    "EfficientNet": (lambda: zoo.efficientnet_b0(num_classes=CLASSES), 32, 200, IMAGE),
    "MobileNet v2": (lambda: zoo.mobilenet_v2(num_classes=CLASSES), 32, 60, IMAGE),
    "VGG-19": (lambda: zoo.vgg19_bn(num_classes=CLASSES), 32, 40, IMAGE),
    "ViT-12": (_vit, 32, 200, FLAT),
}
PRETRAINED, TEXT = "EfficientNet-lite0, pretrained", "BERT-12"
NAMES = (*_BUILD, PRETRAINED, TEXT)


def deep(name: str, samples: int, seed: int = 0, brief: int | None = None) -> Deep:
    """The network of that name, trained, by so many updates if given, with samples that it was not trained on."""
    torch.manual_seed(seed)
    if name == PRETRAINED:
        from lightning_sanity.cli import photos

        images = photos.standardised(photos.photographs(64))
        return Deep(name, photos.pretrained().eval(), images[:samples], IMAGE)
    if name == TEXT:
        model = hugging("BertConfig", **_TEXT, vocab_size=WORDS + 1, num_hidden_layers=12)()
        inputs, labels = sentences()
        return Deep(name, *_trained(model, inputs, labels, 300, samples, 5e-4), FLAT[:2])
    build, side, updates, methods = _BUILD[name]
    images, labels = digits(side)
    model, kept = _trained(build(), {"x": images}, labels, brief or updates, samples)
    return Deep(name, model, kept["x"], methods)


def _trained(
    model: nn.Module, inputs: Any, labels: torch.Tensor, updates: int, samples: int, rate: float = 2e-3
) -> tuple[nn.Module, Any]:
    """The model after so many updates, and the last samples, which were held out."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    held, used = order[:samples], order[samples:]
    optimizer = torch.optim.AdamW(model.train().parameters(), rate)
    for _ in range(updates):
        rows = used[torch.randint(len(used), (32,))]
        loss = F.cross_entropy(_scores(model, inputs, rows), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), {key: value[held] for key, value in inputs.items()}


def _scores(model: nn.Module, inputs: Any, rows: torch.Tensor) -> torch.Tensor:
    if "x" in inputs:
        return model(inputs["x"][rows])
    return model(**{key: value[rows] for key, value in inputs.items()}).logits
