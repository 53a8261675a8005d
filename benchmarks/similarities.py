"""Question: what do the similarities and statistics of a test cost, beside the attributions they judge?

Eight methods of the gradient family on a ResNet-18 at 224 px: the comparison of one step's maps by the verdict's
measures (same and unrelated samples), against the mean explanation of a step, in turn in one process; and, added to the
comparisons, the statistics of eight methods with 20 depths, 5 trials and 32 samples. Medians.

With ``--maps``: milliseconds per pair of maps of Spearman's correlation and SSIM, at 64 and 224 pixels, beside scipy's,
scikit-image's and torchmetrics'; once with the reference's ranks and moments kept, as a test keeps them. torchmetrics'
SSIM is another definition (its own window and padding), so only its time is compared.

    python benchmarks/similarities.py [--maps] [--samples 4] [--repeats 5] [--json]
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from measuring import interleaved, now, parser, publish, shown, spread
from scipy.stats import spearmanr
from skimage import data, transform
from skimage.metrics import structural_similarity
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.models import resnet18

from lightning_sanity import Criterion, similarity
from lightning_sanity.attribution import resolve
from lightning_sanity.cli.demo import NOT_PASSING, PASSING
from lightning_sanity.explanation.maps import Maps, Reference
from lightning_sanity.result.verdict import MEASURES, Evidence, judge

METHODS, DEPTHS, TRIALS, SAMPLES = PASSING + NOT_PASSING, 20, 5, 32


def photographs(count):
    """Crops of scikit-image's photographs ``(count, 3, 224, 224)``."""
    sources = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    images = [transform.resize(sources[k % 4], (224 + k // 4, 224)) for k in range(count)]
    return torch.from_numpy(np.stack([image[-224:] for image in images])).permute(0, 3, 1, 2).float()


def scaled(maps):
    """Each map to [0, 1], as arrays."""
    rows = maps.double().numpy()
    low, high = rows.min((1, 2), keepdims=True), rows.max((1, 2), keepdims=True)
    return (rows - low) / (high - low)


def scipy_spearman(a, b):
    return [spearmanr(one, two, axis=None)[0] for one, two in zip(a.numpy(), b.numpy(), strict=True)]


def skimage_ssim(a, b):
    given = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    return [structural_similarity(one, two, **given) for one, two in zip(scaled(a), scaled(b), strict=True)]


def assert_equal(a, b):
    """Our values are scipy's and scikit-image's."""
    for name, theirs in (("spearman", scipy_spearman), ("ssim", skimage_ssim)):
        off = (similarity.resolve(name)(a, b) - torch.tensor(np.array(theirs(a, b)))).abs().max()
        assert off < 1e-6, f"{name}: differs by {off:.1e}"


def judging():
    """Seconds for the statistics of all methods."""
    draw = torch.Generator().manual_seed(0)
    tables = {name: 0.1 + 0.1 * torch.rand(TRIALS, DEPTHS, SAMPLES, generator=draw) for name in MEASURES}
    ones = {name: torch.ones(3, SAMPLES) for name in MEASURES}
    evidence = Evidence(tables, tables, ones, 0.9 * ones["ssim"], 0.2 + 0 * ones["ssim"], 0.0)
    started = now()
    for _ in METHODS:
        judge(evidence, Criterion())
    return now() - started


def per_map(name, one, two, repeats):
    """Milliseconds per pair of maps: ours with and without what is kept of the reference, and theirs."""
    measure = similarity.resolve(name)
    kept = measure.prepare(one)
    sides = {
        "ours": lambda: measure(one, two),
        "ours, reference kept": lambda: measure.compare(kept, measure.prepare(two)),
    }
    if name == "spearman":
        flat = one.flatten(1).T.contiguous(), two.flatten(1).T.contiguous()
        sides |= {"scipy": lambda: scipy_spearman(one, two), "torchmetrics": lambda: spearman_corrcoef(*flat)}
    else:
        unit = [torch.from_numpy(scaled(maps)).float()[:, None] for maps in (one, two)]
        given = {"data_range": 1.0, "reduction": "none"}
        sides |= {
            "scikit-image": lambda: skimage_ssim(one, two),
            "torchmetrics": lambda: structural_similarity_index_measure(*unit, **given),
        }
    times = interleaved(sides, repeats)
    milliseconds = {side: spread([1e3 * t / len(one) for t in found]) for side, found in times.items()}
    return {"similarity": name, "size": one.shape[-1], "ms_per_map": milliseconds}


def timed_maps(one, two, repeats):
    """All sizes and both similarities, of real maps and their reduction."""
    rows = []
    for size in (64, 224):
        pair = [torch.nn.functional.adaptive_avg_pool2d(maps.magnitude, size) for maps in (one, two)]
        assert_equal(*pair)
        rows += [per_map(name, *pair, repeats) for name in ("spearman", "ssim")]
    return rows


def line(row):
    if "ms_per_map" in row:
        times = ", ".join(f"{side} {shown(found)}" for side, found in row["ms_per_map"].items())
        return f"{row['similarity']}, {row['size']} px, ms per map: {times}"
    parts = ", ".join(
        f"{name} {row[f'{name}_seconds']:.2f} s" for name in ("attributions", "similarities", "statistics")
    )
    what = f"{len(METHODS)} methods, {DEPTHS} depths, {TRIALS} trials, {SAMPLES} samples at 224 px (extrapolated)"
    return f"{what}: {parts}; share of the attributions {row['share']:.3f}"


def main():
    flags = parser(__doc__, repeats=5)
    flags.add_argument("--samples", type=int, default=4)
    flags.add_argument("--maps", action="store_true", help="milliseconds per map, beside other libraries")
    given = flags.parse_args()
    torch.manual_seed(0)
    model, images = resnet18().eval(), photographs(given.samples)
    target = model(images).argmax(1)
    measures = [similarity.resolve(name) for name in MEASURES]
    support = images.mean(1) > 0.1

    def maps(name):
        found = resolve(name)(model, images, target)
        return Maps(found.sum(1), found.abs().sum(1))

    one, two = maps("gradient"), maps("input_x_gradient")
    assert_equal(one.magnitude, two.magnitude)
    if given.equality_only:
        print("similarities equal scipy's and scikit-image's")
        return
    if given.maps:
        publish(given, timed_maps(one, two, given.repeats), line)
        return
    reference = Reference(one, measures, support)
    explaining, comparing = [], []
    for _ in range(given.repeats):
        started = now()
        for name in METHODS:
            maps(name)
        explaining.append((now() - started) / len(METHODS))
        started = now()
        reference.against(two, 1)
        comparing.append(now() - started)
    steps = len(METHODS) * DEPTHS * TRIALS * SAMPLES / given.samples  # of so many samples
    row = {
        "attributions_seconds": steps * statistics.median(explaining),
        "similarities_seconds": steps * statistics.median(comparing),
        "statistics_seconds": statistics.median(judging() for _ in range(given.repeats)),
    }
    row["share"] = (row["similarities_seconds"] + row["statistics_seconds"]) / row["attributions_seconds"]
    publish(given, [row], line)


if __name__ == "__main__":
    main()
