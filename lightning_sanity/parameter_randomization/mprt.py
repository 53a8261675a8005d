"""The parameter randomization test as a function: model and probe in, ``SanityResult`` out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sanity.attribution import resolve, resolve_all
from lightning_sanity.attribution.batching import at_most
from lightning_sanity.attribution.method import AttributionFn, first
from lightning_sanity.engine import ENGINES
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.measures import measures_of, suited, support_in
from lightning_sanity.explanation.preparation import (
    explained_target,
    in_half,
    other_paths,
    prepared_methods,
    quiet_copy,
    within_reach,
)
from lightning_sanity.explanation.probe import batch_size
from lightning_sanity.explanation.provenance import provenance, settings_of
from lightning_sanity.explanation.request import ask
from lightning_sanity.explanation.targets import Target
from lightning_sanity.explanation.tokens import Tokens, at_embeddings, at_tokens
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.model.sharded import share_of
from lightning_sanity.model.weights import own_class
from lightning_sanity.parameter_randomization import diagnostics as diagnostics_module
from lightning_sanity.parameter_randomization.cascade import Cascade
from lightning_sanity.parameter_randomization.coverage import (
    coverage_of,
    gradient_ratio_of,
    signal_notes,
    thinning_note,
)
from lightning_sanity.parameter_randomization.headroom import rows_within
from lightning_sanity.parameter_randomization.judging import judge_all, nothing_changed, undecided
from lightning_sanity.parameter_randomization.settings import Settings
from lightning_sanity.parameter_randomization.walk import Walk
from lightning_sanity.randomization.strategies import Reinitialize
from lightning_sanity.randomization.twins import reinitializer
from lightning_sanity.randomization.unit import ORDERS, Granularity, plan, subsets
from lightning_sanity.resources.memory import check_memory
from lightning_sanity.resources.processes import Share
from lightning_sanity.resources.progress import Progress, progress_bar
from lightning_sanity.result import pictures as pictures_module
from lightning_sanity.result.controls import CONTROLS
from lightning_sanity.result.sanity_result import Curve, Outcome, OutputChange, SanityResult
from lightning_sanity.result.verdict import Criterion
from lightning_sanity.similarity import Similarity


def parameter_randomization_test(
    model: nn.Module,
    inputs: Any,
    target: Tensor | int | Target | Callable[[Any], Tensor] | None = None,
    *,
    methods: str | AttributionFn | Sequence[Any] | Mapping[str, Any] = ("gradient", "gradcam", "guided_backprop"),
    similarities: Sequence[str | Similarity] | None = None,
    order: str = "cascading",
    granularity: Granularity = "layer",
    max_steps: int | None = None,
    reinitialize: Reinitialize = "default",
    twin_device: str | torch.device | None = None,
    norm_stats: str = "auto",
    trials: int | Literal["auto"] = 5,
    repeats: int = 3,
    retarget: bool = False,
    seed: int = 0,
    criterion: Criterion | None = None,
    controls: bool = True,
    diagnostics: Sequence[str] = ("cross_image",),
    forward: Callable[..., Any] | None = None,
    layer: str | None = None,
    explain: int | str | None = None,
    tokens: Tokens | None = None,
    clone_fn: Callable[[nn.Module], nn.Module] | None = None,
    pictures: bool = True,
    progress: Progress | bool | None = None,
    max_seconds: float | None = None,
    max_batch: int | None = None,
    max_memory: int | None = None,
    share: Share | None = None,
    engine: str = "auto",
) -> SanityResult:
    """Do attributions depend on the model's parameters? The model parameter randomization test.

    A clone of ``model`` is re-initialised unit by unit, the attributions of ``inputs`` are computed again after every
    step and compared with the trained model's. ``model`` itself, its mode, its gradients and all random streams are
    left as they were.

    Args:
        model: A trained module whose call returns class scores ``(N, classes)``, or one score ``(N,)`` / ``(N, 1)``;
            other outputs need a ``target`` that makes a number per sample of them.
        inputs: A batch ``(N, ...)`` on any device, a tuple of the model's positional arguments, or a mapping of its
            keyword arguments. At least 2 samples; 32 to 64 for a release. Signals ``(N, C, L)``, images, volumes
            ``(N, C, D, H, W)``, tables ``(N, F)``, and token ids ``(N, T)``, which are explained at their embeddings.
        target: Class to explain, one per sample ``(N,)`` or one for all; a function ``outputs -> (N,)``; a ``Target``
            of ``lightning_sanity.targets``; None = the trained model's prediction. Kept fixed through the cascade.
        methods: Names of ``attribution.available()``, functions ``(model, inputs, target) -> attribution``, or a
            dictionary of either.
        similarities: Names of ``similarity.available()``, with another normalisation than their own as in
            ``"spearman.percentile_clipped"`` (see ``similarity.normalized``); added to those that the verdict rests
            on, as far as they mean something on these inputs (see ``measures``).
        order: ``"cascading"`` from the output down, ``"bottom_up"``, ``"independent"`` one unit at a time, or
            ``"full"`` all at once.
        granularity: ``"layer"``, ``"block"``, or a list of module names / regular expressions.
        max_steps: Merge neighbouring units evenly into at most this many steps.
        reinitialize: ``"default"``: a fresh twin of the architecture where one can be built (from a LightningModule's
            saved hyper-parameters), else ``"normal"``: each tensor redrawn with its own mean and standard deviation.
            Also ``"shuffle"``, ``"reset"``, ``"xavier"``, ``"kaiming"``, a function of a module, or a twin factory
            (a function without arguments).
        twin_device: Where twins live, one at a time, from which each unit is copied over in its turn: ``"cpu"`` keeps
            them out of a GPU's memory. None = where their factory makes them, which is the CPU unless it says
            otherwise. The result is the same.
        norm_stats: Running statistics of normalisation layers: ``"auto"`` (the twin's own, else kept), ``"keep"``,
            ``"reset"`` or ``"recalibrate"`` on the inputs.
        trials: Independent re-initialisations; 20 for a release. One trial never passes. ``"auto"`` runs 5, then up to
            10 and 20 for the gated methods whose interval still straddles the threshold.
        repeats: Re-runs per method, for the ceiling of stochastic methods and for the noise guard.
        retarget: Explain each randomised model's own prediction instead, as the original code did.
        seed: Of every draw; the same seed gives the same result on any device.
        criterion: What a method must show to pass.
        controls: Run the controls as well; without them a result cannot show that the test worked.
        diagnostics: Second opinions on the same maps, which never gate: ``"cross_image"``, ``"random_logit"`` (four
            more explanations of the trained model), ``"entropy"``, ``"dependence"`` (one more explanation per trial);
            see ``diagnostics.diagnose``.
        forward: ``forward(model, *inputs) -> scores`` (``**inputs`` for a mapping) where calling the model is not
            enough.
        layer: Module for the class activation maps; if None the last spatial feature map, of a segmenter that of its
            bottleneck.
        explain: Which of several inputs, by its place or key; see ``question.ask`` for the default. All of them:
            ``multi_input.multi_input_randomization_test``.
        tokens: Where and how token ids are explained; found out if None.
        clone_fn: Copies the model where ``copy.deepcopy`` cannot.
        pictures: Keep small pictures of some inputs and maps in the result.
        progress: True for a progress bar, or ``progress(done, total, label)``; None shows a bar on a terminal. A
            function may raise to end the test.
        max_seconds: About how long the test may take: depths and trials are thinned evenly to fit, then methods are
            left out, which the result's settings and notes say. What remains is chosen by what explanations of the
            trained model and a walk over its depths take; ``settings["cost"]`` has what the trials were expected to
            take, and took. A method or a walk that hangs for twice as long ends the test.
        max_batch: Most samples that are explained at once, against running out of memory; all if None. A stochastic
            method draws other noise for other parts. Methods that run many altered copies of a sample have a
            ``max_batch`` of their own for these.
        max_memory: Bytes that the test may keep above the trained model, on its device; counted are weights, maps and
            activations, not what a library works with inside one operation. Samples, and altered copies of them, are
            explained fewer at a time, one depth after the other where all at once are too many; results stay the same.
            Of a stochastic method the samples stay together, because its noise would be another. What was decided is
            in ``settings["memory"]``; the notes say where even one sample takes more.
        share: This process's part where several of them run the same test together; their number changes no result.
        engine: ``"auto"`` explains many depths of a trial at once where that gives the same maps, and says so in
            ``result.engine`` (``"two_stream"``, or ``"full_batch"`` where the network cannot be traced), at the
            price of one more copy of the weights on the model's device. ``"folded"`` also folds batch normalisations
            into the convolutions and linear layers before them, where that pays: a few per cent of the time for two
            copies of their weights. Maps are then equal to rounding, which moves one by up to some per cent where a
            rectifier's input is nearly zero; ``result.engine`` says ``"two_stream, folded"``. ``"plain"`` always
            explains one depth after the other, without any copy.

    Returns:
        Curves, verdicts and the proof of what was re-initialised.

    Raises:
        ValueError: If an argument is wrong: which one, and what would be right.
        CloneError: If the model cannot be copied into a live model of its own.
        RandomizationError: If it has nothing to re-initialise.
        Interrupted: If a method hung.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (arXiv:1810.03292).
    """
    started = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    criterion = criterion or Criterion()
    further = diagnostics_module.check_names(diagnostics)
    gated = {name for name, method in resolve_all(methods, layer).items() if not method.control}
    measures_of(similarities)  # raises on an unknown name
    _check_numbers(trials=trials, repeats=repeats, max_steps=max_steps, max_batch=max_batch)
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive, not {max_seconds!r}")
    check_memory(max_memory)
    if engine not in ENGINES:
        raise ValueError(f"unknown engine '{engine}'; choose from: {', '.join(ENGINES)}")
    if order not in ORDERS:
        raise ValueError(f"unknown order '{order}'; choose from: {', '.join(ORDERS)}")
    asked = ask(model, inputs, target, explain=explain, forward=forward, seed=seed)
    share = share or share_of(model, clone_fn)
    prepared_copy = quiet_copy(model, asked.inputs, asked.forward, clone_fn, seed, share)
    with prepared_copy as (copied, explained, values, device, kept, graph):
        half = in_half(copied, device)
        target_, problem = explained_target(asked.target, graph.outputs, batch_size(values), half)
        planned = plan(copied, graph, granularity, max_steps)
        notes = other_paths(copied, explained, values, graph)
        drawer = reinitializer(reinitialize, copied, model, planned, seed, norm_stats, twin_device)
        what = Explanation(explained, values, target_, chosen=asked.chosen, question=asked.place)
        # Adapted hides the model's own modules one level down.
        chosen = resolve_all(methods, layer if explained is copied or not layer else f"model.{layer}")
        if controls:
            chosen |= {name: replace(resolve(name), control=True) for name in CONTROLS if name not in chosen}
        place = mask = None
        if at_embeddings(values, tokens):
            what, place, mask = at_tokens(what, asked.names, tokens)
        if place is not None:
            chosen = {name: place.adapted(method) for name, method in chosen.items()}
            notes += place.notes
        if asked.target_name != "class":
            mask = within_reach(what, place, mask, max_batch)
        with at_most(rows_within(max_memory, copied, what)):  # to find out whether a method applies, it may be run
            refused, prepared = prepared_methods(chosen, what, max_batch)
        steps = subsets(planned.units, order)
        support = support_in(values)
        settings = Settings(
            repeats=repeats,
            seed=seed,
            retarget=retarget,
            norm_stats=norm_stats,
            diagnostics=further,
            picture_samples=pictures_module.samples(batch_size(values)) if pictures else (),
            engine=engine,
            max_batch=max_batch,
            max_memory=max_memory,
        )
        used = suited(similarities, first(values), support, mask, tokens=place is not None)
        deadline = None if max_seconds is None else started + max_seconds
        with progress_bar(progress) as tick:
            cascade = Cascade(
                copied, what, prepared, used, support, steps, drawer, settings, tick, deadline, share, kept
            )
            walk = _walk(cascade, trials, gated, criterion)
        share.close()
        measured_digest = weights_digest(model)
        measured = {
            name: track.trials
            for name, track in walk.tracks.items()
            if track.error is None and track.trials is not None
        }
        kept_pictures = None
        if pictures:
            drawn = {name: walk.tracks[name].pictures for name in measured}
            kept_pictures = pictures_module.keep(
                first(values),
                settings.picture_samples,
                walk.picture_depths,
                {name: maps for name, maps in drawn.items() if maps is not None},
            )
    gradient_ratio = gradient_ratio_of(walk)
    thinned = thinning_note(walk.thinned, max_seconds)
    notes += signal_notes(walk, gradient_ratio) + thinned + walk.notes
    coverage = coverage_of(planned, drawer, walk, copied, graph, notes)
    trivial = problem or nothing_changed(walk, coverage, order)
    verdicts, valid, validity = judge_all(chosen, gated, refused, walk, criterion, trivial, half)
    for name in thinned and measured:
        if verdicts[name].outcome is Outcome.INCONCLUSIVE:
            verdicts[name] = replace(verdicts[name], reason=f"{verdicts[name].reason} ({thinned[0]})")
    diagnosed = diagnostics_module.diagnose(walk.tracks, gated, further)
    if "dependence" in further:
        verdicts |= {name: replace(verdicts[name], p_dependence=row["p_dependence"]) for name, row in diagnosed.items()}
    return SanityResult(
        units=tuple(step[-1].name for step in walk.steps) if order != "full" else ("all units",),
        curves={
            (name, key): Curve(found.values[key], found.floor[key], walk.tracks[name].ceiling[key])
            for name, found in measured.items()
            for key in found.values
        },
        verdicts=verdicts,
        output_change=OutputChange(walk.agreement, walk.correlation, gradient_ratio, walk.spread_ratio),
        coverage=coverage,
        valid=valid,
        validity=validity,
        settings=settings_of("parameter_randomization", chosen, gated, used, asked, place, values)
        | {
            "order": order,
            "granularity": granularity if isinstance(granularity, str) else list(granularity),
            "max_steps": max_steps,
            "reinitialize": drawer.name,
            "norm_stats": norm_stats,
            "trials": trials,
            "trials_run": {name: len(found.norm) for name, found in measured.items()},
            "thinned": walk.thinned,
            "cost": walk.cost,
            "memory": walk.memory,
            "engine": walk.engines,
            "max_batch": max_batch,
            "diagnostics": list(further),
            "repeats": repeats,
            "retarget": retarget,
            "seed": seed,
            "model": own_class(model).__name__,
            "criterion": asdict(criterion),
        },
        weights_digest=measured_digest,
        **provenance(inputs, device, started),
        pictures=kept_pictures,
        diagnostics=diagnosed,
        trained_maps={
            name: track.coarse for name, track in walk.tracks.items() if name in measured and track.coarse is not None
        },
    )


def _check_numbers(*, trials: int | str, repeats: int, max_steps: int | None, max_batch: int | None) -> None:
    for name, value, least in (
        ("trials", trials, 1),
        ("repeats", repeats, 1),
        ("max_steps", max_steps, 1),
        ("max_batch", max_batch, 1),
    ):
        if (
            value is not None
            and not (name == "trials" and value == "auto")
            and (not isinstance(value, int) or value < least)
        ):
            raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")


_AUTO_TRIALS = (5, 5, 10)  # 5, 10, then 20 in all, for verdicts that are still open


def _walk(cascade: Cascade, trials: int | str, gated: Set[str], criterion: Criterion) -> Walk:
    """All trials; or, for "auto", as many as the open verdicts need, by a schedule that was fixed beforehand."""
    schedule = (trials,) if isinstance(trials, int) else _AUTO_TRIALS
    cascade.start(schedule[0])
    cascade.extend(schedule[0])
    for more in schedule[1:]:
        still_open = undecided(cascade.walk(), gated, criterion)
        if still_open:
            cascade.extend(more, still_open)
    return cascade.walk()
