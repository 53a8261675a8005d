"""Question: what do all depths of a cascade cost in shared walks, beside one captum call per depth?

ResNet-18, every unit, top down, one trial. "Bare" is the loop a user would write: re-initialise a unit, call captum,
next; nothing is compared. "Walks" are the same maps by the engine, "plain" and "auto" the whole test with all it adds
(clone, reference, guard, similarities, floors, intervals) without and with it. All run in turn in one process; medians
of the ratios and their range are printed. Before any timing the maps of all depths are asserted equal.

    python benchmarks/engine.py [--suite] [--sizes 32 64] [--batch 8] [--repeats 5] [--memory] [--json]
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
from captum.attr import GuidedBackprop, GuidedGradCam, InputXGradient, LayerGradCam, Saliency
from torchvision.models import resnet18

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.engine import Engine
from lightning_sanity.explanation import Explanation
from lightning_sanity.network import named_tensors
from lightning_sanity.shadow import clone
from lightning_sanity.twins import Reinitializer
from lightning_sanity.units import subsets, units

ONE = ("gradient",)
SUITE = ("gradient", "input_x_gradient", "gradcam", "guided_backprop", "guided_gradcam")
LAYER = "layer3"
TRAINED = 0.5


def problem(size, batch):
    torch.manual_seed(0)
    model, inputs = clone(resnet18(num_classes=100).eval()), torch.rand(batch, 3, size, size)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as training would leave it
            module.weight.uniform_(TRAINED, 1.5)
            module.running_var.uniform_(TRAINED, 1.5)
    with torch.no_grad():
        target = model(inputs).topk(batch).indices.diagonal()
    return model, inputs, target


def draws():
    return Reinitializer("normal", "normal", 0, "auto").start_trial(0)


def captum_calls(model, names):
    layer = model.get_submodule(LAYER)
    calls = {
        "gradient": lambda x, t: Saliency(model).attribute(x, target=t, abs=False),
        "input_x_gradient": lambda x, t: InputXGradient(model).attribute(x, target=t),
        "gradcam": lambda x, t: LayerGradCam(model, layer).attribute(x, target=t, relu_attributions=True),
        "guided_backprop": lambda x, t: GuidedBackprop(model).attribute(x, target=t),
        "guided_gradcam": lambda x, t: GuidedGradCam(model, layer).attribute(x, target=t),
    }
    return [calls[name] for name in names]


def bare(arguments, names):
    """One reference call and one per unit, for every method."""
    model, inputs, target = arguments
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    redraw, maps = draws(), {name: [] for name in names}
    calls = captum_calls(model, names)
    for unit in (None, *units(model, inputs[:2])):
        if unit is not None:
            redraw(model, unit)
        for name, call in zip(names, calls, strict=True):
            maps[name].append(call(inputs.clone().requires_grad_(), target).detach())
    model.load_state_dict(saved)
    return {name: found[1:] for name, found in maps.items()}


def walks(arguments, names, budget=None):
    model, inputs, target = arguments
    prepared = {}
    for name in names:
        method = resolve(name, LAYER)
        prepared[name] = method, method.prepare(model, inputs) if method.prepare else method.attribute
    steps = subsets(units(model, inputs[:2]), "cascading")
    options = {} if budget is None else {"budget": budget}
    engine = Engine(model, Explanation(model, inputs, target), prepared, steps, 0, **options)
    saved = {key: tensor.detach().clone() for key, tensor in named_tensors(model)}
    found = engine.trial(draws(), saved).attributions
    assert set(found) == set(names), "a method went back to the plain loop"
    return found


def whole(arguments, names, engine):
    model, inputs, target = arguments
    options = {"methods": names, "layer": LAYER, "trials": 1, "reinitialize": "normal", "engine": engine}
    return parameter_randomization_test(model, inputs, target, progress=False, **options)


def assert_equal_maps(arguments, names):
    """Gradients to the last bit; guided ones to rounding; the two resize and rectify class activation maps apart."""
    expected, found = bare(arguments, names), walks(arguments, names)
    for name in set(names) & {"gradient", "input_x_gradient", "guided_backprop"}:
        for a, b in zip(expected[name], found[name], strict=True):
            same = torch.equal(a, b) if name != "guided_backprop" else (a - b).norm() <= 1e-5 * a.norm()
            assert same, f"{name}: the maps differ from the bare loop's by {(a - b).norm() / a.norm():.1e}"


def timed(function, *arguments):
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def compared(size, batch, names, repeats):
    arguments = problem(size, batch)
    assert_equal_maps(arguments, names)
    sides = {
        "bare": (bare, arguments, names),
        "walks": (walks, arguments, names),
        "plain": (whole, arguments, names, "plain"),
        "auto": (whole, arguments, names, "auto"),
    }
    times = [{side: timed(*call) for side, call in sides.items()} for _ in range(repeats)]
    row = {
        "methods": len(names),
        "size": size,
        "batch": batch,
        "bare_seconds": statistics.median(t["bare"] for t in times),
    }
    for side in ("walks", "plain", "auto"):
        ratios = [t[side] / t["bare"] for t in times]
        row[side] = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return row


def resident_peak():
    """Largest resident memory of this process since its start, in kB (Linux)."""
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def peak(size, batch, budget):
    arguments = problem(size, batch)
    arguments[0](arguments[1][:2])
    loaded = resident_peak()
    walks(arguments, ONE, budget)
    return resident_peak() - loaded


def memory(size, batch, budgets):
    """MB above the model for each byte budget, each in a process of its own."""
    rows = []
    for budget in budgets:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(
                {"budget_mb": budget / 2**20, "peak_mb": pool.submit(peak, size, batch, budget).result() / 1024}
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", action="store_true", help="five methods instead of the gradient alone")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure memory by byte budget instead of time")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--equality-only", action="store_true", help="assert that the maps are equal, time nothing")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    names = SUITE if given.suite else ONE
    if given.equality_only:
        assert_equal_maps(problem(32, 2), SUITE)
        print("the maps of all depths equal the bare loop's")
        return
    if given.memory:
        rows = memory(given.sizes[0], given.batch, [64 * 2**20, 256 * 2**20, 1024 * 2**20])
    else:
        rows = [compared(size, given.batch, names, given.repeats) for size in given.sizes]
    if given.json:
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}))
        return
    for row in rows:
        if given.memory:
            print(f"budget {row['budget_mb']:6.0f} MB   peak {row['peak_mb']:6.0f} MB above the model")
            continue
        print(f"{row['methods']} method(s), {row['size']} px, batch {row['batch']}: bare {row['bare_seconds']:.2f} s")
        for side in ("walks", "plain", "auto"):
            print(f"  {side:6s} {row[side]['ratio']:5.2f}  [{row[side]['low']:.2f}, {row[side]['high']:.2f}]")


if __name__ == "__main__":
    main()
