"""The sanity test in front of the ranking: few trials first, what is clear stops, the rest goes on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from lightning_sanity.attribution.method import Method
from lightning_sanity.choice.budget import Budget
from lightning_sanity.choice.racing import early, levels
from lightning_sanity.parameter_randomization.looks import Looks
from lightning_sanity.parameter_randomization.mprt import parameter_randomization_test
from lightning_sanity.resources.progress import Progress
from lightning_sanity.result.evidence import evidence_in
from lightning_sanity.result.sanity_result import SanityResult, Verdict
from lightning_sanity.result.verdict import Criterion, Evidence, judge

LEAST = 3
"""Trials before the first look."""
_GROWTH, _NEAR = 1.5, 1.25


def schedule(trials: int) -> tuple[int, ...]:
    """Trials that are added before each look: each at half as many again as the last one, the last one at all.

    >>> schedule(10), schedule(20), schedule(3)
    ((3, 1, 2, 4), (3, 1, 2, 3, 4, 7), (3,))
    """
    seen = [0, min(LEAST, trials)]
    while seen[-1] < trials:
        following = int(_GROWTH * seen[-1])
        seen.append(following if _NEAR * following < trials else trials)
    return tuple(after - before for before, after in itertools.pairwise(seen))


def looks(trials: int) -> Looks:
    """The schedule of a race: at every look but the last a verdict must be clear at a level of its own."""
    by_trials = schedule(trials)
    seen = list(itertools.accumulate(by_trials))
    by_look = levels([count / seen[-1] for count in seen])

    def settles(evidence: Evidence, criterion: Criterion, look: int) -> bool:
        if early(evidence, criterion, by_look[look]) is not None:
            return True
        # What carries no signal, or hardly reproduces itself, is no clearer after more trials.
        return judge(evidence, criterion).psi != judge(evidence, criterion).psi

    return Looks(by_trials, settles)


@dataclass
class Gate:
    """What the test found so far.

    Attributes:
        verdicts: Per candidate.
        evidence: Per candidate that was measured, what its verdict rests on.
        results: The tests that were run.
        problem: Why no verdict can be trusted, if so.
        made: Explanations of one sample that were made.
        whole: Those that all trials of all candidates would have taken.
    """

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    results: list[SanityResult] = field(default_factory=list)
    problem: str | None = None
    made: int = 0
    whole: int = 0

    def run(
        self,
        model: nn.Module,
        inputs: Any,
        target: Any,
        methods: Mapping[str, Method],
        options: Mapping[str, Any],
        budget: Budget,
        part: float = 1.0,
        progress: Progress | bool | None = None,
    ) -> None:
        """Test some more candidates.

        Args:
            model: See ``choose_methods``.
            inputs: See there.
            target: See there.
            methods: The candidates.
            options: Of ``parameter_randomization_test``.
            budget: What is left to spend.
            part: Of all seconds, by whose end to be done.
            progress: Told of every explanation.
        """
        if not methods or self.problem is not None:
            return
        left = budget.seconds_until(part)
        result = parameter_randomization_test(
            model,
            inputs,
            target,
            methods=dict(methods),
            pictures=True,
            progress=progress,
            max_seconds=None if left is None else max(left, 0.1),
            **options,
        )
        self.results.append(result)
        if not result.valid:
            self.problem = result.validity
        for name in methods:
            self.verdicts[name] = result.verdicts[name]
            if any(key[0] == name for key in result.curves):
                self.evidence[name] = evidence_in(result, name, result.grounds[name])
        made, whole = explanations(result, list(methods))
        self.made += made
        self.whole += whole
        budget.explained += made

    def passed(self) -> list[str]:
        """The candidates that passed, in the order in which they were tested."""
        return [name for name, verdict in self.verdicts.items() if verdict.passed]


def explanations(result: SanityResult, methods: list[str]) -> tuple[int, int]:
    """Explanations of one sample that a test made of these methods, and what all its trials would have taken."""
    settings = result.settings
    samples, depths, repeats = int(settings["samples"]), len(result.units), int(settings["repeats"])
    run: Mapping[str, int] = settings.get("trials_run", {})
    once = samples * (1 + repeats)
    made = sum(once + samples * depths * run[name] for name in methods if name in run)
    return made, len([name for name in methods if name in run]) * (once + samples * depths * int(settings["trials"]))
