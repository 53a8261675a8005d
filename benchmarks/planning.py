"""Question: what do the units of a ResNet-50 and one twin cost, beside one gradient attribution?

Planning (tracing one forward pass of one sample and grouping), plus re-initialising every unit once, against one
captum gradient of 8 images at 224 px. In turn in one process; medians.

    python benchmarks/planning.py [--repeats 5] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings

import torch
from captum.attr import Saliency
from torchvision.models import resnet50

from lightning_sanity._rng import generator
from lightning_sanity.randomization import reinitialize_
from lightning_sanity.shadow import clone
from lightning_sanity.units import units


def attribution(model, inputs):
    started = time.perf_counter()
    Saliency(model).attribute(inputs.clone().requires_grad_(), target=0, abs=False)
    return time.perf_counter() - started


def planning_and_twin(model, inputs):
    started = time.perf_counter()
    planned = units(model, inputs[:1])
    for unit in planned:
        reinitialize_(model, unit, "normal", generator(0, 0, unit.name))
    return time.perf_counter() - started, planned


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--equality-only", action="store_true", help="assert that every parameter changes, time nothing"
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, inputs = resnet50().eval(), torch.rand(8, 3, 224, 224)
    copied = clone(model)
    _, planned = planning_and_twin(copied, inputs)
    assert {name for unit in planned for name in unit.parameters} == {name for name, _ in model.named_parameters()}
    pairs = zip(model.named_parameters(), copied.parameters(), strict=True)
    assert [name for (name, a), b in pairs if torch.equal(a, b)] == []
    if given.equality_only:
        print(f"{len(planned)} units, every parameter changed")
        return
    times = [(attribution(model, inputs), planning_and_twin(clone(model), inputs)[0]) for _ in range(given.repeats)]
    report = {
        "attribution_seconds": statistics.median(t[0] for t in times),
        "planning_and_twin_seconds": statistics.median(t[1] for t in times),
        "ratio": statistics.median(b / a for a, b in times),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if given.json:
        print(json.dumps(report))
        return
    print(f"one gradient of 8 images at 224 px   {report['attribution_seconds']:6.2f} s")
    print(f"units and one twin                   {report['planning_and_twin_seconds']:6.2f} s")
    print(f"ratio                                {report['ratio']:6.2f}")


if __name__ == "__main__":
    main()
