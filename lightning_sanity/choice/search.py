"""The search for a method to show: screen, test, repair, score, compare; as far as the budget reaches."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sanity.attribution import resolve
from lightning_sanity.choice.agreement import agreement_of
from lightning_sanity.choice.budget import Budget
from lightning_sanity.choice.explainable import nothing_to_explain
from lightning_sanity.choice.faithfulness import EFFORTS, Effort, Yardstick, scored, yardstick
from lightning_sanity.choice.gate import LEAST, Gate, looks
from lightning_sanity.choice.halves import Halves, split, tune
from lightning_sanity.choice.options import candidates_of
from lightning_sanity.choice.profile import further_profiles, profile_in
from lightning_sanity.choice.ranking import (
    BASELINES,
    Ranking,
    literature,
    ordered,
    rank,
    scores_of,
    sentence,
    standing_of,
)
from lightning_sanity.choice.screening import Screened, screen
from lightning_sanity.choice.subgroups import Keeping, answers, checked, keeping, warnings_of
from lightning_sanity.choice.subject import Subject, cost_of, subject, value_of
from lightning_sanity.choice.tiers import Tier, price, tiers
from lightning_sanity.choice.variants import other_layers, repairs, settings
from lightning_sanity.explanation.maps import AttributionFailed, Maps
from lightning_sanity.explanation.request import Request, asked_of
from lightning_sanity.parameter_randomization.options import WalkOptions
from lightning_sanity.resources.progress import Forecast
from lightning_sanity.result import pictures
from lightning_sanity.result.choice import Choice, Likeness, Profile, Row, Standing, Tuned
from lightning_sanity.result.verdict import Criterion

_OF_REPAIRS, _OF_TUNING = 0.75, 0.95
"""Parts of all seconds by whose ends repairs and other settings are tested; see ``tiers`` for the candidates."""
_OF_A_TRIAL, _OF_TRYING = 0.05, 0.4
"""Shares of a tier's seconds that one candidate's first map may take, and those of all of them."""
_HANDFUL, _FEWER, _UNKNOWN = 6, (6, 4), 12
"""Methods that a short budget should reach; steps that are walked then; and how many a network may have."""
_FASTEST, _UNPACED, _SLOWEST = 0.2, 1.0, 2.0
"""Bounds of what a test may take of what was promised, and what the first one is taken to."""
UNLABELLED = (
    "labels= was not given: a network that learned permuted labels by heart looks trained, and would get a "
    "recommendation all the same; with labels of samples that it has not seen it is found out"
)
_DIFFERING = 3  # samples on which the two best methods differ most
_TUNED = 3  # methods whose settings are searched, the best first


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

    @property
    def criterion(self) -> Criterion:
        """What a method must show."""
        return self.walk["criterion"] or Criterion()


@dataclass
class Search:
    """A search and what it has found so far.

    Attributes:
        question: What is asked.
        metrics: By which methods are ranked.
        budget: What may be spent.
        forecast: Told of progress. It foresees the test that runs, not those after it.
        gate: The sanity test.
        methods: The candidates, repairs and settings among them.
        costs: Passes of one explanation of each that applies, the cheapest first.
        seconds: What one explanation of one sample takes.
        sharing: Methods that one pass serves together.
        refused: Why others do not apply.
        untried: Those that there was no time to try.
        scores: Per metric and method ``(N,)``.
        readings: How each method's maps are read.
        maps: Of the methods that were scored.
        notes: What a reader should know.
        tuned: Searches over settings.
        dropped: Settings that tuning did not keep.
        samples: How many there are.
        value: The explained input.
        effort: How much is run for the scores.
        pace: What the last test took of what its candidates' first maps promised: many samples at once cost less each.
    """

    question: Question
    metrics: tuple[str, ...]
    budget: Budget
    forecast: Forecast
    gate: Gate = field(default_factory=Gate)
    methods: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sharing: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    untried: dict[str, str] = field(default_factory=dict)
    scores: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    readings: dict[str, str] = field(default_factory=dict)
    maps: dict[str, Maps] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tuned: list[Tuned] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)
    samples: int = 0
    value: Tensor | None = None
    effort: Effort | None = None
    pace: float = _UNPACED

    def answer(
        self, candidates: Any, groups: Any, *, masks: Tensor | None = None, profile: bool = True, tune: bool = False
    ) -> Choice:
        """Which method to show; see ``choose_methods``. Digests and dates are for the caller to add."""
        self.methods, self.refused = candidates_of(candidates, self.question.walk["layer"])  # type: ignore[arg-type]
        asked = self.question.asked()
        with self._on(asked, list(self.methods)) as on:
            self.samples = on.samples
            places = checked(groups, on.samples)
            reason = on.problem or nothing_to_explain(on.model, on.outputs, self.question.labels)
            if reason is not None:
                return self._nothing(reason)
            layers = other_layers(on)
            image = value_of(on.what).ndim == 4
            costs = {name: cost_of(on.methods[name]) for name in self.methods}
            barred = [name for name in costs if literature(name) is not None]
            ordered_tiers = tiers(costs, barred, in_time=self.budget.seconds is not None)
            waiting = self._tried(on, ordered_tiers[0])
        self._gated(asked, waiting, ordered_tiers)
        self._try(asked, repairs(self.gate.verdicts, layers), _OF_REPAIRS)
        if self.gate.problem is not None:
            return self._nothing(f"the sanity test is not valid: {self.gate.problem}")
        passed = self._passed()
        keeps = keeping(self._evidence(passed), places, self.question.criterion)
        allowed = self._allowed(keeps)
        if allowed:
            with self._on(asked, passed) as on:
                self._score(on, allowed, masks)
            if tune:
                self._tune(asked, allowed, layers, image, masks)
                allowed = self._allowed(keeps)
        ranking = rank(self.scores, allowed, self.costs, self.question.walk["seed"]) if self.scores else None
        return self._choice(ranking, places, keeps, profile)

    def _on(self, asked: Request, names: Sequence[str]) -> Any:
        """The subject with these methods."""
        chosen = {name: self.methods[name] for name in names}
        return subject(self.question.model, asked, chosen, self.question.walk, self.budget.deadline)

    def _trying(self, name: str) -> None:
        known = self.costs.keys() | self.refused.keys() | self.untried.keys()
        self.forecast.plan("trying", len([other for other in self.methods if other not in known]))
        self.forecast.did("trying", 1, f"trying {name}")

    def _gated(self, asked: Request, waiting: list[str], tiers: Sequence[Tier]) -> None:
        """Test the candidates that wait, then those of the next tiers; these are not even tried while others wait."""
        untried = list(tiers[1:])
        for tier in tiers:
            if not waiting and tier is not tiers[0]:
                waiting = self._screen(asked, untried.pop(0))
            waiting = self._test(waiting, tier.until, last=tier is tiers[-1])
        for name in itertools.chain(*(tier.names for tier in untried)):
            self.untried[name] = "not tried: the budget was spent on cheaper methods"

    def _screen(self, asked: Request, tier: Tier) -> list[str]:
        """Try candidates on a sample or two; those that apply."""
        if not tier.names:
            return []
        with self._on(asked, tier.names) as on:
            return self._tried(on, tier)

    def _tried(self, on: Subject, tier: Tier) -> list[str]:
        """The same on a subject that is there already, in a share of the seconds up to the tier's end."""
        begun, whole = time.perf_counter(), self.budget.seconds_until(tier.until)

        def worth_trying(seconds: float) -> bool:
            if whole is None:
                return True
            spent = time.perf_counter() - begun
            return seconds <= _OF_A_TRIAL * whole and spent + seconds < _OF_TRYING * whole

        found = screen(on, list(tier.names), self._trying, worth_trying)
        self._screened(found)
        return list(found.costs)

    def _screened(self, found: Screened) -> None:
        self.costs |= found.costs
        self.seconds |= found.seconds
        self.refused |= found.refused
        self.untried |= found.untried
        self.sharing |= found.sharing

    def _passed(self) -> list[str]:
        """What passed so far, the cheapest first."""
        passed = self.gate.passed()
        return [name for name in self.costs if name in passed]

    def _allowed(self, keeps: Keeping) -> list[str]:
        """What may be recommended: it passed, on every group, and nobody has shown it to be insensitive."""
        barred = {*self.dropped, *(name for name, groups in keeps.groups.items() if groups)}
        return [name for name in self._passed() if name not in barred and literature(name) is None]

    def _evidence(self, names: Sequence[str]) -> dict[str, Any]:
        return {name: self.gate.evidence[name] for name in names if name in self.gate.evidence}

    # -------------------------------------------------------------------------------------------------------- the test

    def _test(self, names: Sequence[str], part: float, last: bool = True) -> list[str]:
        """Run the sanity test on as many of the candidates as can be paid for, the cheapest first; those left over.

        Where a budget is short, fewer steps are walked, so that a handful of methods can be compared at all; what is
        left of it after the first ones pays for the next.

        Args:
            names: The cheapest first.
            part: Of all seconds, by whose end to be done.
            last: Whether no more time comes after that.
        """
        pending = list(names)
        while pending and self.gate.problem is None:
            steps, taken = self._affordable(pending, part)
            if not taken and last and self._last_chance(part):
                taken = pending[:1]
            if not taken:
                break
            begun = time.perf_counter()
            promised = sum(price(taken, self.seconds, self.sharing).values()) * self._maps(steps)
            self.gate.run(
                self.question.model,
                self.question.inputs,
                self.question.target,
                {name: self.methods[name] for name in taken},
                {**self.question.test, "max_steps": steps},
                self.budget,
                part=part,
                progress=lambda done, total, label: self.forecast.within(
                    (total - done) / 1000, f"sanity test, {label}"
                ),
            )
            self.pace = min(max((time.perf_counter() - begun) / promised, _FASTEST), _SLOWEST)
            pending = pending[len(taken) :]
        return pending

    def _affordable(self, names: Sequence[str], part: float) -> tuple[int | str | None, list[str]]:
        """How many steps to walk, and the first of the names that can be paid for by that."""
        most = self.question.walk["max_steps"]
        taken: list[str] = []
        steps = most
        for steps in dict.fromkeys([most, *(few for few in _FEWER if few < _count(most))]):
            each = self._maps(steps)
            once = price(names, self.seconds, self.sharing)
            seconds = {name: self.pace * one * each for name, one in once.items()}
            taken = self.budget.affordable(names, seconds, each, part)
            if len(taken) >= min(_HANDFUL, len(names)):
                break
        return steps, taken

    def _last_chance(self, part: float) -> bool:
        """Whether one method is tested although its time does not seem to be enough: the test thins itself to fit."""
        time_left = self.budget.explanations is None and bool(self.budget.seconds_until(part))
        return time_left and not self.gate.verdicts

    def _maps(self, steps: int | str | None) -> int:
        """Explanations of one sample until the first look at a method."""
        return self.samples * (1 + self.question.walk["repeats"] + LEAST * _count(steps))

    def _try(self, asked: Request, names: Sequence[str], part: float) -> None:
        """Screen further methods and put them through the same test."""
        new = [name for name in names if name not in self.methods]
        if not new or self.gate.problem is not None:
            return
        self.methods |= {name: resolve(name) for name in new}
        self._test(self._screen(asked, Tier(tuple(new), part)), part)

    # ------------------------------------------------------------------------------------------------------ the scores

    def _score(self, on: Subject, passed: Sequence[str], masks: Tensor | None) -> None:
        """Score the baselines and, the cheapest first, the methods that passed, as long as the budget lasts."""
        seed, took = self.question.walk["seed"], 0.0
        self.value = value_of(on.what)
        self.effort = self._affordable_effort(on, len(passed))
        if self.effort is None:
            self.notes.append("the budget was spent before any method could be scored")
            return
        by = yardstick(on, masks, self.effort)
        for baseline in BASELINES:
            if not all(baseline in table for table in self.scores.values()) or not self.scores:
                self._keep(baseline, self._baseline(on, baseline, by))
        for place, name in enumerate(passed):
            begun = time.perf_counter()
            if not self.budget.affords(took, on.samples):
                self.notes.append(f"the budget was spent before {', '.join(passed[place:])} could be scored")
                break
            self.forecast.plan("scoring", len(passed) - place)
            self.forecast.did("scoring", 1, f"scoring {name}")
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

    def _affordable_effort(self, on: Subject, methods: int) -> Effort | None:
        """The most that the rest of the budget pays for; what was begun with is kept, for scores must be comparable."""
        if self.effort is not None:
            return self.effort
        begun = time.perf_counter()
        on.what.outputs()
        once = time.perf_counter() - begun
        for effort in EFFORTS:
            if self.budget.affords(effort.passes(methods) * once):
                return effort
        return None

    def _keep(self, name: str, values: Mapping[str, Tensor]) -> None:
        for metric, each in values.items():
            self.scores.setdefault(metric, {})[name] = each

    def _baseline(self, on: Subject, name: str, by: Yardstick) -> dict[str, Tensor]:
        """Scores of a baseline; of several random maps, the mean."""
        assert self.effort is not None
        seed, several = self.question.walk["seed"], self.effort.random_maps if name == "random" else 1
        found = []
        for number in range(several):
            (maps,) = [maps for _, maps in on.maps([name], key=number)]
            found.append(scored(by, maps, self.metrics, seed)[0])
        return {metric: torch.stack([each[metric] for each in found]).mean(0) for metric in found[0]}

    # ------------------------------------------------------------------------------------------------------ the tuning

    def _tune(
        self, asked: Request, allowed: Sequence[str], layers: Sequence[str], image: bool, masks: Tensor | None
    ) -> None:
        """Search settings of the best methods: on one half of the samples, judged on the other."""
        if self.samples < 4:
            self.notes.append(f"{self.samples} samples cannot be halved: nothing was tuned")
            return
        first = next(iter(self.scores.values()))
        best = sorted((name for name in allowed if name in first), key=lambda name: -float(first[name].nanmean()))
        halves = split(self.samples, seed=self.question.walk["seed"])
        for name in best[:_TUNED]:
            tried = [each for each in settings(name, layers, image) if each not in self.methods]
            self._try(asked, tried, _OF_TUNING)
            passed = [each for each in tried if each in self.gate.passed()]
            if not passed:
                continue
            with self._on(asked, passed) as on:
                self._score(on, passed, masks)
            self._settle(name, [each for each in passed if each in first], halves)

    def _settle(self, name: str, tried: Sequence[str], halves: Halves) -> None:
        """Keep one setting of a method in the race; of the half that chose it, it has no score there."""
        first = next(iter(self.scores.values()))
        found = tune({each: first[each] for each in (name, *tried)}, name, halves)
        gain = found.gain.value, found.gain.low, found.gain.high
        self.tuned.append(Tuned(name, found.chosen, found.promised.value, gain, found.kept))
        self.dropped |= {each for each in tried if each != found.kept}
        if found.kept != name:
            for table in self.scores.values():
                table[found.kept] = table[found.kept].index_fill(0, halves.tune, torch.nan)

    # ------------------------------------------------------------------------------------------------------ the answer

    def _nothing(self, reason: str) -> Choice:
        """No recommendation, because nothing could be found out."""
        rows = [Row(name, Standing.UNMEASURED, "nothing to explain") for name in (*self.methods, *self.refused)]
        return Choice(None, (), f"no recommendation: {reason}", tuple(rows), "", "", settings=self._settings())

    def _rows(self, ranking: Ranking | None, keeps: Keeping) -> list[Row]:
        rows = [Row(name, Standing.INAPPLICABLE, reason) for name, reason in self.refused.items()]
        rows += [Row(name, Standing.UNMEASURED, reason) for name, reason in self.untried.items()]
        contests = {} if ranking is None else ranking.contests
        for name, cost in self.costs.items():
            verdict = self.gate.verdicts.get(name)
            standing, reason = standing_of(name, verdict, ranking)
            if keeps.groups.get(name):
                group, why = next(iter(keeps.groups[name].items()))
                standing, reason = Standing.FAILED, f"passed on average and keeps its map on group '{group}': {why}"
            elif name in self.dropped:
                standing, reason = Standing.PASSED, "passed; another setting of the same method is in the race"
            scores, reading = scores_of(name, contests), self.readings.get(name, "")
            rows.append(Row(name, standing, reason, verdict, cost, scores, reading))
        return rows

    def _choice(self, ranking: Ranking | None, places: Mapping[str, Tensor], keeps: Keeping, profile: bool) -> Choice:
        rows = self._rows(ranking, keeps)
        if self.question.labels is None:
            self.notes.append(UNLABELLED)
        contests = {} if ranking is None else ranking.contests
        recommended = None if ranking is None else ranking.front.recommended
        groups = answers(self.scores, ranking, places, keeps, self.question.walk["seed"])
        warnings = [*(() if ranking is None else ranking.warnings), *warnings_of(groups, recommended)]
        return Choice(
            recommended=recommended,
            tied=() if ranking is None else ranking.front.also,
            reason=sentence(rows, ranking, self.samples),
            table=ordered(rows),
            weights_digest="",
            probe_digest="",
            baselines={metric: {b: scores_of(b, contests)[metric] for b in BASELINES} for metric in contests},
            warnings=tuple(warnings),
            notes=tuple(self.notes),
            likeness=self._likeness(ranking),
            groups=groups,
            keeps=keeps.samples,
            profile=self._profile(recommended) if profile and recommended is not None else {},
            tuned=tuple(self.tuned),
            settings=self._settings(),
            spent={"explanations": float(self.budget.explained), "whole": float(self.gate.whole)},
        )

    def _profile(self, recommended: str) -> dict[str, Profile]:
        """What of the weights the recommended method's map depends on, as far as the budget allows."""
        measure = self.gate.verdicts[recommended].measure
        walked = next(result for result in self.gate.results if recommended in result.verdicts)
        own = profile_in(walked, recommended)
        found = {} if own is None else {"cascading": own}
        needed = 2 * self.samples * (1 + self.question.walk["repeats"] + 2 * len(walked.units))
        if measure is None or not self.budget.affords(needed * self.seconds[recommended], needed):
            return found
        self.budget.explained += needed
        options = {**self.question.walk, "labels": self.question.labels}
        asked = self.question.model, self.question.inputs, self.question.target
        return found | further_profiles(*asked, {recommended: self.methods[recommended]}, measure, options)

    def _likeness(self, ranking: Ranking | None) -> Likeness | None:
        """How alike the maps are of the methods that were scored, and where the two best differ most."""
        if ranking is None or len(self.maps) < 2:
            return None
        signed = {name: maps.signed for name, maps in self.maps.items() if bool((maps.signed < 0).any())}
        found = agreement_of({name: maps.magnitude for name, maps in self.maps.items()}, signed)
        first = next(iter(ranking.contests.values()))
        pair = (*first.tied, *(name for name in first.names if name not in first.tied))[:2]
        differing = found.most_different(pair[0], pair[1], _DIFFERING) if len(pair) == 2 else ()
        matrices = {measure: found.matrix(measure).float() for measure in found.by_sample}
        drawn = {name: self.maps[name].signed[list(differing)] for name in pair}
        shown = {name: pictures.small(maps.float()[:, None]) for name, maps in drawn.items()}
        kept = None if self.value is None or not differing else pictures.keep(self.value, differing, (), shown)
        return Likeness(found.names, matrices, found.clusters, differing, pair, kept)

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
            "min_psi": self.question.criterion.min_psi,
            "budget_seconds": self.budget.seconds,
            "budget_explanations": self.budget.explanations,
        }


def _count(steps: int | str | None) -> int:
    """How many steps are walked, as far as that is known before the network is."""
    return steps if isinstance(steps, int) else _UNKNOWN
