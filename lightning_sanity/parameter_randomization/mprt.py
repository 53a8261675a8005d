"""The parameter randomization test as a function: model and probe in, ``SanityResult`` out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_sanity.attribution import resolve_all
from lightning_sanity.attribution.batching import at_most
from lightning_sanity.attribution.method import AttributionFn, Method, first
from lightning_sanity.explanation.calling import as_arguments
from lightning_sanity.explanation.guests import Guests
from lightning_sanity.explanation.kinds import drawable
from lightning_sanity.explanation.lineup import Methods, lineup
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.measurements import grounds_of
from lightning_sanity.explanation.options import METHODS, check_choice, spelled_out
from lightning_sanity.explanation.preparation import (
    explained_target,
    in_half,
    layers_taken,
    other_paths,
    prepared_methods,
    quiet_copy,
    recorded,
    settled_effort,
)
from lightning_sanity.explanation.probe import batch_size
from lightning_sanity.explanation.provenance import provenance, settings_of
from lightning_sanity.explanation.reach import too_narrow, within_reach
from lightning_sanity.explanation.request import Request, asked_of
from lightning_sanity.explanation.suitable_measures import suited, support_in
from lightning_sanity.explanation.targets import Target, check_target
from lightning_sanity.explanation.tokens import Embedding, Tokens
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.model.detached import left_out
from lightning_sanity.model.digest import unsaved_buffers
from lightning_sanity.model.graph import Graph
from lightning_sanity.model.outputs import OutputError
from lightning_sanity.model.sharded import share_of
from lightning_sanity.model.weights import own_class, restore, snapshot
from lightning_sanity.parameter_randomization.cascade import Cascade
from lightning_sanity.parameter_randomization.coverage import (
    coverage_of,
    gradient_ratio_of,
    signal_notes,
    step_notes,
    thinning_note,
)
from lightning_sanity.parameter_randomization.diagnostics import diagnose
from lightning_sanity.parameter_randomization.headroom import rows_within
from lightning_sanity.parameter_randomization.judging import UNMOVED, judge_all, nothing_changed, unmoved
from lightning_sanity.parameter_randomization.leftovers import Leftovers, leftovers_of
from lightning_sanity.parameter_randomization.looks import Looks
from lightning_sanity.parameter_randomization.options import DEFAULTS, WalkOptions, settled, settled_for
from lightning_sanity.parameter_randomization.route import most_steps, route_of
from lightning_sanity.parameter_randomization.schedule import walk_trials
from lightning_sanity.parameter_randomization.settings import Settings
from lightning_sanity.parameter_randomization.study import Study
from lightning_sanity.parameter_randomization.walk_results import Walk
from lightning_sanity.randomization.ties import part
from lightning_sanity.randomization.twins import Reinitializer, reinitializer
from lightning_sanity.randomization.unit import Plan, plan
from lightning_sanity.resources.processes import Share
from lightning_sanity.resources.progress import Progress, progress_bar
from lightning_sanity.result import pictures as pictures_module
from lightning_sanity.result.curve import Curve
from lightning_sanity.result.evidence import OF_WEIGHTS
from lightning_sanity.result.sanity_result import (
    Coverage,
    Grounds,
    Outcome,
    OutputChange,
    Pictures,
    SanityResult,
)
from lightning_sanity.result.verdict import Criterion, Scope, scope_of


@spelled_out(WalkOptions, DEFAULTS)
def parameter_randomization_test(
    model: nn.Module,
    inputs: Any,
    target: Tensor | int | Target | Callable[[Any], Tensor] | None = None,
    *,
    methods: str | AttributionFn | Sequence[Any] | Mapping[str, Any] = METHODS,
    labels: Tensor | None = None,
    pictures: bool = True,
    progress: Progress | bool | None = None,
    max_seconds: float | None = None,
    extend_within: float | None = None,
    on_interrupt: Literal["raise", "return"] = "raise",
    share: Share | None = None,
    **options: Unpack[WalkOptions],
) -> SanityResult:
    """Do attributions depend on the model's parameters? The model parameter randomization test.

    A clone of ``model`` is re-initialised unit by unit, the attributions of ``inputs`` are computed again after every
    step and compared with the trained model's. ``model`` itself, its mode, its gradients and all random streams are
    left as they were.

    Args:
        model: A trained module whose call returns class scores ``(N, classes)``, or one score ``(N,)`` / ``(N, 1)``;
            other outputs need a ``target`` that makes a number per sample of them.
        inputs: A batch ``(N, ...)`` on any device, a tuple of the model's positional arguments, or a mapping of its
            keyword arguments. At least 2 samples; 32 to 64 for a release. Images, signals, volumes, sequences,
            graphs, with their channels or features along any axis, see ``channel_axis``; tables ``(N, F)``; and token
            ids ``(N, T)``, which are explained at their embeddings.
        target: Class to explain, one per sample ``(N,)`` or one for all; a function ``outputs -> (N,)``; a ``Target``
            of ``lightning_sanity.targets``; None = the trained model's prediction. Kept fixed through the cascade.
        methods: Names of ``attribution.available()``, functions ``(model, inputs, target) -> attribution``, or a
            dictionary of either.
        labels: The samples' classes ``(N,)``, where they are known. They tell which of several outputs holds the
            scores; what is explained is for ``target`` to say.
        pictures: Keep small pictures of some inputs and maps in the result.
        progress: True for a progress bar, or ``progress(done, total, label)`` in milliseconds: what went by, and what
            all is expected to take, told at every step; None shows a bar on a terminal. A function may raise to end
            the test.
        max_seconds: About how long the test may take. Depths and trials are dropped evenly until it fits, then
            methods; the result's settings and notes say which. The plan rests on the time that explanations of the
            trained model and a walk over its depths take; ``settings["cost"]`` has what was expected and what was
            measured. A function of yours that takes half of what is left is given up, the others go on; a method
            or a walk of this library that hangs for twice as long ends the test.
        extend_within: Seconds from the beginning within which the trials that ``trials="auto"`` adds have to be done:
            where they would take longer they are left out, and the notes and the open verdicts say so.
        on_interrupt: What Ctrl-C does once a trial is whole: ``"raise"`` as usual, or ``"return"`` the trials that are,
            all their curves included. Such a result is not valid, no method passes or fails by it, and ``validity``
            says how many trials it has. Before that, and where several processes share the test, it raises.
        share: This process's part where several of them run the same test together; their number changes no result.
        **options: See ``WalkOptions``.

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
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}: pass what that was made from")
    check_choice("on_interrupt", on_interrupt, ("raise", "return"))
    given = settled_for(model, settled(options, "parameter_randomization_test()"))
    gated = {
        name for name, method in resolve_all(methods, cast("str | None", given["layer"])).items() if not method.control
    }
    check_target(target)
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive, not {max_seconds!r}")
    share = share or share_of(model, given["clone_fn"])
    asked = asked_of(model, inputs, target, given, labels)
    deadline = None if max_seconds is None else started + max_seconds
    with _prepared(model, asked, methods, given, share, deadline) as ready:
        samples = pictures_module.samples(batch_size(ready.values)) if pictures else ()
        with progress_bar(progress) as tick:
            walked = given if ready.problem is None else {**given, **_IN_VAIN}
            cascade = ready.cascade(walked, samples, tick, deadline, share, on_interrupt)
            until = math.inf if extend_within is None else started + extend_within
            walk, unextended = walk_trials(
                cascade, walked, gated, lambda walk: ready.scope(walk, walked["order"]), share, until
            )
            walk = walk.rounded()
            paths = () if cascade.follows else ready.paths()
        share.close()
        digest = weights_digest(model)
        kept_pictures = _pictures(walk, ready, samples, given["tokens"])
    thinned = thinning_note(walk.thinned, max_seconds, walk.interrupted) + unextended
    coverage = ready.coverage(walk, walked["order"], paths, thinned)
    judged = _judged(walk, ready, coverage, given, gated, thinned)
    buffers = unsaved_buffers(model)
    unsaved = {"unsaved_buffers": buffers} if buffers else {}
    return SanityResult(
        units=tuple(step.name for step in coverage.units),
        depth_weights=walk.weights,
        reproducibility={
            name: track.again
            for name, track in walk.tracks.items()
            if name in walk.measured and track.again is not None
        },
        curves={
            (name, key): Curve(found.values[key], found.floor[key], walk.tracks[name].ceiling[key], found.step)
            for name, found in walk.measured.items()
            for key in found.values
        },
        output_change=OutputChange(walk.agreement, walk.correlation, gradient_ratio_of(walk), walk.spread_ratio),
        coverage=coverage,
        settings=_settings(walk, ready, given, gated)
        | {"model": own_class(model).__name__, "pictures": pictures, **unsaved},
        weights_digest=digest,
        pictures=kept_pictures,
        trained_maps={
            name: track.coarse
            for name, track in walk.tracks.items()
            if name in walk.measured and track.coarse is not None
        },
        **judged,
        **provenance(inputs, ready.device, started),
    )


def rehearse(
    model: nn.Module,
    inputs: Any,
    target: Tensor | int | Target | Callable[[Any], Tensor] | None = None,
    *,
    methods: Methods = METHODS,
    labels: Tensor | None = None,
    **options: Unpack[WalkOptions],
) -> None:
    """Prepare the test and leave it at that: nothing is re-initialised, and no map is kept.

    Args:
        model: See ``parameter_randomization_test``; it need not be trained.
        inputs: See there.
        target: See there.
        methods: See there.
        labels: See there.
        **options: See ``WalkOptions``.

    Raises:
        ValueError: What would keep the test from beginning: a model that cannot be called on the inputs, outputs that
            are no scores, names that are not there.
    """
    given = settled_for(model, settled(options, "rehearse()"))
    try:
        asked = asked_of(model, inputs, target, given, labels)
    except OutputError:
        if labels is None or given["output"] is not None:
            raise
        return  # which of the outputs predicts the labels may be seen when the model is trained
    with _prepared(model, asked, methods, given, Share(), None):
        pass


# -------------------------------------------------------------------------------------------------------------- prepare


@dataclass(frozen=True)
class _Ready:
    """What is known before the walk: the copy, what is explained on it, how, and what becomes random when."""

    study: Study
    device: torch.device
    values: Any
    graph: Graph
    left: Leftovers
    asked: Request
    place: Embedding | None
    planned: Plan
    layers: int
    drawer: Reinitializer
    chosen: Mapping[str, Method]
    refused: Mapping[str, str]
    problem: str | None
    half: bool
    notes: tuple[str, ...]
    max_batch: int | None
    max_memory: int | None
    guests: Guests
    paths: Callable[[], tuple[str, ...]]

    def cascade(
        self,
        given: WalkOptions,
        picture_samples: tuple[int, ...],
        tick: Progress | None,
        deadline: float | None,
        share: Share,
        on_interrupt: str,
    ) -> Cascade:
        settings = Settings(
            repeats=given["repeats"],
            seed=given["seed"],
            retarget=given["retarget"],
            norm_stats=given["norm_stats"],
            diagnostics=tuple(given["diagnostics"]),
            picture_samples=picture_samples,
            picture_sides=tuple(first(self.values).shape[2:]),
            engine="plain" if self.left.caches else given["engine"],  # shared walks see no cache being emptied
            max_batch=self.max_batch,
            max_memory=self.max_memory,
            on_interrupt=on_interrupt,
        )
        every = tuple(self.planned.depths(given["order"]))
        return Cascade(
            self.study,
            route_of(every, most_steps(given["max_steps"], given["order"], len(every))),
            self.drawer,
            settings,
            left=self.left,
            progress=tick,
            deadline=deadline,
            share=share,
        )

    def scope(self, walk: Walk, order: str) -> Scope:
        return scope_of(order, sum(weight > 0 for weight in walk.weights), self.layers)

    def coverage(self, walk: Walk, order: str, paths: tuple[str, ...], thinned: tuple[str, ...]) -> Coverage:
        depths = self.planned.depths(order)
        told = signal_notes(walk, gradient_ratio_of(walk)) + thinned + walk.notes
        notes = paths + self.notes + told + self.guests.notes + step_notes(walk, depths)
        return coverage_of(self.planned, depths, self.drawer, walk, self.study.model, self.graph, self.left, notes)


@contextmanager
def _prepared(
    model: nn.Module, asked: Request, methods: Methods, given: WalkOptions, share: Share, deadline: float | None
) -> Iterator[_Ready]:
    prepared_copy = quiet_copy(model, asked.inputs, asked.forward, given["clone_fn"], given["seed"], share, asked.shown)
    with prepared_copy as (copied, explained, values, device, kept, graph):
        half = in_half(copied, device)
        target_, problem = explained_target(asked.target, graph.outputs, batch_size(values), half)
        graph, tied = part(copied, graph, lambda: recorded(copied, explained, values, graph))
        left, graph = leftovers_of(
            copied, explained, as_arguments(values), graph, model, given["constants"], asked.forward
        )
        planned = plan(copied, graph, given["granularity"])
        layers = len((planned if given["granularity"] == "layer" else plan(copied, graph)).steps)
        paths = partial(other_paths, copied, explained, values, graph)
        notes = left_out(model, copied) + asked.notes + tied
        drawer = reinitializer(
            given["reinitialize"], copied, planned, given["seed"], given["norm_stats"], given["twin_device"]
        )
        what = Explanation(explained, values, target_, chosen=asked.chosen, question=asked.place, apart=graph.apart)
        guests = Guests([(model, copied)], deadline)
        limits = given["max_batch"], given["max_memory"]
        # Of a structure that had no way between samples, outputs alone tell whether one has opened since.
        apart, known = graph.apart and bool(graph.known.get("apart")), graph.known
        lined = lineup(methods, [what], graph.outputs.to(device)[None], asked, given, guests, *limits, apart)
        known["apart"] = not lined.in_one
        max_batch, max_memory = (None, None) if lined.in_one else limits
        (what,), chosen, place, mask = lined.subjects, lined.methods, lined.place, lined.mask
        explained_alike = "reach", given["seed"], None if target_ is None else tuple(target_.tolist())
        if problem is None and not (mask is None and known.get(explained_alike)):
            with closing(_with_other_weights(what, copied, drawer, planned, kept)) as models:
                at_once = max_batch if max_memory is None else 1  # how much a pass keeps is not known yet
                before, (mask, narrowed) = mask, within_reach(models, place, mask, given["seed"], at_once)
            known[explained_alike] = mask is before is None
            notes, problem = notes + narrowed, too_narrow(mask)
        # To find out whether a method applies, it may be run.
        with at_most(batch_size(values) if lined.in_one else rows_within(max_memory, copied, what)):
            refused, functions = prepared_methods(chosen if problem is None else {}, what, max_batch)
        refused |= {} if problem is None else dict.fromkeys(chosen, problem)
        support = support_in(values)
        used = suited(given["similarities"], first(values), support, mask, kind=asked.kind(opened=place is not None))
        yield _Ready(
            Study(copied, kept, what, functions, used, support, graph.known),
            device,
            values,
            graph,
            left,
            asked,
            place,
            planned,
            layers,
            drawer,
            chosen,
            refused,
            problem,
            half,
            notes + lined.notes,
            max_batch,
            max_memory,
            guests,
            paths,
        )


_OTHERS = 4  # with as many random models, a unit that is off in all of them is off in one of 16 at the most
_FIRST = 1_000_003  # their number among the trials, beyond any that is walked


def _with_other_weights(
    what: Explanation, copied: nn.Module, drawer: Reinitializer, planned: Plan, kept: Mapping[str, Tensor]
) -> Generator[Explanation, None, None]:
    """The explanation with the trained weights, then with random ones; the copy is trained again at the end."""
    yield what
    saved = snapshot(copied, kept)
    try:
        for number in range(_OTHERS):
            redraw = drawer.start_trial(_FIRST + number)
            for unit in planned.drawn:
                redraw(copied, unit)
            yield what
    finally:
        restore(copied, saved)


# ----------------------------------------------------------------------------------------------------------------- walk

_IN_VAIN = WalkOptions(order="full", trials=1)  # where no verdict can be had: only the proof of what changes is made


# --------------------------------------------------------------------------------------------------- judge and describe


def _judged(
    walk: Walk, ready: _Ready, coverage: Coverage, given: WalkOptions, gated: set[str], thinned: tuple[str, ...]
) -> dict[str, Any]:
    """The fields of a result that say what the numbers mean."""
    trivial = ready.problem or nothing_changed(walk, coverage, given["order"], ready.left)
    if walk.interrupted and trivial is None:
        trivial = f"it was {thinned[0]}"
    criterion = given["criterion"] or Criterion()
    scope = ready.scope(walk, given["order"])
    verdicts, valid, validity = judge_all(
        ready.chosen, gated, ready.refused, walk, criterion, trivial, ready.half, scope
    )
    for name in gated & walk.measured.keys():
        if valid and verdicts[name].outcome is Outcome.FAIL and unmoved(walk.measured[name]):
            verdicts[name] = replace(verdicts[name], reason=f"{verdicts[name].reason}; {UNMOVED}")
    for name in thinned and walk.measured:
        if verdicts[name].outcome is Outcome.INCONCLUSIVE:
            verdicts[name] = replace(verdicts[name], reason=f"{verdicts[name].reason} ({thinned[0]})")
    diagnosed = diagnose(walk.tracks, gated, given["diagnostics"])
    if "dependence" in given["diagnostics"]:
        verdicts |= {name: replace(verdicts[name], p_dependence=row["p_dependence"]) for name, row in diagnosed.items()}
    grounds = {name: grounds_of(track, trivial, ready.half) for name, track in walk.tracks.items()}
    grounds |= {name: Grounds(trivial=reason) for name, reason in ready.refused.items()}
    return {
        "verdicts": verdicts,
        "valid": valid,
        "validity": validity,
        "diagnostics": diagnosed,
        "grounds": grounds,
    }


def _pictures(walk: Walk, ready: _Ready, samples: tuple[int, ...], tokens: Tokens | None) -> Pictures | None:
    value, kind = first(ready.values), ready.asked.kind(opened=ready.place is not None)
    if not samples or not drawable(value, kind):
        return None
    drawn = {name: walk.tracks[name].pictures for name in walk.measured}
    maps = {name: each for name, each in drawn.items() if each is not None}
    words = None if tokens is None else tokens.words
    return pictures_module.keep(value, samples, walk.picture_depths, maps, kind=kind.name, words=words)


_ON_RECORD = (
    "order",
    "norm_stats",
    "max_batch",
    "repeats",
    "retarget",
    "output",
    "channel_axis",
    "feature_axis",
    "seed",
)


def _settings(walk: Walk, ready: _Ready, given: WalkOptions, gated: set[str]) -> dict[str, Any]:
    granularity = given["granularity"]
    compared = ready.chosen, gated, ready.study.similarities, ready.asked, ready.place, ready.values
    return (
        settings_of(OF_WEIGHTS, *compared)
        | {name: value for name, value in given.items() if name in _ON_RECORD}
        | {
            "trials": given["trials"].total if isinstance(given["trials"], Looks) else given["trials"],
            "granularity": granularity if isinstance(granularity, str) else list(granularity),
            "diagnostics": list(given["diagnostics"]),
            "constants": list(given["constants"]),
            "reinitialize": ready.drawer.name,
            "max_steps": most_steps(given["max_steps"], given["order"], walk.route.of),
            "layers": ready.layers,
            "steps": walk.route.of,
            "walked": [place + 1 for place in walk.route.places],
            "trials_run": {name: len(found.norm) for name, found in walk.measured.items()},
            "thinned": walk.thinned,
            "effort": settled_effort({name: method for name, (method, _) in ready.study.methods.items()}),
            "cam_layers": layers_taken({name: function for name, (_, function) in ready.study.methods.items()}),
            "cost": walk.cost,
            "memory": walk.memory,
            "engine": walk.engines,
            "criterion": asdict(given["criterion"] or Criterion()),
        }
    )
