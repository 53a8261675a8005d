"""ROAR: remove the pixels that a map ranks highest, train again, and see how much accuracy is lost.

Hooker et al., "A Benchmark for Interpretability Methods in Deep Neural Networks", NeurIPS 2019 (arXiv:1806.10758). A
good ranking loses more accuracy than a random one. ROAR does not tell whether a map depends on the model: compare it
with the verdicts of the randomization test.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import attribution
from lightning_sanity.cli import demo

METHODS = {
    "gradient": "gradient",
    "integrated_gradients": attribution.integrated_gradients(n_steps=16),
    "edge_detector": "edge_detector",
    "random": "random",
}


def train(images, labels, epochs, seed):
    torch.manual_seed(seed)
    widths = ((1, 12, 1), (12, 24, 2), (24, 24, 2))
    layers = [m for a, b, s in widths for m in (nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.ReLU())]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 16, 10))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network, images, labels):
    return float((network(images).argmax(1) == labels).float().mean())


def ranked(network, method, images, labels):
    """Places of the pixels, most relevant first; ``(N, H * W)``."""
    maps = [method(network, *part).sum(1).abs() for part in zip(images.split(256), labels.split(256), strict=True)]
    return torch.cat(maps).flatten(1).argsort(1, descending=True)


def removed(images, places, share, mean):
    """The images with the first ``share`` of the places replaced by the mean of the training images."""
    count = round(share * places.shape[1])
    return images.flatten(1).scatter(1, places[:, :count], mean).reshape(images.shape)


def main(out="roar", shares=(0.1, 0.3, 0.5, 0.7, 0.9), epochs=5, seeds=2):
    (images, labels), (held_out, answers) = (dataset.tensors for dataset in demo.digits())
    mean = float(images.mean())
    original = train(images, labels, epochs, 0)
    start, found = accuracy(original, held_out, answers), {}
    for name, given in METHODS.items():
        method = attribution.resolve(given)
        torch.manual_seed(0)
        # The true class is explained in both sets, as the ranking must not depend on the split.
        places = [ranked(original, method, *part) for part in ((images, labels), (held_out, answers))]
        found[name] = [
            [
                accuracy(
                    train(removed(images, places[0], share, mean), labels, epochs, seed),
                    removed(held_out, places[1], share, mean),
                    answers,
                )
                for seed in range(seeds)
            ]
            for share in shares
        ]
        print(f"{name:22s} " + " ".join(f"{start - sum(row) / seeds:+.3f}" for row in found[name]) + " lost")
    drawn, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, rows in found.items():
        values = torch.tensor([[start] * seeds, *rows])
        (line,) = axis.plot([0, *shares], values.mean(1), marker="o", label=name)
        axis.fill_between([0, *shares], values.amin(1), values.amax(1), color=line.get_color(), alpha=0.2, lw=0)
    axis.set(xlabel="share of the pixels removed, most relevant first", ylabel="accuracy after training again")
    axis.legend()
    Path(out).mkdir(parents=True, exist_ok=True)
    drawn.savefig(Path(out) / "roar.png", dpi=100)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="roar")
    main(**vars(parser.parse_args()))
