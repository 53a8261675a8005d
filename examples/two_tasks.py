"""The same images under two label rules: does a map follow the task, or the picture?

A digit and a rectangle or an ellipse stand side by side. One network names the digit, the other the shape. A map that
explains its network lies on that network's object, and differs between the two. One that only redraws the picture
covers both objects and does not. Yona & Greenfeld, "Revisiting Sanity Checks for Saliency Maps", 2021
(arXiv:2110.14297).
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import attribution, similarity
from lightning_sanity.cli import demo
from lightning_sanity.quality import relevance_mass

METHODS = ("gradient", "gradcam", "integrated_gradients_local", "integrated_gradients", "guided_backprop")
METHODS += ("input_x_gradient", "edge_detector")
SIDE = 32


def scenes(dataset, seed):
    """Images ``(N, 1, 32, 32)``, labels ``{task: (N,)}`` and masks of the objects ``{task: (N, 32, 32)}``."""
    digits, names = dataset.tensors
    rng, count = torch.Generator().manual_seed(seed), len(digits)
    images, shapes = torch.zeros(count, 1, SIDE, SIDE), torch.randint(2, (count,), generator=rng)
    masks = {task: torch.zeros(count, SIDE, SIDE, dtype=torch.bool) for task in ("digit", "shape")}
    side, rows = torch.randint(2, (count,), generator=rng), torch.randint(17, (count, 2), generator=rng)
    half = torch.randint(4, 8, (count, 2), generator=rng)
    y, x = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
    for i in range(count):
        at, other = (slice(16 * int(s), 16 * int(s) + 16) for s in (side[i], 1 - side[i]))
        upper, lower = (slice(int(row), int(row) + 16) for row in rows[i])
        inside = (y.abs() <= half[i, 0]) & (x.abs() <= half[i, 1])
        if shapes[i]:
            inside = (y / (half[i, 0] + 0.5)) ** 2 + (x / (half[i, 1] + 0.5)) ** 2 <= 1
        images[i, 0, upper, at], images[i, 0, lower, other] = digits[i, 0], 0.7 * inside
        masks["digit"][i, upper, at], masks["shape"][i, lower, other] = digits[i, 0] > 0, inside
    return images, {"digit": names, "shape": shapes}, masks


def train(images, labels, classes, epochs):
    widths = ((1, 16, 2), (16, 32, 2), (32, 32, 1), (32, 32, 1))
    layers = [m for a, b, s in widths for m in (nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.ReLU())]
    network = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(128, classes))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def main(out="two_tasks", epochs=8, samples=48, seed=0):
    torch.manual_seed(seed)
    images, labels, _ = scenes(demo.digits()[0], seed)
    held_out, answers, masks = scenes(demo.digits()[1], seed + 1)
    networks = {task: train(images, labels[task], count, epochs) for task, count in (("digit", 10), ("shape", 2))}
    found = {t: network(held_out).argmax(1) for t, network in networks.items()}
    for task in networks:
        print(f"{task}: {(found[task] == answers[task]).float().mean():.1%} of the held-out images are right")
    probe = held_out[:samples]
    rows, maps = {}, {}
    for name in METHODS:
        method = attribution.resolve(name)
        maps[name] = {t: method(network, probe, found[t][:samples]).sum(1).abs() for t, network in networks.items()}
        alike = similarity.spearman(maps[name]["digit"], maps[name]["shape"]).nanmean()
        on_object = {t: relevance_mass(maps[name][t], masks[t][:samples]).nanmean() for t in networks}
        rows[name] = {"alike": float(alike)} | {task: float(mass) for task, mass in on_object.items()}
        print(f"{name:27s} alike {alike:5.2f}   on the right object: digit {rows[name]['digit']:.2f}"
              f"  shape {rows[name]['shape']:.2f}")  # fmt: skip
    drawn, axes = plt.subplots(2, 1 + len(METHODS), figsize=(13, 4.2), layout="constrained")
    for row, task in zip(axes, networks, strict=True):
        row[0].imshow(probe[0, 0].numpy(), cmap="gray")
        row[0].set_ylabel(f"task: {task}")
        for axis, name in zip(row[1:], METHODS, strict=True):
            axis.imshow(maps[name][task][0].numpy(), cmap="inferno")
            axis.set_title(f"{name}\n{rows[name][task]:.2f} on the object", fontsize=7)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    Path(out).mkdir(parents=True, exist_ok=True)
    drawn.savefig(Path(out) / "two_tasks.png", dpi=100)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="two_tasks")
    main(**vars(parser.parse_args()))
