"""Question: does the test's cost grow with units, trials and probe, and no faster?

A ResNet-18, gradient, the whole test: milliseconds per (unit x trial x sample) for 4 to 32 samples and for
1 to 10 trials. What is done once (copying, tracing, reference maps) is part of every figure and weighs more in a small
test, so the cost of one more sample or trial is given as well: the slope of a straight line through all sizes, and how
far the measured times lie off that line, as a share of the largest. Then
chains of 5, 10 and 20 equal convolutions, all units of each: a pass through 20 takes four times one through 5, so the
milliseconds are per (unit x layer x trial x sample).

Before any timing, what is measured must not depend on what is scaled: more trials begin with the same trials, and more
samples with the same samples. For two processes beside one see ``ranks.py``.

    python benchmarks/scaling.py [--probes 4 8 16 32] [--trials 1 3 10] [--units 5 10 20] [--size 32] [--json]
"""

from __future__ import annotations

import numpy as np
import torch
from measuring import interleaved, parser, publish, shown, spread
from measuring.networks import Problem, resnet
from torch import nn

from lightning_sanity import parameter_randomization_test

ALLOWED = 0.25
"""How far the dearest cost per (unit x trial x sample) should be above the cheapest."""


def chain(units, samples):
    """So many equal convolutions with a linear head, which is the last unit."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    for _ in range(units - 2):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 64)).eval()
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return Problem(f"{units} units", model, torch.rand(samples, 3, 32, 32), torch.arange(samples))


def wide(size, samples):
    torch.manual_seed(0)
    return resnet(size, samples)


def test(problem, samples, trials, **changes):
    given = {"methods": "gradient", "trials": trials, "reinitialize": "normal", "progress": False} | changes
    return parameter_randomization_test(problem.model, problem.inputs[:samples], problem.target[:samples], **given)


def assert_equal():
    """Trials and samples are islands."""
    problem = chain(4, 6)
    few, more = test(problem, 4, 1), test(problem, 4, 3)
    whole = test(problem, 6, 1)
    for key, curve in few.curves.items():
        if key[0] == "output_pattern":  # drawn of the scores as they lie among those of the whole probe
            continue
        tolerance = {"atol": 1e-5, "equal_nan": True}
        assert torch.allclose(curve.values, more.curves[key].values[:1], **tolerance), f"{key}: trials change it"
        assert torch.allclose(curve.values, whole.curves[key].values[:, :, :4], **tolerance), (
            f"{key}: samples change it"
        )


def scaled(what, cases, repeats):
    """A row per axis; ``cases`` are ``{size: (work, units, trials, samples)}``, of a chain its layers as well."""
    times = interleaved({size: work for size, (work, *_) in cases.items()}, repeats)
    each = {size: spread([1e3 * t / np.prod(cases[size][1:]) for t in found]) for size, found in times.items()}
    medians = [found["median"] for found in each.values()]
    sizes, seconds = np.array(list(cases)), np.array([np.median(times[size]) for size in cases])
    line = np.polyfit(sizes, seconds, 1)
    off = np.abs(np.polyval(line, sizes) - seconds).max() / seconds.max()
    row = {"what": what, "each_ms": each, "above": max(medians) / min(medians) - 1}
    return row | {"seconds_per_more": float(line[0]), "off_line": float(off)}


def described(row):
    each = ", ".join(f"{size}: {shown(found, 3)}" for size, found in row["each_ms"].items())
    return f"{row['what']}: ms per step of a sample {each}; the dearest {row['above']:.0%} above the cheapest " + (
        f"(goal {ALLOWED:.0%}); one more costs {row['seconds_per_more']:.3f} s, off that line {row['off_line']:.0%}"
    )


def main():
    flags = parser(__doc__, repeats=2)
    flags.add_argument("--probes", type=int, nargs="+", default=[4, 8, 16, 32])
    flags.add_argument("--trials", type=int, nargs="+", default=[1, 3, 10])
    flags.add_argument("--units", type=int, nargs="+", default=[5, 10, 20])
    flags.add_argument("--size", type=int, default=32, help="pixels a side of the ResNet's inputs")
    given = flags.parse_args()
    assert_equal()
    if given.equality_only:
        print("more trials begin with the same trials, more samples with the same samples")
        return
    problem = wide(given.size, max(*given.probes, 8))
    chains = {units: chain(units, 8) for units in given.units}
    units = len(test(problem, 2, 1).units)
    probes = {n: (lambda n=n: test(problem, n, 1), units, 1, n) for n in given.probes}
    trials = {n: (lambda n=n: test(problem, 4, n), units, n, 4) for n in given.trials}
    depths = {n: (lambda n=n: test(chains[n], 8, 2), n, n, 2, 8) for n in given.units}
    axes = {"samples (1 trial)": probes, "trials (4 samples)": trials, "units and layers (2 trials, 8 samples)": depths}
    publish(given, [scaled(what, cases, given.repeats) for what, cases in axes.items()], described)


if __name__ == "__main__":
    main()
