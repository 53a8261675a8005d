"""What a result shows: its verdicts decided anew from curves and grounds, and where its own words contradict them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from lightning_sanity._version import __version__
from lightning_sanity.result.controls import KNOWN, wrong_control
from lightning_sanity.result.dri import judge_labels
from lightning_sanity.result.sanity_result import Coverage, Grounds, Outcome, SanityResult, Verdict
from lightning_sanity.result.verdict import MEASURES, SIGNED, Criterion, Evidence, Scope, judge, scope_of

OF_WEIGHTS, OF_LABELS = "parameter_randomization", "data_randomization"
TESTS = (OF_WEIGHTS, OF_LABELS)
"""What a result may be of, by its ``settings["test"]``; neither stands for the other."""
RANDOM_LABELS = "random labels"
"""The one step of the data randomization test."""

_CLOSE = 1e-3  # by which an index may differ between machines
_CHANGED = 0.999  # correlation of outputs above which nothing has changed
_WORST_FIRST = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS)


def judged_anew(result: SanityResult, criterion: Criterion | None = None) -> dict[str, Verdict]:
    """The verdict on every method that curves and grounds give, as far as they can: see ``not_recomputable``.

    What a baseline, a control or the validity of the run says is not in it.

    Args:
        result: What was measured.
        criterion: What a method must show; the one the result names if None.

    Raises:
        ValueError: If the result does not say by what it was judged.
    """
    criterion = criterion or criterion_of(result)
    found = {
        name: _judge(result, name, grounds, criterion)
        for name, grounds in result.grounds.items()
        if name in result.verdicts
    }
    for name in result.verdicts:
        parts = {key: found[f"{name}[{key}]"] for key in explained_inputs(result) if f"{name}[{key}]" in found}
        if name not in found and parts and len(parts) == len(explained_inputs(result)):
            found[name] = over_all(parts)
    return {name: found[name] for name in result.verdicts if name in found}


def over_all(verdicts: Mapping[str, Verdict]) -> Verdict:
    """The verdict over several inputs: the worst, with every input's outcome in the reason."""

    def place(name: str) -> tuple[int, float]:
        verdict = verdicts[name]
        end = verdict.psi_high if verdict.outcome is Outcome.FAIL else verdict.psi_low
        return _WORST_FIRST.index(verdict.outcome), end if math.isfinite(end) else math.inf

    worst = min(verdicts, key=place)
    outcomes = ", ".join(f"{name} {verdict.outcome.value}" for name, verdict in verdicts.items())
    return replace(verdicts[worst], reason=f"{outcomes}; {worst}: {verdicts[worst].reason}")


def unsound_control(result: SanityResult, verdicts: Mapping[str, Verdict]) -> str | None:
    """Which control came out otherwise than it must; of a test of several inputs, on any of them."""
    inputs = explained_inputs(result)
    if not inputs:
        return wrong_control(verdicts)
    for key in inputs:
        ending = f"[{key}]"
        of_input = {n[: -len(ending)]: verdict for n, verdict in verdicts.items() if n.endswith(ending)}
        wrong = wrong_control(of_input)
        if wrong is not None:
            return f"{key}: {wrong}"
    return None


def test_of(result: SanityResult) -> str:
    """The test whose result it is, one of ``TESTS``.

    Raises:
        ValueError: If it names none.
    """
    test = result.settings.get("test")
    if test not in TESTS:
        raise ValueError(f"'settings.test' must be one of {', '.join(TESTS)}")
    return str(test)


def weights_of(result: SanityResult) -> tuple[str, ...]:
    """Digests of the trained models that a result is about: one, or of the data randomization test one or several."""
    several = result.settings.get("weights_digests") if test_of(result) == OF_LABELS else None
    others = several if isinstance(several, list) else []
    return tuple(dict.fromkeys((result.weights_digest, *(each for each in others if isinstance(each, str)))))


def explained_inputs(result: SanityResult) -> tuple[str, ...]:
    """The inputs of a test that explained several, each in its turn; else none."""
    given = result.settings.get("explained")
    return tuple(map(str, given)) if isinstance(given, list) else ()


def criterion_of(result: SanityResult) -> Criterion:
    """The criterion by which a result was judged.

    Raises:
        ValueError: If the result does not say.
    """
    given = result.settings.get("criterion")
    names = [field.name for field in fields(Criterion)]
    if not isinstance(given, Mapping) or not all(isinstance(given.get(name, 0.0), (int, float)) for name in names):
        raise ValueError("'settings.criterion' does not say by what the methods were judged")
    return Criterion(**{name: float(given[name]) for name in names if name in given})


def nothing_changed(coverage: Coverage, correlation: Tensor, order: Any) -> str | None:
    """Why nothing can be concluded from a cascade, whatever the maps say.

    Args:
        coverage: What was re-initialised.
        correlation: Of the outputs with the trained model's, ``(trials, depths)``.
        order: In which order the units were re-initialised.
    """
    if coverage.kept:
        return f"these parameters kept their trained values: {', '.join(coverage.kept[:5])}"
    if order != "independent" and correlation.numel() and bool((correlation[:, -1] > _CHANGED).any()):
        return "the model's output did not change although its parameters did: they do not determine the prediction"
    return None


def contradictions(result: SanityResult) -> Iterator[str]:
    """Where a result's words contradict its numbers, or one another: each a sentence, none in a file as written.

    Numbers are compared only in results of this version of the library, because another may judge otherwise.

    Raises:
        ValueError: See ``judged_anew``.
    """
    yield from _of_test(result)
    yield from _of_names(result)
    yield from _of_validity(result)
    verdicts = judged_anew(result)
    if result.environment.get("lightning-sanity") != __version__:
        return
    wrong = unsound_control(result, verdicts)
    if result.valid and wrong is not None:
        yield f"'valid' is true, but by its curves {wrong}"
    for name, expected in verdicts.items():
        stored = result.verdicts[name]
        may_be = {expected.outcome}
        if not result.valid and stored.gated:
            may_be = set(Outcome) if explained_inputs(result) else {Outcome.INCONCLUSIVE}
        elif expected.passed and stored.gated and "baseline" in result.settings:
            may_be = set(Outcome)  # it may have been worse than the baseline, which is not in the file
        if stored.outcome not in may_be:
            yield (
                f"'verdicts.{name}.outcome' is {stored.outcome.value}, but its numbers give {expected.outcome.value}: "
                f"{expected.reason}"
            )
        yield from _of_numbers(name, stored, expected)


def not_recomputable(result: SanityResult) -> tuple[str, ...]:
    """What a decision on this result takes on trust, each in a few words."""
    inputs = explained_inputs(result)
    trusted = [
        f"the verdict on {name}"
        for name in result.verdicts
        if name not in result.grounds and not (inputs and all(f"{name}[{key}]" in result.grounds for key in inputs))
    ]
    trusted += [f"why {name} could not be measured" for name, g in result.grounds.items() if g.trivial is not None]
    if result.environment.get("lightning-sanity") != __version__:
        trusted.append("the stored verdicts, of another version of the library")
    if not result.valid:
        trusted.append("that the run is not valid")
    if "baseline" in result.settings:
        trusted.append("the comparison with a baseline when it was measured")
    if result.settings.get("test") == OF_LABELS:
        trusted.append("whether the models learned their labels")
    return (*trusted, "settings", "environment", "digests of weights and probe", "dates")


# ------------------------------------------------------------------------------------------------------------ judging


def _judge(result: SanityResult, method: str, grounds: Grounds, criterion: Criterion) -> Verdict:
    gated = result.verdicts[method].gated
    evidence = evidence_in(result, method, grounds)
    if result.settings.get("test") != OF_LABELS:
        return judge(evidence, criterion, gated=gated)
    groups = result.settings.get("models")
    sizes = tuple(groups) if isinstance(groups, list) else ()
    pairs = {len(values) for values in evidence.values.values()} or {math.prod(sizes)}
    if len(sizes) != 2 or not all(type(n) is int and n > 0 for n in sizes) or pairs != {math.prod(sizes)}:
        raise ValueError(f"'settings.models' does not fit the pairs of models in the curves of {method}")
    verdict = judge_labels(evidence, (sizes[0], sizes[1]), criterion, gated=gated)
    return verdict if result.settings.get("memorization") is not None else unchecked(verdict)


UNCHECKED = (
    "nothing shows that the models learned their labels: pass memorization=, the RandomLabelDataModule that the "
    "random-label models were trained with (or memorization() of data in memory)"
)


def unchecked(verdict: Verdict) -> Verdict:
    """A verdict of the data randomization test where nobody looked whether the models learned their labels.

    Neither a PASS nor a FAIL stands then: models that learned nothing give both.
    """
    if not verdict.gated or verdict.outcome is Outcome.INCONCLUSIVE:
        return verdict
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=f"{UNCHECKED}; otherwise {verdict.reason}")


def evidence_in(result: SanityResult, method: str, grounds: Grounds) -> Evidence:
    """What the verdict on a method rests on, from the curves and grounds of a result."""
    curves = {key: result.curves[method, key] for key in MEASURES if (method, key) in result.curves}
    if grounds.unsigned:
        curves.pop(SIGNED, None)
    return Evidence(
        {key: curve.values for key, curve in curves.items()},
        {key: curve.floor for key, curve in curves.items()},
        {key: curve.ceiling for key, curve in curves.items()},
        grounds.noise,
        grounds.cross,
        grounds.dead if math.isfinite(grounds.dead) else 1.0,
        grounds.trivial,
        grounds.half,
        result.reproducibility.get(method),
        result.depth_weights,
        _scope(result),
    )


def _scope(result: SanityResult) -> Scope:
    """What the walk of a result may decide."""
    given, steps = result.settings.get("layers"), len(result.units)
    counted = sum(weight > 0 for weight in result.depth_weights or (1.0,) * steps)
    return scope_of(str(result.settings.get("order")), counted, given if isinstance(given, int) else steps)


# ------------------------------------------------------------------------------------------------------ contradictions


def _of_test(result: SanityResult) -> Iterator[str]:
    """A result is of the test that it names: the steps of the two are of different kinds."""
    test = test_of(result)
    if (result.units == (RANDOM_LABELS,)) is not (test == OF_LABELS):
        yield f"'settings.test' is {test}, but 'units' holds the steps of the other test"
    steps = tuple(unit.name for unit in result.coverage.units)
    if steps != result.units:
        yield f"'units' holds {len(result.units)} steps, but 'coverage.units' proves another {len(steps)}"


def _of_names(result: SanityResult) -> Iterator[str]:
    """Methods and controls are those that were asked for."""
    asked: dict[str, bool] = {}
    for key, gated in (("methods", True), ("controls", False)):
        names = result.settings.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            yield f"'settings.{key}' is no list of names"
            return
        asked |= {each: gated for name in names for each in (name, *(f"{name}[{i}]" for i in explained_inputs(result)))}
    for name in result.settings.get("controls", []):
        if name not in KNOWN:
            yield f"'settings.controls' names {name}, which is no control; there are: {', '.join(KNOWN)}"
    for name, gated in asked.items():
        if name not in result.verdicts:
            yield f"'settings' names {name}, but there is no verdict on it"
        elif result.verdicts[name].gated is not gated:
            yield f"'verdicts.{name}.gated' is {str(not gated).lower()}, but 'settings' says otherwise"
    for name in result.verdicts:
        if asked and name not in asked:
            yield f"there is a verdict on {name}, which 'settings' does not name"
    for name in result.grounds:
        if name not in result.verdicts:
            yield f"there are grounds for {name}, but no verdict"


def _of_validity(result: SanityResult) -> Iterator[str]:
    """Nothing is concluded from a run in which nothing changed, or that is not valid."""
    if not result.valid and not explained_inputs(result):  # of several inputs, one alone may void the run
        for name, verdict in result.verdicts.items():
            if verdict.gated and verdict.outcome is not Outcome.INCONCLUSIVE:
                yield f"'valid' is false, but 'verdicts.{name}.outcome' is {verdict.outcome.value}"
    if result.settings.get("test") == OF_LABELS:
        return
    problem = nothing_changed(result.coverage, result.output_change.correlation, result.settings.get("order"))
    for name, grounds in result.grounds.items():
        if problem is not None and grounds.trivial is None:
            yield f"'grounds.{name}' names nothing that would void the verdict, but {problem}"


def _of_numbers(name: str, stored: Verdict, expected: Verdict) -> Iterator[str]:
    for field in ("psi", "psi_low", "psi_high"):
        yield from _compared(f"verdicts.{name}.{field}", getattr(stored, field), getattr(expected, field))
    if stored.measure != expected.measure:
        yield f"'verdicts.{name}.measure' is {stored.measure}, but the curves give {expected.measure}"
    if stored.psi_of.keys() != expected.psi_of.keys():
        yield f"'verdicts.{name}.psi_of' holds {_names(stored.psi_of)}, but the curves give {_names(expected.psi_of)}"
        return
    for measure, interval in expected.psi_of.items():
        for index, value in enumerate(interval):
            yield from _compared(f"verdicts.{name}.psi_of.{measure}[{index}]", stored.psi_of[measure][index], value)


def _compared(where: str, stored: float, expected: float) -> Iterator[str]:
    if math.isnan(stored) != math.isnan(expected) or abs(stored - expected) > _CLOSE * max(1.0, abs(expected)):
        yield f"'{where}' is {stored:.4g}, but the curves give {expected:.4g}"


def _names(of: Mapping[str, Any]) -> str:
    return ", ".join(of) or "nothing"
