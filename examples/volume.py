"""A 3-D convolutional network on noisy volumes: across which axis does a plate lie?

python examples/volume.py --out volume
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test
from lightning_sanity.report import figures


def volumes(count, generator):
    """Volumes (N, 1, 8, 10, 12) with a bright plate somewhere, and its axis."""
    axes = torch.randint(3, (count,), generator=generator)
    images = 0.3 * torch.randn(count, 1, 8, 10, 12, generator=generator)
    for image, axis in zip(images, axes.tolist(), strict=True):
        size = [2 if side == axis else 5 for side in range(3)]
        starts = [int(torch.randint(n - s, (), generator=generator)) for n, s in zip((8, 10, 12), size, strict=True)]
        image[(0, *(slice(a, a + s) for a, s in zip(starts, size, strict=True)))] += 1
    return images, axes


def network():
    body = [nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 3))


def train(model, generator, steps):
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        images, axes = volumes(32, generator)
        loss = F.cross_entropy(model(images), axes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main(out="volume", steps=120, trials=5, samples=16, methods=("gradient", "integrated_gradients", "gradcam", "cam")):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = train(network(), generator, steps)
    result = parameter_randomization_test(model, volumes(samples, generator)[0], methods=methods, trials=trials)
    Path(out).mkdir(exist_ok=True, parents=True)
    figures.curves(result).savefig(Path(out) / "volume.png", dpi=100)
    for name, verdict in result.verdicts.items():
        print(f"{name:22s} {verdict.outcome.value:13s} {verdict.reason}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="volume")
    main(**vars(parser.parse_args()))
