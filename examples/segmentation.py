"""A small U-Net on discs and squares: what does it look at where it sees a disc?"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test, targets
from lightning_sanity.report import figures


def scenes(count, generator):
    """Images (N, 1, 24, 24) with a disc and a square, and classes (N, 24, 24): 0 = ground, 1 = disc, 2 = square."""
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    at = 5 + 14 * torch.rand(2, 2, count, 1, 1, generator=generator)
    disc = (rows - at[0, 0]) ** 2 + (columns - at[0, 1]) ** 2 < 16
    square = ((rows - at[1, 0]).abs() < 4) & ((columns - at[1, 1]).abs() < 4)
    classes = torch.where(disc, 1, torch.where(square, 2, 0))
    return (classes > 0)[:, None] + 0.2 * torch.randn(count, 1, 24, 24, generator=generator), classes


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 5, padding=2), nn.ReLU())
        self.up = nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))

    def forward(self, image):
        fine = self.down(image)
        return self.up(torch.cat([fine, F.interpolate(self.bottom(fine), scale_factor=2)], 1))


def main(out="segmentation", steps=250, trials=5, samples=16, methods=("gradient", "integrated_gradients", "gradcam")):
    torch.manual_seed(0)
    generator, model = torch.Generator().manual_seed(0), UNet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        images, classes = scenes(16, generator)
        loss = F.cross_entropy(model(images), classes)
        model.zero_grad()
        loss.backward()
        optimizer.step()
    disc = targets.class_mask(1)  # the sum of disc scores over the predicted discs
    probe = scenes(samples, generator)[0]
    result = parameter_randomization_test(model.eval(), probe, target=disc, methods=methods, trials=trials)
    Path(out).mkdir(exist_ok=True, parents=True)
    figures.maps(result).savefig(Path(out) / "segmentation.png", dpi=100)
    print(*(f"{name}: {v.outcome.value}, {v.reason}" for name, v in result.verdicts.items()), sep="\n")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="segmentation")
    main(**vars(parser.parse_args()))
