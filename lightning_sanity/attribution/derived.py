"""Attributions that follow from what a pass shows, stated so that one pass can serve several methods and depths.

A method that is a ``Derived`` says which pass it needs, over which copies of the batch, and what it makes of it. It is
called like any other; but who walks all depths of a cascade at once can read what it needs instead, and run each pass
once for all methods that share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_sanity.attribution.input_gradients import InputGradients
from lightning_sanity.attribution.layers import Layer
from lightning_sanity.attribution.method import AttributionFn, first


@dataclass(frozen=True)
class Reading:
    """What passes showed of a batch of rows.

    Attributes:
        mean: Per rule (see ``Derived.rules``) the gradient; its weighted sum over copies where there are any.
        square: The same of its square; only where there are copies.
        activation: The layer's output ``(rows, C, h, w)``.
        slope: The explained output's gradient there.
        outputs: What the model returned for the batch itself ``(rows, ...)``; None for altered copies.
    """

    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor] = field(default_factory=dict)
    activation: Tensor | None = None
    slope: Tensor | None = None
    outputs: Tensor | None = None


@dataclass(frozen=True)
class Copies:
    """Altered copies of the batch; equal ones are made and run once.

    Attributes:
        key: What makes two equal: the kind of copy and its settings.
        weights: Of each copy, in the sums of ``Reading``.
        make: ``batch (N, ...) -> the function that makes copy k of these samples of it``. Draws from the global
            streams, if at all, before it returns.
    """

    key: tuple[object, ...]
    weights: tuple[float, ...] = field(compare=False)
    make: Callable[[Tensor], Callable[[int, slice], Tensor]] = field(compare=False)


@dataclass(frozen=True)
class Derived:
    """An attribution function that says what it needs.

    Attributes:
        plain: The attribution by passes of its own, which any shortcut must equal. A call runs it with
            ``InputGradients``.
        combine: ``(explained rows, evidence) -> attribution``, each row by itself.
        rules: The gradients at the input that ``combine`` reads: "gradient", "guided", "deconvnet"; none where it
            reads a layer or the outputs alone.
        layer: Where activation and slope are taken, if anywhere.
        copies: Which copies of the batch the gradients are summed over; None for the batch itself.
        reduced: ``(attribution, inputs) -> attribution`` where it is not shaped like what is explained: a score per
            token, of all dimensions of its embedding.
        tolerance: Largest difference from ``plain``, relative to its norm, that batches of another size
            or another order of summation explain; a deep transformer's matrix products differ by 2e-6.
    """

    plain: AttributionFn
    combine: Callable[[Tensor, Reading], Tensor]
    rules: tuple[str, ...] = ("gradient",)
    layer: Layer | None = None
    copies: Copies | None = None
    reduced: Callable[[Tensor, Any], Tensor] | None = None
    tolerance: float = 1e-5

    @property
    def reads_outputs(self) -> bool:
        """Whether it reads nothing but the outputs for the batch itself."""
        return not self.rules and self.layer is None and self.copies is None

    def __call__(self, model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        """The attribution of ``inputs``."""
        with InputGradients():
            return self.plain(model, inputs, target)

    def of(self, inputs: Any, seen: Reading) -> Tensor:
        """The attribution of some rows, by what passes showed of them."""
        found = self.combine(first(inputs), seen)
        return found if self.reduced is None else self.reduced(found, inputs)
