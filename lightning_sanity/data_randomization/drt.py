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
from itertools import product
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from typing_extensions import Unpack

from lightning_sanity.attribution import resolve, resolve_all
from lightning_sanity.attribution.controls import output_pattern
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.data_randomization.comparison import Comparison
from lightning_sanity.data_randomization.distinct import (
    NEARLY,
    check_architectures,
    check_distinct,
    check_functions,
    largest_difference,
)
from lightning_sanity.data_randomization.evidence import memorization_on
from lightning_sanity.data_randomization.learned_labels import Memorization, chance, independent_samples
from lightning_sanity.explanation.dependence import alone, in_one, in_one_notes
from lightning_sanity.explanation.guests import Guests
from lightning_sanity.explanation.kinds import drawable
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.measurements import (
    Track,
    agreement_of,
    correlation_of,
    evidence_of,
    grounds_of,
    spread_of,
)
from lightning_sanity.explanation.measures import suited, support_in
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
    within_reach,
)
from lightning_sanity.explanation.probe import batch_size
from lightning_sanity.explanation.provenance import provenance, settings_of
from lightning_sanity.explanation.request import Request, asked_of
from lightning_sanity.explanation.targets import Target
from lightning_sanity.explanation.tokens import Embedding, at_embeddings, at_tokens
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.resources.progress import Progress, progress_bar
from lightning_sanity.result import pictures as pictures_module
from lightning_sanity.result.controls import COMPARISON, CONTROLS, POSITIVE_CONTROL, validated, wrong_control
from lightning_sanity.result.dri import judge_labels, label_permutation
from lightning_sanity.result.evidence import UNCHECKED, unchecked
from lightning_sanity.result.sanity_result import (
    Coverage,
    Curve,
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

STEP = "random labels"
"""The one unit of a result: what was changed."""

_SAME_PREDICTIONS = 1e-4  # level at which predictions of both kinds of models agree more than by chance


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
    if isinstance(inputs, tuple) and len(inputs) == 1:
        inputs = inputs[0]
    true, permuted = _group("model", model), _group("random_label_model", random_label_model)
    given["layer"] = layer_in(true[0], given["layer"])
    check_number("min_train_accuracy", min_train_accuracy, above=0.0, most=1.0)
    check_architectures([*true, *permuted])
    groups = len(true), len(permuted)
    gated = {
        name for name, method in resolve_all(methods, cast("str | None", given["layer"])).items() if not method.control
    }
    for kind, models in (("true", true), ("random", permuted)):
        check_distinct(models, kind)
    learned = (
        memorization
        if memorization is None or isinstance(memorization, Memorization)
        else memorization_on(memorization, true, permuted, forward=given["forward"])
    )
    unmet = learned.unmet(*groups, min_train_accuracy) if learned is not None else None
    with _prepared(true, permuted, inputs, target, methods, given) as ready:
        with progress_bar(progress) as tick:
            refused, tracks, likeness = _compared(ready, len(true), given, tick)
        kept_pictures = _pictures(tracks, ready) if pictures else None
    criterion = given["criterion"] or Criterion()
    coverage = _differences(true, permuted, ready.notes)
    verdicts = {
        name: Verdict(Outcome.INCONCLUSIVE, refused[name], gated=name in gated)
        if name in refused
        else _judge(
            evidence_of(tracks[name], ready.problem, ready.half),
            likeness[name],
            groups,
            criterion,
            name in gated,
            given["seed"],
        )
        for name in ready.chosen
    }
    wrong = unmet or ready.problem or _shared(true, permuted)
    if learned is None or not learned.label_agreement:
        wrong = wrong or _alike(ready.outputs, groups)
    if learned is not None:  # else no verdict stands, and a control's duty is to models that learned their labels
        wrong = wrong or wrong_control(verdicts)
    verdicts, valid, validity = validated(verdicts, wrong)
    if learned is None:
        verdicts = {name: unchecked(verdict) for name, verdict in verdicts.items()}
        validity = validity if wrong else UNCHECKED
    elif wrong is None and (untold := learned.untold()):
        validity += f"; {untold}"
    return SanityResult(
        units=(STEP,),
        curves={
            (name, key): Curve(track.trials.values[key], track.trials.floor[key], track.ceiling[key])
            for name, track in tracks.items()
            if track.error is None and track.trials is not None
            for key in track.trials.values
        },
        verdicts=verdicts,
        reproducibility={
            name: track.again for name, track in tracks.items() if track.error is None and track.again is not None
        },
        output_change=_output_change(ready.outputs, groups, tracks.get(COMPARISON)),
        coverage=replace(coverage, notes=coverage.notes + ready.guests.notes),
        valid=valid,
        validity=validity,
        settings=settings_of(
            "data_randomization", ready.chosen, gated, ready.used, ready.asked, ready.place, ready.values
        )
        | {
            "models": list(groups),
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
            "criterion": asdict(criterion),
        },
        grounds={name: Grounds(trivial=reason) for name, reason in refused.items()}
        | {name: grounds_of(track, ready.problem, ready.half) for name, track in tracks.items()},
        weights_digest=weights_digest(true[0]),
        **provenance(inputs, ready.device, started),
        pictures=kept_pictures,
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
    if isinstance(inputs, tuple) and len(inputs) == 1:
        inputs = inputs[0]
    with _prepared([model], [model], inputs, target, methods, given):
        pass


# ---------------------------------------------------------------------------------------------- prepare and compare


@dataclass(frozen=True)
class _Ready:
    """Copies of all models, what is explained on each, and how."""

    device: torch.device
    values: Any
    outputs: Tensor
    asked: Request
    subjects: Sequence[Explanation]
    place: Embedding | None
    chosen: Mapping[str, Method]
    used: Sequence[Similarity]
    support: Tensor | None
    problem: str | None
    half: bool
    notes: tuple[str, ...]
    guests: Guests


@contextmanager
def _prepared(
    true: Sequence[nn.Module],
    permuted: Sequence[nn.Module],
    inputs: Any,
    target: Tensor | int | Target | Callable[[Any], Tensor] | None,
    methods: str | AttributionFn | Sequence[Any] | Mapping[str, Any],
    given: CommonOptions,
) -> Iterator[_Ready]:
    asked = asked_of(true[0], inputs, target, given)
    with ExitStack() as stack:
        copies = [
            stack.enter_context(quiet_copy(each, asked.inputs, asked.forward, given["clone_fn"], given["seed"]))
            for each in (*true, *permuted)
        ]
        check_functions([partial(_few_explained, explained, of) for _, explained, of, *_ in copies])
        device, values = copies[0][3], copies[0][2]
        outputs = torch.stack([graph.outputs.to(device) for *_, graph in copies])  # (K, N, ...)
        half = any(in_half(copied, at) for copied, _, _, at, *_ in copies)
        mean = _mean_prediction(outputs[: len(true)])
        target_, problem = explained_target(asked.target, mean, batch_size(values), half)
        if batch_size(values) < 2:
            problem = problem or "at least 2 samples are needed to tell similar from unrelated maps"
        layer = cast("str | None", given["layer"])
        chosen = resolve_all(methods, layer if copies[0][1] is copies[0][0] or not layer else f"model.{layer}")
        if given["controls"]:
            chosen |= {name: replace(resolve(name), control=True) for name in CONTROLS if name not in chosen}
        if POSITIVE_CONTROL in chosen:
            chosen[POSITIVE_CONTROL] = output_pattern(outputs[: len(true)].flatten(0, 1))
        guests = Guests([(theirs, copied) for theirs, (copied, *_) in zip((*true, *permuted), copies, strict=True)])
        subjects = [
            Explanation(explained, each, None if target_ is None else target_.to(at), question=asked.place)
            for _, explained, each, at, *_ in copies
        ]
        chosen = guests.invite({name: asked.guest(method) for name, method in chosen.items()})
        notes = asked.notes
        if in_one(subjects[0], outputs[0]):
            subjects = [replace(what, in_one=True) for what in subjects]
            chosen, joint = alone(chosen, batch_size(values))
            notes += in_one_notes(joint=joint)
        place = mask = None
        if at_embeddings(values, given["tokens"]):
            opened = [at_tokens(what, asked.names, given["tokens"]) for what in subjects]
            subjects, (_, place, mask) = [what for what, *_ in opened], opened[0]
        if place is not None:
            chosen = {name: place.adapted(method) for name, method in chosen.items()}
        if asked.target_name != "class":
            mask = within_reach(subjects[0], place, mask)
        support = support_in(values)
        used = suited(given["similarities"], first(values), support, mask, kind=asked.kind(opened=place is not None))
        yield _Ready(
            device, values, outputs, asked, subjects, place, chosen, used, support, problem, half, notes, guests
        )


def _few_explained(explained: nn.Module, values: Any) -> Any:
    """A pass of two samples, as many as every network takes that normalises over its batch."""
    few = tree_map(lambda t: t[:2] if isinstance(t, Tensor) else t, values)
    try:
        return _call(explained, few)
    except ValueError:  # it takes no other batch size
        return _call(explained, values)


def _call(explained: nn.Module, values: Any) -> Any:
    return explained(*values) if isinstance(values, tuple) else explained(values)


def _compared(
    ready: _Ready, true: int, given: CommonOptions, tick: Progress | None
) -> tuple[dict[str, str], dict[str, Track], dict[str, dict[str, Tensor]]]:
    """Why methods mean nothing on these models, and what was measured of the others; see ``Comparison.of``."""
    comparison = Comparison(
        true, ready.subjects, ready.used, ready.support, ready.device, given["repeats"], given["seed"]
    )
    refused: dict[str, str] = {}
    tracks: dict[str, Track] = {}
    likeness: dict[str, dict[str, Tensor]] = {}
    for number, (name, method) in enumerate(ready.chosen.items()):
        refusals, functions = _functions(name, method, ready.subjects)
        if refusals:
            refused[name] = refusals
        else:
            tracks[name], likeness[name] = comparison.of(method, functions)
        if tick is not None:
            tick(number + 1, len(ready.chosen), name)
    return refused, tracks, likeness


def _pictures(tracks: Mapping[str, Track], ready: _Ready) -> Pictures | None:
    values = ready.values
    if not drawable(first(values), ready.asked.kind()):
        return None
    drawn = {name: track.pictures for name, track in tracks.items() if track.pictures is not None}
    return pictures_module.keep(first(values), pictures_module.samples(batch_size(values)), (0,), drawn)


# ---------------------------------------------------------------------------------------------------------- arguments


def _group(name: str, given: nn.Module | Sequence[nn.Module]) -> list[nn.Module]:
    models = [given] if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList) else list(given)
    if not models:
        raise ValueError(f"{name} is empty: pass a model or several")
    for each in models:
        if not isinstance(each, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module or several, not {type(each).__name__}")
    return models


def _mean_prediction(outputs: Tensor) -> Tensor:
    """Scores ``(N, ...)`` that stand for all true-label models ``(Ks, N, ...)``."""
    if len(outputs) == 1 or outputs.ndim != 3:
        return outputs.mean(0) if outputs.is_floating_point() else outputs[0]
    return outputs.float().softmax(2).mean(0)


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


def _judge(
    evidence: Evidence,
    likeness: Mapping[str, Tensor],
    groups: tuple[int, int],
    criterion: Criterion,
    gated: bool,
    seed: int,
) -> Verdict:
    verdict = judge_labels(evidence, groups, criterion, gated=gated, seed=seed)
    if groups[0] < 2 or evidence.trivial is not None:
        return verdict
    tables = [likeness[name].abs() if name == SIGNED else likeness[name] for name in evidence.values]
    return replace(verdict, p_dependence=label_permutation(torch.stack(tables).nanmean((0, 3)), groups[0]))


def _shared(true: Sequence[nn.Module], permuted: Sequence[nn.Module]) -> str | None:
    """Whether a random-label model is one of the true-label ones."""
    for one, other in product(range(len(true)), range(len(permuted))):
        difference = largest_difference(true[one], permuted[other])
        if difference <= NEARLY:
            return f"random-label model {other} is true-label model {one}: their weights differ by {difference:.2g}"
    return None


def _alike(outputs: Tensor, groups: tuple[int, int]) -> str | None:
    """Whether a random-label model predicts like a true-label one, so that its labels cannot have been random.

    Similar samples are predicted alike whatever was learned, so that fewer samples count than there are; with two or
    three classes how many cannot be told, and nothing is said.
    """
    if outputs.ndim != 3:
        return None
    from scipy.stats import binomtest  # half a second to import

    predicted, samples, classes = outputs.argmax(2).cpu(), outputs.shape[1], outputs.shape[2]
    for one, other in product(range(groups[0]), range(groups[0], sum(groups))):
        cells = torch.bincount(predicted[one] * classes + predicted[other], minlength=classes**2)
        table = cells.reshape(classes, classes)
        count = independent_samples(table)
        same, by_chance = int(table.trace()), chance(table, table.T)
        likely = binomtest(round(same / samples * count), count, by_chance, "greater").pvalue if count else 1.0
        if likely < _SAME_PREDICTIONS:
            return (
                f"random-label model {other - groups[0]} predicts the class of true-label model {one} for {same} of "
                f"{samples} samples ({by_chance * samples:.0f} expected): were its labels permuted?"
            )
    return None


# --------------------------------------------------------------------------------------------------------- the record


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


def _differences(true: Sequence[nn.Module], permuted: Sequence[nn.Module], notes: tuple[str, ...]) -> Coverage:
    """Which parameters differ between the kinds; equal ones, as in a frozen backbone, are named, not forbidden."""
    names, counts, changes = [], [], []
    others = [dict(each.named_parameters()) for each in permuted]
    for name, parameter in true[0].named_parameters():
        reference = parameter.detach().float().cpu()
        norms = [float((each[name].detach().float().cpu() - reference).norm()) for each in others]
        names.append(name)
        counts.append(parameter.numel())
        changes.append(min(norms) / max(float(reference.norm()), torch.finfo(torch.float32).tiny))
    kept = tuple(name for name, change in zip(names, changes, strict=True) if change == 0)
    changed = sum(count for count, change in zip(counts, changes, strict=True) if change > 0)
    notes += (f"the same in both kinds of models: {', '.join(kept[:5])}",) if kept else ()
    unit = UnitCoverage(
        STEP, tuple(names), sum(counts), ("trained on random labels",) * len(names), tuple(changes), kept
    )
    return Coverage(changed / max(sum(counts), 1), (unit,), (), notes)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As a file holds it, without what is unknown."""
    known_ = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {key: value for key, value in known_.items() if value == value}
