"""Whether a run can be trusted at all, and then the verdict on every method."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from lightning_sanity.attribution.method import Method
from lightning_sanity.explanation.measurements import Trials, agreement_of_twins, evidence_of
from lightning_sanity.parameter_randomization.leftovers import Leftovers
from lightning_sanity.parameter_randomization.walk_results import Walk
from lightning_sanity.result import evidence
from lightning_sanity.result.controls import validated, wrong_control
from lightning_sanity.result.sanity_result import Coverage, Outcome, Verdict
from lightning_sanity.result.verdict import WHOLE, Criterion, Scope, is_open, judge

_ROUNDING = 1e-5
_DEGENERATE = 0.9
"""Agreement of twins from which they are one: independent ones reach .15, those with positive weights alone 1.00."""
_TELLING = 4
"""Scores times pairs of twins from which their agreement says something: of fewer, all may agree by chance."""


def judge_all(
    chosen: Mapping[str, Method],
    gated: set[str],
    refused: Mapping[str, str],
    walk: Walk,
    criterion: Criterion,
    problem: str | None,
    half: bool = False,
    scope: Scope = WHOLE,
) -> tuple[dict[str, Verdict], bool, str]:
    """A verdict per method; when a control comes out wrong, no verdict stands."""
    verdicts = {}
    for name in chosen:
        if name in refused:
            verdicts[name] = Verdict(Outcome.INCONCLUSIVE, refused[name], gated=name in gated)
        else:
            evidence = evidence_of(walk.tracks[name], problem, half, weights=walk.weights, scope=scope)
            verdicts[name] = judge(evidence, criterion, gated=name in gated)
    if problem is not None:
        return verdicts, False, problem
    return validated(verdicts, degenerate(walk.twins) or wrong_control(verdicts))


UNMOVED = (
    "its maps are the same whatever the weights are: does it use the model that it is given as its first argument, "
    "or another one?"
)


def unmoved(found: Trials) -> bool:
    """Whether a method's maps are the trained model's at every depth of every trial, but for rounding."""
    known = torch.cat([values[~values.isnan()] for values in found.values.values()])
    return len(known) > 0 and bool((known >= 1 - _ROUNDING).all())


def undecided(walk: Walk, gated: Set[str], criterion: Criterion, scope: Scope = WHOLE) -> list[str]:
    """The gated methods whose verdict more trials could decide."""
    if not scope.may_fail:
        return []
    judged = {
        name: judge(evidence_of(walk.tracks[name], None, weights=walk.weights, scope=scope), criterion)
        for name in gated & walk.tracks.keys()
    }
    return [name for name in walk.tracks if name in judged and is_open(judged[name], criterion)]


def nothing_changed(walk: Walk, coverage: Coverage, order: str, left: Leftovers) -> str | None:
    """Why nothing can be concluded from this walk, whatever the maps say."""
    if left.problem is not None:
        return left.problem
    if not coverage.kept and not walk.finite:
        return "the trained model's output holds NaN or infinity"
    return evidence.nothing_changed(coverage, walk.correlation, order)


def degenerate(outputs: Tensor) -> str | None:
    """Whether independent re-initialisations agree with one another: then nothing was randomised that matters.

    Told by what the models answer, never by their gradients: those of own initialisations share patterns of the
    architecture, such as the checkerboard of strided shortcuts. Answers that are the same for all samples but others
    for every draw are those of a signal that has faded, not of a degenerate draw.

    Args:
        outputs: Of the re-initialised models, on the same samples ``(trials, N, ...)``.
    """
    if len(outputs) < 2 or outputs.shape[1] < 3:
        return None
    agreement = agreement_of_twins(outputs)
    known = agreement[agreement.isfinite()]
    if not bool(outputs.isfinite().flatten(1).all(1).any()):
        what = "no re-initialised model answers anything finite, as those with large positive weights do"
    elif torch.equal(outputs[1:], outputs[:-1]):
        what = "every re-initialised model answers the same, as those of zeros or constants do"
    elif known.numel() >= _TELLING and float(known.mean()) > _DEGENERATE:
        what = (
            "the scores of independently re-initialised models rise and fall together over the samples (correlation "
            f"{float(known.mean()):.2f}), as they do when all new weights are positive"
        )
    else:
        return None
    return f"degenerate re-initialisation: {what}; use reinitialize='normal'"
