"""The search for a method to show: screen, test, score, compare; as far as the budget reaches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.choice.agreement import agreement_of
from lightning_sanity.choice.budget import Budget
from lightning_sanity.choice.explainable import nothing_to_explain
from lightning_sanity.choice.faithfulness import Yardstick, scored, yardstick
from lightning_sanity.choice.gate import CHEAP, Gate, looks
from lightning_sanity.choice.options import candidates_of
from lightning_sanity.choice.ranking import BASELINES, Ranking, ordered, rank, scores_of, sentence, standing_of
from lightning_sanity.choice.screening import Screened, screen
from lightning_sanity.choice.subject import Subject, subject
from lightning_sanity.explanation.maps import AttributionFailed, Maps
from lightning_sanity.explanation.request import Request, asked_of
from lightning_sanity.parameter_randomization.options import WalkOptions
from lightning_sanity.resources.progress import Progress
from lightning_sanity.result.choice import Choice, Likeness, Row, Standing

_OF_THE_CHEAP = 0.5
_OF_THE_DEAR = 0.6
"""Shares of the seconds that are left which the test of cheap and of dear methods may take; the rest is for scores."""
_PICTURED = 3  # samples on which the two best methods differ most
_RANDOM_MAPS = 4


@dataclass(frozen=True)
class Question:
    """What is asked: of which model, on which samples, and how its test is walked."""

    model: nn.Module
    inputs: Any
    target: Any
    walk: WalkOptions
    labels: Tensor | None

    def asked(self) -> Request:
        """The question as methods are given it."""
        return asked_of(self.model, self.inputs, self.target, self.walk, self.labels)

    @property
    def test(self) -> dict[str, Any]:
        """Options of the sanity test: with looks in place of a number of trials."""
        return {**self.walk, "trials": looks(int(self.walk["trials"])), "labels": self.labels}  # type: ignore[arg-type]


@dataclass
class Search:
    """A search and what it has found so far.

    Attributes:
        question: What is asked.
        metrics: By which methods are ranked.
        budget: What may be spent.
        tick: Told of progress.
        gate: The sanity test.
        scores: Per metric and method ``(N,)``.
        readings: How each method's maps are read.
        maps: Of the methods that were scored.
    """

    question: Question
    metrics: tuple[str, ...]
    budget: Budget
    tick: Progress
    gate: Gate = field(default_factory=Gate)
    scores: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    readings: dict[str, str] = field(default_factory=dict)
    maps: dict[str, Maps] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    samples: int = 0

    def answer(
        self, candidates: Any, groups: Any, *, masks: Tensor | None = None, profile: bool = True, tune: bool = False
    ) -> Choice:
        """Which method to show; see ``choose_methods``. Digests and dates are for the caller to add."""
        methods, missing = candidates_of(candidates, self.question.walk["layer"])  # type: ignore[arg-type]
        asked = self.question.asked()
        with subject(self.question.model, asked, methods, self.question.walk, self.budget.deadline) as on:
            self.samples = on.samples
            reason = on.problem or nothing_to_explain(on.model, on.outputs, self.question.labels)
            if reason is not None:
                return self._nothing(reason, [*methods, *missing])
            places = {name: place for place, name in enumerate(methods)}
            screened = screen(on, list(methods), lambda name: self.tick(places[name], len(places), f"trying {name}"))
        refused = {**screened.refused, **missing}
        cheap = [name for name, cost in screened.costs.items() if not cost > CHEAP]
        self._test(methods, cheap, screened, _OF_THE_CHEAP)
        self._test(methods, [name for name in screened.costs if name not in cheap], screened, _OF_THE_DEAR)
        if self.gate.problem is not None:
            return self._nothing(f"the sanity test is not valid: {self.gate.problem}", [*methods, *missing])
        passed = [name for name in screened.costs if name in self.gate.passed()]
        ranking = None
        if passed:
            with subject(
                self.question.model,
                asked,
                {name: methods[name] for name in passed},
                self.question.walk,
                self.budget.deadline,
            ) as on:
                self._score(on, passed, yardstick(on, masks))
            ranking = rank(self.scores, passed, screened.costs, self.question.walk["seed"])
        return self._choice(screened, refused, ranking)

    # -------------------------------------------------------------------------------------------------------- the test

    def _test(self, methods: Mapping[str, Any], names: Sequence[str], screened: Screened, share: float) -> None:
        """Run the sanity test on as many of the candidates as can be paid for."""
        walk = self.question.walk
        per_method = self.samples * (1 + walk["repeats"] + 3 * (walk["max_steps"] or 8))
        seconds = {name: each * per_method for name, each in screened.seconds.items()}
        taken = self.budget.affordable(names, seconds, per_method, share)
        self.gate.run(
            self.question.model,
            self.question.inputs,
            self.question.target,
            {name: methods[name] for name in taken},
            self.question.test,
            self.budget,
            share=share,
            progress=lambda done, total, label: self.tick(done, total, f"sanity test, {label}"),
        )

    # ------------------------------------------------------------------------------------------------------ the scores

    def _score(self, on: Subject, passed: Sequence[str], by: Yardstick) -> None:
        """Score the baselines and, the cheapest first, the methods that passed, as long as the budget lasts."""
        seed, took = self.question.walk["seed"], 0.0
        for baseline in BASELINES:
            self._keep(baseline, self._baseline(on, baseline, by))
        for place, name in enumerate(passed):
            begun = time.perf_counter()
            if not self.budget.affords(took, on.samples):
                self.notes.append(f"the budget was spent before {', '.join(passed[place:])} could be scored")
                break
            self.tick(place, len(passed), f"scoring {name}")
            try:
                (found,) = [maps for _, maps in on.maps([name])]
            except (AttributionFailed, ValueError) as error:
                self.notes.append(f"{name} could not be scored: {error}")
                continue
            self.budget.explained += on.samples
            self.maps[name] = found
            values, self.readings[name] = scored(by, found, self.metrics, seed)
            self._keep(name, values)
            took = time.perf_counter() - begun

    def _keep(self, name: str, values: Mapping[str, Tensor]) -> None:
        for metric, each in values.items():
            self.scores.setdefault(metric, {})[name] = each

    def _baseline(self, on: Subject, name: str, by: Yardstick) -> dict[str, Tensor]:
        """Scores of a baseline; of several random maps, the mean."""
        seed, several = self.question.walk["seed"], _RANDOM_MAPS if name == "random" else 1
        found = []
        for number in range(several):
            (maps,) = [maps for _, maps in on.maps([name], key=number)]
            found.append(scored(by, maps, self.metrics, seed)[0])
        return {metric: torch.stack([each[metric] for each in found]).mean(0) for metric in found[0]}

    # ------------------------------------------------------------------------------------------------------ the answer

    def _nothing(self, reason: str, names: Sequence[str]) -> Choice:
        """No recommendation, because nothing could be found out."""
        rows = [Row(name, Standing.UNMEASURED, "nothing to explain") for name in names]
        return Choice(None, (), f"no recommendation: {reason}", tuple(rows), "", "", settings=self._settings())

    def _choice(self, screened: Screened, refused: Mapping[str, str], ranking: Ranking | None) -> Choice:
        rows = [Row(name, Standing.INAPPLICABLE, reason) for name, reason in refused.items()]
        contests = {} if ranking is None else ranking.contests
        for name, cost in screened.costs.items():
            verdict = self.gate.verdicts.get(name)
            standing, reason = standing_of(name, verdict, ranking)
            scores, reading = scores_of(name, contests), self.readings.get(name, "")
            rows.append(Row(name, standing, reason, verdict, cost, scores, reading))
        answer = None if ranking is None else ranking.front
        return Choice(
            recommended=None if answer is None else answer.recommended,
            tied=() if answer is None else answer.also,
            reason=sentence(rows, ranking, self.samples),
            table=ordered(rows),
            weights_digest="",
            probe_digest="",
            baselines={metric: {b: scores_of(b, contests)[metric] for b in BASELINES} for metric in contests},
            warnings=() if ranking is None else ranking.warnings,
            notes=tuple(self.notes),
            likeness=self._likeness(ranking),
            settings=self._settings(),
            spent={"explanations": float(self.budget.explained), "whole": float(self.gate.whole)},
        )

    def _likeness(self, ranking: Ranking | None) -> Likeness | None:
        """How alike the maps are of the methods that were scored, and where the two best differ most."""
        if ranking is None or len(self.maps) < 2:
            return None
        signed = {name: maps.signed for name, maps in self.maps.items() if bool((maps.signed < 0).any())}
        found = agreement_of({name: maps.magnitude for name, maps in self.maps.items()}, signed)
        first = next(iter(ranking.contests.values()))
        pair = (*first.tied, *(name for name in first.names if name not in first.tied))[:2]
        differing = found.most_different(pair[0], pair[1], _PICTURED) if len(pair) == 2 else ()
        return Likeness(
            found.names,
            {measure: found.matrix(measure).float() for measure in found.by_sample},
            found.clusters,
            differing,
            pair,
        )

    def _settings(self) -> dict[str, Any]:
        walk = self.question.walk
        return {
            "model": type(self.question.model).__name__,
            "samples": self.samples,
            "metrics": list(self.metrics),
            "baselines": list(BASELINES),
            "trials": int(walk["trials"]),  # type: ignore[arg-type]
            "max_steps": walk["max_steps"],
            "seed": walk["seed"],
            "min_psi": walk["criterion"].min_psi if walk["criterion"] is not None else 0.65,
            "budget_seconds": self.budget.seconds,
            "budget_explanations": self.budget.explanations,
        }
