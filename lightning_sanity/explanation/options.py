"""The options that both tests share, stated once: a type for checkers, a default, a sentence of documentation each.

A function that takes them says ``**options: Unpack[...]`` and is decorated with ``spelled_out``, so that ``help()``,
completion in a notebook and LightningCLI list every option by its name, type and default.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_type_hints

from torch import nn
from typing_extensions import TypedDict

from lightning_sanity.attribution.layers import submodule
from lightning_sanity.explanation.suitable_measures import measures_of
from lightning_sanity.explanation.tokens import Tokens
from lightning_sanity.resources.suggestions import alike, unknown
from lightning_sanity.result.verdict import Criterion
from lightning_sanity.similarity import Similarity

METHODS = ("gradient", "gradcam", "guided_backprop")
"""What is tested by default: two that should pass, and one that the literature found to fail."""

F = TypeVar("F", bound=Callable[..., Any])


class CommonOptions(TypedDict, total=False):
    """What both tests can be told.

    Args:
        similarities: Names of ``similarity.available()``, with another normalisation than their own as in
            ``"spearman.percentile_clipped"``. They are added to those that the verdict rests on, as far as they mean
            something on these inputs.
        repeats: Noisy copies for the noise guard, and re-runs of stochastic methods with other seeds.
        seed: Of every draw; the same seed gives the same result on any device.
        criterion: What a method must show to pass.
        controls: Run the controls as well; without them a result cannot show that the test worked.
        forward: ``forward(model, *inputs) -> scores`` (``**inputs`` for a mapping) where calling the model is not
            enough.
        output: Which of several outputs holds the scores, by its place or name; if None the one that its name, its
            shape or the number of classes tells. Where several could be meant the test asks for it.
        channel_axis: Axis of the explained input that holds its channels, or its features, counted with the batch as
            0: maps are summed over it. None says that there is none, as in images ``(N, H, W)``. ``"auto"`` finds it
            by the first operation of the network that mixes the input's numbers, or by the shape where that can mean
            one thing only; else nothing is summed, and the notes say so.
        feature_axis: The same for what is no image: an axis of features, the others being steps, nodes or points.
        layer: Module for the class activation maps, by its name or itself; if None the last spatial feature map, of a
            segmenter that of its bottleneck.
        explain: Which of several inputs is explained, by its place or key; if None the first floating-point one.
        tokens: Where and how token ids are explained; found out if None.
        clone_fn: Copies the model where ``copy.deepcopy`` cannot.
    """

    similarities: Sequence[str | Similarity] | None
    repeats: int
    seed: int
    criterion: Criterion | None
    controls: bool
    forward: Callable[..., Any] | None
    output: int | str | None
    channel_axis: int | Literal["auto"] | None
    feature_axis: int | None
    layer: str | nn.Module | None
    explain: int | str | None
    tokens: Tokens | None
    clone_fn: Callable[[nn.Module], nn.Module] | None


DEFAULTS: CommonOptions = {
    "similarities": None,
    "repeats": 3,
    "seed": 0,
    "criterion": None,
    "controls": True,
    "forward": None,
    "output": None,
    "channel_axis": "auto",
    "feature_axis": None,
    "layer": None,
    "explain": None,
    "tokens": None,
    "clone_fn": None,
}


def check_common(given: CommonOptions) -> None:
    """Refuse what is wrong whatever the model.

    Raises:
        ValueError: Which option, why, and what would be right.
    """
    measures_of(given["similarities"])  # raises on an unknown name
    check_integer("repeats", given["repeats"], 1, MOST_REPEATS)
    check_integer("seed", given["seed"], None)
    if given["channel_axis"] not in ("auto", None):
        check_integer("channel_axis", given["channel_axis"], None)
    if given["feature_axis"] is not None:
        check_integer("feature_axis", given["feature_axis"], None)
    check_yes_no("controls", given["controls"])
    check_kind("criterion", given["criterion"], Criterion, "a Criterion such as Criterion(min_psi=0.7)")
    check_kind("layer", given["layer"], (str, nn.Module), "the name of a module, such as 'backbone.layer4'")
    check_kind("explain", given["explain"], (str, int), "the place or key of an input")
    check_kind("tokens", given["tokens"], Tokens, "a Tokens")
    for name in ("forward", "clone_fn"):
        check_callable(name, given[name])


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], said: str) -> None:
    """Raise a ValueError unless it is None or one of that kind."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
        raise ValueError(f"{name} must be {said}, or None, not {value!r}")


def check_callable(name: str, value: Any) -> None:
    """Raise a ValueError unless it is None or can be called."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function, or None, not {value!r}")


def check_yes_no(name: str, value: Any) -> None:
    """Raise a ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}")


def layer_in(model: nn.Module, layer: str | nn.Module | None) -> str | None:
    """The name of a layer in a model, which is named or given itself.

    Raises:
        ValueError: If the model has no such module; names similar ones.
    """
    model = getattr(model, "_orig_mod", model)  # as its copy will be
    if isinstance(layer, nn.Module):
        found = next((name for name, module in model.named_modules() if module is layer and name), None)
        if found is None:
            raise ValueError(
                f"the module given as layer, a {type(layer).__name__}, is no part of the explained "
                f"{type(model).__name__}: give its name there"
            )
        return found
    if layer is not None:
        submodule(model, layer)
    return layer


MOST_REPEATS = 1000
"""Noisy copies beyond which a number is a slip of the pen: a hundred tell noise from a map already."""


def check_integer(name: str, value: Any, least: int | None, most: int | None = None) -> None:
    """Raise a ValueError unless it is an integer, of at least ``least`` and of at most ``most``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    too_many = whole and most is not None and value > most
    if not whole or too_many or (least is not None and value < least):
        bound = f" of at most {most}" if too_many else "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} must be an integer{bound}, not {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Raise a ValueError unless it is one of ``choices``."""
    if value not in choices:
        raise ValueError(unknown(name, value, choices))


def check_expressions(name: str, value: Any) -> tuple[str, ...]:
    """Names or regular expressions as a tuple.

    Raises:
        ValueError: If it is no sequence of texts, or one is no regular expression.
    """
    given = (value,) if isinstance(value, str) else value
    if not isinstance(given, Sequence) or not all(isinstance(each, str) for each in given):
        raise ValueError(f"{name} must be a list of names or regular expressions, not {value!r}")
    for each in given:
        try:
            re.compile(each)
        except re.error as error:
            raise ValueError(f"{name}: {each!r} is no regular expression ({error})") from error
    return tuple(given)


def check_number(
    name: str, value: Any, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> None:
    """Raise a ValueError unless it is None or a number in that range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and value > above and least <= value <= most):
        bounds = f"above {above:g}" if above > -math.inf else f"from {least:g} to {most:g}"
        raise ValueError(f"{name} must be a number {bounds}, not {value!r}")


def known(options: Mapping[str, Any], defaults: Mapping[str, Any], of: str) -> dict[str, Any]:
    """All options with their defaults.

    Raises:
        TypeError: If one is unknown.
    """
    for name in options:
        if name not in defaults:
            close = alike(name, defaults)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            raise TypeError(f"{of} got an unexpected keyword argument '{name}'; {meant}options: {', '.join(defaults)}")
    return {**defaults, **options}


def spelled_out(options: type, defaults: Mapping[str, Any]) -> Callable[[F], F]:
    """List the options behind ``**options`` one by one in a function's signature and docstring."""

    def listed(function: F) -> F:
        hints = get_type_hints(options)
        if set(hints) != set(defaults):
            raise TypeError(f"{options.__name__} and its defaults differ: {set(hints) ^ set(defaults)}")
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hint)
            for name, hint in hints.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
        if function.__doc__ is None:
            function.__doc__ = f"Args:\n{described(options)}"
        else:
            function.__doc__ = with_descriptions(function.__doc__, options)
        return function

    return listed


def with_descriptions(doc: str, options: type) -> str:
    """A docstring, without its indentation, in which the description of each stands for the line of ``**options``."""
    given = r"^( *)\*\*options:.*\n(?:\1 +.*\n)*"
    return re.sub(given, lambda _: f"{described(options)}\n", inspect.cleandoc(doc), flags=re.MULTILINE)


def described(options: type) -> str:
    """The lines below ``Args:``, indented by 4, of the docstring of a class of options and of those it extends."""
    bases = [base for base in getattr(options, "__orig_bases__", ()) if hasattr(base, "__annotations__")]
    above = [described(base) for base in bases if base is not TypedDict]
    # From Python 3.13 on the compiler takes the indentation away.
    found = re.search(r"Args:\n(.*?)(?=\n\s*\n|\Z)", inspect.cleandoc(options.__doc__ or ""), re.DOTALL)
    own = [] if found is None else [found.group(1).rstrip()]
    return "\n".join([*own, *above])
