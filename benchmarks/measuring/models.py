"""Small models of the families that people really use, built from configurations: nothing is downloaded.

Each entry says how the model is called, what is asked of it and how many steps an engineer would list: the layers from
the explained output to the input, those side by side counted once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

WORDS, LENGTH, CLASSES, LAYERS, END = 64, 12, 3, 2, 3
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_labels": CLASSES,
}
DEEP = {**TEXT, "num_hidden_layers": LAYERS}
DECODER = {**DEEP, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END}
VISION = {**DEEP, "image_size": 32, "patch_size": 8}
CLASSIFIER = "AutoModelForSequenceClassification"
IMAGES = "AutoModelForImageClassification"


@dataclass(frozen=True)
class Family:
    """How a family is built and called.

    Attributes:
        library: Where it is from.
        build: Makes a model.
        inputs: Makes its inputs for so many samples.
        steps: An engineer's count of the steps; None where nobody would count.
        target: What is explained: a class per sample by default.
        options: Further arguments of the test.
    """

    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    steps: int | None
    target: Any = "classes"
    options: dict[str, Any] = field(default_factory=dict)


def sentences(samples: int, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """Ids that end with one of their own, padded on the right but for the first sentence, and their mask."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, WORDS, (samples, length), generator=draw)
    real = torch.arange(length) < torch.arange(length, length - samples, -1).clamp_min(5)[:, None]
    ids[torch.arange(samples), real.sum(1) - 1] = END
    return {"input_ids": ids.where(real, torch.zeros_like(ids)), "attention_mask": real.long()}


def pictures(side: int, channels: int = 3) -> Callable[[int], torch.Tensor]:
    """Smooth random images."""

    def made(samples: int) -> torch.Tensor:
        coarse = torch.rand(samples, channels, 8, 8, generator=torch.Generator().manual_seed(2))
        return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")

    return made


def pixels(side: int) -> Callable[[int], dict[str, torch.Tensor]]:
    """Images by the name that Hugging Face gives them."""
    return lambda samples: {"pixel_values": pictures(side)(samples)}


def numbers(*shape: int) -> Callable[[int], torch.Tensor]:
    """Standard normal numbers."""
    return lambda samples: torch.randn(samples, *shape, generator=torch.Generator().manual_seed(3))


def named(name: str, *shape: int) -> Callable[[int], dict[str, torch.Tensor]]:
    """Standard normal numbers by a name."""
    return lambda samples: {name: numbers(*shape)(samples)}


def hugging(config: str, auto: str = CLASSIFIER, **given: Any) -> Callable[[], nn.Module]:
    """A Hugging Face model of this configuration."""

    def build() -> nn.Module:
        transformers = importlib.import_module("transformers")
        made = getattr(transformers, config)(**given)
        kind = getattr(transformers, auto)
        return kind.from_config(made) if auto.startswith("Auto") else kind(made)

    return build


def timm(name: str, **given: Any) -> Callable[[], nn.Module]:
    """A timm model."""
    return lambda: importlib.import_module("timm").create_model(name, num_classes=CLASSES, **given)


def torchvision(name: str, **given: Any) -> Callable[[], nn.Module]:
    """A torchvision model."""
    return lambda: importlib.import_module("torchvision.models").get_model(name, **{"num_classes": CLASSES, **given})


def segmenting(name: str, **given: Any) -> Callable[[], nn.Module]:
    """A model of segmentation-models-pytorch."""

    def build() -> nn.Module:
        package = importlib.import_module("segmentation_models_pytorch")
        return getattr(package, name)("resnet18", encoder_weights=None, classes=CLASSES, **given)

    return build


def adapted(build: Callable[[], nn.Module], modules: list[str]) -> Callable[[], nn.Module]:
    """The model with low-rank adapters, whose second factors are no longer zero."""

    def made() -> nn.Module:
        peft = importlib.import_module("peft")
        model = peft.get_peft_model(build(), peft.LoraConfig(r=2, target_modules=modules))
        return model

    return made


class WaveNet(nn.Module):
    """Convolutions over raw audio, after M5 (Dai et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 8, 16, 16)
        self.layers = nn.Sequential(
            *(
                layer
                for below, above in pairwise(widths)
                for layer in (nn.Conv1d(below, above, 9, stride=2), nn.BatchNorm1d(above), nn.ReLU(), nn.MaxPool1d(2))
            )
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        """Scores of waves ``(N, L)``."""
        return self.head(self.layers(waves[:, None]).mean(2))


class Recurrent(nn.Module):
    """Two layers of LSTM over words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16, padding_idx=0)
        self.recurrent = nn.LSTM(16, 16, 2, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Scores of ids ``(N, T)``."""
        return self.head(self.recurrent(self.embedding(input_ids))[0].mean(1))


def built(family: Family, seed: int = 0) -> nn.Module:
    """A model with drawn weights, none of them one constant that multiplies, in eval mode."""
    torch.manual_seed(seed)
    model = family.build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                parameter.is_floating_point()
                and "bias" not in name
                and not bool((parameter != parameter.flatten()[0]).any())
            ):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
