"""From verdicts and scores to the answer: the table, the recommended set, the sentence that says why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_sanity.choice.contest import Contest, compare
from lightning_sanity.choice.pareto import Front, accords, front
from lightning_sanity.result.choice import Row, Score, Standing
from lightning_sanity.result.psi import LEVEL
from lightning_sanity.result.sanity_result import Outcome, Verdict
from lightning_sanity.result.verdict import NOT_APPLICABLE

BASELINES = ("random", "edge_detector")
"""What a recommended method must beat: a random map, and the edges of the input."""
INSENSITIVE = {
    "guided_backprop": "Nie et al. 2018",
    "deconvnet": "Nie et al. 2018",
    "guided_gradcam": "Adebayo et al. 2018",
    "lrp_z_plus": "Sixt et al. 2020",
    "lrp_alpha_beta": "Sixt et al. 2020",
    "excitation_backprop": "Sixt et al. 2020",
}
"""Methods that are proved or known to hardly depend on upper layers: one that passes here has been lucky."""
FEW = 10
"""Samples below which a choice says what so few can decide."""
Scores = Mapping[str, Mapping[str, Tensor]]
"""Per metric and method ``(N,)``, higher is better."""


@dataclass(frozen=True)
class Ranking:
    """The answer of the scores.

    Attributes:
        contests: Per metric.
        front: Who is undominated, and the cheapest of these.
        warnings: Of metrics that contradict one another.
    """

    contests: Mapping[str, Contest]
    front: Front
    warnings: tuple[str, ...]


def rank(scores: Scores, allowed: Sequence[str], costs: Mapping[str, float], seed: int) -> Ranking:
    """Compare the methods metric by metric; all intervals hold at once.

    Args:
        scores: Of the methods and of the baselines.
        allowed: The methods that passed the sanity test.
        costs: Passes of one explanation.
        seed: Of the simulated critical values.
    """
    level = 1 - (1 - LEVEL) / max(len(scores), 1)
    contests = {}
    for metric, table in scores.items():
        against = [name for name in BASELINES if name in table]
        ordered = sorted(table, key=lambda name: -_mean(table[name]))  # among equal costs the better one comes first
        entrants = {name: table[name] for name in ordered if name in allowed or name in against}
        contests[metric] = compare(entrants, against, level=level, seed=seed)
    known = {name: cost for name, cost in costs.items() if math.isfinite(cost)}
    found = front(contests, known, allowed=allowed)
    warnings = tuple(accord.warning for accord in accords(scores, contests, seed=seed) if accord.warning)
    return Ranking(contests, found, warnings)


def _mean(values: Tensor) -> float:
    mean = float(values.nanmean())
    return mean if math.isfinite(mean) else -math.inf


def scores_of(name: str, contests: Mapping[str, Contest]) -> dict[str, Score]:
    """What the contests say of one method or baseline."""
    found = {}
    for metric, contest in contests.items():
        mean = contest.means.get(name)
        if mean is None:
            continue
        over = {
            baseline: (gap.value, gap.low, gap.high)
            for (method, baseline), gap in contest.over.items()
            if method == name
        }
        ahead = tuple(sorted(first for first, second in contest.ahead if second == name))
        found[metric] = Score(mean.value, mean.low, mean.high, over, ahead)
    return found


def standing_of(name: str, verdict: Verdict | None, ranking: Ranking | None) -> tuple[Standing, str]:
    """Where a candidate that could be run stands, and why."""
    if verdict is None:
        return Standing.UNMEASURED, "the budget was spent before the sanity test came to it"
    if verdict.outcome is Outcome.FAIL:
        return Standing.FAILED, verdict.reason
    if verdict.outcome is Outcome.INCONCLUSIVE:
        unrun = verdict.reason.startswith("left out")
        if verdict.reason.startswith(NOT_APPLICABLE):
            return Standing.INAPPLICABLE, verdict.reason.removeprefix(f"{NOT_APPLICABLE}: ")
        return (Standing.UNMEASURED if unrun else Standing.OPEN), verdict.reason
    if literature(name) is not None:
        return Standing.PASSED, (
            f"passed here, and is not recommended: the literature shows that its maps hardly depend on upper layers "
            f"({literature(name)})"
        )
    if ranking is None or all(name not in contest.names for contest in ranking.contests.values()):
        return Standing.PASSED, f"passed the sanity test; its faithfulness was not measured ({verdict.reason})"
    answer = ranking.front
    if name == answer.recommended:
        return Standing.RECOMMENDED, "the cheapest of those that passed, beat the baselines and are not dominated"
    if name in answer.also:
        return (
            Standing.TIED,
            "cannot be told apart from the best on these samples; costs more or scores less on average",
        )
    if name in answer.dominated_by:
        return Standing.PASSED, f"passed, but {_named(answer.dominated_by[name])} scored better for certain"
    return Standing.PASSED, f"passed, but {_short_of(name, ranking.contests)}"


def literature(name: str) -> str | None:
    """Who showed that a method is insensitive, whatever its parameters."""
    return INSENSITIVE.get(name.partition("(")[0])


def _short_of(name: str, contests: Mapping[str, Contest]) -> str:
    losing = [
        f"{baseline} ({metric})"
        for metric, contest in contests.items()
        for (method, baseline), gap in contest.over.items()
        if method == name and gap.high < 0
    ]
    if losing:
        return f"it is less faithful than {_named(losing)}"
    return "it does not beat both baselines for certain on these samples"


def _named(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


_ORDER = list(Standing)


def ordered(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The best first: by standing, then by cost for those that may be shown and by the first metric for others."""

    def key(row: Row) -> tuple[int, float, str]:
        first = next(iter(row.scores.values()), None)
        return _ORDER.index(row.standing), math.inf if first is None else -first.value, row.method

    return tuple(sorted(rows, key=key))


def sentence(rows: Sequence[Row], ranking: Ranking | None, samples: int) -> str:
    """Why this is recommended, or why nothing is."""
    counts = {standing: sum(row.standing is standing for row in rows) for standing in Standing}
    passed = [row for row in rows if row.verdict is not None and row.verdict.passed]
    barred = [row.method for row in passed if literature(row.method) is not None]
    besides = f"; passed here, not recommended: {_named(barred)} (insensitive by the literature)" if barred else ""
    left = counts[Standing.UNMEASURED]
    besides += f"; {left} were not measured within the budget: give it more" if left else ""
    besides += "" if samples >= FEW else f"; {samples} samples decide little: give {FEW} or more, 32 to 64 are usual"
    if ranking is None and passed:
        names = _named([row.method for row in passed])
        scoreless = "passed the sanity test, and the budget was spent before any was scored"
        return f"no recommendation: {names} {scoreless}{besides}"
    if ranking is None or not passed:
        pending = [row.method for row in rows if row.standing is Standing.OPEN]
        could = f"; still open: {_named(pending)}" if pending else ""
        return (
            f"no recommendation: of {len(rows)} candidates none passed the sanity test "
            f"({counts[Standing.FAILED]} failed, {counts[Standing.OPEN]} open, {counts[Standing.INAPPLICABLE]} do not "
            f"apply){could}{besides}"
        )
    answer = ranking.front
    if answer.recommended is None:
        return f"no recommendation: {len(passed)} methods passed the sanity test, and {answer.without}{besides}"
    ties = f"; as good as can be told on these samples: {_named(answer.also, 6)}" if answer.also else ""
    alone = "no other method that passed is better for certain"
    several = f"is the cheapest of {1 + len(answer.also)} that no other method is better than for certain"
    return (
        f"{answer.recommended}: passed the sanity test, beats a random map and the edge detector, and "
        f"{several if answer.also else alone}{ties}{besides}"
    )
