"""What a test asks of a model: of which of its inputs, how it is called, and for which number per sample.

Everything behind this border sees a tuple of inputs whose first is explained, its channels first, and a function that
calls the model with it and returns its scores. What a target keeps fixed of every sample rides along as a last input,
so that it is cut and repeated with its sample wherever a method does so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_sanity.attribution.batching import rows_of
from lightning_sanity.attribution.method import Method, first, replaced
from lightning_sanity.explanation.axes import as_asked, layout_of, of_shape
from lightning_sanity.explanation.calling import TargetError, call
from lightning_sanity.explanation.inputs import NAMES, as_tensors
from lightning_sanity.explanation.kinds import TABLE, TOKENS, Kind, Layout, are_ids, of_ids
from lightning_sanity.explanation.probe import among_others
from lightning_sanity.explanation.targets import Target
from lightning_sanity.model.clone import as_one_operation, eager, evaluating, launder, preserved, refuse_fixed
from lightning_sanity.model.detached import stand_in_for, users_hooks
from lightning_sanity.model.outputs import Output, OutputError, are_labels, classes_of, features_by, scores_among
from lightning_sanity.model.weights import is_sharded
from lightning_sanity.resources.quoting import quoted
from lightning_sanity.resources.random_streams import isolated_rng
from lightning_sanity.resources.restored_state import put_back

if TYPE_CHECKING:
    from lightning_sanity.explanation.options import CommonOptions

Forward = Callable[..., Any]
_MASKS = ("attention_mask", "mask")


@dataclass(frozen=True)
class Shown:
    """What the user's model itself returned for some samples of the batch, one pass of which was made.

    Attributes:
        places: Of the samples.
        outputs: The pass's.
    """

    places: tuple[int, ...]
    outputs: Any


@dataclass(frozen=True)
class Request:
    """A question to a model.

    Attributes:
        inputs: One tensor, or a tuple whose first is explained.
        forward: ``(model, *inputs) -> outputs``; None where calling the model is enough.
        target: A class index, or None where the outputs hold one number per sample.
        name: Of the explained input: its key or place, as text.
        target_name: Of the target.
        names: Of all inputs, in the order of ``inputs``.
        chosen: See ``explanation.Explanation``.
        place: Of the target's choice among the inputs, counted from the end; None if there is none.
        layout: What the axes of the explained input are, as the user gave it.
        output: Which of the model's outputs holds the scores.
        own: ``forward``, of the inputs as the user gave them.
        remarks: What had to be done to the inputs, a sentence each.
        shown: What the model returned for some samples when it was called by this very question, if it was.
    """

    inputs: Any
    forward: Forward | None
    target: Tensor | int | None
    name: str
    target_name: str
    names: tuple[int | str, ...]
    chosen: Callable[[nn.Module, Any], Any] | None = None
    place: int | None = None
    layout: Layout | None = None
    output: Output = field(default_factory=Output)
    own: Forward | None = None
    remarks: tuple[str, ...] = ()
    shown: Shown | None = None

    def guest(self, method: Method) -> Method:
        """A method that a user wrote, for the user's model and inputs as they are; any other as it is."""
        return method if self.layout is None else self.layout.guest(method, self.own)

    def kind(self, *, opened: bool = False) -> Kind:
        """What kind of input is explained; ids that are not opened at an embedding are columns of a table."""
        if self.layout is None or self.layout.kind is TOKENS:
            return TOKENS if opened else TABLE
        return self.layout.kind

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result must know of what was explained."""
        of_output = (f"explained is the model's output '{self.output.name}': {self.output.known}",)
        found = (of_output if self.output.path else ()) + (() if self.layout is None else self.layout.notes)
        return found + self.remarks


def ask(
    model: nn.Module,
    inputs: Any,
    target: Any = None,
    *,
    explain: int | str | None = None,
    forward: Forward | None = None,
    output: int | str | None = None,
    real: Tensor | None = None,
    seed: int = 0,
) -> Request:
    """The question that the arguments of a test mean.

    Args:
        model: Is run once, undisturbed, where a ``Target`` has to choose.
        inputs: A tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        target: A class index, one for all or ``(N,)``; None; a function ``outputs -> (N,)``; or a ``Target``.
        explain: Which input: its place or key. None = the first, or of a mapping the first of the usual names, else
            its first floating-point tensor, else its first tensor.
        forward: ``(model, *inputs)``, or ``(model, **inputs)`` for a mapping.
        output: The place or name of the output that is explained.
        real: Tokens that are no padding ``(N, T)``; None = those that one of the inputs marks.
        seed: Of the streams for the target's choice.

    Raises:
        ValueError: If the explained input is not there or no tensor.
    """
    names, values = _listed(inputs)
    place = names.index(_chosen_name(names, values, explain))
    order = [place, *(k for k in range(len(names)) if k != place)]
    arranged = tuple(values[k] for k in order)
    if isinstance(inputs, Mapping) or order != sorted(order):
        forward = _called_by(tuple(names[k] for k in order), forward)
    if output is not None:
        forward = _returning(output, forward or _plainly)
    asked = Request(
        arranged[0] if len(arranged) == 1 else arranged,
        forward,
        None if callable(target) or isinstance(target, Target) else target,
        str(names[place]),
        "class",
        tuple(names[k] for k in order),
    )
    if isinstance(target, Target):
        mask = real if real is not None else mask_among(asked.names, arranged)
        known = target if target.among is None or mask is None else target.among(mask != 0)
        return _settled(asked, model, known, seed)
    if callable(target):
        return _with_score(asked, getattr(target, "__name__", "a function"), lambda outputs, *_: target(outputs))
    return asked


def asked_of(model: nn.Module, inputs: Any, target: Any, given: CommonOptions, labels: Tensor | None = None) -> Request:
    """The question that the arguments and options of a test mean; see ``ask`` and ``understood``."""
    seed = given["seed"]
    if labels is not None and not (isinstance(labels, Tensor) and labels.ndim == 1):
        shown = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be a tensor of one class index per sample (N,), not {shown}")
    refuse_fixed(model)
    inputs, forward = as_tensors(inputs, given["forward"])
    asked = ask(
        model,
        inputs,
        target,
        explain=given["explain"],
        forward=forward,
        output=given["output"],
        real=None if given["tokens"] is None else given["tokens"].mask,
        seed=seed,
    )
    return understood(
        model,
        asked,
        channel_axis=given["channel_axis"],
        feature_axis=given["feature_axis"],
        seed=seed,
        labels=labels,
    )


def understood(
    model: nn.Module,
    asked: Request,
    *,
    channel_axis: int | str | None = "auto",
    feature_axis: int | None = None,
    seed: int = 0,
    labels: Tensor | None = None,
) -> Request:
    """The same question with its input's channels first and the model's scores found among its outputs.

    Args:
        model: Is run once on a few samples, undisturbed.
        asked: The question.
        channel_axis: See ``options.CommonOptions``.
        feature_axis: See there.
        seed: Of the streams during that pass.
        labels: The samples' classes ``(N,)``, where they are known: which of several outputs predicts them is told by
            a pass over all samples.

    Raises:
        ValueError: If several outputs could be the scores, or an option names an axis that is not there.
    """
    asked, seen = _fitting(model, asked, seed)
    value = first(asked.inputs)
    shape = tuple(value.shape)
    told, outputs, rows = (of_shape(shape), None, 0) if seen is None else (seen.layout, seen.outputs, seen.rows)
    layout = of_ids(value) if are_ids(value) else as_asked(replace(told, shape=shape), channel_axis, feature_axis)
    output = Output()
    if asked.target_name == "class" and outputs is not None:
        output = _scores(model, asked, outputs, rows, seed, labels)
        asked = replace(asked, remarks=(*asked.remarks, *_doubts(model, asked, output, outputs)))
    found = replace(asked, layout=layout, output=output, own=asked.forward)
    run = asked.forward or _plainly
    if output.path:
        found = replace(found, own=lambda model, *values: output.of(run(model, *values)))
        found = replace(found, forward=found.own)
    if layout.as_it_is:
        same = seen is not None and found.forward is asked.forward and not seen.wrote
        return replace(found, shown=Shown(seen.places, seen.outputs)) if seen is not None and same else found
    inner, chosen = found.own or _plainly, asked.chosen

    def turned(model: nn.Module, value: Any, *others: Any) -> Any:
        return inner(model, layout.back(value), *others)

    def choosing(explained: nn.Module, inputs: Any) -> Any:
        assert chosen is not None
        return replaced(chosen(explained, replaced(inputs, layout.back(first(inputs)))), first(inputs))

    layout = replace(layout, compact=False)
    if not _runs(model, replace(asked, forward=turned, inputs=replaced(asked.inputs, layout.turned(value))), seed):
        layout = replace(layout, compact=True)
    found, given = replace(found, layout=layout), replaced(asked.inputs, layout.turned(value))
    return replace(found, inputs=given, forward=turned, chosen=None if chosen is None else choosing)


@dataclass(frozen=True)
class _Seen:
    """What a pass showed: the input's axes, the outputs, of which samples, and whether the inputs were written to."""

    layout: Layout
    outputs: Any
    places: tuple[int, ...]
    wrote: bool

    @property
    def rows(self) -> int:
        return len(self.places)


def _fitting(model: nn.Module, asked: Request, seed: int) -> tuple[Request, _Seen | None]:
    """The question with inputs of a type that the model takes and that can be differentiated by, copied if need be."""
    value = first(asked.inputs)
    few = min(len(value), _FEW) if value.ndim else 0
    seen, remarks = _watched(model, asked, few, seed), []
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    wanted = next(iter(dtypes)) if len(dtypes) == 1 else None
    number = value.dtype
    if value.is_floating_point() and seen is None and wanted not in (None, number):
        number = wanted
        remarks.append(f"inputs of {value.dtype} were converted to {wanted}, the type of the model's weights")
    elif _counts(value) and seen is not None:
        number = torch.float32
        remarks.append(f"inputs of {value.dtype} are explained as the same numbers in {number}")
    if number != value.dtype:
        cast = replace(asked, inputs=replaced(asked.inputs, value.to(number)))
        found = _watched(model, cast, few, seed)
        asked, seen = (cast, found) if found is not None else (asked, seen)
        remarks = remarks if found is not None else []
    if seen is not None and seen.wrote:
        asked = replace(asked, forward=_on_copies(asked.forward or _plainly))
        remarks.append("the model writes into its inputs, so that every pass is given copies of them")
    return replace(asked, remarks=(*asked.remarks, *remarks)), seen


def _counts(value: Tensor) -> bool:
    """Whether it is whole numbers that measure something, as the bytes of an image do, and are no ids."""
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool) and value.ndim > 2


def _on_copies(run: Forward) -> Forward:
    def copying(model: nn.Module, *values: Any) -> Any:
        return run(model, *(value.clone() if isinstance(value, Tensor) else value for value in values))

    return copying


_FEW = 3
"""Samples that show what the axes are: more than one, and no likely length of another axis."""


def _watched(model: nn.Module, asked: Request, few: int, seed: int) -> _Seen | None:
    """What a pass over a few samples shows, or over all; None where it fails, which who copies the model will tell."""
    run, total = asked.forward or _plainly, len(first(asked.inputs)) if first(asked.inputs).ndim else 0
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    some = tuple(among_others(total)[:few]) if total else ()
    for places in (each for each in (some, tuple(range(total))) if each):
        count, index = len(places), torch.tensor(places, device=first(asked.inputs).device)
        with _undisturbed(model, device, seed) as unheard:
            values = launder(rows_of(asked.inputs, index), device)
            given = values if isinstance(values, tuple) else (values,)
            before = _versions(given)
            try:
                layout, outputs = layout_of(unheard, given, given[0], lambda: run(unheard, *given))  # noqa: B023
            except OutputError:
                raise
            except Exception:
                continue
        if _rows_in(outputs) == count or count == total:
            return _Seen(layout, outputs, places, _versions(given) != before)
    return None


def _versions(values: Any) -> list[int]:
    return [value._version for value in values if isinstance(value, Tensor)]


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device, seed: int) -> Iterator[nn.Module]:
    """The model, for passes that nobody hears of and that leave nothing behind."""
    with (
        isolated_rng(seed, device),
        torch.inference_mode(False),
        torch.no_grad(),
        eager(),
        evaluating(model),
        preserved(model),
        put_back(*(hook.function for hook in users_hooks(model))),
    ):
        yield model if is_sharded(model) else stand_in_for(model)


def _runs(model: nn.Module, asked: Request, seed: int) -> bool:
    """Whether the model can be called so; with few samples, or with all."""
    return _watched(model, asked, min(len(first(asked.inputs)), _FEW), seed) is not None


def _rows_in(outputs: Any) -> int:
    """The most usual first dimension of what a model returned."""
    sizes = [len(leaf) for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.ndim]
    return max(sizes, key=sizes.count, default=0)


def _scores(model: nn.Module, asked: Request, outputs: Any, rows: int, seed: int, labels: Tensor | None) -> Output:
    """The scores among what a pass over some samples returned; where labels can tell, among those of all samples."""
    classes, known = classes_of(model), asked.target if labels is None else labels
    try:
        return scores_among(outputs, rows, classes=classes)
    except OutputError:
        found = _watched(model, asked, 0, seed) if are_labels(known) else None
        if found is None or not are_labels(known):
            raise
        return scores_among(found.outputs, found.rows, classes=classes, labels=known)


def _doubts(model: nn.Module, asked: Request, output: Output, outputs: Any) -> tuple[str, ...]:
    """What speaks against taking the outputs for scores of classes, where nobody has said which number is meant."""
    rows = output.of(outputs)
    if asked.target is not None or not isinstance(rows, Tensor):
        return ()
    sign = features_by(rows, output.name, classes_of(model))
    if sign is None:
        return ()
    return (
        f"the model's {rows.shape[1]} outputs look like features, not like scores of classes: {sign}. Explained is the "
        "largest of them; say what is meant by target=, as in targets.cosine_to(reference), or end the model in its "
        "classifier by forward=",
    )


def mask_among(names: Sequence[int | str], values: Sequence[Any]) -> Tensor | None:
    """The input that marks which tokens are real, by its name."""
    return next((value for name, value in zip(names, values, strict=False) if name in _MASKS), None)


def explainable(inputs: Any) -> tuple[int | str, ...]:
    """Names of the inputs that could be explained: the floating-point tensors."""
    names, values = _listed(inputs)
    return tuple(
        n for n, value in zip(names, values, strict=True) if isinstance(value, Tensor) and value.is_floating_point()
    )


def _listed(inputs: Any) -> tuple[list[int | str], list[Any]]:
    if isinstance(inputs, Mapping):  # also what a Hugging Face tokenizer returns
        return list(inputs.keys()), list(inputs.values())
    values = list(inputs) if isinstance(inputs, tuple) else [inputs]
    return list(range(len(values))), values


def _chosen_name(names: list[int | str], values: list[Any], explain: int | str | None) -> int | str:
    tensors = {name: value for name, value in zip(names, values, strict=True) if isinstance(value, Tensor)}
    if not tensors:
        kinds = ", ".join(dict.fromkeys(type(value).__name__ for value in values)) or "nothing"
        raise ValueError(
            f"there is no tensor among the inputs, {kinds}: pass the tensor that is explained, and forward=, a "
            "function that puts it where the model reads it: forward=lambda model, x: model(Data(x, edges))"
        )
    if explain is not None:
        if explain not in tensors:
            raise ValueError(f"explain={explain!r} is no input tensor; there are {', '.join(map(repr, tensors))}")
        return explain
    usual = [name for name in NAMES if name in tensors]
    if usual:
        return usual[0]
    if names == list(range(len(names))):
        return next(iter(tensors))
    return next((name for name, value in tensors.items() if value.is_floating_point()), next(iter(tensors)))


def _called_by(names: tuple[int | str, ...], forward: Forward | None) -> Forward:
    """Calls with values in the order of ``names``: by keyword, or each at its place."""

    def run(model: nn.Module, *values: Any) -> Any:
        named = dict(zip(names, values, strict=True))
        callee = model if forward is None else forward
        first = () if forward is None else (model,)
        if all(isinstance(name, str) for name in names):
            return callee(*first, **{str(name): value for name, value in named.items()})
        return callee(*first, *(named[place] for place in range(len(names))))

    return run


def _returning(output: int | str, run: Forward) -> Forward:
    def returning(model: nn.Module, *values: Any) -> Any:
        outputs = run(model, *values)
        return scores_among(outputs, None, output).of(outputs)

    return returning


def _plainly(model: nn.Module, *values: Any) -> Any:
    return model(*values)


def _with_score(asked: Request, name: str, score: Callable[..., Any], **changes: Any) -> Request:
    """Ask for ``score(outputs, *values)``; the values are those that ``changes`` put behind the inputs."""
    run, total = asked.forward or _plainly, len(asked.names)

    def checked(outputs: Any, *values: Any) -> Tensor:
        try:
            found = score(outputs, *values)
        except Exception as error:
            raise TargetError(
                f"target '{name}' cannot be taken of the model's outputs, {_shown(outputs)}: pass a function of them "
                f"that returns one floating-point number per sample (N,). It raised {quoted(error)}"
            ) from error
        if not isinstance(found, Tensor) or found.ndim != 1 or not found.is_floating_point():
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise TargetError(f"target '{name}' must return one floating-point number per sample (N,), not {shown}")
        return found

    def scored(model: nn.Module, *values: Any) -> Any:
        return as_one_operation(checked, run(model, *values[:total]), *values[total:])

    return replace(asked, forward=scored, target=None, target_name=name, **changes)


def _shown(outputs: Any) -> str:
    """What a model returned, in words."""
    if isinstance(outputs, Tensor):
        return f"a tensor {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"{type(outputs).__name__} with {', '.join(map(repr, outputs)) or 'nothing'}"
    if isinstance(outputs, (list, tuple)):
        return (
            f"a {type(outputs).__name__} of {len(outputs)} ({', '.join(type(each).__name__ for each in outputs[:4])})"
        )
    return type(outputs).__name__


def _settled(asked: Request, model: nn.Module, target: Target, seed: int) -> Request:
    """The choice of a target made on the trained model and put behind the other inputs."""
    run, values = asked.forward or _plainly, asked.inputs if isinstance(asked.inputs, tuple) else (asked.inputs,)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with _undisturbed(model, device, seed) as unheard:
        choice = target.choose(call(unheard, launder(values, device), asked.forward))

    def chosen(explained: nn.Module, inputs: Any) -> Any:
        inner = getattr(explained, "model", explained)
        with torch.no_grad():
            return (*inputs[:-1], target.choose(run(inner, *inputs[:-1])))

    return _with_score(
        asked,
        target.name,
        target.score,
        inputs=(*values, choice),
        names=(*asked.names, "choice"),
        chosen=chosen,
        place=-1,
    )
