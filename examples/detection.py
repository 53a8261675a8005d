"""A small RetinaNet on discs and squares: what does the score of one detected box rest on?

Pictures go to the folder that --out names.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from lightning_sanity import parameter_randomization_test, targets
from lightning_sanity.report import figures

SIDE, DISC, SQUARE = 64, 1, 2


def scenes(count, generator):
    """Images (N, 3, 64, 64) with a disc on one half and a square on the other, and their boxes and labels."""
    lines = torch.arange(SIDE)
    images, found = 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator) + 0.4, []
    for image in images:
        across, down = torch.randint(12, 52, (2,), generator=generator), torch.tensor([16, 48])
        rows, columns = lines[:, None] - down[:, None, None], lines[None] - across[:, None, None]
        image[:, rows[0] ** 2 + columns[0] ** 2 <= 64] += 0.4
        image[:, (rows[1].abs() <= 7) & (columns[1].abs() <= 7)] += 0.4
        middle = torch.stack([across, down], 1).float()
        found.append({"boxes": torch.cat([middle - 8, middle + 8], 1), "labels": torch.tensor([DISC, SQUARE])})
    return images, found


def detector():
    """A RetinaNet with a backbone of four convolutions and one level of boxes of 16 pixels."""
    layers, width = [], 3
    for wider, stride in ((16, 2), (32, 2), (32, 2), (32, 1)):
        layers += [nn.Conv2d(width, wider, 3, stride, 1), nn.BatchNorm2d(wider), nn.ReLU()]
        width = wider
    backbone = nn.Sequential(*layers)
    backbone.out_channels = width
    anchors = AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),))
    # A random copy is sure of nothing: all its boxes count, so that it has a score to explain as well.
    every = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": 192, "topk_candidates": 192}
    plain = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "min_size": SIDE, "max_size": SIDE}
    return RetinaNet(backbone, num_classes=3, anchor_generator=anchors, **every, **plain)


def trained(steps, generator):
    model = detector().train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        images, found = scenes(8, generator)
        optimizer.zero_grad()
        sum(model(list(images), found).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def main(out="detection", steps=120, trials=5, samples=12, methods=("gradient", "input_x_gradient")):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = trained(steps, generator)
    images, truth = scenes(samples, generator)
    with torch.no_grad():
        found = [{name: value[one["labels"] == DISC] for name, value in one.items()} for one in model(list(images))]
    boxes = torch.stack([one["boxes"][one["scores"].argmax()] for one in found])  # the surest disc of each image
    hit = sum(bool((box - one["boxes"][0]).abs().max() < 4) for box, one in zip(boxes, truth, strict=True))
    print(f"the surest disc is the disc in {hit} of {samples} images")
    result = parameter_randomization_test(
        model,
        images,
        targets.box(boxes, index=DISC),
        methods=methods,
        trials=trials,
        forward=lambda model, images: model(list(images)),
    )
    Path(out).mkdir(exist_ok=True, parents=True)
    figures.maps(result).savefig(Path(out) / "detection.png", dpi=100)
    print(*(f"{name}: {v.outcome.value}, {v.reason}" for name, v in result.verdicts.items()), sep="\n")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="detection")
    main(**vars(parser.parse_args()))
