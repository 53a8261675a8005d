"""Question: how long does Quantus' MPRT take for what the whole test says, on the same network and probe?

ResNet-18, gradient alone and four methods (gradient, input x gradient, Grad-CAM, Guided Grad-CAM), each side at its
default steps, top down, one trial, which is Quantus' default, and five, which is ours. Quantus runs once per method,
similarity and trial (a seed each), explaining by its own ``explain``; ours runs once, with all the similarities of the
verdict, floors, noise guard and intervals. Quantus' SSIM cannot be used in its MPRT (it returns a list); it gets
scikit-image's, on the maps in two dimensions.

Before any timing our test walks with Quantus' weights (its way to re-initialise, its seed), all steps, and every
similarity of every sample is asserted equal at every step that both sides have: SSIM to 1e-4, and Spearman's
correlation as far as rounding lets it. Which of two nearly equal pixels ranks first is for rounding to say, and that
differs between processors and numbers of threads; so the pixels of each map that lie within rounding of one another are
counted, and no correlation may differ by more than if all of them had changed places for the worst.

    pip install "lightning-sanity[bench]"
    python benchmarks/beside_quantus.py [--size 64] [--batch 16] [--trials 1 5] [--repeats 3] [--json]
"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import torch
from measuring import interleaved, parser, publish, ratio, shown, spread
from measuring.networks import resnet
from scipy.stats import rankdata
from skimage.metrics import structural_similarity

from lightning_sanity import parameter_randomization_test

THEIRS = {
    "gradient": "Gradient",
    "input_x_gradient": "InputXGradient",
    "gradcam": "LayerGradCam",
    "guided_gradcam": "GuidedGradCam",
}
GOALS = {1: 3, 4: 7}
"""How many times as long Quantus should take, with its own similarity alone, by the number of methods."""
SSIM = 1e-4
ROUNDING = 16 * float(np.finfo(np.float32).eps)
"""By which a pixel may be off, as a share of the map's largest: a gradient is a sum of terms that cancel."""
SEED = 42


def ssim(a, b, batched):
    """What the paper compares by: flattened maps unfolded again, each scaled to [0, 1]."""
    side = int(a.shape[1] ** 0.5)

    def scaled(row):
        return ((row - row.min()) / (row.max() - row.min())).reshape(side, side)

    given = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    pairs = zip(a.astype(float), b.astype(float), strict=True)
    return np.array([structural_similarity(scaled(one), scaled(other), **given) for one, other in pairs])


def near_ties(a, b, batched):
    """By how much Spearman's correlation of two maps may differ if all near ties are ranked otherwise."""
    return np.array([_near_ties(*pair) for pair in zip(a.astype(float), b.astype(float), strict=True)])


def _near_ties(a, b):
    moves, ranks = zip(*((_moves(row), np.abs(_centred_ranks(row))) for row in (a, b)), strict=True)
    moved = (moves[0] * ranks[1] + moves[1] * ranks[0] + moves[0] * moves[1]).sum()
    return moved / np.sqrt(np.prod([np.square(each).sum() for each in ranks]))


def _moves(row):
    """How many places each value's rank may move: how many others are as large, but for rounding of both."""
    ordered, within = np.sort(row), 2 * ROUNDING * np.abs(row).max()
    return np.searchsorted(ordered, row + within, "right") - np.searchsorted(ordered, row - within) - 1


def _centred_ranks(row):
    return rankdata(row) - (len(row) + 1) / 2


def theirs(problem, name, similarity=None, trial=0):
    """Quantus' scores of one trial: ``step -> (N,)``."""
    import quantus

    asked = {"method": THEIRS[name], "device": "cpu"}
    if "cam" in name:
        side = problem.inputs.shape[-1]
        asked |= {"gc_layer": f"model.{problem.layer}", "interpolate": (side, side)}
    metric = quantus.MPRT(similarity_func=similarity, seed=SEED + trial, disable_warnings=True)
    arrays = {"x_batch": problem.inputs.numpy(), "y_batch": problem.target.numpy(), "a_batch": None}
    call = {
        "explain_func": quantus.explain,
        "explain_func_kwargs": asked,
        "device": "cpu",
        "batch_size": len(problem.inputs),
    }
    return metric(model=problem.model, **arrays, **call)


def ours(problem, names, **changes):
    """The whole test at its default steps."""
    given = {"methods": names, "layer": problem.layer, "trials": 1, "reinitialize": "normal", "progress": False}
    return parameter_randomization_test(problem.model, problem.inputs, problem.target, **(given | changes))


def reset(module):
    """How Quantus re-initialises a module."""
    if hasattr(module, "reset_parameters"):
        torch.manual_seed(SEED + 1)
        module.reset_parameters()


def assert_equal(problem):
    """Our test with Quantus' weights finds its numbers at every step that both have; largest differences.

    Quantus resets one module after the other; a normalisation and its convolution, and what lies side by side, are one
    step of ours: all our steps are among Quantus', the step at which the last of its modules is reset.
    """
    similarities = {"spearman.abs": None, "ssim.abs": ssim}
    result = ours(problem, "gradient", similarities=list(similarities), reinitialize=reset, max_steps=None)

    def at_our_steps(function):
        scores = theirs(problem, "gradient", function)
        order, done, found = list(scores), {"original"}, []
        for unit in result.coverage.units:
            modules = {name.rpartition(".")[0] for name in unit.parameters}
            done |= modules
            last = max(map(order.index, modules))
            assert set(order[: last + 1]) == done, f"at {unit.name} Quantus has reset other modules"
            found.append(scores[order[last]])
        return torch.tensor(np.array(found))  # (steps, N)

    found = {}
    for name, function in similarities.items():
        allowed = 1e-6 + at_our_steps(near_ties) if function is None else torch.tensor(SSIM)
        off = (result.curves["gradient", name].values[0] - at_our_steps(function)).abs()
        found[name] = float(off.max())
        assert bool((off <= allowed).all()), (
            f"{name}: differs from Quantus' by {found[name]:.1e}, where rounding explains {float(allowed.max()):.1e}"
        )
        found[f"{name}, allowed"] = float(allowed.max())
    return found


def compared(problem, names, trials, repeats):
    runs = [(name, trial) for name in names for trial in range(trials)]
    sides = {
        "ours": lambda: ours(problem, names, trials=trials),
        "spearman": lambda: [theirs(problem, name, None, trial) for name, trial in runs],
        "ssim": lambda: [theirs(problem, name, ssim, trial) for name, trial in runs],
    }
    times = interleaved(sides, repeats)
    times["both"] = [a + b for a, b in zip(times["spearman"], times["ssim"], strict=True)]
    row = {"methods": list(names), "trials": trials, "size": problem.inputs.shape[-1], "batch": len(problem.inputs)}
    row |= {"seconds": spread(times["ours"]), "goal": GOALS.get(len(names))}
    return row | {side: ratio(times, side, "ours") for side in ("spearman", "ssim", "both")}


def described(row):
    what = f"{len(row['methods'])} method(s), {row['trials']} trial(s), {row['size']} px, batch {row['batch']}"
    what += f": ours {shown(row['seconds'])} s"
    times = ", ".join(f"{side} {shown(row[side], 1)}" for side in ("spearman", "ssim", "both"))
    return f"{what}; Quantus takes as many times as long: {times} (goal, Spearman alone: {row['goal']})"


def main():
    flags = parser(__doc__)
    flags.add_argument("--size", type=int, default=64)
    flags.add_argument("--batch", type=int, default=16)
    flags.add_argument("--trials", type=int, nargs="+", default=[1])
    flags.add_argument("--methods", nargs="+", choices=THEIRS, help="time these alone")
    given = flags.parse_args()
    if importlib.util.find_spec("quantus") is None:
        print('Quantus is not installed, so nothing can be compared: pip install "lightning-sanity[bench]"')
        if given.equality_only:
            return
        sys.exit(2)
    torch.manual_seed(0)
    found = assert_equal(resnet(32, 3))
    if given.equality_only:
        print("largest difference over steps and samples:", ", ".join(f"{k} {off:.0e}" for k, off in found.items()))
        return
    problem = resnet(given.size, given.batch)
    suites = [given.methods] if given.methods else [["gradient"], list(THEIRS)]
    cases = [(names, trials) for names in suites for trials in given.trials]
    publish(given, [compared(problem, *case, given.repeats) for case in cases], described)


if __name__ == "__main__":
    main()
