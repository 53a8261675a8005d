"""Whether a run can be trusted at all, and then the verdict on every method."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace

from lightning_sanity.attribution.method import Method
from lightning_sanity.cascade import POSITIVE_CONTROL
from lightning_sanity.result import Coverage, Outcome, Verdict
from lightning_sanity.tracks import Track, Walk
from lightning_sanity.verdict import HALF, MEASURES, SIGNED, Criterion, Evidence, is_open, judge

CONTROLS = (POSITIVE_CONTROL, "edge_detector", "input_copy", "random")
"""Run beside the user's methods: the plain gradient must not fail on a trained network, the others must not pass."""

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


def validated(verdicts: Mapping[str, Verdict], wrong: str | None) -> tuple[dict[str, Verdict], bool, str]:
    """The verdicts, whether they stand, and why; none stands if something was ``wrong`` with the run."""
    if wrong is None:
        seen = [name for name in CONTROLS if name in verdicts]
        return (
            dict(verdicts),
            True,
            f"every control came out as it must ({', '.join(seen)})" if seen else "no control was run",
        )
    void = {
        name: replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=f"the run is invalid: {wrong}")
        if verdict.gated
        else verdict
        for name, verdict in verdicts.items()
    }
    return void, False, wrong


def undecided(walk: Walk, gated: Set[str], criterion: Criterion) -> list[str]:
    """The gated methods whose verdict more trials could decide."""
    judged = {name: judge(evidence_of(walk.tracks[name], None), criterion) for name in gated & walk.tracks.keys()}
    return [name for name in walk.tracks if name in judged and is_open(judged[name], criterion)]


def nothing_changed(walk: Walk, coverage: Coverage, order: str) -> str | None:
    """Why nothing can be concluded from this walk, whatever the maps say."""
    if coverage.kept:
        return f"these parameters kept their trained values: {', '.join(coverage.kept[:5])}"
    if not walk.finite:
        return "the trained model's output holds NaN or infinity"
    last = walk.correlation[:, -1]
    if order != "independent" and bool((last > 0.999).any()):
        return "the model's output did not change although its parameters did: they do not determine the prediction"
    return None


def evidence_of(track: Track, problem: str | None, half: bool = False) -> Evidence:
    """What a verdict rests on: the measures that mean something for these maps."""
    error = track.error
    if half and error is not None and any(name in error for name in ("Half", "BFloat16")):  # as torch names them
        error += HALF
    values = track.trials.values if track.trials is not None else {}
    floor = track.trials.floor if track.trials is not None else {}
    measures = [m for m in MEASURES if m in values and not (m == SIGNED and track.unsigned)]
    return Evidence(
        {m: values[m] for m in measures},
        {m: floor[m] for m in measures},
        {m: track.ceiling[m] for m in measures},
        track.noise,
        track.cross,
        track.dead,
        problem or error,
        half,
    )


def _degenerate(walk: Walk) -> str | None:
    """Whether the twins agree with one another: then nothing was randomised that matters."""
    if not walk.twin_agreement > _DEGENERATE:
        return None
    return (
        f"degenerate re-initialisation: the plain gradients of independent twins agree with one another (Spearman "
        f"{walk.twin_agreement:.2f}), as they do when all new weights are positive; use reinitialize='normal'"
    )


def wrong_control(
    verdicts: Mapping[str, Verdict],
    gradient_failed: str = "which changes with the weights of any trained network: is the model trained, and is its "
    "re-initialisation random?",
) -> str | None:
    """Which control came out otherwise than it must, if one did."""
    for name in ("edge_detector", "input_copy", "input_plus_gradient", "constant"):
        if name in verdicts and verdicts[name].outcome is Outcome.PASS:
            return f"the control '{name}' passed, which hardly looks at the model"
    if "random" in verdicts and verdicts["random"].outcome is not Outcome.INCONCLUSIVE:
        return f"the control 'random', which is noise, came out {verdicts['random'].outcome.value}"
    if "gradient" in verdicts and verdicts["gradient"].outcome is Outcome.FAIL:
        return f"the plain gradient failed, {gradient_failed}"
    return None
