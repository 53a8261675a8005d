"""Question: what do all depths of a cascade cost in shared walks, beside one captum call per depth?

Every unit, top down, on a ResNet-18, a tiny vision transformer and a small U-Net. "Bare" is the loop a user
would write: re-initialise a unit, call captum, next; nothing is compared. "Walks" are the same maps by the engine,
"auto" the whole test as it comes, with all it adds (clone, reference, guard, similarities, floors, intervals) and
a dozen steps of a deeper network, "five" the same with five trials beside five bare loops, "one, all" and "five,
all" these with all steps, "folded" five trials with batch normalisation folded away, "plain" without the engine,
"full batch" the walks on the path of networks that cannot be traced. All take turns in one process; median and
range of the ratios to the bare loop of the same round.
Before any timing the maps of all depths are asserted equal.

    python benchmarks/engine.py [--networks resnet18 vit_tiny unet] [--sizes 32 64 224] [--batches 8 16]
                                [--plain] [--folded] [--full-batch]
    python benchmarks/engine.py --suite          five methods instead of the gradient alone, ResNet-18
    python benchmarks/engine.py --memory         peak by byte budget, for walks of 1, 4 and 16 samples
"""

from __future__ import annotations

import torch
from captum.attr import GuidedBackprop, GuidedGradCam, InputXGradient, LayerGradCam, Saliency
from measuring import interleaved, parser, publish, ratio, shown, spread
from measuring.memory import peak
from measuring.networks import NETWORKS

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.engine import ENGINES, Engine
from lightning_sanity.engine.full_batch import FullBatch
from lightning_sanity.engine.path import NotTraceable, named_tensors
from lightning_sanity.randomization import units
from lightning_sanity.randomization.twins import Reinitializer
from lightning_sanity.randomization.unit import subsets

ONE = ("gradient",)
SUITE = ("gradient", "input_x_gradient", "gradcam", "guided_backprop", "guided_gradcam")
AT_INPUT = {"gradient", "input_x_gradient", "guided_backprop"}
"""Both sides give these as they are; class activation maps are resized and rectified differently."""
GOALS = {("resnet18", 1, 32): 0.5, ("resnet18", 1, 64): 0.6, ("resnet18", 1, 224): 0.75}
GOALS |= {("resnet18", 5, 32): 0.25, ("resnet18", 5, 64): 0.3}
"""Share of the bare loop's time that the whole test should take."""
TRIALS = 5
"""The default."""
TOLERANCE = 1e-5
"""Of a map's norm: what batches of another size may change in the last bits."""


def draws():
    return Reinitializer("normal", "normal", 0, "auto").start_trial(0)


def captum_calls(problem, names):
    """A user's calls: ``inputs -> attribution`` per method."""
    if problem.score is not None:
        return [lambda x: Saliency(problem.score).attribute(x, abs=False)]
    model, target = problem.model, problem.target
    layer = None if problem.layer is None else model.get_submodule(problem.layer)
    calls = {
        "gradient": lambda x: Saliency(model).attribute(x, target=target, abs=False),
        "input_x_gradient": lambda x: InputXGradient(model).attribute(x, target=target),
        "gradcam": lambda x: LayerGradCam(model, layer).attribute(x, target=target, relu_attributions=True),
        "guided_backprop": lambda x: GuidedBackprop(model).attribute(x, target=target),
        "guided_gradcam": lambda x: GuidedGradCam(model, layer).attribute(x, target=target),
    }
    return [calls[name] for name in names]


def bare(problem, names, planned):
    """One reference call and one per unit, for every method."""
    model, inputs = problem.model, problem.inputs
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    redraw, maps = draws(), {name: [] for name in names}
    calls = captum_calls(problem, names)
    for unit in (None, *planned):
        if unit is not None:
            redraw(model, unit)
        for name, call in zip(names, calls, strict=True):
            maps[name].append(call(inputs.clone().requires_grad_()).detach())
    model.load_state_dict(saved)
    return {name: found[1:] for name, found in maps.items()}


def engine_of(problem, names, planned, **options):
    what, prepared = problem.explanation, {}
    for name in names:
        method = resolve(name, problem.layer)
        prepared[name] = method, method.prepare(what.model, what.inputs) if method.prepare else method.attribute
    return Engine(problem.model, what, prepared, subsets(planned, "cascading"), 0, **options)


def walks(problem, names, planned, **options):
    engine = engine_of(problem, names, planned, **options)
    saved = {key: tensor.detach().clone() for key, tensor in named_tensors(problem.model)}
    found = engine.trial(draws(), saved).attributions
    assert set(found) == set(names), "a method went back to the plain loop"
    return found


def whole(problem, names, engine, trials=1, **changes):
    options = {"methods": names, "layer": problem.layer, "trials": trials, "engine": engine, **changes}
    return parameter_randomization_test(problem.model, problem.inputs, problem.target, progress=False, **options)


def difference(problem, names, planned, paths=ENGINES["auto"]):
    """Largest difference of a map from the bare loop's, as a share of its norm; asserted to be rounding.

    Folded, rounding may carry a rectifier's input across zero, which moves a map by more. The reason in words where the
    engine cannot walk this problem: then the test is the plain loop.
    """
    try:
        found, worst = walks(problem, names, planned, paths=paths), 0.0
        most = max(TOLERANCE, paths[0].tolerance)
    except NotTraceable as reason:
        return str(reason)
    expected = bare(problem, names, planned)
    for name in AT_INPUT.intersection(names):
        for a, b in zip(expected[name], found[name], strict=True):
            worst = max(worst, float((a - b).norm() / a.norm()))
            assert worst <= most, f"{problem.name}, {name}: a map differs from the bare loop's by {worst:.1e}"
    return worst


def made(network, size, batch):
    torch.manual_seed(0)
    problem = NETWORKS[network](size, batch)
    return problem, units(problem.model, problem.inputs[:2])


def compared(network, size, batch, names, repeats, plain, folded, full):
    problem, planned = made(network, size, batch)
    off = difference(problem, names, planned)
    sides = {"bare": lambda: bare(problem, names, planned), "auto": lambda: whole(problem, names, "auto")}
    if not isinstance(off, str):
        sides["walks"] = lambda: walks(problem, names, planned)
    if plain:
        sides["plain"] = lambda: whole(problem, names, "plain")
    sides["five"] = lambda: whole(problem, names, "auto", TRIALS)
    sides["one, all"] = lambda: whole(problem, names, "auto", max_steps=None)
    sides["five, all"] = lambda: whole(problem, names, "auto", TRIALS, max_steps=None)
    row = {"network": network, "methods": len(names), "size": size, "batch": batch, "units": len(planned)}
    if folded:
        row["folded_difference"] = difference(problem, names, planned, ENGINES["folded"])
        sides["folded"] = lambda: whole(problem, names, "folded", TRIALS)
    if full:
        assert not isinstance(difference(problem, names, planned, (FullBatch,)), str)
        sides["full batch"] = lambda: walks(problem, names, planned, paths=(FullBatch,))
    times = interleaved(sides, repeats)
    for side in sides.keys() & {"five", "five, all", "folded"}:
        times[side] = [seconds / TRIALS for seconds in times[side]]
    row |= {"difference": off, "goal": GOALS.get((network, len(names), size)), "bare_seconds": spread(times["bare"])}
    return row | {side: ratio(times, side, "bare") for side in sides if side != "bare"}


def described(row):
    goal = "" if row["goal"] is None else f"  (goal {row['goal']:.2f})"
    what = f"{row['network']}, {row['units']} units, {row['methods']} method(s), {row['size']} px, batch {row['batch']}"
    names = "walks", "full batch", "auto", "five", "one, all", "five, all", "folded", "plain"
    parts = [f"{side} {shown(row[side])}" for side in names if side in row]
    return f"{what}: bare {shown(row['bare_seconds'])} s; {told(row['difference'])}\n    {'   '.join(parts)}{goal}"


def told(off):
    return f"plain loop, {off}" if isinstance(off, str) else f"maps differ by at most {off:.0e} of their norm"


# ---------------------------------------------------------------------------------------------------------- memory


def working(network, size, batch, what):
    """The work whose peak is measured: walks within a byte budget, the bare loop, or the whole test as it comes."""
    problem, planned = made(network, size, batch)
    if what == "bare loop":
        return lambda: bare(problem, ONE, planned)
    if what == "whole test":
        return lambda: whole(problem, ONE, "auto")
    return lambda: walks(problem, ONE, planned, budget=what)


def memory(network, size, batch, chunks):
    """Peaks for byte budgets that hold so many samples at once, each asserted to keep within what it may."""
    problem, planned = made(network, size, batch)
    engine = engine_of(problem, ONE, planned, budget=2**62)
    (plan,) = engine._plans(engine._random, (), True)
    weights = sum(tensor.nbytes for _, tensor in named_tensors(problem.model)) / 2**20
    maps = len(planned) * problem.inputs.nbytes / 2**20
    where = {"network": network, "size": size, "batch": batch}
    rows = [where | {"what": what} | peak(working, network, size, batch, what) for what in ("bare loop", "whole test")]
    for chunk in chunks:
        budget = chunk * plan.bytes_per_sample()
        found = peak(working, network, size, batch, budget)
        row = where | {"what": f"walks of {chunk}", "budget": budget / 2**20, "model": weights, "maps": maps} | found
        # The clone is there when the work begins; it adds the trained weights, kept to put them back, the twin, and
        # what it was asked for.
        row["allowed"] = row["budget"] + 2 * weights + maps
        assert row["tensors"] <= row["allowed"], remembered(row)
        rows.append(row)
    return rows


def remembered(row):
    what = f"{row['network']}, {row['size']} px, batch {row['batch']}, {row['what']}"
    found = f"{what}: peak {row['resident']:.0f} MB resident, {row['tensors']:.0f} MB in tensors"
    if "allowed" not in row:
        return found
    return (
        f"{found}; budget {row['budget']:.0f} + trained model and twin {2 * row['model']:.0f} + maps {row['maps']:.0f} "
        f"= {row['allowed']:.0f} MB"
    )


def main():
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    flags.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    flags.add_argument("--batches", type=int, nargs="+", help="default: 8, with --suite or --memory 16")
    flags.add_argument("--suite", action="store_true")
    flags.add_argument("--plain", action="store_true", help="also time the test without the engine")
    flags.add_argument("--folded", action="store_true", help="also time five trials with engine='folded'")
    flags.add_argument("--full-batch", action="store_true", help="also time walks as if it could not be traced")
    flags.add_argument("--memory", action="store_true")
    given = flags.parse_args()
    if given.equality_only:
        for network in NETWORKS:
            problem, planned = made(network, 32, 2)
            names = SUITE if problem.layer else ONE
            print(f"{network}, {len(planned)} depths: {told(difference(problem, names, planned))}")
        return
    batches = given.batches or [16 if given.suite or given.memory else 8]
    if given.memory:
        rows = [row for size in given.sizes for batch in batches for row in memory("resnet18", size, batch, (1, 4, 16))]
        publish(given, rows, remembered)
        return
    networks, names = (["resnet18"], SUITE) if given.suite else (given.networks, ONE)
    cases = [(network, size, batch) for network in networks for size in given.sizes for batch in batches]
    sides = given.repeats, given.plain, given.folded, given.full_batch
    publish(given, [compared(*case, names, *sides) for case in cases], described)


if __name__ == "__main__":
    main()
