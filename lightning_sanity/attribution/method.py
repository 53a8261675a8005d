"""What an attribution method is here: a function of (model, inputs, target), and what the test must know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import ParamSpec

P = ParamSpec("P")

# One Tensor, or a tuple where the model takes several; the attribution is shaped like the first.
AttributionFn = Callable[[nn.Module, Any, Tensor | None], Tensor]
# Why a method means nothing on this model and these inputs, or None if it does.
Refusal = Callable[[nn.Module, Any, Tensor | None], str | None]
# Which parts of the explained input are hidden together: labels 0, 1, ... to be broadcast over channels,
# ``(N, 1, *sides)`` or ``(N, F)``; -1 = never hidden.
Segmentation = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Method:
    """An attribution method.

    Attributes:
        name: As it appears in results and logs.
        attribute: ``(model, inputs, target) -> attribution`` shaped like the input, or with one channel; inputs
            ``(N, ...)``, target ``(N,)`` class indices or None for a single output. Draws only from the global random
            streams, which the test seeds before every call.
        stochastic: Whether two runs with other seeds differ; then the ceiling is measured instead of being 1.
        fresh: Whether it is seeded anew for every model instead of once for all; only the control ``random`` is.
        control: Whether the verdict is known beforehand; controls are judged but never gate.
        signed: Whether the sign of an attribution means for or against; False for magnitudes.
        needs: Name of the optional package (the extra ``lightning-sanity[needs]``) that must be installed, if any.
        passes: Cost, in forward-plus-backward passes of one batch; 0 = never looks at the model. A rough figure where
            the cost depends on the model (its classes, its channels).
        refuses: ``(model, inputs, target) -> reason`` why the method means nothing on this model, or None if it does.
        prepare: ``(model, inputs) -> attribute`` for methods that look at the model once, for a layer for example;
            used instead of ``attribute`` during a test, where the structure stays the same.
        of_all: Whether what ``prepare`` returns rests on all samples together, such as a set of baselines, and explains
            any of them: also those of a part, where not all are explained at once.
        completeness: ``(model, inputs, target) -> gap (N,)``: by how much the attributions of a sample miss the
            difference of outputs they claim to explain, as a share of it; None for methods that claim no such thing.
        over: The same method hiding the parts that a segmentation finds, where these are known beforehand, as tokens
            are; None for methods that hide nothing, or have been told what to hide.
        settle: ``(model, inputs, target) -> the method`` with what it left open decided on this model, the trained
            one, and kept for all others; what it found out is not asked again. None where nothing is open.
        settled: What was decided so, by the names of its parameters.
        foreign: Whether a user wrote it, for their model as it is, which may take its input with channels last. A
            function from outside this package says so itself.
        guarded: Whether a call may leave something behind, as another library's hooks may be, and is watched; a
            foreign method always is.
        max_seconds: After which a call of a guarded method is said to hang, and the method is given up.
    """

    name: str
    attribute: AttributionFn
    stochastic: bool = False
    fresh: bool = False
    control: bool = False
    signed: bool = True
    needs: str | None = None
    passes: float = 1.0
    refuses: Refusal | None = None
    prepare: Callable[[nn.Module, Any], AttributionFn] | None = None
    of_all: bool = False
    completeness: AttributionFn | None = None
    over: Callable[[Segmentation], Method] | None = None
    settle: Callable[[nn.Module, Any, Tensor | None], Method] | None = None
    settled: Mapping[str, int] = field(default_factory=dict)
    foreign: bool = False
    guarded: bool = False
    max_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not (getattr(self.attribute, "__module__", None) or "").startswith("lightning_sanity."):
            object.__setattr__(self, "foreign", True)
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds of method '{self.name}' must be positive, not {self.max_seconds!r}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As the call that made it, where a factory did: its functions know its parameters, and cannot be pickled."""
        recipe = self.__dict__.get("_recipe")
        return super().__reduce_ex__(protocol) if recipe is None else (_made, recipe)

    def __call__(self, model: nn.Module, inputs: Any, target: Tensor | None = None) -> Tensor:
        """The attribution of ``inputs``."""
        if self.settle is not None:
            return self.settle(model, inputs, target)(model, inputs, target)
        function = self.prepare(model, inputs) if self.prepare is not None else self.attribute
        return function(model, inputs, target)


def factory(make: Callable[P, Method]) -> Callable[P, Method]:
    """Decorate a function of a module that makes a method, so that the method can be pickled."""

    @wraps(make)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> Method:
        method = make(*args, **kwargs)
        object.__setattr__(method, "_recipe", (remembered, args, kwargs))
        return method

    return remembered


def _made(make: Callable[..., Method], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Method:
    return make(*args, **kwargs)


def first(inputs: Any) -> Tensor:
    """The input that is explained: the tensor itself, or the first of a tuple."""
    return inputs[0] if isinstance(inputs, tuple) else inputs


def replaced(inputs: Any, value: Tensor) -> Any:
    """``inputs`` with ``value`` in the place of the explained one."""
    return (value, *inputs[1:]) if isinstance(inputs, tuple) else value


def rest(inputs: Any) -> tuple[Any, ...] | None:
    """The inputs that are passed through unexplained, as captum wants them."""
    return tuple(inputs[1:]) if isinstance(inputs, tuple) and len(inputs) > 1 else None


def leaf(value: Tensor) -> Tensor:
    """A copy that records gradients, so that captum need not alter (and warn about) the caller's tensor."""
    return value.detach().clone().requires_grad_()


def select(outputs: Tensor, target: Tensor | None) -> Tensor:
    """The explained output of each sample; ``(N,)``."""
    if target is None:
        return outputs.reshape(len(outputs), -1).sum(1)
    return outputs.gather(1, target.reshape(-1, 1)).squeeze(1)


def output_gradient(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
    """Gradient of each sample's explained output with respect to its explained input; shaped like it."""
    explained = leaf(first(inputs))
    value = replaced(inputs, explained)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(select(outputs_of(model, value), target).sum(), explained)
    return gradient


def outputs_of(model: nn.Module, inputs: Any) -> Tensor:
    """What the model returns for these inputs."""
    outputs: Tensor = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return outputs


def not_differentiable(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
    """Why no gradient can be had with respect to the explained input, or None."""
    value = first(inputs)
    if value.is_floating_point():
        return None
    return (
        f"the explained input is {value.dtype} (token ids?), which has no gradient: explain the embeddings instead, "
        "with tokens=Tokens(embedding=...), the name of the module that makes them, or by passing them as the input "
        "(inputs_embeds of a Hugging Face model)"
    )


def any_of(*refusals: Refusal) -> Refusal:
    """The first reason that one of them finds."""

    def reason(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        return next((found for refusal in refusals if (found := refusal(model, inputs, target)) is not None), None)

    return reason


def at_least(least: float, name: str, **numbers: float) -> None:
    """Raise a ValueError that names the method and the parameter if one of them is too small."""
    for parameter, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
            raise ValueError(f"{name}: {parameter} must be at least {least}, not {value!r}")
