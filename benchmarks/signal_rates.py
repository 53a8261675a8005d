"""Question: how often does the noise guard err: does it refuse noise, and only noise?

Maps ``noise + lambda * gradient`` (each at unit standard deviation, the noise drawn anew for every explanation) go from
none to all signal as lambda grows. Gradients are taken once, on networks of ``measuring/studied.py`` whose images are
enlarged to 64 pixels where they are photographs; small probes are then drawn from them, and the guard asked. Constant
maps and the maps of a linear model, one for all samples, have no signal either.

    python benchmarks/signal_rates.py [--repeats 200] [--samples 16] [--networks plain_relu mobilenet_photos] [--json]
"""

from __future__ import annotations

import argparse
import json
import warnings

import torch
from measuring.studied import fitted
from torch.nn import functional as F

from lightning_sanity import Criterion
from lightning_sanity.attribution import resolve
from lightning_sanity.explanation.maps import CROSS_PAIRS, Explanation, explain
from lightning_sanity.resources.random_streams import isolated_rng
from lightning_sanity.result.signal import signal
from lightning_sanity.similarity import resolve as similarity

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 3.0, float("inf"))
NETWORKS = ("plain_relu", "preactivation_20", "mobilenet_photos", "vit_digits")


def gradients(name, samples, repeats, epochs=None):
    """Gradients ``(1 + repeats, N, H, W)`` of images and of noisy copies, at unit standard deviation."""
    model, images, _ = fitted(name, epochs=epochs)
    images = images[:samples]
    if "mobilenet" in name or "resnet" in name:
        images = F.interpolate(images, size=64, mode="bilinear")
    gradient = resolve("gradient").attribute
    with isolated_rng(0):
        what = Explanation(model, images, model(images).argmax(1))
        found = [explain(gradient, "gradient", part, 0) for part in (what, *map(what.with_noise, _keys(repeats)))]
    maps = torch.stack([each.magnitude for each in found]).double()
    return maps / maps.std((2, 3), keepdim=True)


def _keys(repeats):
    return [[repeat] for repeat in range(1, repeats + 1)]


def guarded(maps, weight, generator):
    """What the guard says of ``noise + weight * maps``, of maps ``(1 + repeats, N, H, W)``."""
    drawn = torch.rand(maps.shape, generator=generator, dtype=maps.dtype)
    mixed = maps if weight == float("inf") else drawn / drawn.std((2, 3), keepdim=True) + weight * maps
    return asked(mixed)


def asked(maps):
    """The guard's answer on a method's maps of a batch, and of its noisy copies."""
    spearman = similarity("spearman")
    one, *noisy = (spearman.prepare(each) for each in maps)
    noise = torch.stack([spearman.compare(one, each) for each in noisy])
    shifts = range(1, min(len(maps[0]) - 1, CROSS_PAIRS) + 1)
    cross = torch.stack([spearman.compare(one, (one[0].roll(shift, 0),)) for shift in shifts])
    return signal(noise, cross)


def rates(name, maps, samples, repeats, seed=0):
    """Per weight, how often the guard finds signal in probes of so many samples, and the mean separation."""
    generator, alpha = torch.Generator().manual_seed(seed), Criterion().alpha
    for weight in WEIGHTS:
        found = []
        for _ in range(repeats if weight != float("inf") else min(repeats, 50)):
            chosen = torch.randperm(maps.shape[1], generator=generator)[:samples]
            found.append(guarded(maps[:, chosen], weight, generator))
        yield {
            "network": name,
            "weight": weight,
            "samples": samples,
            "found": sum(each.found(alpha) for each in found) / len(found),
            "significant": sum(each.p <= alpha for each in found) / len(found),
            "separation": sum(each.separation for each in found) / len(found),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="assert the two ends on one small network")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.equality_only:
        maps = gradients("plain_relu", 16, 3, epochs=1)
        generator = torch.Generator().manual_seed(0)
        assert guarded(maps, float("inf"), generator).found(0.05)
        assert not guarded(maps, 0.0, generator).found(0.001)
        assert not asked(torch.ones_like(maps)).found(0.05)
        print("signal in gradients, none in noise and constants")
        return
    rows = []
    for name in given.networks:
        maps = gradients(name, 48, 3)
        for row in rates(name, maps, given.samples, given.repeats):
            rows.append(row)
            if not given.json:
                print(
                    f"{name:18s} {maps.shape[-1]:3d} px  lambda {row['weight']:4g}  found {row['found']:.3f}  "
                    f"p <= alpha {row['significant']:.3f}  separation {row['separation']:+.3f}",
                    flush=True,
                )
        constant = asked(torch.ones_like(maps[:, : given.samples]))
        one = asked(maps[:, :1].expand(-1, given.samples, -1, -1))
        if not given.json:
            print(f"{name:18s} constant {constant.found(0.05)}, one map for all {one.found(0.05)}", flush=True)
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
