"""Whether a run can be trusted at all, and then the verdict on every method."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch

from lightning_sanity.attribution.method import Method
from lightning_sanity.explanation.measurements import Trials, evidence_of
from lightning_sanity.parameter_randomization.leftovers import Leftovers
from lightning_sanity.parameter_randomization.walk import Walk
from lightning_sanity.result import evidence
from lightning_sanity.result.controls import validated, wrong_control
from lightning_sanity.result.sanity_result import Coverage, Outcome, Verdict
from lightning_sanity.result.verdict import Criterion, is_open, judge

_ROUNDING = 1e-5
_DEGENERATE = 0.5  # agreement of twins; random ones stay near the floor of unrelated maps, degenerate ones reach .99


def judge_all(
    chosen: Mapping[str, Method],
    gated: set[str],
    refused: Mapping[str, str],
    walk: Walk,
    criterion: Criterion,
    problem: str | None,
    half: bool = False,
) -> tuple[dict[str, Verdict], bool, str]:
    """A verdict per method; when a control comes out wrong, no verdict stands."""
    verdicts = {}
    for name in chosen:
        if name in refused:
            verdicts[name] = Verdict(Outcome.INCONCLUSIVE, refused[name], gated=name in gated)
        else:
            verdicts[name] = judge(evidence_of(walk.tracks[name], problem, half), criterion, gated=name in gated)
    if problem is not None:
        return verdicts, False, problem
    return validated(verdicts, _degenerate(walk) or wrong_control(verdicts))


UNMOVED = (
    "its maps are the same whatever the weights are: does it use the model that it is given as its first argument, "
    "or another one?"
)


def unmoved(found: Trials) -> bool:
    """Whether a method's maps are the trained model's at every depth of every trial, but for rounding."""
    known = torch.cat([values[~values.isnan()] for values in found.values.values()])
    return len(known) > 0 and bool((known >= 1 - _ROUNDING).all())


def undecided(walk: Walk, gated: Set[str], criterion: Criterion) -> list[str]:
    """The gated methods whose verdict more trials could decide."""
    judged = {name: judge(evidence_of(walk.tracks[name], None), criterion) for name in gated & walk.tracks.keys()}
    return [name for name in walk.tracks if name in judged and is_open(judged[name], criterion)]


def nothing_changed(walk: Walk, coverage: Coverage, order: str, left: Leftovers) -> str | None:
    """Why nothing can be concluded from this walk, whatever the maps say."""
    if left.problem is not None:
        return left.problem
    if not coverage.kept and not walk.finite:
        return "the trained model's output holds NaN or infinity"
    return evidence.nothing_changed(coverage, walk.correlation, order)


def _degenerate(walk: Walk) -> str | None:
    """Whether the twins agree with one another: then nothing was randomised that matters."""
    if not walk.twin_agreement > _DEGENERATE:
        return None
    return (
        f"degenerate re-initialisation: the plain gradients of independent twins agree with one another (Spearman "
        f"{walk.twin_agreement:.2f}), as they do when all new weights are positive; use reinitialize='normal'"
    )
