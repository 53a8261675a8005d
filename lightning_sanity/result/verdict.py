"""From numbers to a decision: PASS, FAIL or INCONCLUSIVE, with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_sanity.result.psi import LEVEL, Interval, Sensitivity, sensitivity
from lightning_sanity.result.sanity_result import Outcome, Verdict
from lightning_sanity.result.signal import LEAST_EFFECT, Signal, signal


@dataclass(frozen=True)
class Criterion:
    """What a method must show.

    Args:
        min_psi: The parameter sensitivity index whose 95 % interval a passing method's must reach, in ``(0, 1]``. A
            convention, supported by the networks in the project's documentation.
        alpha: Level of the test that maps carry signal: that under a little input noise they resemble themselves more
            than other samples' maps.
        max_dead_rate: Largest share of constant or non-finite maps of the trained model.
        min_separation: How far a measure must tell a map from unrelated ones (distance between ceiling and floor) to
            count, and how far from another sample's map (0) to itself (1) a second run of its method must bring a map.
        max_undefined_rate: Largest share of pairs without a similarity because a re-initialised model's map was
            constant; they are left out. A rectified method often leaves half of them blank and is judged by the rest.
            But whole trials go blank together, so that the rest comes from few of them: in simulated studies of 3 to
            20 trials whose maps vanish like Grad-CAM's, 95 % intervals hold in 93 to 95 % with nothing undefined, in
            79 to 93 % at a share of 0.8, and in 66 to 85 % at 0.9.

    Raises:
        ValueError: If a number is out of its range.
    """

    min_psi: float = 0.65
    alpha: float = 0.05
    max_dead_rate: float = 0.1
    min_separation: float = 0.2
    max_undefined_rate: float = 0.8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise ValueError(f"Criterion: {name} must be a number between 0 and 1, not {value!r}")


@dataclass(frozen=True)
class Scope:
    """What a walk may decide.

    Attributes:
        may_pass: Whether a method can PASS by it.
        may_fail: Whether one can FAIL.
        reason: Why not, and what to do; a sentence that goes on after the index.
    """

    may_pass: bool = True
    may_fail: bool = True
    reason: str = ""


WHOLE = Scope()
_GO_ON = "; use order='cascading' with more than one step"


def scope_of(order: str, walked: int, layers: int) -> Scope:
    """What a walk in this order may decide.

    Only a cascade, walked from the output down in several steps, lets a method pass. Re-initialise all of a network at
    once, or its first layer, and everything above is lost at once: a method that ignores the upper layers, as Guided
    Grad-CAM does, looks harmless. One random block alone hardly changes a residual network.

    Args:
        order: See ``parameter_randomization_test``.
        walked: Depths that count.
        layers: Steps of the network, layer by layer.
    """
    if order == "independent":
        return Scope(False, False, f"one layer at a time says which one a map reads and judges nothing{_GO_ON}")
    if order in ("bottom_up", "full") and layers > 1:
        what = "from the input up" if order == "bottom_up" else "all at once"
        return Scope(may_pass=False, reason=f"re-initialising {what} can refuse a method and never pass one{_GO_ON}")
    if walked < 2 <= layers:
        return Scope(
            may_pass=False, reason=f"one step for {layers} layers can refuse a method and never pass one{_GO_ON}"
        )
    return WHOLE


@dataclass(frozen=True)
class Evidence:
    """What ``judge`` looks at for one method.

    Attributes:
        values: Per verdict measure ``(trials, depths, N)``.
        floor: The same for unrelated samples.
        ceiling: Per verdict measure ``(repeats, N)``.
        noise: See ``signal.signal``.
        cross: See ``signal.signal``.
        dead: Share of constant or non-finite maps of the trained model.
        trivial: Why no measurement could decide (not applicable, an error, ...), or None.
        half: Whether it was measured in 16-bit precision, which may be why a map is constant or not finite.
        again: Spearman of magnitude between two runs under different seeds ``(repeats, N)``; None if they are equal.
        weights: Of the depths, see ``psi.depth_weights``; none = all alike.
        scope: What the walk may decide.
    """

    values: Mapping[str, Tensor]
    floor: Mapping[str, Tensor]
    ceiling: Mapping[str, Tensor]
    noise: Tensor | None
    cross: Tensor | None
    dead: float
    trivial: str | None = None
    half: bool = False
    again: Tensor | None = None
    weights: Sequence[float] = ()
    scope: Scope = WHOLE


@dataclass(frozen=True)
class Wording:
    """How a test words its verdicts.

    Attributes:
        index: Name of the index that is compared with ``Criterion.min_psi``.
        kept: What a failing map did.
        same: What one did that did not change at all.
        changed: What a passing map did.
        unit: What was repeated, in the plural.
        least: So many of them are needed for a PASS.
        too_few: What to say, and advise, below that.
    """

    index: str
    kept: str
    same: str
    changed: str
    unit: str
    least: int
    too_few: str


WEIGHTS = Wording(
    index="PSI",
    kept="the map keeps too much of itself when the weights are noise",
    same="the map is the same when all weights are random: it does not look at them",
    changed="the map changes with the weights",
    unit="trials",
    least=2,
    too_few="one trial is not evidence: {}; use trials=5 or more",
)

HALF = (
    "; this was measured in 16-bit precision, in which small gradients become zero and large ones infinite: use "
    'precision="32" of the callback, or without one model.float()'
)
"""What to add to a reason where the precision may be the cause."""

NOT_APPLICABLE = "not applicable"
"""What the reason begins with where a method means nothing on a model."""

_CUT_OFF = "a method that cuts off negative values, as Grad-CAM does, may leave nothing of a map"
_INSTEAD = f"; explain other samples or take another method: {_CUT_OFF}"

_MENTIONED = 0.1  # share of undefined pairs from which a reason says so

SIGNED, _RANKS = "spearman_signed", "spearman"
MEASURES = (_RANKS, "spearman_support", SIGNED, "ssim")
"""What a verdict rests on: failures show in different ones. Rank correlation of magnitudes sees an input factor, its
sign sees what magnitudes hide, and structural similarity sees shapes."""


_SAME = 1e-5  # by which rounding moves the similarity of equal maps


def judge(evidence: Evidence, criterion: Criterion, *, gated: bool = True, level: float = LEVEL) -> Verdict:
    """The verdict on one method.

    PASS needs the whole interval of every measure at or above ``min_psi``; FAIL needs one measure's whole interval
    below, or a map that stays the same when all weights are random; whatever is undefined, or carries no signal, is
    INCONCLUSIVE. Intervals are of this ``level``.
    """
    if evidence.trivial is not None:
        return Verdict(Outcome.INCONCLUSIVE, evidence.trivial, gated=gated)
    found = {
        name: sensitivity(
            evidence.values[name],
            evidence.floor[name],
            evidence.ceiling[name],
            absolute=name == SIGNED,
            weights=evidence.weights,
            level=level,
        )
        for name in evidence.values
        if not bool(evidence.values[name].isnan().all())
    }
    telling = {name: s for name, s in found.items() if s.separation >= criterion.min_separation}
    blind = [name for name in found if name not in telling]
    if not telling.keys() - {SIGNED}:  # the sign alone does not show what an input's magnitude hides
        telling, flat = found, _flat(found, evidence, criterion)
    else:
        flat = None
    trials = min((informative(evidence.values[name]) for name in telling), default=0)
    verdict = conclude(telling, evidence, criterion, WEIGHTS, trials, flat, gated=gated)
    if verdict.outcome is Outcome.PASS:
        own = _own_noise(evidence, criterion)
        verdict = verdict if own is None else replace(verdict, outcome=Outcome.INCONCLUSIVE, reason=own)
    if flat is None and blind and math.isfinite(verdict.psi):
        verdict = replace(verdict, reason=f"{verdict.reason} ({', '.join(blind)} cannot tell, and is left out)")
    return verdict


def reproducibility(again: Tensor | None) -> float:
    """How far two runs of a method under different seeds agree, mean Spearman of magnitude; 1 if they are equal."""
    return 1.0 if again is None else float(again.double().nanmean())


def informative(values: Tensor) -> int:
    """How many trials of ``(trials, depths, N)`` hold a similarity at all."""
    return int((~values.isnan()).flatten(1).any(1).sum())


def conclude(
    found: Mapping[str, Sensitivity],
    evidence: Evidence,
    criterion: Criterion,
    question: Wording,
    repeats: int,
    flat: str | None,
    *,
    gated: bool,
) -> Verdict:
    """The verdict from the index of every measure.

    Args:
        found: Per measure, its index.
        evidence: What it was computed from.
        criterion: What a method must show.
        question: What was asked, for the reason.
        repeats: How many ``question.unit`` there are.
        flat: Why the index means nothing, if so.
        gated: Whether the method counts.
    """
    half = HALF if evidence.half else ""
    if not found:
        return Verdict(Outcome.INCONCLUSIVE, _incomparable(evidence) + half, gated=gated)
    worst = min(found, key=lambda name: found[name].psi.value if math.isfinite(found[name].psi.value) else -math.inf)
    psi_of = {name: (s.psi.value, s.psi.low, s.psi.high) for name, s in found.items()}
    verdict = _by(worst, found, Verdict(Outcome.INCONCLUSIVE, "", gated=gated, psi_of=psi_of))
    undefined = float(evidence.values[worst].isnan().double().mean())
    if evidence.dead <= criterion.max_dead_rate and _unchanged(evidence, criterion):
        return replace(verdict, outcome=Outcome.FAIL, reason=question.same)
    no_signal = _without_signal(evidence, criterion) or _unstable(evidence, criterion)
    if no_signal is None and undefined > criterion.max_undefined_rate:
        no_signal = (
            f"{undefined:.0%} of the pairs have no similarity, because the other model's map was constant (at most "
            f"{criterion.max_undefined_rate:.0%} allowed), and the rest comes from too few {question.unit}: more of "
            f"them, or another method, would tell; {_CUT_OFF}"
        )
    if no_signal is not None or flat is not None:
        # An index that tells nothing means nothing; NaN says so.
        reason = flat or "" if no_signal is None else no_signal + (half if gated else "")
        return replace(verdict, reason=reason, psi=math.nan, psi_low=math.nan, psi_high=math.nan)
    samples = evidence.values[worst].shape[-1]
    decisive, outcome, reason = _decide(found, criterion, question, repeats, samples)
    outcome, reason = _within(evidence.scope, outcome, reason)
    undefined = float(evidence.values[decisive].isnan().double().mean())
    if undefined > _MENTIONED:
        reason += f" ({undefined:.0%} of the pairs are left out: the other model's map was constant)"
    return _by(decisive, found, replace(verdict, outcome=outcome, reason=reason))


def _by(name: str, found: Mapping[str, Sensitivity], verdict: Verdict) -> Verdict:
    """The verdict with the index of this measure."""
    index = found[name]
    return replace(
        verdict,
        measure=name,
        psi=index.psi.value,
        psi_low=index.psi.low,
        psi_high=index.psi.high,
        psi_first=index.first,
        psi_last=index.last,
    )


def _within(scope: Scope, outcome: Outcome, reason: str) -> tuple[Outcome, str]:
    """The decision as far as the walk may decide."""
    allowed = {Outcome.PASS: scope.may_pass, Outcome.FAIL: scope.may_fail, Outcome.INCONCLUSIVE: scope.may_fail}
    if allowed[outcome]:
        return outcome, reason
    return Outcome.INCONCLUSIVE, f"{scope.reason} ({reason})"


def is_open(verdict: Verdict, criterion: Criterion) -> bool:
    """Whether more trials could decide it: an interval straddles the threshold and nothing else speaks against it."""
    return (
        verdict.outcome is Outcome.INCONCLUSIVE
        and math.isfinite(verdict.psi)
        and any(low < criterion.min_psi <= high for _, low, high in verdict.psi_of.values())
    )


def _unchanged(evidence: Evidence, criterion: Criterion) -> bool:
    """Whether the map is the same with all weights random: by every measure that is defined, at the last step."""
    if not evidence.scope.may_fail or _unstable(evidence, criterion) is not None:
        return False
    last = [
        abs(float(evidence.ceiling[name].double().nanmean() - values[:, -1].double().nanmean()))
        for name, values in evidence.values.items()
        if not bool(values.isnan().all())
    ]
    return bool(last) and all(gap <= _SAME for gap in last)


def _incomparable(evidence: Evidence) -> str:
    """Why not one pair of maps has a similarity."""
    if evidence.dead >= 1:
        return f"every map of the trained model is constant or not finite{_INSTEAD}"
    return (
        "no two maps can be compared: wherever the trained model's map is not constant, the other models' maps are "
        f"constant or not finite{_INSTEAD}"
    )


def _unstable(evidence: Evidence, criterion: Criterion) -> str | None:
    """Why a second run of the method says that the first one means nothing, if so."""
    if evidence.again is None:
        return None
    agreement = reproducibility(evidence.again)
    unrelated = 0.0 if evidence.cross is None else float(evidence.cross.double().nanmean().nan_to_num(0.0))
    if agreement >= unrelated + criterion.min_separation * (1 - unrelated):
        return None
    return (
        f"unstable: two runs of the method under different seeds agree only by {agreement:.2f} (rank correlation), and "
        f"maps of different samples by {unrelated:.2f}: give it more samples (n_samples)"
    )


def _own_noise(evidence: Evidence, criterion: Criterion) -> str | None:
    """Why what changed may be the noise of the method's own draws and not the weights, if so.

    Maps with noise of their own are never alike, whatever the weights: attenuation, Spearman 1904. Where a re-run is
    the ceiling, the noise is in both of what is compared. That index is at most the true one, because under one seed
    some of the noise is shared by both models, so that it can refuse a PASS and never give a FAIL.
    """
    if evidence.again is None or _RANKS not in evidence.values:
        return None
    values, floor = evidence.values[_RANKS], evidence.floor[_RANKS]
    corrected = sensitivity(values, floor, evidence.again, weights=evidence.weights).psi.value
    if corrected >= criterion.min_psi:
        return None
    plain = sensitivity(values, floor, evidence.ceiling[_RANKS], weights=evidence.weights).psi.value
    return (
        f"two runs of the method under different seeds agree only by {reproducibility(evidence.again):.2f} (rank "
        f"correlation), and PSI lies between {corrected:.2f}, measured against that, and {plain:.2f}: part of what "
        "changes may be the method's own noise; give it more samples (n_samples)"
    )


def _without_signal(evidence: Evidence, criterion: Criterion) -> str | None:
    if evidence.dead > criterion.max_dead_rate:
        return (
            f"{evidence.dead:.0%} of the trained model's maps are constant or not finite "
            f"(at most {criterion.max_dead_rate:.0%} allowed){_INSTEAD}"
        )
    guard = Signal(math.nan, math.nan)
    if evidence.noise is not None and evidence.cross is not None:
        guard = signal(evidence.noise, evidence.cross)
    if guard.found(criterion.alpha):
        return None
    samples = 0 if evidence.noise is None else evidence.noise.shape[-1]
    if samples == 1:
        return "one sample has no other sample's map to be compared with: use a probe of 16 or more"
    if samples == 2:
        return "two samples are too few to tell signal from noise: use a probe of 16 or more"
    if _alike(evidence.cross):
        return _ONE_MAP
    if guard.separation >= LEAST_EFFECT:
        return (
            "the maps carry no signal that can be told from chance: under a little input noise a map resembles itself "
            f"more than another sample's map on average (by {guard.separation:.2f}), but not reliably (p = "
            f"{guard.p:.2g}, at most {criterion.alpha:g} allowed): use a larger probe, of more different samples"
        )
    if evidence.cross is not None and float(evidence.cross.double().nanmean()) >= _NEARLY_THE_SAME:
        return (
            f"the maps hardly differ between samples: they resemble one another by "
            f"{float(evidence.cross.double().nanmean()):.2f}, as gradients of a nearly linear model do: related and "
            f"unrelated samples are {guard.separation:.2f} apart (at least {LEAST_EFFECT:g} needed); use samples that "
            "differ more, or look at the weights instead"
        )
    return (
        "the maps carry no signal: under a little input noise a map resembles itself hardly more than another "
        f"sample's map (by {guard.separation:.2f}; at least {LEAST_EFFECT:g} needed)"
    )


_NEARLY_THE_SAME = 0.8
"""Mean similarity of different samples' maps from which on what keeps them from being told apart is no noise."""
_ONE_MAP = (
    "the map is the same for every sample, as the gradient of a linear model is: it may be exact, but it says nothing "
    "of a sample, so that maps of related and of unrelated samples cannot be told apart; look at the weights instead"
)


def _alike(cross: Tensor | None) -> bool:
    """Whether maps of different samples are the same."""
    return cross is not None and bool(cross.isfinite().any()) and float(cross.double().nanmean()) >= 1 - _SAME


def _flat(found: Mapping[str, Sensitivity], evidence: Evidence, criterion: Criterion) -> str | None:
    """Why no measure of magnitude can tell similar from unrelated maps, if none can."""
    known = {name: s.separation for name, s in found.items() if name != SIGNED and math.isfinite(s.separation)}
    if not known:
        return "no other sample's map is there to be compared with" if found else None
    if _alike(evidence.cross):
        return _ONE_MAP
    name = max(known, key=lambda key: known[key])
    return (
        f"no measure of magnitude can tell similar from unrelated maps: their ceiling and floor are at most "
        f"{known[name]:.2f} apart ({name}; at least {criterion.min_separation:g} needed)"
    )


def _decide(
    found: Mapping[str, Sensitivity], criterion: Criterion, question: Wording, repeats: int, samples: int
) -> tuple[str, Outcome, str]:
    """The measure that decides, what it decides, and why: a number is never shown beside another measure's verdict.

    A measure decides by the end of its interval that meets the threshold: FAIL by the lowest upper end, PASS and
    INCONCLUSIVE by the lowest lower end.
    """
    threshold, index = criterion.min_psi, question.index
    failing = [name for name, s in found.items() if s.psi.high < threshold]
    if failing:
        name = min(failing, key=lambda name: found[name].psi.high)
        return name, Outcome.FAIL, f"{question.kept}: {index} {_shown(name, found)}, below {threshold:g}"
    weakest = min(found, key=lambda name: _lower_end(found[name].psi))
    psi = found[weakest].psi
    if repeats < question.least:
        return weakest, Outcome.INCONCLUSIVE, question.too_few.format(f"{index} {psi.value:.2f} by {weakest}")
    if psi.low >= threshold:
        return weakest, Outcome.PASS, f"{question.changed}: {index} {_shown(weakest, found)}, at least {threshold:g}"
    settles = _what_would_settle(psi, threshold, repeats, question.unit, samples)
    return weakest, Outcome.INCONCLUSIVE, f"{index} {_shown(weakest, found)} straddles {threshold:g}; {settles}"


def _lower_end(psi: Interval) -> float:
    """Of the interval; of an index without one, the index: a single trial and sample still have a weakest measure."""
    end = psi.low if math.isfinite(psi.low) else psi.value
    return end if math.isfinite(end) else -math.inf


def _shown(name: str, found: Mapping[str, Sensitivity]) -> str:
    """``value [low, high] by measure``."""
    psi = found[name].psi
    return f"{psi.value:.2f} [{psi.low:.2f}, {psi.high:.2f}] by {name}"


_HOPELESS = 25
"""So many times the data are no advice: the threshold is a convention, and a closer look is not worth that much."""


def _what_would_settle(psi: Interval, threshold: float, repeats: int, unit: str, samples: int) -> str:
    """How many repeats or samples would narrow the interval past the threshold, whichever causes more of its width."""
    half = (psi.value - psi.low) if psi.value >= threshold else (psi.high - psi.value)
    distance = abs(psi.value - threshold)
    factor = (half / distance) ** 2 if distance else math.inf
    if not factor <= _HOPELESS:
        return "it lies too close to the threshold for more data to settle"
    if psi.trial_share >= 0.5:
        return f"about {math.ceil(repeats * factor)} {unit} instead of {repeats} would settle it"
    return f"about {math.ceil(samples * factor)} samples instead of {samples} would settle it"
