"""Question: is the index of a deep network that of a dozen of its steps?

Eleven networks of 18 to 152 steps, trained for a minute or less on real digits or sentences, one of them published with
its weights. Every one is tested once with all steps; from the same curves the index is then taken of some steps: as the
test chooses by default, evenly spread with straight lines between, at the nodes of Gauss and Legendre with their
weights, and with as many merged steps (the depth at which each ends, all alike). Before that, a test that walks by
default must give the very curves that all steps give at those depths.

    python benchmarks/deep_steps.py [--networks ResNet-50 BERT-12] [--samples 6] [--trials 3] [--seed 0]
        [--keep FOLDER] [--json]

``--keep`` keeps the results with all steps in a folder, and reads those that are there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measuring import now, parser, publish
from measuring.deep import NAMES, deep

from lightning_sanity import SanityResult, parameter_randomization_test
from lightning_sanity.parameter_randomization.route import ENOUGH, chosen
from lightning_sanity.resources.budget import spread
from lightning_sanity.result import Curve
from lightning_sanity.result.evidence import judged_anew
from lightning_sanity.result.psi import depth_weights

UNJUDGED = ("edge_detector", "input_copy", "random")


def by_default(steps):
    """What the test walks."""
    return chosen(ENOUGH, steps), None


def evenly(steps):
    """So many, evenly spread."""
    return spread(ENOUGH, steps), None


def quadrature(steps):
    """Nodes and weights of Gauss and Legendre, and the last step, which is always walked."""
    nodes, weights = np.polynomial.legendre.leggauss(ENOUGH - 1)
    share = dict.fromkeys([steps - 1], 0.0)
    for node, weight in zip(nodes, weights, strict=True):
        place = int((node + 1) / 2 * steps)
        share[place] = share.get(place, 0.0) + weight / 2
    return tuple(sorted(share)), tuple(share[place] for place in sorted(share))


def merged(steps):
    """So many steps of several units each."""
    ends = tuple(math.ceil((part + 1) * steps / ENOUGH) - 1 for part in range(ENOUGH))
    return ends, (1 / ENOUGH,) * ENOUGH


CHOICES = {"default": by_default, "evenly": evenly, "quadrature": quadrature, "merged": merged}


def of_some(result, places, weights):
    """The result as if only these steps had been walked."""
    steps = len(result.units)
    silent = [place for place, weight in enumerate(result.depth_weights) if weight == 0]
    picked = list(places)
    curves = {
        key: Curve(curve.values[:, picked], curve.floor[:, picked], curve.ceiling)
        for key, curve in result.curves.items()
    }
    weights = weights or depth_weights(places, steps, silent)
    return replace(result, units=tuple(result.units[place] for place in places), depth_weights=weights, curves=curves)


def tested(case, trials, **changes):
    """The test, and its seconds."""
    torch.manual_seed(1)
    started = now()
    given = {"trials": trials, "repeats": 2, "pictures": False, "progress": False, **changes}
    return parameter_randomization_test(case.model, case.inputs, methods=list(case.methods), **given), now() - started


def measured(name, given, brief=None):
    """A row: seconds with all steps and by default, and what each choice makes of the indices."""
    stored = None if given.keep is None else Path(given.keep) / f"{name.replace(' ', '_').replace(',', '')}.json"
    row = {"network": name}
    if stored is not None and stored.exists():
        whole = SanityResult.from_json(stored)
    else:
        case = deep(name, given.samples, given.seed, brief)
        whole, row["seconds_all"] = tested(case, given.trials, max_steps=None)
        some, row["seconds"] = tested(case, given.trials)
        places = [place - 1 for place in some.settings["walked"]]
        for key, curve in some.curves.items():
            expected = whole.curves[key].values[:, places]
            assert torch.allclose(curve.values, expected, atol=1e-3, equal_nan=True), f"{name}: {key} differs"
        if stored is not None:
            stored.parent.mkdir(parents=True, exist_ok=True)
            whole.to_json(stored)
    steps, before = len(whole.units), judged_anew(whole)
    row |= {"steps": steps, "valid": whole.valid, "methods": {}}
    for choice, places in CHOICES.items():
        after = judged_anew(of_some(whole, *places(steps))) if steps > ENOUGH else before
        for method in (method for method in before if method not in UNJUDGED):
            found = row["methods"].setdefault(method, {"all": (before[method].psi, before[method].outcome.value)})
            found[choice] = after[method].psi, after[method].outcome.value
    return row


def line(row):
    took = f", {row['seconds']:.1f} s for {row['seconds_all']:.1f}" if "seconds" in row else ""
    lines = [f"{row['network']}, {row['steps']} steps{took}{'' if row['valid'] else ', not valid'}"]
    for method, found in row["methods"].items():
        psi, outcome = found["all"]
        moved = [
            f"{choice} {value - psi:+.3f}{'' if said == outcome else f' ({said})'}"
            for choice, (value, said) in found.items()
            if choice != "all"
        ]
        lines.append(f"    {method:17s} {psi:.2f} {outcome:12s} {', '.join(moved)}")
    return "\n".join(lines)


def main():
    flags = parser(__doc__, repeats=1)
    flags.add_argument("--networks", nargs="+", choices=NAMES, default=NAMES)
    flags.add_argument("--samples", type=int, default=6)
    flags.add_argument("--trials", type=int, default=3)
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--keep")
    given = flags.parse_args()
    if given.equality_only:
        given.keep, given.samples, given.trials = None, 4, 1
        measured("ViT-12", given, brief=20)
        print("a dozen steps have the values that all steps have there")
        return
    publish(given, (measured(name, given) for name in given.networks), line)


if __name__ == "__main__":
    main()
