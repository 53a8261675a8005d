"""Question: which torchvision families are explained in shared walks, and are their results the plain loop's?

Every family with random weights, gradient, one trial of all its units merged into a few steps, with the engine and
without: the path that was taken, the reason where it is the plain one, and by how much any similarity of any step and
sample differs. One family more is wrapped in a LightningModule.

    python benchmarks/families.py [--families resnet18 vit_b_32] [--steps 2] [--json]
"""

from __future__ import annotations

import logging

import torch
from lightning import LightningModule
from measuring import now, parser, publish
from torch import nn
from torchvision.models import get_model

from lightning_sanity import parameter_randomization_test

# family: (builder arguments, input side)
FAMILIES = {
    "alexnet": ({}, 96),
    "convnext_tiny": ({}, 64),
    "densenet121": ({}, 64),
    "efficientnet_b0": ({}, 64),
    "efficientnet_v2_s": ({}, 64),
    "googlenet": ({"init_weights": False}, 64),
    "inception_v3": ({"init_weights": False}, 96),
    "maxvit_t": ({}, 224),
    "mnasnet0_5": ({}, 64),
    "mobilenet_v2": ({}, 64),
    "mobilenet_v3_small": ({}, 64),
    "regnet_y_400mf": ({}, 64),
    "resnet18": ({}, 64),
    "resnext50_32x4d": ({}, 64),
    "shufflenet_v2_x0_5": ({}, 64),
    "squeezenet1_1": ({}, 64),
    "swin_t": ({}, 64),
    "swin_v2_t": ({}, 64),
    "vgg11_bn": ({}, 64),
    "vit_b_32": ({"image_size": 64}, 64),
    "wide_resnet50_2": ({}, 64),
}
WRAPPED = "resnet18 in a LightningModule"
QUICK = ("squeezenet1_1", "shufflenet_v2_x0_5")
TOLERANCE = 1e-4
"""Of a similarity: a deep transformer's maps differ by some 1e-6 of their norm where batches are of another size."""


class Wrapped(LightningModule):
    """A network inside a LightningModule, as a user has it."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        """Class scores."""
        return self.network(images)


class Reasons(logging.Handler):
    """What the package says about falling back."""

    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        """Keep the message."""
        if "plain loop" in record.getMessage():
            self.said.append(record.getMessage())


def built(name):
    """The family's model in eval mode and two inputs."""
    arguments, side = FAMILIES[name.split()[0]]
    torch.manual_seed(0)
    model = get_model(name.split()[0], **arguments).eval()
    for parameter in model.parameters():  # some heads start at zero, which is no model
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return (Wrapped(model) if name == WRAPPED else model).eval(), torch.rand(2, 3, side, side)


def compared(name, steps):
    """Path, reason, largest difference."""
    model, inputs = built(name)
    given = {"methods": "gradient", "trials": 1, "repeats": 1, "max_steps": steps, "controls": False, "pictures": False}
    log, reasons = logging.getLogger("lightning_sanity"), Reasons()
    level = log.level
    log.addHandler(reasons)
    log.setLevel(logging.DEBUG)
    results, seconds = {}, {}
    try:
        for engine in ("auto", "plain"):
            started = now()
            results[engine] = parameter_randomization_test(
                model, inputs, torch.tensor([0, 1]), engine=engine, progress=False, **given
            )
            seconds[engine] = now() - started
    finally:
        log.removeHandler(reasons)
        log.setLevel(level)
    pairs = [(curve.values, results["plain"].curves[key].values) for key, curve in results["auto"].curves.items()]
    assert all(torch.equal(a.isnan(), b.isnan()) for a, b in pairs), f"{name}: other values are undefined"
    off = max(float((a - b).abs().nan_to_num().max()) for a, b in pairs)
    assert off <= TOLERANCE, f"{name}: a similarity differs by {off:.1e} from the plain loop's"
    path = results["auto"].settings["engine"]["gradient"]
    row = {"family": name, "path": path, "reason": "; ".join(dict.fromkeys(reasons.said)), "difference": off}
    return row | {f"{engine}_seconds": took for engine, took in seconds.items()}


def line(row):
    reason = f" ({row['reason']})" if row["reason"] else ""
    return f"{row['family']:30s} {row['path']:10s}{reason} similarities differ by at most {row['difference']:.0e}"


def main():
    flags = parser(__doc__, repeats=1)
    flags.add_argument("--families", nargs="+", choices=[*FAMILIES, WRAPPED], default=[*FAMILIES, WRAPPED])
    flags.add_argument("--steps", type=int, default=2, help="merge the units into so many")
    given = flags.parse_args()
    rows = [compared(name, given.steps) for name in (QUICK if given.equality_only else given.families)]
    publish(given, rows, line)


if __name__ == "__main__":
    main()
