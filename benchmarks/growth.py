"""Question: does what the test takes grow with the work and no faster: memory with depth, passes with steps?

Memory above the model (bytes of all tensors alive at once, the same on every machine) and processor time of the whole
test, one trial of the gradient, for transformers of 10 to 98 units and perceptrons of 50 to 400: by shared walks and
by the plain loop, with the exponent of a straight line through the logarithms. All steps are walked. First what is
measured is shown to be the same.

``--many`` measures what else may grow: twelve methods beside one on a small convolutional network, and the file of a
large result, 200 steps of 20 methods, 256 samples and 20 trials by three similarities: seconds and memory to write and
to read it, and its size.

    python benchmarks/growth.py [--blocks 1 2 4 12] [--layers 50 100 200 400] [--samples 8] [--json]
    python benchmarks/growth.py --many [--json]
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import interleaved, parser, publish, ratio, shown
from measuring.memory import Tensors, peak
from measuring.studied import plain
from torch import nn
from torch.nn import functional as F

from lightning_sanity import SanityResult, parameter_randomization_test
from lightning_sanity.result.curve import Curve, rounded, step_for

GOAL = 1.1
"""Exponent of memory against units."""
TWELVE = (
    *("gradient", "input_x_gradient", "gradcam", "gradcam_plus_plus", "guided_backprop", "guided_gradcam", "deconvnet"),
    *("smoothgrad", "integrated_gradients", "integrated_gradients_local", "deeplift", "lrp_epsilon"),
)


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


def several(repeats):
    """Twelve methods beside one, whole tests."""
    torch.manual_seed(0)
    model, inputs = plain(nn.ReLU).eval(), torch.rand(8, 1, 16, 16)
    sides = {name: lambda names=names: test(model, inputs, methods=names) for name, names in _SIDES.items()}
    return {"kind": "twelve methods over one", "ratio": ratio(interleaved(sides, repeats), "twelve", "one")}


_SIDES = {"one": ["gradient"], "twelve": list(TWELVE)}


def large(depths=200, methods=20, samples=256, trials=20):
    """A result of so many similarities, all of them of one small test."""
    torch.manual_seed(0)
    small = test(*perceptron(3, 4, 16), controls=False)
    measures = ("spearman", "spearman_signed", "ssim")
    names, units = [f"method {k}" for k in range(methods)], tuple(f"layer {k}" for k in range(depths))
    step = step_for(2 * depths * methods * samples * trials * len(measures))
    tables = [torch.rand(trials, depths, samples) for _ in range(2)]
    tables = tables if step is None else [rounded(table, step) for table in tables]
    curves = {
        (name, measure): Curve(*(table.clone() for table in tables), torch.ones(1, samples), step)
        for name in names
        for measure in measures
    }
    unit, (verdict,), (ground,) = small.coverage.units[0], small.verdicts.values(), small.grounds.values()
    ground = dataclasses.replace(ground, noise=torch.rand(3, samples), cross=torch.rand(9, samples))
    coverage = dataclasses.replace(small.coverage, units=tuple(dataclasses.replace(unit, name=u) for u in units))
    many = {"verdicts": dict.fromkeys(names, verdict), "grounds": dict.fromkeys(names, ground), "curves": curves}
    return dataclasses.replace(small, units=units, coverage=coverage, depth_weights=(), **many)


def prepare(act, sizes, path):
    """Writing or reading as ``peak`` wants it, in a process of its own."""
    if act == "read":
        return lambda: SanityResult.from_json(path)
    result = large(*sizes)
    return lambda: result.to_json(path)


def filed(sizes):
    """What the file of a large result takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.json"
        found = {"kind": "a large result"}
        for act in ("write", "read"):
            run = prepare(act, sizes, path)
            started = time.process_time()
            run()
            found[act] = {"seconds": time.process_time() - started, **peak(prepare, act, sizes, path)}
        return found | {"mib": path.stat().st_size / 2**20}


def told(row):
    if "ratio" in row:
        return f"{row['kind']}: {shown(row['ratio'], 1)}"
    acts = (f"{act} {row[act]['seconds']:.1f} s, {row[act]['resident']:.0f} MB above" for act in ("write", "read"))
    return f"{row['kind']}: {', '.join(acts)}; the file {row['mib']:.0f} MiB"


def main(arguments=None):
    made = parser(__doc__)
    made.add_argument("--blocks", type=int, nargs="*", default=[1, 2, 4, 12])
    made.add_argument("--layers", type=int, nargs="*", default=[50, 100, 200, 400])
    made.add_argument("--samples", type=int, default=8)
    made.add_argument("--many", action="store_true")
    given = made.parse_args(arguments)
    torch.set_num_threads(1)
    if given.many:
        publish(given, (each for each in (several(given.repeats), filed((200, 20, 256, 20)))), told)
        return
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
