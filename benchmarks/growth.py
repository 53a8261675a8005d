"""Question: does what the test takes grow with the work and no faster: memory with depth, passes with steps?

Memory above the model (bytes of all tensors alive at once, the same on every machine) and processor time of the whole
test, one trial of the gradient, for transformers of 10 to 98 units and perceptrons of 50 to 400: by shared walks and
by the plain loop, with the exponent of a straight line through the logarithms. All steps are walked. First what is
measured is shown to be the same.

    python benchmarks/growth.py [--blocks 1 2 4 12] [--layers 50 100 200 400] [--samples 8] [--json]
"""

from __future__ import annotations

import time

import numpy as np
import torch
from measuring import parser, publish
from measuring.memory import Tensors
from torch import nn
from torch.nn import functional as F

from lightning_sanity import parameter_randomization_test

GOAL = 1.1
"""Exponent of memory against units."""


class Block(nn.Module):
    """Attention and two layers, eight units."""

    def __init__(self, dim, heads=4):
        super().__init__()
        self.heads = heads
        self.norm, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        """Tokens ``(N, T, E)``."""
        y = self.norm(x)
        heads = [
            layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        x = x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Of patches ``(N, 32, T)``, so many blocks: ``2 + 8 * blocks`` units."""

    def __init__(self, blocks, dim=64):
        super().__init__()
        self.embed = nn.Linear(32, dim)
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(blocks)))
        self.head = nn.Linear(dim, 8)

    def forward(self, x):
        """Scores."""
        return self.head(self.blocks(self.embed(x.transpose(1, 2))).mean(1))


def transformer(blocks, samples):
    torch.manual_seed(0)
    return Transformer(blocks).eval(), torch.randn(samples, 32, 32)


def perceptron(layers, samples, width=64):
    torch.manual_seed(0)
    stack = [module for _ in range(layers - 1) for module in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*stack, nn.Linear(width, 8)).eval()
    for layer in model[::2]:
        nn.init.kaiming_normal_(layer.weight)
    return model, torch.randn(samples, width)


def test(model, inputs, **changes):
    given = {"methods": "gradient", "trials": 1, "progress": False, "pictures": False, "similarities": "spearman"}
    given["max_steps"] = None  # by default a dozen are walked, however deep the network is
    return parameter_randomization_test(model, inputs, 0, **given | changes)


def assert_equal(model, inputs, **changes):
    ours, plain = test(model, inputs, **changes), test(model, inputs, engine="plain")
    for key, curve in plain.curves.items():
        difference = (ours.curves[key].values - curve.values).abs().max()
        assert difference <= 1e-4, f"{key}: {difference}"
    return ours


def measured(model, inputs, **changes):
    """MiB above the model and seconds."""
    started = time.process_time()
    found = test(model, inputs, **changes)
    seconds = time.process_time() - started
    with Tensors() as tensors:
        test(model, inputs, **changes)
    return {"mib": tensors.peak / 2**20, "seconds": seconds, "engine": found.settings["engine"]["gradient"]}


def exponent(rows, what):
    units = np.log([row["units"] for row in rows])
    return float(np.polyfit(units, np.log([row[what] for row in rows]), 1)[0])


def main(arguments=None):
    made = parser(__doc__)
    made.add_argument("--blocks", type=int, nargs="*", default=[1, 2, 4, 12])
    made.add_argument("--layers", type=int, nargs="*", default=[50, 100, 200, 400])
    made.add_argument("--samples", type=int, default=8)
    given = made.parse_args(arguments)
    torch.set_num_threads(1)
    kinds = {
        "transformer": (transformer, given.blocks, lambda n: 2 + 8 * n),
        "perceptron": (perceptron, given.layers, int),
    }
    rows = []
    for kind, (make, sizes, units) in kinds.items():
        assert_equal(*make(sizes[0], given.samples))
        sides = {} if given.equality_only else {"shared": {}, "plain": {"engine": "plain"}}
        for side, changes in sides.items():
            some = sizes if side == "shared" else sizes[:3]  # its time grows by the square
            each = [{"units": units(n)} | measured(*make(n, given.samples), **changes) for n in some]
            rows.append({"kind": kind, "side": side, "each": each, "exponent": exponent(each, "mib"), "goal": GOAL})
    publish(given, rows, described)


def described(row):
    each = ", ".join(f"{e['units']} units {e['mib']:.1f} MiB {e['seconds']:.2f} s" for e in row["each"])
    return f"{row['kind']}, {row['side']}: {each}; memory grows by units to the {row['exponent']:.2f}"


if __name__ == "__main__":
    main()
