"""The data randomization test of Adebayo et al. 2018: models trained on true and on random labels in, verdicts out.

Every model is explained once on the same probe and for the same classes; then only maps are compared. Models of one
kind that differ in their training seed say how alike maps are when nothing but chance changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from typing_extensions import Unpack

from lightning_sanity.attribution import resolve_all
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.data_randomization.comparison import Comparison
from lightning_sanity.data_randomization.distinct import (
    check_architectures,
    check_functions,
)
from lightning_sanity.data_randomization.groups import Groups
from lightning_sanity.data_randomization.learned_labels import Memorization
from lightning_sanity.explanation.guests import Guests
from lightning_sanity.explanation.kinds import drawable
from lightning_sanity.explanation.lineup import Lineup, Methods, lineup
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.measurements import (
    Track,
    Trials,
    agreement_of,
    correlation_of,
    evidence_of,
    grounds_of,
    spread_of,
)
from lightning_sanity.explanation.options import (
    DEFAULTS,
    METHODS,
    CommonOptions,
    check_common,
    check_number,
    known,
    layer_in,
    spelled_out,
)
from lightning_sanity.explanation.preparation import (
    explained_target,
    in_half,
    prepared_methods,
    quiet_copy,
)
from lightning_sanity.explanation.probe import batch_size, different
from lightning_sanity.explanation.provenance import provenance, settings_of
from lightning_sanity.explanation.reach import too_narrow, within_reach
from lightning_sanity.explanation.request import Request, asked_of
from lightning_sanity.explanation.suitable_measures import suited, support_in
from lightning_sanity.explanation.targets import Target
from lightning_sanity.explanation.tokens import Tokens
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.resources.progress import Forecast, Progress, progress_bar
from lightning_sanity.result import pictures as pictures_module
from lightning_sanity.result.controls import COMPARISON, validated, wrong_control
from lightning_sanity.result.curve import Curve
from lightning_sanity.result.dri import judge_labels, label_permutation
from lightning_sanity.result.evidence import OF_LABELS, RANDOM_LABELS, UNCHECKED, unchecked
from lightning_sanity.result.sanity_result import (
    Coverage,
    Grounds,
    Outcome,
    OutputChange,
    Pictures,
    SanityResult,
    UnitCoverage,
    Verdict,
)
from lightning_sanity.result.verdict import SIGNED, Criterion, Evidence
from lightning_sanity.similarity import Similarity


@spelled_out(CommonOptions, DEFAULTS)
def data_randomization_test(
    model: nn.Module | Sequence[nn.Module],
    random_label_model: nn.Module | Sequence[nn.Module],
    inputs: Any,
    target: Tensor | int | Target | Callable[[Any], Tensor] | None = None,
    *,
    methods: str | AttributionFn | Sequence[Any] | Mapping[str, Any] = METHODS,
    memorization: Memorization | pl.LightningDataModule | Sequence[pl.LightningDataModule] | None = None,
    min_train_accuracy: float = 0.95,
    labels: Tensor | None = None,
    pictures: bool = True,
    progress: Progress | bool | None = None,
    **options: Unpack[CommonOptions],
) -> SanityResult:
    """Do attributions depend on what the model learned? The data randomization test.

    Models of one architecture, trained on the true and on random labels, explain the same inputs. The data
    randomization index of a similarity is ``DRI = (S_seed - S_perm) / (S_seed - U)``: ``S_perm`` between models of
    different kind, ``S_seed`` between true-label models of different seeds, ``U`` between unrelated samples. 1 = as
    different as unrelated maps, 0 = no more different than after training again. The smallest counts, over the
    similarities in which ``S_seed`` is above ``U`` at all.

    With one true-label model there is no ``S_seed``; 1, the same model explained again, takes its place, which leaves
    the effect of the training seed in the index. So a PASS takes three models of each kind; a FAIL does not. Copies of
    one model count as one and are refused.

    Args:
        model: The model, or several that were trained on the true labels with different seeds.
        random_label_model: The same architecture trained on random labels: one, or several.
        inputs: The probe; see ``parameter_randomization_test``.
        target: What to explain, for all models; None = the prediction of the true-label models (of their mean
            probabilities). What a ``Target`` asks of each sample is chosen on the first of them.
        methods: See ``parameter_randomization_test``.
        memorization: How well each model learned its labels; without it no verdict stands. A ``Memorization``, or what
            it is measured on: the ``RandomLabelDataModule`` that the random-label models were trained with, one for
            each where their seeds differ.
        min_train_accuracy: Training accuracy from which on a model has learned its labels; of numbers the explained
            variance, of masks the IoU, see ``tallies.Score``.
        labels: The samples' true classes; see ``parameter_randomization_test``.
        pictures: Keep small pictures of some inputs, and of the maps of the first model of each kind.
        progress: See ``parameter_randomization_test``.
        **options: See ``CommonOptions``. Of the criterion, ``min_psi`` is what DRI must reach, and ``min_separation``
            is used for the noise guard only.

    Returns:
        One step, ``"random labels"``: ``curves`` holds a row per pair of a true-label and a random-label model, the
        pairs of true-label models as ceiling, and as floor the mean over several other samples (of absolute values
        for signed rank correlation); the fields called ``psi`` hold DRI. ``p_dependence`` is the probability under
        exchange of the kinds, see ``dri.label_permutation``. Digests of all models are in ``settings``; ``coverage``
        says which parameters differ between the kinds.

    Raises:
        ValueError: If an argument is wrong, the models differ in architecture, or two of one kind are one model.
        CloneError: If a model cannot be copied into a live model of its own.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv:1810.03292).
    """
    started = time.perf_counter()
    given = cast(CommonOptions, known(options, DEFAULTS, "data_randomization_test()"))
    check_common(given)
    models = Groups.of(model, random_label_model)
    given["layer"] = layer_in(models.true[0], given["layer"])
    check_number("min_train_accuracy", min_train_accuracy, above=0.0, most=1.0)
    check_architectures(models.all)
    gated = {
        name for name, method in resolve_all(methods, cast("str | None", given["layer"])).items() if not method.control
    }
    models.check_distinct()
    learned = models.memorization(memorization, given["forward"])
    unmet = learned.unmet(*models.sizes, min_train_accuracy) if learned is not None else None
    asked = asked_of(models.true[0], _single(inputs), target, given, labels)
    with _prepared(models, asked, methods, given) as ready:
        with progress_bar(progress) as tick:
            found = _compared(ready, given, tick)
        kept_pictures = _pictures(found.tracks, ready, given["tokens"]) if pictures else None
    tracks = found.measured
    return SanityResult(
        units=(RANDOM_LABELS,),
        curves={
            (name, key): Curve(trials.values[key], trials.floor[key], tracks[name].ceiling[key])
            for name, trials in found.trials.items()
            for key in trials.values
        },
        reproducibility={name: track.again for name, track in tracks.items() if track.again is not None},
        output_change=_output_change(ready.outputs, models.sizes, found.tracks.get(COMPARISON)),
        coverage=_coverage(ready),
        settings=_settings(ready, given, gated, learned, min_train_accuracy) | {"pictures": pictures},
        weights_digest=weights_digest(models.true[0]),
        pictures=kept_pictures,
        **_judged(found, ready, given, gated, learned, unmet),
        **provenance(_single(inputs), ready.device, started),
    )


def check_explainable(model: nn.Module, inputs: Any, options: Mapping[str, Any]) -> None:
    """Raise what ``data_randomization_test`` would, on a model that is not trained yet.

    Args:
        model: One of them; nothing is checked while it has no parameters.
        inputs: The probe.
        options: Arguments of the test by name.
    """
    if next(model.parameters(), None) is None:
        return
    methods, target = options.get("methods", METHODS), options.get("target")
    given = cast(CommonOptions, {**DEFAULTS, **{key: options[key] for key in DEFAULTS if key in options}})
    asked = asked_of(model, _single(inputs), target, given, options.get("labels"))
    with _prepared(Groups([model], [model]), asked, methods, given):
        pass


# ---------------------------------------------------------------------------------------------- prepare and compare


_COMPARED = 0.1  # passes that comparing a method's maps takes, roughly


@dataclass(frozen=True)
class _Ready:
    """Copies of all models, what is explained on each, and how."""

    models: Groups
    device: torch.device
    values: Any
    outputs: Tensor
    asked: Request
    lined: Lineup
    used: Sequence[Similarity]
    support: Tensor | None
    problem: str | None
    half: bool
    guests: Guests


@dataclass(frozen=True)
class _Found:
    """Why methods mean nothing on these models, and what was measured of the others; see ``Comparison.of``."""

    refused: Mapping[str, str]
    tracks: Mapping[str, Track]
    likeness: Mapping[str, Mapping[str, Tensor]]

    @property
    def measured(self) -> dict[str, Track]:
        """Of every method that was not given up."""
        return {name: track for name, track in self.tracks.items() if track.error is None}

    @property
    def trials(self) -> dict[str, Trials]:
        return {name: track.trials for name, track in self.measured.items() if track.trials is not None}


@contextmanager
def _prepared(models: Groups, asked: Request, methods: Methods, given: CommonOptions) -> Iterator[_Ready]:
    with ExitStack() as stack:
        copies = [
            stack.enter_context(quiet_copy(each, asked.inputs, asked.forward, given["clone_fn"], given["seed"]))
            for each in models.all
        ]
        check_functions([partial(_few_explained, explained, of) for _, explained, of, *_ in copies])
        device, values = copies[0][3], copies[0][2]
        outputs = torch.stack([graph.outputs.to(device) for *_, graph in copies])  # (K, N, ...)
        half = any(in_half(copied, at) for copied, _, _, at, *_ in copies)
        learned = outputs[: len(models.true)]
        target_, problem = explained_target(asked.target, models.prediction(outputs), batch_size(values), half)
        if batch_size(values) < 2:
            problem = problem or "at least 2 samples are needed to tell similar from unrelated maps"
        guests = Guests([(theirs, copied) for theirs, (copied, *_) in zip(models.all, copies, strict=True)])
        whats = [
            Explanation(explained, each, None if target_ is None else target_.to(at), question=asked.place)
            for _, explained, each, at, *_ in copies
        ]
        lined = lineup(methods, whats, learned, asked, given, guests)
        mask = lined.mask
        if problem is None:
            mask, narrowed = within_reach(lined.subjects, lined.place, mask, given["seed"])
            lined, problem = replace(lined, notes=lined.notes + narrowed), too_narrow(mask)
        support = support_in(values)
        kind = asked.kind(opened=lined.place is not None)
        used = suited(given["similarities"], first(values), support, mask, kind=kind)
        yield _Ready(models, device, values, outputs, asked, lined, used, support, problem, half, guests)


def _few_explained(explained: nn.Module, values: Any) -> Any:
    """A pass of two samples, as many as every network takes that normalises over its batch."""
    few = tree_map(lambda t: t[:2] if isinstance(t, Tensor) else t, values)
    try:
        return _call(explained, few)
    except ValueError:  # it takes no other batch size
        return _call(explained, values)


def _call(explained: nn.Module, values: Any) -> Any:
    return explained(*values) if isinstance(values, tuple) else explained(values)


def _compared(ready: _Ready, given: CommonOptions, tick: Progress | None) -> _Found:
    subjects, methods = ready.lined.subjects, ready.lined.methods
    comparison = Comparison(
        len(ready.models.true), subjects, ready.used, ready.support, ready.device, given["repeats"], given["seed"]
    )
    refused: dict[str, str] = {}
    tracks: dict[str, Track] = {}
    likeness: dict[str, dict[str, Tensor]] = {}
    forecast, maps = Forecast(tick), {name: method.passes + _COMPARED for name, method in methods.items()}
    forecast.plan("methods", sum(maps.values()))
    for name, method in methods.items():
        refusals, functions = _functions(name, method, subjects)
        if refusals:
            refused[name] = refusals
        else:
            tracks[name], likeness[name] = comparison.of(method, functions)
        forecast.did("methods", maps[name], name)
    return _Found(refused, tracks, likeness)


def _pictures(tracks: Mapping[str, Track], ready: _Ready, tokens: Tokens | None) -> Pictures | None:
    values = ready.values
    kind = ready.asked.kind(opened=ready.lined.place is not None)
    if not drawable(first(values), kind):
        return None
    drawn = {name: track.pictures for name, track in tracks.items() if track.pictures is not None}
    chosen, words = pictures_module.samples(batch_size(values)), None if tokens is None else tokens.words
    return pictures_module.keep(first(values), chosen, (0,), drawn, kind=kind.name, words=words)


def _single(inputs: Any) -> Any:
    """The inputs; of a tuple of one, that one."""
    return inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else inputs


def _functions(name: str, method: Method, subjects: Sequence[Explanation]) -> tuple[str | None, list[AttributionFn]]:
    """Why the method means nothing on one of the models, or how it attributes on each."""
    functions: list[AttributionFn] = []
    for what in subjects:
        refused, prepared = prepared_methods({name: method}, what)
        if refused:
            return refused[name], []
        method, function = prepared[name]  # what the first model settled holds for all
        functions.append(function)
    return None, functions


# ------------------------------------------------------------------------------------------------------------ verdicts


def _judged(
    found: _Found,
    ready: _Ready,
    given: CommonOptions,
    gated: set[str],
    learned: Memorization | None,
    unmet: str | None,
) -> dict[str, Any]:
    """The fields of a result that say what the numbers mean."""
    groups, criterion = ready.models.sizes, given["criterion"] or Criterion()
    verdicts = {
        name: Verdict(Outcome.INCONCLUSIVE, found.refused[name], gated=name in gated)
        if name in found.refused
        else _judge(
            evidence_of(found.tracks[name], ready.problem, ready.half),
            found.likeness[name],
            groups,
            criterion,
            name in gated,
        )
        for name in ready.lined.methods
    }
    wrong = unmet or ready.problem or ready.models.one_as_several(ready.outputs) or _repeated(ready.values)
    if learned is None or not learned.label_agreement:
        wrong = wrong or ready.models.alike(ready.outputs)
    if learned is not None:  # else no verdict stands, and a control's duty is to models that learned their labels
        wrong = wrong or wrong_control(verdicts)
    verdicts, valid, validity = validated(verdicts, wrong)
    if learned is None:
        verdicts = {name: unchecked(verdict) for name, verdict in verdicts.items()}
        validity = validity if wrong else UNCHECKED
    elif wrong is None and (untold := learned.untold()):
        validity += f"; {untold}"
    grounds = {name: Grounds(trivial=reason) for name, reason in found.refused.items()}
    grounds |= {name: grounds_of(track, ready.problem, ready.half) for name, track in found.tracks.items()}
    return {"verdicts": verdicts, "valid": valid, "validity": validity, "grounds": grounds}


def _repeated(inputs: Any) -> str | None:
    """Whether the probe holds so few samples so often that its intervals mean nothing."""
    samples, apart = batch_size(inputs), different(inputs)
    if samples >= 2 * apart:
        return f"only {apart} of the {samples} samples differ from one another: explain each once"
    return None


def _judge(
    evidence: Evidence,
    likeness: Mapping[str, Tensor],
    groups: tuple[int, int],
    criterion: Criterion,
    gated: bool,
) -> Verdict:
    verdict = judge_labels(evidence, groups, criterion, gated=gated)
    if groups[0] < 2 or evidence.trivial is not None:
        return verdict
    tables = [likeness[name].abs() if name == SIGNED else likeness[name] for name in evidence.values]
    return replace(verdict, p_dependence=label_permutation(torch.stack(tables).nanmean((0, 3)), groups[0]))


# --------------------------------------------------------------------------------------------------------- the record


def _settings(
    ready: _Ready,
    given: CommonOptions,
    gated: set[str],
    learned: Memorization | None,
    min_train_accuracy: float,
) -> dict[str, Any]:
    true, permuted = ready.models.true, ready.models.permuted
    compared = ready.lined.methods, gated, ready.used, ready.asked, ready.lined.place, ready.values
    return settings_of(OF_LABELS, *compared) | {
        "models": list(ready.models.sizes),
        "ceiling": "true-label models of other seeds" if len(true) > 1 else "the same model under the same seed",
        "memorization": None if learned is None else _plain(asdict(learned)),
        "min_train_accuracy": min_train_accuracy,
        "weights_digests": [weights_digest(each) for each in true],
        "random_label_digests": [weights_digest(each) for each in permuted],
        "repeats": given["repeats"],
        "output": given["output"],
        "channel_axis": given["channel_axis"],
        "feature_axis": given["feature_axis"],
        "seed": given["seed"],
        "model": type(true[0]).__name__,
        "criterion": asdict(given["criterion"] or Criterion()),
    }


def _output_change(outputs: Tensor, groups: tuple[int, int], gradient: Track | None) -> OutputChange:
    """Permuted-label against true-label predictions, a row per pair."""
    true, permuted = outputs[: groups[0]], outputs[groups[0] :]  # (Ks, N, ...), (Kr, N, ...)
    spread = [spread_of(each).float().cpu() for each in (true, permuted)]
    ratio = torch.full((groups[0] * groups[1],), torch.nan, dtype=torch.float32)
    if gradient is not None and gradient.norm is not None and gradient.trials is not None:
        ratio = (gradient.trials.norm / gradient.norm[:, None]).flatten()
    return OutputChange(
        agreement=torch.cat([agreement_of(each, permuted[:, None]) for each in true]).cpu(),
        correlation=torch.cat([correlation_of(each, permuted[:, None]) for each in true]).cpu(),
        gradient_ratio=ratio,
        spread_ratio=(spread[1] / spread[0][:, None]).flatten(),
    )


def _coverage(ready: _Ready) -> Coverage:
    """Which parameters differ between the kinds; equal ones, as in a frozen backbone, are named, not forbidden."""
    names, counts, changes = [], [], []
    others = [dict(each.named_parameters()) for each in ready.models.permuted]
    for name, parameter in ready.models.true[0].named_parameters():
        reference = parameter.detach().float().cpu()
        norms = [float((each[name].detach().float().cpu() - reference).norm()) for each in others]
        names.append(name)
        counts.append(parameter.numel())
        changes.append(min(norms) / max(float(reference.norm()), torch.finfo(torch.float32).tiny))
    kept = tuple(name for name, change in zip(names, changes, strict=True) if change == 0)
    changed = sum(count for count, change in zip(counts, changes, strict=True) if change > 0)
    notes = ready.asked.notes + ready.lined.notes
    notes += (f"the same in both kinds of models: {', '.join(kept[:5])}",) if kept else ()
    unit = UnitCoverage(
        RANDOM_LABELS, tuple(names), sum(counts), ("trained on random labels",) * len(names), tuple(changes), kept
    )
    return Coverage(changed / max(sum(counts), 1), (unit,), (), notes + ready.guests.notes)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As a file holds it, without what is unknown."""
    known_ = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {key: value for key, value in known_.items() if value == value}
