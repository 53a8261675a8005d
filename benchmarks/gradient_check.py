"""Question: what does the whole test cost beside the bare captum calls that it consists of?

ResNet-18, 3 x 64 x 64, 8 samples, gradient, every unit, one trial. "Bare" is a loop over the same number of captum
calls on the same sequence of models, without clone, similarity, statistics or controls. Both are run in turn in one
process; medians are printed. Before any timing the maps of the two are asserted equal. Peak memory is measured in
fresh processes, so that one run's pages cannot hide another's.

    python benchmarks/gradient_check.py [--repeats 5] [--size 64] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from concurrent.futures import ProcessPoolExecutor

import torch
from captum.attr import Saliency
from torchvision.models import resnet18

from lightning_sanity import parameter_randomization_test
from lightning_sanity._rng import generator
from lightning_sanity.randomization import reinitialize_
from lightning_sanity.shadow import clone
from lightning_sanity.units import units

REPEATS_OF_THE_GUARD = 3


def problem(size):
    torch.manual_seed(0)
    model, inputs = resnet18().eval(), torch.rand(8, 3, size, size)
    with torch.no_grad():
        # Untrained networks predict one class for everything; a verdict is not what is timed here.
        target = model(inputs).topk(8).indices[torch.arange(8), torch.arange(8)]
    return model, inputs, target


def bare(model, inputs, target):
    """One reference call, one per unit, and as many again as the test makes for its noise guard."""
    copied = clone(model)
    planned = units(copied, inputs[:2])
    maps = []
    explain = Saliency(copied)
    started = time.perf_counter()
    for _ in range(1 + REPEATS_OF_THE_GUARD):
        maps.append(explain.attribute(inputs.clone().requires_grad_(), target=target, abs=False))
    for unit in planned:
        reinitialize_(copied, unit, "normal", generator(0, 0, unit.name))
        maps.append(explain.attribute(inputs.clone().requires_grad_(), target=target, abs=False))
    return time.perf_counter() - started, maps[1 + REPEATS_OF_THE_GUARD :]


def whole(model, inputs, target, methods="gradient"):
    started = time.perf_counter()
    result = parameter_randomization_test(
        model,
        inputs,
        target,
        methods=methods,
        trials=1,
        repeats=REPEATS_OF_THE_GUARD,
        progress=False,
    )
    return time.perf_counter() - started, result


def assert_equal_maps(model, inputs, target):
    """The maps that the test compares are those of the bare loop, to the last bit."""
    seen = []

    def recording(model, inputs, target):
        found = Saliency(model).attribute(inputs.clone().requires_grad_(), target=target, abs=False)
        seen.append(found)
        return found

    whole(model, inputs, target, methods={"gradient": recording})
    expected = bare(model, inputs, target)[1]
    found = seen[-len(expected) :]
    assert len(expected) == len(found)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), "the maps differ from the bare loop's"


def resident_peak():
    """Largest resident memory of this process since its start, in kB (Linux)."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def peak(function, size):
    arguments = problem(size)
    # One pass first: what the first call of any convolution loads is neither side's doing.
    arguments[0](arguments[1])
    loaded = resident_peak()
    function(*arguments)
    return resident_peak() - loaded


def peak_memory(function, size):
    """MB above the model and one forward pass, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak, function, size).result() / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="assert that the maps are equal, time nothing")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    arguments = problem(32 if given.equality_only else given.size)
    assert_equal_maps(*arguments)
    if given.equality_only:
        print("maps are bit-identical to the bare loop's")
        return
    times = [(bare(*arguments)[0], whole(*arguments)[0]) for _ in range(given.repeats)]
    ratios = [ours / theirs for theirs, ours in times]
    report = {
        "bare_seconds": statistics.median(t[0] for t in times),
        "whole_seconds": statistics.median(t[1] for t in times),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "bare_peak_mb": peak_memory(bare, given.size),
        "whole_peak_mb": peak_memory(whole, given.size),
        "size": given.size,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if given.json:
        print(json.dumps(report))
        return
    print(f"ResNet-18, 8 x 3 x {given.size} x {given.size}, gradient, every unit, one trial; {given.repeats} repeats")
    print(f"bare captum loop  {report['bare_seconds']:6.2f} s   peak {report['bare_peak_mb']:5.0f} MB above the model")
    print(
        f"whole test        {report['whole_seconds']:6.2f} s   peak {report['whole_peak_mb']:5.0f} MB above the model"
    )
    print(f"ratio             {report['ratio']:6.2f}     [{report['ratio_min']:.2f}, {report['ratio_max']:.2f}]")


if __name__ == "__main__":
    main()
