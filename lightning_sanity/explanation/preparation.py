"""What both tests do around their walks: a quiet copy, the explained class, methods that apply, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_sanity.attribution.batching import out_of_memory
from lightning_sanity.attribution.method import AttributionFn, Method
from lightning_sanity.explanation.calling import as_arguments, call
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.explanation.probe import among_others, batch_size
from lightning_sanity.explanation.remedies import remedy_for
from lightning_sanity.explanation.request import Shown
from lightning_sanity.model.clone import (
    Adapted,
    check_fidelity,
    check_liveness,
    eager,
    evaluating,
    largest_finite,
    launder,
    preserved,
)
from lightning_sanity.model.detached import bookkeeping, leave_out, stand_in_for, users_hooks
from lightning_sanity.model.graph import Graph, in_single_operations, trace
from lightning_sanity.model.outputs import logits
from lightning_sanity.model.sharded import stand_in
from lightning_sanity.model.structure import known_of
from lightning_sanity.resources.fatal_errors import must_end
from lightning_sanity.resources.processes import Share
from lightning_sanity.resources.quoting import quoted
from lightning_sanity.resources.random_streams import isolated_rng
from lightning_sanity.resources.restored_state import put_back
from lightning_sanity.result.verdict import HALF, NOT_APPLICABLE

_REACTS = 1e-5  # share of the largest output by which outputs must differ over samples: more than rounding does


@contextmanager
def quiet_copy(
    model: nn.Module,
    inputs: Any,
    forward: Callable[..., Any] | None,
    clone_fn: Callable[[nn.Module], nn.Module] | None,
    seed: int,
    share: Share | None = None,
    shown: Shown | None = None,
) -> Iterator[tuple[nn.Module, nn.Module, Any, torch.device, Mapping[str, Tensor], Graph]]:
    """A proven copy, its explained face, laundered inputs, the trained weights and the recorded pass.

    Nothing in the block disturbs the caller. A sharded model stands in for its own copy; see ``sharded.in_place``. What
    the model itself was shown to return is not asked of it again.
    """
    batch_size(inputs)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with (
        isolated_rng(seed, device),
        torch.inference_mode(False),
        torch.enable_grad(),
        eager(),
        differentiable_recurrence(model, device),
        in_single_operations(),
        put_back(*(hook.function for hook in users_hooks(model))),
        stand_in(model, clone_fn, share) as (copied, kept),
    ):
        values = launder(inputs, device)
        in_place = copied is model
        aside = () if in_place else bookkeeping(copied, lambda: _few(values, _scores(copied, forward))[1])
        graph = trace(copied, as_arguments(values), lambda *arguments: call(copied, arguments, forward), logits)
        plain = forward is None and isinstance(graph.outputs, Tensor)
        graph = replace(graph, outputs=logits(graph.outputs).detach())
        scores = _scores(copied, forward)
        # In place it has the buffers of the first process, and is not what was shown.
        if shown is not None and not in_place and _reproduced(shown, graph.outputs):
            some, ours = _rows(values, shown.places), graph.outputs[list(shown.places)]
            graph = replace(graph, apart=shown.places != tuple(range(batch_size(values))))
        else:
            with torch.no_grad(), evaluating(model), preserved(model):
                unheard = model if in_place else stand_in_for(model)
                leave_out(unheard, aside)
                some, theirs = _few(values, _scores(unheard, forward))
                ours = scores(some)
            check_fidelity(theirs, ours, lambda: scores(some))
        known = {} if in_place else known_of(model, copied, (values, forward), graph)
        if not known.get("alive"):
            check_liveness(copied, ours, lambda: scores(some))
            known["alive"] = bool(ours.any())  # else nothing was to be seen
        graph = replace(graph, known=known)
        explained = copied if plain else Adapted(copied, forward).eval()
        yield copied, explained, values, device, kept, graph


@contextmanager
def differentiable_recurrence(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Recurrent layers on a GPU without cuDNN, whose kernels keep nothing for the way down in eval mode."""
    if device.type != "cuda" or not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        yield
        return
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def recorded(copied: nn.Module, explained: nn.Module, values: Any, graph: Graph) -> Graph:
    """The pass recorded again, after something of the copy has changed that its outputs do not show."""
    again = trace(copied, as_arguments(values), lambda *arguments: explained(*arguments))
    return replace(again, outputs=graph.outputs, known=graph.known)


def _scores(model: nn.Module, forward: Callable[..., Any] | None) -> Callable[[Any], Tensor]:
    return lambda values: logits(call(model, values, forward))


def _few(values: Any, run: Callable[[Any], Tensor]) -> tuple[Any, Tensor]:
    """Some samples and what ``run`` makes of them; all samples for a model that takes no other batch size."""
    few = _rows(values, among_others(batch_size(values)))
    try:
        outputs = run(few)
        if outputs.ndim and len(outputs) == batch_size(few):
            return few, outputs
    except ValueError:
        pass
    return values, run(values)


def _rows(values: Any, places: Sequence[int]) -> Any:
    return tree_map(lambda t: t[list(places)] if isinstance(t, Tensor) else t, values)


def _reproduced(shown: Shown, outputs: Tensor) -> bool:
    """Whether the recorded pass of the copy has, for some samples, what the model itself returned for them.

    Then the copy does what the model does; and where others were beside them, no sample's output depends on those. If
    not, either may be at fault, or rounding: both are asked again, with the very same samples.
    """
    theirs = logits(shown.outputs)
    if not outputs.ndim or len(shown.places) < 2 or theirs.shape != (len(shown.places), *outputs.shape[1:]):
        return False
    expected = outputs[list(shown.places)]
    nearly = min(1e-5, 1e-4 * largest_finite(expected))
    return torch.allclose(theirs.to(expected), expected, rtol=1e-4, atol=nearly, equal_nan=True)


def other_paths(copied: nn.Module, explained: nn.Module, values: Any, graph: Graph) -> tuple[str, ...]:
    """Whether control flow depends on the data: a note if two samples read other parameters than the whole probe."""
    few = tree_map(lambda t: t[:2] if isinstance(t, Tensor) else t, values)
    with torch.no_grad():
        try:
            other = trace(copied, as_arguments(few), lambda *arguments: explained(*arguments))
        except Exception:  # a model for one batch size only has one path
            return ()
    parameters = {name for name, _ in copied.named_parameters()}
    differing = sorted((set(graph.uses) ^ set(other.uses)) & parameters)
    if not differing:
        return ()
    return (
        f"the forward pass depends on the data: part of the probe reads other parameters ({', '.join(differing[:5])}); "
        "units are those of the whole probe",
    )


def in_half(model: nn.Module, device: torch.device) -> bool:
    """Whether the model computes in 16 bits, by its parameters or because of autocast."""
    autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return autocast or any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())


def _unmoved(outputs: Tensor) -> str | None:
    """Whether the outputs are the same whatever the input is, but for rounding."""
    size, spread = outputs.abs().max(), (outputs.amax(0) - outputs.amin(0)).max()
    if len(outputs) < 2 or not bool(spread <= _REACTS * size):
        return None
    return (
        f"the model hardly reacts to its input: its outputs for {len(outputs)} samples differ by {float(spread):.1e}, "
        f"and are as large as {float(size):.1e}. Is it trained yet? Train it longer, or use a probe of other samples"
    )


def explained_target(
    target: Tensor | int | None, outputs: Tensor, samples: int, half: bool = False
) -> tuple[Tensor | None, str | None]:
    """The explained class of every sample, and why no verdict can be had, if so.

    Raises:
        ValueError: If outputs or targets have no meaning.
    """
    if outputs.ndim == 0 or len(outputs) != samples or outputs.ndim > 2:
        raise ValueError(
            f"the model returned shape {tuple(outputs.shape)} for {samples} samples; one score or one row of class "
            "scores per sample is needed: pass target=, a function outputs -> (N,) or one of lightning_sanity.targets "
            "(class_mask for segmentation, position for sequences; of a detector's queries, a function), or forward="
        )
    problem = None
    if not bool(outputs.isfinite().all()):
        problem = (
            f"the trained model's output holds NaN or infinity for {int((~outputs.isfinite()).any(-1).sum())} samples"
            f"{HALF if half else ''}"
        )
    problem = problem or _unmoved(outputs)
    classes = outputs.shape[1] if outputs.ndim == 2 else 1
    if classes == 1 and target is None:
        return (None if outputs.ndim == 1 else outputs.new_zeros(samples, dtype=torch.long)), problem
    if target is None:
        target = outputs.argmax(1)
        if problem is None and samples > 1 and bool((target == target[0]).all()):
            problem = (
                f"the model predicts class {int(target[0])} for all {samples} samples, so that no maps of other "
                "classes are there to compare with: is it trained yet? Train it longer; or explain each sample's own "
                "class (target='labels' of the callback, target=labels elsewhere), or a probe with several classes"
            )
    chosen = torch.as_tensor(target, device=outputs.device)
    if chosen.ndim == 0:
        chosen = chosen.expand(samples)
    if chosen.shape != (samples,) or chosen.is_floating_point():
        raise ValueError(
            f"target must be a class index per sample ({samples},) or one integer, not {tuple(chosen.shape)}"
        )
    chosen = chosen.long().clone()
    if bool(((chosen < 0) | (chosen >= classes)).any()):
        wrong = int(chosen[(chosen < 0) | (chosen >= classes)][0])
        raise ValueError(f"target {wrong} is out of range: the model has {classes} classes, 0 to {classes - 1}")
    return chosen, problem


def prepared_methods(
    chosen: Mapping[str, Method], what: Explanation, max_batch: int | None = None
) -> tuple[dict[str, str], dict[str, tuple[Method, AttributionFn]]]:
    """Methods that mean nothing on this model, with the reason, and the others, prepared.

    Where only ``max_batch`` samples are explained at once, a method is prepared for each part when it comes to it,
    unless it rests on all samples.
    """
    divided = [what] if max_batch is None else list(what.chunks(max_batch))
    refused: dict[str, str] = {}
    prepared: dict[str, tuple[Method, AttributionFn]] = {}
    for name, open_method in chosen.items():
        parts = [what] if open_method.of_all else divided
        try:
            method, reason = _settled(open_method, parts)
            ready = method.prepare is None or len(parts) > 1 or reason is not None
            function = method.attribute if ready else method.prepare(what.model, what.inputs)  # type: ignore[misc]
        except RuntimeError as error:  # no gradient, for one; what is wrong with an argument is a ValueError
            if must_end(error) or out_of_memory(error):
                raise
            remedy = remedy_for(error, what.model, what.inputs)
            refused[name] = f"{NOT_APPLICABLE}: preparing it failed. {remedy}. It raised {quoted(error)}"
            continue
        if reason is not None:
            refused[name] = f"{NOT_APPLICABLE}: {reason}"
        else:
            prepared[name] = method, function
    return refused, prepared


def _settled(method: Method, parts: Sequence[Explanation]) -> tuple[Method, str | None]:
    """A method with nothing left open, and why it means nothing on one of the parts, or None.

    The part that takes most decides for all.
    """
    settle = method.settle or (lambda model, inputs, target: method)
    found = [settle(part.model, part.inputs, part.target) for part in parts]
    reasons = (
        each.refuses(part.model, part.inputs, part.target)
        for each, part in zip(found, parts, strict=True)
        if each.refuses is not None
    )
    return max(found, key=lambda each: each.passes), next((reason for reason in reasons if reason is not None), None)


def settled_effort(methods: Mapping[str, Method]) -> dict[str, dict[str, int]]:
    """What was decided on the trained model for every method that had left something open."""
    return {name: dict(method.settled) for name, method in methods.items() if method.settled}


def layers_taken(functions: Mapping[str, AttributionFn]) -> dict[str, str]:
    """The module that each class activation map is made of, by its name in the user's model."""
    layers = {name: getattr(function, "layer", None) for name, function in functions.items()}
    return {name: layer.shown for name, layer in layers.items() if layer is not None}
