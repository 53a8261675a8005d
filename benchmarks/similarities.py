"""Question: what do the similarities and statistics of a test cost, beside the attributions they judge?

Eight methods of the gradient family on a ResNet-18 at 224 px: the comparison of one step's maps by the verdict's
measures (same and unrelated samples), against the mean explanation of a step, in turn in one process; and, added to the
comparisons, the statistics of eight methods with 20 depths, 5 trials and 32 samples. Medians.

    python benchmarks/similarities.py [--samples 4] [--repeats 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings

import numpy as np
import torch
from scipy.stats import spearmanr
from skimage import data, transform
from skimage.metrics import structural_similarity
from torchvision.models import resnet18

from lightning_sanity import Criterion, similarity
from lightning_sanity.attribution import resolve
from lightning_sanity.demo import NOT_PASSING, PASSING
from lightning_sanity.explanation import Maps, Reference
from lightning_sanity.verdict import MEASURES, Evidence, judge

METHODS, DEPTHS, TRIALS, SAMPLES = PASSING + NOT_PASSING, 20, 5, 32


def photographs(count):
    """Crops of scikit-image's photographs ``(count, 3, 224, 224)``."""
    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    images = [transform.resize(sources[k % 4], (224 + k // 4, 224)) for k in range(count)]
    return torch.from_numpy(np.stack([image[-224:] for image in images])).permute(0, 3, 1, 2).float()


def assert_equal(a, b):
    """Our values are scipy's and scikit-image's."""
    one, two = a.magnitude[0].double().numpy(), b.magnitude[0].double().numpy()
    assert abs(float(similarity.spearman(a.magnitude, b.magnitude)[0]) - spearmanr(one, two, axis=None)[0]) < 1e-6
    one, two = ((m - m.min()) / (m.max() - m.min()) for m in (one, two))
    given = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    found = similarity.resolve("ssim")(a.magnitude, b.magnitude)[0]
    assert abs(float(found) - structural_similarity(one, two, **given)) < 1e-6


def judging():
    """Seconds for the statistics of all methods."""
    draw = torch.Generator().manual_seed(0)
    tables = {name: 0.1 + 0.1 * torch.rand(TRIALS, DEPTHS, SAMPLES, generator=draw) for name in MEASURES}
    ones = {name: torch.ones(3, SAMPLES) for name in MEASURES}
    evidence = Evidence(tables, tables, ones, 0.9 * ones["ssim"], 0.2 + 0 * ones["ssim"], 0.0)
    started = time.perf_counter()
    for _ in METHODS:
        judge(evidence, Criterion())
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="assert equal values, time nothing")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, images = resnet18().eval(), photographs(given.samples)
    target = model(images).argmax(1)
    measures = [similarity.resolve(name) for name in MEASURES]
    support = images.mean(1) > 0.1

    def maps(name):
        found = resolve(name)(model, images, target)
        return Maps(found.sum(1), found.abs().sum(1))

    one, two = maps("gradient"), maps("input_x_gradient")
    assert_equal(one, two)
    if given.equality_only:
        print("similarities equal scipy's and scikit-image's")
        return
    reference = Reference(one, measures, support)
    explaining, comparing = [], []
    for _ in range(given.repeats):
        started = time.perf_counter()
        for name in METHODS:
            maps(name)
        explaining.append((time.perf_counter() - started) / len(METHODS))
        started = time.perf_counter()
        reference.against(two, 1)
        comparing.append(time.perf_counter() - started)
    steps = len(METHODS) * DEPTHS * TRIALS * SAMPLES / given.samples  # of so many samples
    all_explaining, all_comparing = (steps * statistics.median(t) for t in (explaining, comparing))
    deciding = statistics.median(judging() for _ in range(given.repeats))
    report = {
        "attributions_seconds": all_explaining,
        "similarities_seconds": all_comparing,
        "statistics_seconds": deciding,
        "share": (all_comparing + deciding) / all_explaining,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if given.json:
        print(json.dumps(report))
        return
    print(f"{len(METHODS)} methods, {DEPTHS} depths, {TRIALS} trials, {SAMPLES} samples at 224 px (extrapolated)")
    print(f"attributions   {all_explaining:9.0f} s")
    print(f"similarities   {all_comparing:9.0f} s")
    print(f"statistics     {deciding:9.2f} s")
    print(f"share          {report['share']:9.3f}")


if __name__ == "__main__":
    main()
