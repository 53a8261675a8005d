"""Infidelity and sensitivity: does a map say what a perturbation does, and does it hold still under a tiny one?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum import metrics
from torch import Tensor, nn

from lightning_sanity.attribution.baselines import Baseline, baseline_for, check_baseline
from lightning_sanity.attribution.batching import ROWS, Rows, rows_of, target_of
from lightning_sanity.attribution.method import AttributionFn, at_least, first, rest
from lightning_sanity.attribution.perturbation import explained, whole
from lightning_sanity.model.clone import evaluating
from lightning_sanity.quality.faithfulness import shaped

Perturbation = str | Callable[[Tensor], Tensor]
"""What infidelity takes away: a name, or a function of the inputs ``(N, ...)``, called once per draw."""

LAWS = ("gaussian", "baseline", "noisy_baseline", "square")


@torch.no_grad()
def infidelity(
    model: nn.Module,
    inputs: Any,
    attributions: Tensor,
    target: Tensor | None = None,
    *,
    perturbation: Perturbation = "gaussian",
    noise: float = 0.03,
    baseline: Baseline = 0.0,
    multiplied: bool = False,
    n_samples: int = 10,
    normalize: bool = True,
    max_batch: int = ROWS,
) -> Tensor:
    """Infidelity, the mean of ``(I . a - (f(x) - f(x - I)))^2`` over perturbations I; lower is better.

    It depends on the law of I: report that with the number. It also grows with the square of the model's outputs, so
    models of different output scale cannot be compared by it, normalised or not.

    Args:
        model: What was explained.
        inputs: ``(N, ...)``, or a tuple that starts with them.
        attributions: Shaped like the inputs; a map without channels is split equally among them.
        target: Explained classes ``(N,)``; None for the sum of the outputs.
        perturbation: "gaussian": ``I ~ N(0, noise^2)``. "baseline": ``I = x - x0``, one perturbation, for which
            infidelity is the squared completeness gap. "noisy_baseline": ``I = x - x0 - N(0, noise^2)``. "square":
            ``x - x0`` inside a random square of a quarter of the shorter side. Or a function that returns I.
        noise: Standard deviation, in units of the inputs.
        baseline: x0: a number, a tensor, or "blur", "min", "max", "mean".
        multiplied: Whether the attributions hold the factor ``x - x0`` (integrated gradients, SHAP, input times
            gradient). Then ``I / (x - x0)`` is multiplied with them; "baseline" and "square" only.
        n_samples: Perturbations per sample.
        normalize: Scale each sample's attribution by the factor that fits best, so that its scale does not matter.
        max_batch: Most rows sent through the model at once.

    Returns:
        ``(N,)``, at least 0; NaN where an attribution is not finite. One that is 0 throughout scores the mean squared
        loss of output, the worst that a normalised one can.

    Raises:
        ValueError: If an argument does not fit, or a single perturbation is to be normalised: some factor always fits.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (arXiv:1901.09392); captum's.
    """
    whole("infidelity", 1, n_samples=n_samples)
    at_least(0, "infidelity", noise=noise)
    value = first(inputs).detach()
    shares = shaped("infidelity", attributions, value)
    copies = 1 if perturbation == "baseline" else n_samples
    if normalize and copies == 1:
        raise ValueError("infidelity: some scale always fits a single perturbation exactly; pass normalize=False")
    if multiplied and perturbation not in ("baseline", "square"):
        raise ValueError("infidelity: multiplied=True needs perturbation 'baseline' or 'square'")
    law = _law(perturbation, value, baseline, noise, copies)

    rows = Rows(max_batch, "infidelity")

    def run(samples: slice, _: range) -> Tensor:
        count, taken = len(value[samples]), 0

        def perturb(repeated: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal taken
            block = slice(taken, taken + len(repeated) // count)
            taken = block.stop
            share, removed = (part.flatten(0, 1) for part in law(samples, block))
            return (share if multiplied else removed), repeated - removed

        found: Tensor = metrics.infidelity(
            explained(model, target),
            perturb,
            value[samples],
            shares[samples],
            additional_forward_args=rest(rows_of(inputs, samples)),
            target=target_of(target, samples),
            n_perturb_samples=copies,
            max_examples_per_batch=min(max(rows.limit, count), count * copies),
            normalize=normalize,
        )
        return found.clamp_min(0)  # the normalised square is computed as a difference

    with evaluating(model):
        found = torch.cat([block for _, _, block in rows.chunks(len(value), 1, run)])
    return found.masked_fill(~shares.flatten(1).isfinite().all(dim=1), torch.nan)


@torch.no_grad()
def max_sensitivity(
    model: nn.Module,
    inputs: Any,
    attribute: AttributionFn,
    target: Tensor | None = None,
    *,
    radius: float = 0.02,
    n_samples: int = 10,
    max_batch: int = ROWS,
) -> Tensor:
    """Largest relative change of an attribution within a small box around the input; lower is better.

    ``max |a(x + d) - a(x)| / |a(x)|`` over draws of d, uniform with ``|d_i| <= radius``. The best score belongs to an
    attribution that never changes, so it says nothing about the model on its own. The noise of a stochastic method
    counts as change.

    Args:
        model: See `infidelity`.
        inputs: See `infidelity`.
        attribute: The method, ``(model, inputs, target) -> attribution``; a `Method` or any function.
        target: Explained classes ``(N,)``.
        radius: Half the side of the box, in units of the inputs.
        n_samples: Draws.
        max_batch: Most rows explained at once.

    Returns:
        ``(N,)``, at least 0; NaN where the attribution of the input is 0 or one is not finite.

    Yeh et al. 2019 (arXiv:1901.09392); captum's.
    """
    whole("max_sensitivity", 1, n_samples=n_samples)
    at_least(0, "max_sensitivity", radius=radius)
    value = first(inputs).detach()
    draws = ((2 * torch.rand(n_samples, *value.shape[1:]) - 1) * radius).to(value)
    rows = Rows(max_batch, "max_sensitivity")

    def run(samples: slice, _: range) -> Tensor:
        count, taken = len(value[samples]), 0
        plain: list[Tensor] = []

        def perturb(repeated: Tensor) -> Tensor:
            nonlocal taken
            block = draws[taken : taken + len(repeated) // count]
            taken += len(block)
            return repeated + block.repeat(count, *[1] * (value.ndim - 1))

        def explain(given: Any, target: Tensor | None = None, additional_forward_args: Any = ()) -> Any:
            x = first(given)
            with torch.enable_grad():
                found = attribute(model, (x, *additional_forward_args) if isinstance(inputs, tuple) else x, target)
            if not plain:  # captum explains the inputs themselves first
                plain.append(found.detach())
            return (found.detach(),)

        others = rest(rows_of(inputs, samples))
        optional = {"target": target_of(target, samples), "additional_forward_args": others}
        found: Tensor = metrics.sensitivity_max(
            explain,
            value[samples],
            perturb,
            n_perturb_samples=n_samples,
            max_examples_per_batch=min(max(rows.limit, count), count * n_samples),
            **{name: given for name, given in optional.items() if given is not None},
        )
        return found.masked_fill((plain[0] == 0).flatten(1).all(dim=1) | ~found.isfinite(), torch.nan)

    with evaluating(model):
        return torch.cat([block for _, _, block in rows.chunks(len(value), 1, run)])


# (samples, draws) -> the share of x - x0 that is taken away, where the law knows one, and I itself; both (n, k, ...)
_Law = Callable[[slice, slice], tuple[Tensor, Tensor]]


def _law(perturbation: Perturbation, value: Tensor, baseline: Baseline, noise: float, copies: int) -> _Law:
    if callable(perturbation):
        made = torch.stack([perturbation(value) for _ in range(copies)], dim=1).to(value)
        if made.shape != (len(value), copies, *value.shape[1:]):
            raise ValueError(
                f"infidelity: the perturbation function must return {tuple(value.shape)}, like the inputs, not "
                f"{(len(made), *made.shape[2:])}"
            )
        return lambda samples, draws: (made[samples, draws], made[samples, draws])
    if perturbation not in LAWS:
        raise ValueError(
            f"infidelity: unknown perturbation '{perturbation}'; choose from: {', '.join(LAWS)} (or pass a function)"
        )
    check_baseline(baseline, "infidelity")
    away = (value - baseline_for(baseline, value))[:, None]  # (N, 1, ...)
    shape = (copies, *value.shape[1:])
    if perturbation in ("baseline", "square"):
        share = (torch.ones(shape) if perturbation == "baseline" else _squares(shape)).to(value)
        return lambda samples, draws: (
            share[draws].expand(len(away[samples]), -1, *value.shape[1:]),
            away[samples] * share[draws],
        )
    drawn = (noise * torch.randn(shape)).to(value)
    away = torch.zeros_like(away) if perturbation == "gaussian" else away

    def noisy(samples: slice, draws: slice) -> tuple[Tensor, Tensor]:
        removed = away[samples] - drawn[draws]
        return removed, removed

    return noisy


def _squares(shape: tuple[int, ...]) -> Tensor:
    """1 inside a square of a quarter of the image's shorter side at a random place, else 0; ``(K, C, H, W)``."""
    if len(shape) != 4:
        raise ValueError("infidelity: perturbation 'square' needs images (N, C, H, W); use 'gaussian' or a function")
    side = max(1, min(shape[2:]) // 4)
    inside = []
    for length in shape[2:]:
        corner = torch.randint(length - side + 1, (shape[0], 1))
        places = torch.arange(length)
        inside.append((places >= corner) & (places < corner + side))
    return (inside[0][:, None, :, None] & inside[1][:, None, None, :]).expand(shape).float()
