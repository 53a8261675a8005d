"""One kind of network as the library measures it, as the definition has it, and how far the two are apart."""

import math

import torch
from made_kinds import KINDS, MEETING
from reference_walk import shifts_of, steps_of, unit_of, walk

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import integrated_gradients

TOLERANCE = 1e-6
ROUNDING = 1e-3
IN_TEST = {"integrated_gradients": integrated_gradients(6, tolerance=1e9)}


def network(name):
    """A kind, what makes it in double precision, one of it, its inputs and the classes that are explained."""
    kind = KINDS[name] if name in KINDS else MEETING[name]

    def make():
        return kind.build().double().eval()

    torch.manual_seed(sum(map(ord, name)))
    model, value = make(), torch.randn(kind.samples, *kind.shape, dtype=torch.float64)
    if kind.background:
        seen = (
            torch.rand(kind.samples, *(size for axis, size in enumerate(kind.shape, 1) if axis != kind.channel)) > 0.5
        )
        value = value * seen.unsqueeze(kind.channel)
    return kind, make, model, value, None if kind.one else torch.arange(kind.samples) % 3


def written(kind, granularity):
    """What the test is told of a granularity, and the steps that this makes."""
    if granularity == "list":
        return kind.listed
    return granularity, kind.steps if granularity == "layer" else kind.blocks


def measured(name, order, granularity, engine, methods, trials=2, seed=3, reinitialize="normal", **changes):
    """The library's result."""
    kind, _, model, value, target = network(name)
    return parameter_randomization_test(
        model,
        kind.given(value),
        **{"target": target, **kind.options},
        methods={method: IN_TEST.get(method, method) for method in methods},
        order=order,
        granularity=written(kind, granularity)[0],
        engine=engine,
        trials=trials,
        seed=seed,
        reinitialize=reinitialize,
        layer=kind.layer,
        repeats=1,
        controls=False,
        pictures=False,
        progress=False,
        diagnostics=(),
        **changes,
    )


def defined(name, order, granularity, methods, trials=2, seed=3, twins=None):
    """The tables of the definition; see ``reference_walk.walk``."""
    kind, make, model, value, target = network(name)
    steps = steps_of(model, written(kind, granularity)[1])
    aside = [unit_of(model, unit) for unit in kind.aside]
    options = {"trials": trials, "seed": seed, "methods": methods, "aside": aside, "twins": twins}
    return walk(kind, make, model, value, target, steps, order, **options)


def methods_for(name):
    """Those that the definition knows for a kind."""
    layer = name in KINDS and KINDS[name].layer is not None
    return ["gradient", "input_x_gradient", "integrated_gradients", *["guided_backprop", "gradcam"] * layer]


def largest_difference(result, tables):
    """Of all curves; infinite where one of both has others, another number of steps, or floors that are none.

    Folded layers are equal to rounding, which decides between the nearly equal values of an enlarged map.
    """
    tolerance = ROUNDING if any("folded" in engine for engine in result.engine.values()) else TOLERANCE
    if tables.keys() != result.curves.keys():
        return math.inf
    found = [0.0]
    for key, table in tables.items():
        values, same = result.curves[key].values.double(), table.diagonal(dim1=2, dim2=3)
        if values.shape != same.shape or not torch.equal(values.isnan(), same.isnan()):
            return math.inf
        found.append(float((values - same).abs().nan_to_num(0.0).max()))
    shifts = shifts_of({key: curve.floor for key, curve in result.curves.items()}, tables, tolerance)
    return math.inf if None in shifts else max(found)
