"""The release gate: results and a policy in, one decision out.

Never ran is not a pass: without a result about the weights that are released, whatever else exists, the gate fails.

What a gate can decide again from a stored result is the threshold, because the interval of every PSI is kept. What it
cannot is whether maps carry signal: a stricter ``alpha``, ``max_dead_rate``, ``min_separation`` or
``max_undefined_rate`` than the test was run with makes the decision INCONCLUSIVE, and a laxer one changes nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from lightning_sanity.model import checkpoint
from lightning_sanity.release.policy import Policy, duration
from lightning_sanity.result import file as result_file
from lightning_sanity.result.controls import wrong_control
from lightning_sanity.result.noninferiority import compare
from lightning_sanity.result.sanity_result import Outcome, SanityResult, Verdict
from lightning_sanity.result.verdict import informative

Given = SanityResult | str | os.PathLike[str]
EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}
NEVER_RAN = "never ran is not a pass"
_GUARDS = {"alpha": -1, "max_dead_rate": -1, "min_separation": 1, "max_undefined_rate": -1}  # 1 where more is stricter
_GRACE = timedelta(minutes=5)  # by which clocks may differ


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at.

    Attributes:
        name: The attribution method, or what else was checked.
        outcome: What came out.
        reason: One sentence.
        source: File of the result; empty if it came from memory.
        psi: Of a method; NaN elsewhere.
    """

    name: str
    outcome: Outcome
    reason: str
    source: str = ""
    psi: float = math.nan


@dataclass(frozen=True)
class Decision:
    """What the gate says.

    Attributes:
        checks: All that was looked at; the worst decides, FAIL before INCONCLUSIVE before PASS.
        weights_digests: Of the results that were judged.
    """

    checks: tuple[Check, ...]
    weights_digests: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst of all checks; FAIL if nothing was checked."""
        found = {check.outcome for check in self.checks}
        worst_first = (Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS)
        return next((outcome for outcome in worst_first if outcome in found), Outcome.FAIL)

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
            methods = [f"{check.name} (PSI {check.psi:.2f})" for check in decisive if math.isfinite(check.psi)]
            return f"passed: {', '.join(methods)}"
        more = f" (and {len(decisive) - 1} more)" if len(decisive) > 1 else ""
        return f"{decisive[0].name}: {decisive[0].reason}{more}" if decisive else NEVER_RAN


def gate(results: Given | Sequence[Given], policy: Policy | None = None, *, now: datetime | None = None) -> Decision:
    """Whether the weights may be released, as far as their saliency maps go.

    Args:
        results: A result, the file of one, a folder, or several of these. Of a folder, ``latest.json`` counts, else
            the newest result; with ``policy.weights``, the newest one about those weights. All that are given must
            pass.
        policy: What is asked of them; every gated method must pass if None.
        now: For the age of a result; the clock's time if None.

    Raises:
        ValueError: If a file is not a result or not a checkpoint.
        OSError: If a file that exists, or that the policy names, cannot be read.
    """
    policy = policy or Policy()
    given = [results] if isinstance(results, (SanityResult, str, os.PathLike)) else list(results)
    digests = () if policy.weights is None else checkpoint.digests(policy.weights)
    baseline = None if policy.baseline is None else SanityResult.from_json(policy.baseline)
    found: list[tuple[str, SanityResult]] = []
    checks: list[Check] = []
    for item in given:
        if isinstance(item, SanityResult):
            found.append(("", item))
            continue
        try:
            found.append(_find(Path(item), digests))
        except LookupError as error:
            checks.append(Check("result", Outcome.FAIL, str(error.args[0]), str(item)))
    for source, result in found:
        checks += [replace(check, source=source) for check in _decide(result, policy, digests, baseline, now)]
    checks += _missing([result for _, result in found], policy)
    return Decision(tuple(checks), tuple(result.weights_digest for _, result in found))


def at_threshold(verdict: Verdict, min_psi: float, trials: int) -> Verdict:
    """The verdict that another ``min_psi`` would have given; unchanged where the threshold had no say."""
    if verdict.outcome is Outcome.INCONCLUSIVE and not math.isfinite(verdict.psi):
        return verdict
    low = {name: interval[1] for name, interval in verdict.psi_of.items()}
    high = {name: interval[2] for name, interval in verdict.psi_of.items()}
    interval = f"PSI {verdict.psi:.2f} [{verdict.psi_low:.2f}, {verdict.psi_high:.2f}] by {verdict.measure}"
    failing = [name for name in high if high[name] < min_psi]
    if failing:
        name = min(failing, key=lambda key: verdict.psi_of[key][0])
        psi = verdict.psi_of[name]
        reason = f"PSI {psi[0]:.2f} [{psi[1]:.2f}, {psi[2]:.2f}] by {name} lies below {min_psi:g}"
        return replace(verdict, outcome=Outcome.FAIL, reason=reason)
    if trials < 2:
        return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=f"one trial is not evidence: {interval}")
    if low and all(value >= min_psi for value in low.values()):
        return replace(verdict, outcome=Outcome.PASS, reason=f"{interval} is at least {min_psi:g}")
    return replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=f"{interval} straddles {min_psi:g}")


# -------------------------------------------------------------------------------------------------------------- finding


def _find(path: Path, digests: Sequence[str]) -> tuple[str, SanityResult]:
    """The file that counts, and its result.

    Raises:
        LookupError: If there is none.
    """
    if not path.exists():
        raise LookupError(f"there is no result at '{path}': {NEVER_RAN}")
    if not path.is_dir():
        return str(path), SanityResult.from_json(path)
    latest = path / "latest.json"
    if latest.is_file() and not digests:
        return str(latest), SanityResult.from_json(latest)
    candidates = list(_results_in(path))
    if not candidates:
        raise LookupError(f"there is no result in '{path}': {NEVER_RAN}")
    if digests:
        about = [(name, result) for name, result in candidates if result.weights_digest in digests]
        if not about:
            raise LookupError(f"none of the {len(candidates)} results in '{path}' is about these weights: {NEVER_RAN}")
        candidates = about
    return max(candidates, key=lambda found: (found[1].created, -1 if found[1].step is None else found[1].step))


def _results_in(folder: Path) -> Iterator[tuple[str, SanityResult]]:
    """Every result in a folder; other JSON files are none of our business, damaged results are."""
    for path in sorted(folder.glob("*.json")):
        data = result_file.read(path)
        if isinstance(data, Mapping) and data.get("schema") == result_file.SCHEMA:
            try:
                yield str(path), SanityResult.from_dict(data)
            except ValueError as error:
                raise ValueError(f"'{path}': {error}") from error


# ------------------------------------------------------------------------------------------------------------- deciding


def _decide(
    result: SanityResult,
    policy: Policy,
    digests: Sequence[str],
    baseline: SanityResult | None,
    now: datetime | None,
) -> Iterator[Check]:
    """All checks of one result; required methods that it lacks are left to ``_missing``."""
    if digests:
        yield _about(result, digests)
    if policy.max_age is not None:
        yield _age(result, duration(policy.max_age), now or datetime.now(timezone.utc))
    yield from _evidence(result, policy)
    verdicts, problem = _judged(result, policy)
    if problem is not None:
        yield Check("validity", Outcome.INCONCLUSIVE, problem)
    names = policy.require or tuple(name for name, verdict in verdicts.items() if verdict.gated)
    for name in names:
        if name not in verdicts:
            continue
        verdict = verdicts[name]
        outcome = verdict.outcome if problem is None else Outcome.INCONCLUSIVE
        reason = verdict.reason if problem is None or not verdict.passed else "it passed, but the run is not valid"
        yield Check(name, outcome, reason, psi=verdict.psi)
        if baseline is not None:
            change = compare(baseline, result, name, policy.max_drop)
            yield Check(f"{name} against the baseline", change.outcome, change.reason)


def _judged(result: SanityResult, policy: Policy) -> tuple[Mapping[str, Verdict], str | None]:
    """The verdicts under the policy, and why they cannot be trusted, if so."""
    if not result.valid:
        return result.verdicts, f"the run is not valid: {result.validity}"
    if policy.min_psi is None:
        return result.verdicts, None
    verdicts = {
        name: at_threshold(verdict, policy.min_psi, _trials(result, name)) for name, verdict in result.verdicts.items()
    }
    wrong = wrong_control(verdicts)
    return verdicts, wrong and f"min_psi={policy.min_psi:g} cannot tell good from bad here: {wrong}"


def _trials(result: SanityResult, method: str) -> int:
    """How many trials, or pairs of models, the verdict on a method rests on."""
    judged = [result.curves[method, name] for name in result.verdicts[method].psi_of if (method, name) in result.curves]
    return min((informative(curve.values) for curve in judged), default=0)


def _about(result: SanityResult, digests: Sequence[str]) -> Check:
    if result.weights_digest in digests:
        return Check("weights", Outcome.PASS, f"the result is about these weights ({result.weights_digest[:12]})")
    return Check(
        "weights",
        Outcome.FAIL,
        f"no result for these weights: the result is about {result.weights_digest[:12]}, the checkpoint holds "
        f"{digests[0][:12]}; {NEVER_RAN}",
    )


def _age(result: SanityResult, limit: timedelta, now: datetime) -> Check:
    try:
        created = datetime.fromisoformat(result.created.replace("Z", "+00:00"))
        age = now - (created if created.tzinfo else created.replace(tzinfo=timezone.utc))
    except (ValueError, OverflowError):
        return Check("age", Outcome.INCONCLUSIVE, "the result does not say when it was made: test again")
    if age < -_GRACE:
        return Check("age", Outcome.INCONCLUSIVE, f"the result is from the future ({result.created}): check the clocks")
    if age > limit:
        return Check("age", Outcome.FAIL, f"the result is {_days(age)} old, at most {_days(limit)} allowed: test again")
    return Check("age", Outcome.PASS, f"the result is {_days(age)} old, at most {_days(limit)} allowed")


def _days(span: timedelta) -> str:
    hours = max(span.total_seconds(), 0) / 3600
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"


def _evidence(result: SanityResult, policy: Policy) -> Iterator[Check]:
    """What the policy asks of the test itself and a stored result cannot make up for."""
    for key in ("trials", "samples"):
        least, number = getattr(policy, f"min_{key}"), result.settings.get(key)
        if least is not None and not (isinstance(number, int) and number >= least):
            yield Check(key, Outcome.INCONCLUSIVE, f"measured with {number} {key}, the policy asks for {least}")
    criterion = result.settings.get("criterion")
    measured: Mapping[str, Any] = criterion if isinstance(criterion, Mapping) else {}
    for key, stricter in _GUARDS.items():
        asked, used = getattr(policy, key), measured.get(key)
        if asked is not None and not (isinstance(used, (int, float)) and stricter * used >= stricter * asked):
            again = f"test again with Criterion({key}={asked:g})"
            reason = f"measured with {key}={used}, the policy asks for {asked:g}: {again}"
            yield Check(key, Outcome.INCONCLUSIVE, reason)


def _missing(results: Sequence[SanityResult], policy: Policy) -> Iterator[Check]:
    """Methods that should have been measured and were not."""
    for name in policy.require:
        if results and not any(name in result.verdicts for result in results):
            measured = sorted({key for result in results for key in result.verdicts})
            reason = f"required but not measured (there are: {', '.join(measured) or 'none'}): {NEVER_RAN}"
            yield Check(name, Outcome.FAIL, reason)
    for result in results:
        if not policy.require and not any(verdict.gated for verdict in result.verdicts.values()):
            yield Check("methods", Outcome.FAIL, f"no method but controls was measured: {NEVER_RAN}")
