"""Question: is ``min_psi = 0.65`` a sensible threshold on networks of other depths, widths and activations?

Seven networks are trained on real data: six on scikit-learn's digits, one on patches of scikit-image's photographs.
Every method gets its PSI with the 95 % interval; the table says how far the worst method that must pass stands above
the best that must not, and which thresholds would separate them.

    python benchmarks/thresholds.py [--trials 10] [--samples 32] [--networks resnet mlp] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from lightning_sanity import attribution, parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.resources.random_streams import isolated_rng

METHODS = {
    "gradient": "gradient",
    "smoothgrad": attribution.smoothgrad(n_samples=8),
    "gradcam": "gradcam",
    "integrated_gradients_local": attribution.integrated_gradients_local(n_steps=8),
    "guided_gradcam": "guided_gradcam",
    "guided_backprop": "guided_backprop",
    "input_x_gradient": "input_x_gradient",
    "integrated_gradients": attribution.integrated_gradients(n_steps=8),
}
PASSING, FAILING = tuple(METHODS)[:4], (*tuple(METHODS)[5:], "edge_detector", "input_copy")
"""Methods that depend on the model and those that do not; the literature puts Guided GradCAM between them."""


class Residual(nn.Module):
    """Two 3 x 3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, channels_in, channels, stride=1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, x):
        """Same shape, or half the side."""
        return F.relu(self.body(x) + self.shortcut(x))


class Mixing(nn.Module):
    """A ConvNeXt block: depthwise convolution, normalisation, two pointwise layers with GELU, layer scale."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.widen, self.narrow = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(3 * channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, x):
        """Same shape."""
        return x + self.gamma * self.narrow(F.gelu(self.widen(self.norm(self.depthwise(x)))))


def plain(activation, channels=1):
    """Four convolutions without normalisation, two maximum poolings, two linear layers."""
    layers = []
    for number, (before, after) in enumerate(((channels, 16), (16, 16), (16, 32), (32, 32))):
        layers += [nn.Conv2d(before, after, 3, padding=1), activation()]
        layers += [nn.MaxPool2d(2)] if number % 2 else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), activation(), nn.Linear(64, 10))


def resnet(channels=1, classes=10):
    """A residual network of eleven 3 x 3 convolutions."""
    blocks = [Residual(16, 16), Residual(16, 24, 2), Residual(24, 24), Residual(24, 32, 2), Residual(32, 32)]
    stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def convnext():
    """Six ConvNeXt blocks on two scales."""
    first, second = [Mixing(24) for _ in range(3)], [Mixing(32) for _ in range(3)]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(1, 24, 2, 2), *first, nn.Conv2d(24, 32, 2, 2), *second, *ends)


def perceptron():
    """Three hidden layers."""
    hidden = [nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


NETWORKS = {
    "demo": demo.DigitsClassifier,
    "plain_relu": lambda: plain(nn.ReLU),
    "plain_silu": lambda: plain(nn.SiLU),
    "plain_tanh": lambda: plain(nn.Tanh),
    "mlp": perceptron,
    "convnext": convnext,
    "resnet": resnet,
    "resnet_photos": lambda: resnet(3, len(PHOTOGRAPHS)),
}
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "immunohistochemistry")


def photographs(side=32, per_class=300, seed=0):
    """Patches of photographs, labelled by the photograph; the right quarter of each is kept for validation."""
    from skimage import data

    rng, sets = torch.Generator().manual_seed(seed), ([], [])
    for label, name in enumerate(PHOTOGRAPHS):
        image = torch.as_tensor(getattr(data, name)().copy()).permute(2, 0, 1).float()[None] / 255
        image = F.interpolate(image, scale_factor=0.5, mode="area")[0]
        edge = int(0.75 * image.shape[2])
        for part, count, columns in ((0, per_class, (0, edge - side)), (1, 60, (edge, image.shape[2] - side))):
            for _ in range(count):
                y = int(torch.randint(image.shape[1] - side, (), generator=rng))
                x = int(torch.randint(columns[0], columns[1], (), generator=rng))
                sets[part].append((image[:, y : y + side, x : x + side], label))
    return [(torch.stack([x for x, _ in part]), torch.tensor([y for _, y in part])) for part in sets]


def fitted(name, seed=0, epochs=None):
    """The trained network, and the validation samples that it classifies correctly, in random order."""
    training, validation = photographs() if name == "resnet_photos" else [d.tensors for d in demo.digits()]
    with isolated_rng(seed):
        model = NETWORKS[name]()
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        for _ in range(epochs or 10):
            for batch in torch.randperm(len(training[0])).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(training[0][batch]), training[1][batch]).backward()
                optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(validation[0]).argmax(1) == validation[1]
    order = torch.randperm(int(right.sum()), generator=torch.Generator().manual_seed(seed))
    return model, validation[0][right][order], float(right.float().mean())


def measured(name, trials, samples, seed=0, epochs=None):
    """One network's line of the table."""
    started = time.perf_counter()
    model, images, accuracy = fitted(name, seed, epochs)
    given = {"trials": trials, "seed": seed, "max_steps": 10, "pictures": False, "progress": False}
    result = parameter_randomization_test(model, images[:samples], methods=METHODS, **given)
    defined = {key: v for key, v in result.verdicts.items() if not math.isnan(v.psi)}
    psi = {
        key: {"outcome": v.outcome.value, "psi": v.psi, "low": v.psi_low, "high": v.psi_high, "measure": v.measure}
        for key, v in defined.items()
    }
    lowest = min(psi[key]["low"] for key in PASSING if key in psi)
    highest = max(psi[key]["high"] for key in FAILING if key in psi)
    return {
        "network": name,
        "units": len(result.units),
        "accuracy": accuracy,
        "valid": result.valid,
        "validity": result.validity,
        "psi": psi,
        "undefined": {key: v.reason for key, v in result.verdicts.items() if key not in defined},
        "gap": min(psi[k]["psi"] for k in PASSING if k in psi) - max(psi[k]["psi"] for k in FAILING if k in psi),
        "thresholds": [highest, lowest],
        "seconds": time.perf_counter() - started,
    }


def shown(row):
    lines = [
        f"{row['network']}: {row['units']} units, accuracy {row['accuracy']:.1%}, {row['validity']}",
        f"  worst passing - best failing {row['gap']:+.2f}; "
        f"thresholds in ({row['thresholds'][0]:.2f}, {row['thresholds'][1]:.2f}] separate them",
    ]
    for name in (*METHODS, *FAILING[3:]):
        found = row["psi"].get(name)
        if found is None:
            lines.append(f"  {name:27s}  -    {row['undefined'][name]}")
            continue
        interval = f"{found['psi']:5.2f} [{found['low']:5.2f}, {found['high']:5.2f}]"
        lines.append(f"  {name:27s} {interval} {found['outcome']:12s} by {found['measure']}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="assert the order on one small network")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.equality_only:
        model, images, _ = fitted("plain_relu", epochs=3)
        methods = ("gradient", "guided_backprop")
        found = parameter_randomization_test(model, images[:8], methods=methods, trials=2, progress=False).verdicts
        assert found["edge_detector"].psi < 0.05 < found["guided_backprop"].psi < 0.65 < found["gradient"].psi
        print("edge detector < guided backprop < 0.65 < gradient")
        return
    rows = []
    for name in given.networks:
        rows.append(measured(name, given.trials, given.samples, given.seed))
        if not given.json:
            print(shown(rows[-1]), flush=True)
    if given.json:
        print(json.dumps({"torch": torch.__version__, "trials": given.trials, "networks": rows}))


if __name__ == "__main__":
    main()
