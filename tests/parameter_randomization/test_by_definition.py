"""Curves, floors and indices equal those of a slow reference that is written from the definition, on many networks."""

import itertools
import math

import pytest
from made_comparisons import ROUNDING, TOLERANCE, defined, largest_difference, measured, methods_for, network, written
from made_kinds import KINDS, SAMPLES
from reference_walk import index, shifts_of, steps_of, unit_of

ORDERS = ("cascading", "bottom_up", "independent", "full")
ENGINES = ("auto", "plain", "folded")
PAIRS = list(itertools.product(ORDERS, ENGINES))
COARSE = [(name, how) for how in ("block", "list") for name, kind in KINDS.items() if kind.blocks or how == "list"]
COARSE = [(name, how) for name, how in COARSE if how == "block" or KINDS[name].listed]


def agrees(result, tables):
    folded = any("folded" in engine for engine in result.engine.values())
    assert largest_difference(result, tables) < (ROUNDING if folded else TOLERANCE)
    for (method, measure), curve in result.curves.items():
        expected = index(curve.values, curve.floor, absolute=measure == "spearman_signed")
        found = result.verdicts[method].psi_of.get(measure, (math.nan,))[0]
        if math.isfinite(found):
            assert found == pytest.approx(expected, abs=1e-5)


def covers(result, name, order, granularity):
    """Every step's entry in the coverage is that of the step, in whatever order they are walked."""
    kind, _, model, *_ = network(name)
    steps = [{key for _, keys in step for key in keys} for step in steps_of(model, written(kind, granularity)[1])]
    walked = {"bottom_up": steps[::-1], "full": [set().union(*steps)]}.get(order, steps)
    assert [unit.name for unit in result.coverage.units] == list(result.units)
    late = {key for _, keys in (unit_of(model, unit) for unit in kind.aside) for key in keys}
    assert [set(unit.parameters) - late for unit in result.coverage.units] == walked
    assert result.coverage.share == 1


@pytest.mark.parametrize(("number", "name"), list(enumerate(KINDS)))
def test_a_walk_has_the_numbers_of_its_definition(number, name):
    order, engine = PAIRS[number % len(PAIRS)]
    methods = methods_for(name)
    methods, trials = [methods[number % len(methods)]], 1 + number % 2
    result = measured(name, order, "layer", engine, methods, trials)
    agrees(result, defined(name, order, "layer", methods, trials))
    covers(result, name, order, "layer")


@pytest.mark.parametrize(("number", "name", "how"), [(k, *each) for k, each in enumerate(COARSE)])
def test_coarser_steps_have_the_numbers_of_their_definition(number, name, how):
    order, engine = ORDERS[number % 4], ENGINES[number % 3]
    result = measured(name, order, how, engine, ["gradient"], trials=1)
    agrees(result, defined(name, order, how, ["gradient"], trials=1))
    covers(result, name, order, how)


@pytest.mark.parametrize(
    "name", ["three layers", "drawn batch normalisation", "image", "residual block", "query, key and value"]
)
def test_twins_are_taken_over_unit_by_unit(name):
    built, make = [], network(name)[1]

    def twin():
        built.append(make())
        return built[-1]

    result = measured(name, "cascading", "layer", "auto", ["gradient"], reinitialize=twin)
    twins = [each.state_dict() for each in built[-2:]]
    agrees(result, defined(name, "cascading", "layer", ["gradient"], twins=twins))


def test_a_floor_averages_over_all_other_samples():
    result = measured("three layers", "cascading", "layer", "auto", ["gradient"], trials=1)
    tables = defined("three layers", "cascading", "layer", ["gradient"], trials=1)
    shifts = shifts_of({key: curve.floor for key, curve in result.curves.items()}, tables, TOLERANCE)
    assert set(shifts) == set(range(1, SAMPLES))
