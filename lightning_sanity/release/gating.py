"""The release gate: results and a policy in, one decision out.

Never ran is not a pass: without a result about the weights that are released, whatever else exists, the gate fails.

The gate judges numbers, not words: every verdict is decided anew from the curves and grounds of a result, by the
policy's criterion. A result whose words contradict its numbers is unreadable. What cannot be decided anew (that a run
is not valid, that a method became worse than a baseline) stands as it was stored, whatever the policy asks: a threshold
is the way out of a FAIL that a threshold caused, and of no other. A verdict without grounds, as in files of version 1,
can refuse and never pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from lightning_sanity._version import __version__
from lightning_sanity.model import checkpoint
from lightning_sanity.model.digest import PARTIAL
from lightning_sanity.release.finding import NEVER_RAN, Found, consistent, created, find, models, read
from lightning_sanity.release.policy import Policy, duration
from lightning_sanity.result.evidence import (
    OF_LABELS,
    TESTS,
    criterion_of,
    explained_inputs,
    judged_anew,
    not_recomputable,
    test_of,
    unsound_control,
    weights_of,
)
from lightning_sanity.result.noninferiority import compare
from lightning_sanity.result.sanity_result import WORST_FIRST, Outcome, SanityResult, Verdict
from lightning_sanity.result.verdict import Criterion, informative

Given = SanityResult | str | os.PathLike[str]
EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}
_STRICTER = {"alpha": min, "max_dead_rate": min, "min_separation": max, "max_undefined_rate": min}
_GRACE = timedelta(minutes=5)  # by which clocks may differ


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at.

    Attributes:
        name: The attribution method, or what else was checked.
        outcome: What came out.
        reason: One sentence.
        source: File of the result; empty if it came from memory.
        verdict: Of a method, whose number decided; None elsewhere.
        test: Whose result it is about, as in ``result.settings["test"]``; empty if about none.
    """

    name: str
    outcome: Outcome
    reason: str
    source: str = ""
    verdict: Verdict | None = None
    test: str = ""

    @property
    def psi(self) -> float:
        """Of a method; NaN elsewhere."""
        return math.nan if self.verdict is None else self.verdict.psi

    @property
    def title(self) -> str:
        """The name, with the test if it is not that of the weights."""
        return f"{self.name} (random labels)" if self.test == OF_LABELS else self.name


@dataclass(frozen=True)
class Judged:
    """A result and what the gate makes of it.

    Attributes:
        source: File of the result; empty if it came from memory.
        result: As it was read.
        criterion: By which it was judged here.
        verdicts: Decided anew; what a threshold did not decide, as it stood.
        problem: Why no verdict stands, if so.
        trusted: What could not be decided anew, each in a few words.
    """

    source: str
    result: SanityResult
    criterion: Criterion
    verdicts: Mapping[str, Verdict]
    problem: str | None
    trusted: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """What the gate says.

    Attributes:
        checks: All that was looked at; the worst decides, FAIL before INCONCLUSIVE before PASS.
        judged: The results that count.
    """

    checks: tuple[Check, ...]
    judged: tuple[Judged, ...] = ()

    @property
    def weights_digests(self) -> tuple[str, ...]:
        """Of the results that were judged."""
        return tuple(each.result.weights_digest for each in self.judged)

    @property
    def trusted(self) -> tuple[str, ...]:
        """What could not be decided anew, of all results."""
        return tuple(dict.fromkeys(words for each in self.judged for words in each.trusted))

    @property
    def outcome(self) -> Outcome:
        """The worst of all checks; FAIL if nothing was checked."""
        found = {check.outcome for check in self.checks}
        return next((outcome for outcome in WORST_FIRST if outcome in found), Outcome.FAIL)

    @property
    def worst_first(self) -> tuple[Check, ...]:
        """The checks, failures before what is inconclusive before what passed."""
        return tuple(sorted(self.checks, key=lambda check: WORST_FIRST.index(check.outcome)))

    @property
    def passed(self) -> bool:
        """Whether the outcome is ``PASS``."""
        return self.outcome is Outcome.PASS

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.outcome]

    @property
    def reason(self) -> str:
        """One sentence: the first check that decided, and how many more did."""
        decisive = [check for check in self.checks if check.outcome is self.outcome]
        if self.passed:
            index = {OF_LABELS: "DRI"}
            methods = [
                f"{check.title} ({index.get(check.test, 'PSI')} {check.psi:.2f})"
                for check in decisive
                if math.isfinite(check.psi)
            ]
            return f"passed: {', '.join(methods)}"
        more = f" (and {len(decisive) - 1} more)" if len(decisive) > 1 else ""
        return f"{decisive[0].title}: {decisive[0].reason}{more}" if decisive else NEVER_RAN


def gate(results: Given | Sequence[Given], policy: Policy | None = None, *, now: datetime | None = None) -> Decision:
    """Whether the weights may be released, as far as their saliency maps go.

    Args:
        results: A result, the file of one, a folder, or several of these; see ``finding.find`` for what counts in a
            folder. All that are given must pass, and be about one model unless ``policy.several_models``.
        policy: What is asked of them; every gated method must pass if None.
        now: For the age of a result; the clock's time if None.

    Raises:
        ValueError: If a file is not a result or not a checkpoint, a result contradicts itself, or results are about
            different models.
        OSError: If a file that exists, or that the policy names, cannot be read.
    """
    policy = policy or Policy()
    given = [results] if isinstance(results, (SanityResult, str, os.PathLike)) else list(results)
    digests = () if policy.weights is None else checkpoint.digests(policy.weights)
    baseline = None if policy.baseline is None else _accepted(policy.baseline)
    found: list[Found] = []
    checks: list[Check] = []
    for item in given:
        if isinstance(item, SanityResult):
            found.append(Found("", consistent(item)))
            continue
        if not os.fspath(item).strip():
            raise ValueError("the path of a result is empty: is a variable unset?")
        try:
            counting, others = find(Path(item), digests)
        except LookupError as error:
            checks.append(Check("result", Outcome.FAIL, str(error.args[0]), str(item)))
            continue
        found += counting
        if others:
            reason = f"left out, for they are about other weights: {', '.join(others[:5])}"
            checks.append(Check("other results", Outcome.PASS, reason, str(item)))
    if digests and any(each.result.weights_digest.startswith(PARTIAL) for each in found):
        raise ValueError(
            "a result is about weights that could not be told whole (an object as extra state, say), so that they "
            "cannot be compared with a checkpoint: return plain values and tensors from get_extra_state()"
        )
    asked = [each for each in found if not policy.tests or test_of(each.result) in policy.tests]
    for each in (each for each in found if not any(each is one for one in asked)):
        reason = f"left out: a result of the {_words(test_of(each.result))}, which is not asked for"
        checks.append(Check("other results", Outcome.PASS, reason, each.source))
    by_model = models(each.result for each in asked)
    if len(by_model) > 1 and not digests and not policy.several_models:
        raise ValueError(_several(asked))
    judged = tuple(_judge(each, policy) for each in asked)
    comparable = [one for one in judged if baseline is not None and test_of(one.result) == test_of(baseline)]
    for one in judged:
        against = baseline if not comparable or any(one is each for each in comparable) else None
        decided = _decide(one, policy, digests, against, now)
        checks += [replace(check, source=one.source, test=test_of(one.result)) for check in decided]
    for about in by_model.values() or [[]]:
        checks += _missing(about, policy)
    return Decision(tuple(checks), judged)


def criterion_for(result: SanityResult, policy: Policy) -> Criterion:
    """What a method must show at the gate.

    ``min_psi`` is the policy's. Where the policy does not say, and for everything else, the stricter counts of what the
    result was measured by and what the policy, or else the library, asks: a result cannot lower the bar for itself.
    """
    measured, default = criterion_of(result), Criterion()
    guards = {}
    for name, stricter in _STRICTER.items():
        asked = getattr(policy, name)
        guards[name] = stricter(getattr(measured, name), getattr(default, name) if asked is None else asked)
    min_psi = max(measured.min_psi, default.min_psi) if policy.min_psi is None else policy.min_psi
    return Criterion(min_psi=min_psi, **guards)


def _several(found: Sequence[Found]) -> str:
    digests = {each.result.weights_digest: each.source or "a result from memory" for each in found}
    about = "; ".join(f"{source} about {digest[:12]}" for digest, source in list(digests.items())[:3])
    return (
        f"the results are about {max(len(digests), 2)} models ({about}): name the one that is released by its weights, "
        "or ask for several models"
    )


# ------------------------------------------------------------------------------------------------------------- deciding


def _judge(found: Found, policy: Policy) -> Judged:
    result = found.result
    criterion = criterion_for(result, policy)
    anew = judged_anew(result, criterion)
    by_its_own = anew if criterion == criterion_of(result) else judged_anew(result)
    verdicts = {name: _standing(result, name, anew.get(name), by_its_own.get(name)) for name in result.verdicts}
    return Judged(
        found.source, result, criterion, verdicts, _problem(result, anew, criterion), not_recomputable(result)
    )


def _decide(
    judged: Judged,
    policy: Policy,
    digests: Sequence[str],
    baseline: SanityResult | None,
    now: datetime | None,
) -> Iterator[Check]:
    """All checks of one result; required methods that it lacks are left to ``_missing``."""
    result, verdicts, problem = judged.result, judged.verdicts, judged.problem
    if digests:
        yield _about(result, digests)
    if policy.max_age is not None:
        yield _age(result, duration(policy.max_age), now or datetime.now(timezone.utc))
    names = [name for name in policy.require or _gated(verdicts) if name in verdicts]
    yield from _size(result, names, policy)
    if problem is not None:
        yield Check("validity", Outcome.INCONCLUSIVE, problem)
    for name in names:
        verdict = verdicts[name]
        outcome = verdict.outcome if problem is None else Outcome.INCONCLUSIVE
        reason = verdict.reason if problem is None or not verdict.passed else "it passed, but the run is not valid"
        yield Check(name, outcome, reason, verdict=verdict)
    if baseline is not None:
        yield from _against(baseline, result, policy.require or tuple(names), policy)


def _standing(result: SanityResult, name: str, anew: Verdict | None, by_its_own: Verdict | None) -> Verdict:
    """The verdict decided anew, or the stored one where something else than a threshold decided it and was stricter."""
    stored = result.verdicts[name]
    if anew is None or by_its_own is None:
        if not stored.passed:
            return stored
        reason = "the file does not hold what this verdict rests on, so that it cannot be decided anew: test again"
        return replace(stored, outcome=Outcome.INCONCLUSIVE, reason=reason)
    of_another = result.environment.get("lightning-sanity") != __version__
    # What a baseline decided, or another version of the library, no threshold can undo.
    if (stored.gated and "baseline" in result.settings and stored.outcome is not by_its_own.outcome) or of_another:
        worst = min(stored.outcome, anew.outcome, key=WORST_FIRST.index)
        return replace(anew, outcome=worst, reason=stored.reason if worst is not anew.outcome else anew.reason)
    return anew


def _gated(verdicts: Mapping[str, Verdict]) -> tuple[str, ...]:
    return tuple(name for name, verdict in verdicts.items() if verdict.gated)


def _problem(result: SanityResult, verdicts: Mapping[str, Verdict], criterion: Criterion) -> str | None:
    """Why no verdict stands, if so."""
    if not result.valid:
        return f"the run is not valid: {result.validity}"
    wrong = unsound_control(result, verdicts)
    if wrong is None:
        return None
    if criterion == criterion_of(result):
        return f"the run is not valid: {wrong}"
    return f"{_named(criterion, criterion_of(result))} cannot tell good from bad here: {wrong}"


def _named(criterion: Criterion, measured: Criterion) -> str:
    """What is asked otherwise than when it was measured."""
    old = asdict(measured)
    return ", ".join(f"{name}={value:g}" for name, value in asdict(criterion).items() if value != old[name])


def _accepted(path: str | os.PathLike[str]) -> SanityResult:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no baseline '{path}': it is a copy of the result of the model that was accepted; "
            "the first release has none and leaves it out"
        ) from error


def _against(baseline: SanityResult, result: SanityResult, names: Sequence[str], policy: Policy) -> Iterator[Check]:
    """Whether no method became worse; one that the baseline holds and the result does not is no better."""
    if baseline.weights_digest == result.weights_digest:
        reason = "the baseline is about the very weights that are judged, and so shows no change: name an accepted one"
        yield Check("baseline", Outcome.INCONCLUSIVE, reason)
        return
    gone = () if policy.require else (name for name in _gated(baseline.verdicts) if name not in names)
    for name in (*(name for name in names if name in result.verdicts), *gone):
        if f"{name}[{next(iter(explained_inputs(result)), None)}]" in result.verdicts:
            continue  # it is compared input by input
        if name in baseline.verdicts:
            change = compare(baseline, result, name, policy.max_drop)
            yield Check(f"{name} against the baseline", change.outcome, change.reason)
        else:
            reason = "new: the baseline does not hold it, so that its own verdict alone counts"
            yield Check(f"{name} against the baseline", Outcome.PASS, reason)


def _about(result: SanityResult, digests: Sequence[str]) -> Check:
    same = [digest for digest in weights_of(result) if digest in digests]
    if same:
        unsaved = result.settings.get("unsaved_buffers")
        names = f"; in no checkpoint, and so not compared: {', '.join(map(str, unsaved))[:200]}" if unsaved else ""
        about = f"the result is about these weights ({same[0][:12]})"
        return Check("weights", Outcome.PASS, about + names)
    return Check(
        "weights",
        Outcome.FAIL,
        f"no result for these weights: the result is about {result.weights_digest[:12]}, the checkpoint holds "
        f"{digests[0][:12]}; {NEVER_RAN}",
    )


def _age(result: SanityResult, limit: timedelta, now: datetime) -> Check:
    date = created(result.created)
    if date is None:
        return Check("age", Outcome.INCONCLUSIVE, "the result does not say when it was made: test again")
    age = now - date
    if age < -_GRACE:
        return Check("age", Outcome.INCONCLUSIVE, f"the result is from the future ({result.created}): check the clocks")
    if age > limit:
        return Check("age", Outcome.FAIL, f"the result is {_days(age)} old, at most {_days(limit)} allowed: test again")
    return Check("age", Outcome.PASS, f"the result is {_days(age)} old, at most {_days(limit)} allowed")


def _days(span: timedelta) -> str:
    hours = max(span.total_seconds(), 0) / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"


def _size(result: SanityResult, names: Sequence[str], policy: Policy) -> Iterator[Check]:
    """Whether the verdicts rest on as much as the policy asks for, by the curves that were judged."""
    parts = {part for name in names for part in (name, *(f"{name}[{key}]" for key in explained_inputs(result)))}
    curves = [curve for (method, _), curve in result.curves.items() if method in parts]
    trials = min((informative(curve.values) for curve in curves), default=0)
    if test_of(result) == OF_LABELS:
        trials = min((n for n in result.settings.get("models", ()) if isinstance(n, int)), default=0)
    held = {"trials": trials, "samples": min((curve.values.shape[2] for curve in curves), default=0)}
    for key, number in held.items():
        least = getattr(policy, f"min_{key}")
        if least is not None and names and number < least:
            yield Check(key, Outcome.INCONCLUSIVE, f"measured with {number} {key}, the policy asks for {least}")


def _words(test: str) -> str:
    return f"{test.replace('_', ' ')} test"


def _missing(results: Sequence[SanityResult], policy: Policy) -> Iterator[Check]:
    """Methods and tests that should have been measured and were not; each test has to measure each method."""
    by_test = {test: [result for result in results if test_of(result) == test] for test in TESTS}
    for test in policy.tests or (test for test in TESTS if by_test[test]):
        if not by_test[test]:
            yield Check(_words(test), Outcome.FAIL, f"asked for, but there is no result of it: {NEVER_RAN}", test=test)
            continue
        measured = sorted({key for result in by_test[test] for key in result.verdicts})
        for name in policy.require:
            if name not in measured:
                reason = f"required but not measured (there are: {', '.join(measured) or 'none'}): {NEVER_RAN}"
                yield Check(name, Outcome.FAIL, reason, test=test)
    for result in results:
        if not policy.require and not any(verdict.gated for verdict in result.verdicts.values()):
            yield Check("methods", Outcome.FAIL, f"no method but controls was measured: {NEVER_RAN}")
