"""Gradients at the input and around it: gradient, input x gradient, its competition, SmoothGrad and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from captum.attr import InputXGradient, Saliency
from torch import Tensor, nn

from lightning_sanity.attribution.batching import ROWS, Rows, rows_of, target_of
from lightning_sanity.attribution.derived import Copies, Derived
from lightning_sanity.attribution.method import (
    AttributionFn,
    Method,
    any_of,
    at_least,
    factory,
    first,
    leaf,
    not_differentiable,
    output_gradient,
    outputs_of,
    replaced,
    rest,
)


@factory
def gradient() -> Method:
    """Gradient of the explained output; Simonyan et al. 2014 (arXiv:1312.6034), signed."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        explained = leaf(first(inputs))
        found: Tensor = Saliency(model).attribute(
            explained, target=target, abs=False, additional_forward_args=rest(inputs)
        )
        return found.detach()

    derived = Derived(attribute, lambda value, seen: seen.mean["gradient"])
    return Method("gradient", derived, refuses=not_differentiable)


@factory
def input_x_gradient() -> Method:
    """Input times gradient; Shrikumar et al. 2016 (arXiv:1605.01713)."""

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        explained = leaf(first(inputs))
        found: Tensor = InputXGradient(model).attribute(explained, target=target, additional_forward_args=rest(inputs))
        return found.detach()

    derived = Derived(attribute, lambda value, seen: value * seen.mean["gradient"])
    return Method("input_x_gradient", derived, refuses=not_differentiable)


@factory
def competition_input_x_gradient() -> Method:
    """Input times gradient where the explained class wins the competition; Gupta & Arora 2019 (arXiv:1905.12152).

    An element keeps its value where it is positive and the largest over all classes, or negative and the smallest,
    and is 0 elsewhere. One backward pass per class, one class at a time.
    """

    def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
        explained = leaf(first(inputs))
        with torch.enable_grad():
            outputs = outputs_of(model, replaced(inputs, explained))
        if outputs.ndim != 2 or target is None:
            raise ValueError("competition_input_x_gradient needs class scores (N, classes) and a target")
        classes = outputs.shape[1]
        own = torch.zeros_like(explained)
        largest, smallest = torch.full_like(own, -torch.inf), torch.full_like(own, torch.inf)
        for index in range(classes):
            (slope,) = torch.autograd.grad(outputs[:, index].sum(), explained, retain_graph=index < classes - 1)
            product = slope * explained.detach()
            chosen = (target == index).reshape(-1, *[1] * (own.ndim - 1))
            own = torch.where(chosen, product, own)
            largest, smallest = torch.maximum(largest, product), torch.minimum(smallest, product)
        wins = ((own > 0) & (own >= largest)) | ((own < 0) & (own <= smallest))
        return own * wins

    return Method(
        "competition_input_x_gradient", attribute, passes=10.0, refuses=any_of(not_differentiable, _no_competition)
    )


def _no_competition(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
    with torch.no_grad():
        outputs = outputs_of(model, inputs)
    if target is None or outputs.ndim != 2 or outputs.shape[1] < 2:
        return "the model has a single output, and no other class to compete with"
    return None


@factory
def smoothgrad(n_samples: int = 25, noise: float = 0.15, max_batch: int = ROWS) -> Method:
    """Mean gradient over noisy copies of the input; Smilkov et al. 2017 (arXiv:1706.03825).

    Not captum's ``NoiseTunnel``, whose one noise level is shared by the batch: here a sample's noise is scaled by its
    own range and does not depend on its neighbours.

    Args:
        n_samples: Noisy copies.
        noise: Standard deviation as a share of the sample's range (maximum - minimum).
        max_batch: Most rows per pass through the model.
    """
    return _smoothed("smoothgrad", lambda mean, square: mean, n_samples, noise, max_batch, signed=True)


@factory
def smoothgrad_squared(n_samples: int = 25, noise: float = 0.15, max_batch: int = ROWS) -> Method:
    """Mean squared gradient over noisy copies of the input; Hooker et al. 2019 (arXiv:1806.10758).

    Arguments: see ``smoothgrad``.
    """
    return _smoothed("smoothgrad_squared", lambda mean, square: square, n_samples, noise, max_batch, signed=False)


@factory
def vargrad(n_samples: int = 25, noise: float = 0.15, max_batch: int = ROWS) -> Method:
    """Variance of the gradient over noisy copies of the input; Adebayo et al. 2018 (arXiv:1810.03307).

    Arguments: see ``smoothgrad``; at least two copies.
    """
    at_least(2, "vargrad", n_samples=n_samples)
    return _smoothed(
        "vargrad", lambda mean, square: (square - mean**2).clamp_min(0), n_samples, noise, max_batch, signed=False
    )


def _smoothed(
    name: str,
    moment: Callable[[Tensor, Tensor], Tensor],
    n_samples: int,
    noise: float,
    max_batch: int,
    *,
    signed: bool,
) -> Method:
    at_least(1, name, n_samples=n_samples)
    at_least(0, name, noise=noise)
    over = over_noise(output_gradient, name, n_samples, noise, max_batch)
    return Method(
        name,
        Derived(
            lambda model, inputs, target: moment(*over(model, inputs, target)),
            lambda value, seen: moment(seen.mean["gradient"], seen.square["gradient"]),
            copies=_noisy(n_samples, noise),
            tolerance=1e-4 if name == "vargrad" else 1e-5,  # its two sums cancel
        ),
        stochastic=True,
        passes=n_samples,
        signed=signed,
        refuses=not_differentiable,
    )


@factory
def smoothed(method: Method, n_samples: int = 50, noise: float = 0.1, max_batch: int = ROWS) -> Method:
    """Any method, averaged over noisy copies of the input, as the smooth randomization test (sMPRT) explains.

    Averaging removes the part of a curve's fall that is only the noise of single maps. The original walks bottom-up:
    ``parameter_randomization_test(..., methods=smoothed(resolve("gradcam")), order="bottom_up")``.

    Args:
        method: The method to smooth.
        n_samples: Noisy copies.
        noise: Standard deviation as a share of the sample's range (maximum - minimum).
        max_batch: Most rows per pass through the model.

    Hedström et al., "Sanity Checks Revisited: An Exploration to Repair the Model Parameter Randomisation Test", 2023
    (arXiv:2401.06465).
    """
    name = f"smoothed_{method.name}"
    at_least(1, name, n_samples=n_samples)
    at_least(0, name, noise=noise)
    over = over_noise(method, name, n_samples, noise, max_batch)
    return replace(
        method,
        name=name,
        attribute=lambda model, inputs, target: over(model, inputs, target)[0],
        stochastic=True,
        passes=method.passes * n_samples,
        prepare=None,
        completeness=None,
    )


def _noisy(n_samples: int, noise: float) -> Copies:
    def make(value: Tensor) -> Callable[[int, slice], Tensor]:
        patterns = [sample_noise(value[:1]) for _ in range(n_samples)]
        spread = sample_range(value)
        return lambda k, samples: value[samples] + noise * spread[samples] * patterns[k]

    return Copies(("noise", n_samples, noise), (1 / n_samples,) * n_samples, make)


def over_noise(
    function: AttributionFn, name: str, n_samples: int, noise: float, max_batch: int
) -> Callable[[nn.Module, Any, Tensor | None], tuple[Tensor, Tensor]]:
    """Mean and mean square of an attribution over noisy copies; arguments: see ``smoothgrad``."""
    rows = Rows(max_batch, name)

    def moments(model: nn.Module, inputs: Any, target: Tensor | None) -> tuple[Tensor, Tensor]:
        value = first(inputs).detach()
        patterns = [sample_noise(value[:1]) for _ in range(n_samples)]
        spread = sample_range(value)

        def run(samples: slice, copies: range) -> Tensor:
            noisy = torch.cat([value[samples] + noise * spread[samples] * patterns[k] for k in copies])
            found = function(
                model, rows_of(inputs, samples, len(copies), noisy), target_of(target, samples, len(copies))
            )
            return found.reshape(len(copies), -1, *found.shape[1:])

        total = squares = torch.empty(0)
        for samples, _, found in rows.chunks(len(value), n_samples, run):
            if not total.numel():  # maps of one channel, say, for an input of three
                total, squares = (found.new_zeros(len(value), *found.shape[2:]) for _ in range(2))
            total[samples] += found.sum(0)
            squares[samples] += found.square().sum(0)
        return total / n_samples, squares / n_samples

    return moments


def sample_noise(value: Tensor) -> Tensor:
    """Standard normal noise for one sample ``(...)``, the same for all, so that none depends on another."""
    return torch.randn(value.shape[1:], dtype=torch.float32).to(
        value.device, value.dtype
    )  # drawn on the CPU: the same on every device


def sample_range(value: Tensor) -> Tensor:
    """Maximum - minimum of each sample; ``(N, 1, ...)``."""
    flat = value.reshape(len(value), -1)
    return (flat.amax(1) - flat.amin(1)).reshape(-1, *[1] * (value.ndim - 1))
