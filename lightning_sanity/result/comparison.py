"""Results of one probe side by side, from the accepted model to the newest: what became of every method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_sanity.result.noninferiority import Difference, compare, incomparable
from lightning_sanity.result.sanity_result import WORST_FIRST, Outcome, SanityResult, Verdict


@dataclass(frozen=True)
class Track:
    """One method in all results.

    Attributes:
        method: Its name.
        verdicts: One per result; None where it was not measured.
        changes: Against the first result, one per later one; the last decides.
    """

    method: str
    verdicts: tuple[Verdict | None, ...]
    changes: tuple[Difference, ...]

    @property
    def change(self) -> Difference:
        """What became of it from the first result to the last."""
        return self.changes[-1]


@dataclass(frozen=True)
class Comparison:
    """What became of the methods from the first result to the last.

    Attributes:
        results: In the order given; the first is of the model that was accepted, the last of the one in question.
        tracks: Every gated method that any of them holds, the worst first.
        max_drop: By how much a PSI may fall.
        problem: Why the first and the last cannot be compared at all, if so.
    """

    results: tuple[SanityResult, ...]
    tracks: tuple[Track, ...]
    max_drop: float
    problem: str | None

    @property
    def outcome(self) -> Outcome:
        """The worst of all methods; ``INCONCLUSIVE`` if nothing can be compared."""
        if self.problem is not None:
            return Outcome.INCONCLUSIVE
        found = {track.change.outcome for track in self.tracks}
        return next(outcome for outcome in WORST_FIRST if outcome in found)

    @property
    def reason(self) -> str:
        """One sentence: the worst method and how many more are like it, or that none is worse."""
        if self.problem is not None:
            return self.problem
        if self.outcome is Outcome.PASS:
            return f"no method is worse by more than {self.max_drop:g}"
        worst = [track for track in self.tracks if track.change.outcome is self.outcome]
        more = f" (and {len(worst) - 1} more)" if len(worst) > 1 else ""
        return f"{worst[0].method}: {worst[0].change.reason}{more}"


def compared(results: Sequence[SanityResult], max_drop: float = 0.1) -> Comparison:
    """What became of every gated method from the first result to the last.

    A method that the first result lacks counts by its own verdict in the last; one that the last lacks cannot be told.

    Args:
        results: Two or more, in the order of their models.
        max_drop: By how much a PSI may fall, 0 to 1.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(results) < 2:
        raise ValueError(f"a comparison takes two results or more, not {len(results)}")
    methods = dict.fromkeys(name for result in results for name, verdict in result.verdicts.items() if verdict.gated)
    tracks = [
        Track(
            name,
            tuple(result.verdicts.get(name) for result in results),
            tuple(_became(results[0], later, name, max_drop) for later in results[1:]),
        )
        for name in methods
    ]
    problem = incomparable(results[0], results[-1])
    if problem is None and not tracks:
        problem = "the results hold no method but controls"
    return Comparison(tuple(results), tuple(sorted(tracks, key=_worst)), max_drop, problem)


def differing(results: Sequence[SanityResult]) -> dict[str, tuple[Any, ...]]:
    """Settings and versions that are not the same in all results, by name; None where a result does not say."""
    sources: list[Mapping[str, Any]] = [{**result.environment, **result.settings} for result in results]
    names = sorted({name for source in sources for name in source})
    found = {name: tuple(source.get(name) for source in sources) for name in names}
    return {name: values for name, values in found.items() if any(str(v) != str(values[0]) for v in values)}


def _became(reference: SanityResult, later: SanityResult, method: str, max_drop: float) -> Difference:
    verdict = later.verdicts.get(method)
    if verdict is None:
        return Difference(Outcome.INCONCLUSIVE, "the result does not hold it")
    if method in reference.verdicts:
        return compare(reference, later, method, max_drop)
    problem = incomparable(reference, later)
    if problem is not None:
        return Difference(Outcome.INCONCLUSIVE, problem)
    return Difference(verdict.outcome, f"new since the first result: {verdict.reason}")


def _worst(track: Track) -> tuple[int, int, bool, float, float]:
    """Sorts the worst first: by outcome, then by the newest verdict, the change, and the newest index."""
    last = track.verdicts[-1]
    verdict = len(WORST_FIRST) if last is None else WORST_FIRST.index(last.outcome)
    index = math.inf if last is None or math.isnan(last.psi) else last.psi
    unknown = math.isnan(track.change.value)
    change = 0.0 if unknown else track.change.value
    return WORST_FIRST.index(track.change.outcome), verdict, unknown, change, index
