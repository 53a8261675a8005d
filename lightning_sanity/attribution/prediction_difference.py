"""Prediction difference analysis: what the evidence loses when a patch is replaced by what its surroundings suggest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_sanity.attribution.batching import ROWS, Rows
from lightning_sanity.attribution.method import AttributionFn, Method, factory, first, outputs_of
from lightning_sanity.attribution.perturbation import (
    FORWARD,
    check_count,
    not_an_image,
    perturbed_outputs,
    spread,
    whole,
)

_PATCHES = 512
"""Most patches a Gaussian is fitted on."""


@factory
def prediction_difference_analysis(
    window: int | None = None,
    stride: int | None = None,
    context: int | None = None,
    n_samples: int = 8,
    sampling: str = "conditional",
    images: Tensor | None = None,
    shrinkage: float = 1e-2,
    max_batch: int = ROWS,
) -> Method:
    """Evidence of a patch, ``log2 odds(c | x) - log2 odds(c | x without the patch)``.

    Zintgraf et al. 2017 (arXiv:1702.04595). "Without the patch" averages the class probability over patches sampled
    from a Gaussian given the ring of pixels around it. A pixel gets the mean evidence of the windows that cover it.
    Probabilities are kept as logarithms, so that a confident model does not saturate and no Laplace correction is
    needed.

    Args:
        window: Side of the patch; an eighth of the input's if None.
        stride: Step between patches; half of the patch if None.
        context: Width of the ring; an eighth of the patch if None.
        n_samples: Patches sampled per position.
        sampling: "conditional" on the ring, or "marginal": patches copied from elsewhere, whatever surrounds them.
        images: ``(M, C, H, W)`` to fit the Gaussian on, training images for example, as in the paper. If None, each
            sample is fitted on its own patches, so that its map does not depend on the rest of the batch.
        shrinkage: Share of the mean variance added to the diagonal of the covariance.
        max_batch: Most rows sent through the model at once.
    """
    name = "prediction_difference_analysis"
    whole(name, 1, window=window, stride=stride, context=context, n_samples=n_samples)
    if sampling not in ("conditional", "marginal"):
        raise ValueError(f"{name}: unknown sampling '{sampling}'; choose from: conditional, marginal")
    if shrinkage <= 0:
        raise ValueError(f"{name}: shrinkage must be positive, not {shrinkage}: the covariance would be singular")
    if images is not None and images.ndim != 4:
        raise ValueError(f"{name}: images must be (M, C, H, W), not {tuple(images.shape)}")

    rows = Rows(max_batch, name)

    def prepare(model: nn.Module, inputs: Any) -> AttributionFn:
        value = first(inputs).detach()
        inner = window or max(1, min(value.shape[2:]) // 8)
        ring = context or max(1, inner // 8)
        if inner + 2 * ring > min(value.shape[2:]):
            raise ValueError(
                f"{name}: a window of {inner} and its ring of {ring} do not fit into {tuple(value.shape[2:])} pixels"
            )
        fitted_on = value[:, None] if images is None else images.to(value)[None]
        sampler = PatchSampler.fit(fitted_on, inner, ring, shrinkage, sampling == "conditional")
        corners = [
            (top, left)
            for top in starts(value.shape[2], inner, stride or max(1, inner // 2))
            for left in starts(value.shape[3], inner, stride or max(1, inner // 2))
        ]

        @torch.no_grad()
        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            value = first(inputs).detach()
            if images is None:
                check_count(name, len(sampler.patches), value)
            trained = perturbed_outputs(model, inputs, target, 1, lambda n, _: value[None, n], rows, log_probabilities)
            odds = trained[0, :, 0] - trained[0, :, 1]
            evidence, covered = torch.zeros_like(value[:, 0]), torch.zeros_like(value[0, 0])
            for top, left in corners:
                patches = sampler.draw(value, top, left, n_samples)  # (N, S, C, window, window)

                def perturb(
                    samples: slice, copies: range, top: int = top, left: int = left, patches: Tensor = patches
                ) -> Tensor:
                    filled = value[samples].repeat(len(copies), 1, 1, 1, 1)  # (S, N, C, H, W)
                    drawn = patches[samples, copies.start : copies.stop].transpose(0, 1)
                    filled[..., top : top + inner, left : left + inner] = drawn
                    return filled

                sampled = perturbed_outputs(model, inputs, target, n_samples, perturb, rows, log_probabilities)
                mean = sampled.logsumexp(0)  # (N, 2); log n_samples cancels in the odds
                difference = odds - (mean[:, 0] - mean[:, 1])
                here = (..., slice(top, top + inner), slice(left, left + inner))
                evidence[here] += difference.to(value.dtype)[:, None, None] / math.log(2)
                covered[here] += 1
            return spread(evidence / covered.clamp_min(1), value)

        return attribute

    def refuses(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        if (reason := not_an_image(model, inputs, target)) is not None or target is not None:
            return reason
        with torch.no_grad():
            outputs = outputs_of(model, inputs)
        several = outputs.reshape(len(outputs), -1).shape[1] > 1
        return "it needs the probability of a class, and no class is given for several outputs" if several else None

    return Method(
        name,
        lambda model, inputs, target: prepare(model, inputs)(model, inputs, target),
        stochastic=True,
        passes=225 * n_samples * FORWARD,
        refuses=refuses,
        prepare=prepare,
    )


@dataclass(frozen=True)
class PatchSampler:
    """Gaussians of square patches, from which the inner square is sampled, given the ring around it.

    Attributes:
        patches: Patches the Gaussians were fitted on, ``(G, P, C, L, L)``; G is 1, or one Gaussian per sample.
        mean: Their means ``(G, 1, C, L, L)``.
        ridge: Variance added to every pixel ``(G, 1, 1)``.
        inner: Side of the inner square.
        ring: Width of the ring.
        conditional: Whether the ring is looked at; if not, inner squares are copied.
        gains: Regressions of the inner square on the visible part of its ring, by what the border cuts off.
    """

    patches: Tensor
    mean: Tensor
    ridge: Tensor
    inner: int
    ring: int
    conditional: bool
    gains: dict[tuple[int, int, int, int], Tensor]

    @classmethod
    def fit(cls, images: Tensor, inner: int, ring: int, shrinkage: float, conditional: bool) -> PatchSampler:
        """Fit on evenly spread patches of ``(G, M, C, H, W)`` images."""
        groups, channels = images.shape[0], images.shape[2]
        side = inner + 2 * ring
        found = F.unfold(images.flatten(0, 1), side).transpose(1, 2).reshape(groups, -1, channels, side, side)
        kept = torch.linspace(0, found.shape[1] - 1, min(found.shape[1], _PATCHES), device=found.device).round().long()
        patches = found[:, kept]
        variance = patches.var(1, correction=0).flatten(1).mean(1).reshape(-1, 1, 1)
        ridge = (shrinkage * variance).clamp_min(torch.finfo(patches.dtype).tiny ** 0.5)  # flat patches have none
        return cls(patches, patches.mean(1, keepdim=True), ridge, inner, ring, conditional, {})

    @property
    def middle(self) -> tuple[Any, ...]:
        """Index of the inner square in a patch."""
        return (..., slice(self.ring, self.ring + self.inner), slice(self.ring, self.ring + self.inner))

    def draw(self, images: Tensor, top: int, left: int, count: int) -> Tensor:
        """``count`` inner squares for that corner of each image, ``(N, S, C, inner, inner)``.

        The random numbers come from torch's global CPU stream and are the same for all samples.
        """
        if not self.conditional:
            copied = self.patches[self.middle][:, torch.randint(self.patches.shape[1], (count,)).to(images.device)]
            return copied.expand(len(images), *copied.shape[1:])
        weights = torch.randn(count, self.patches.shape[1], dtype=torch.float32).to(images)
        white = torch.randn(count, *self.mean.shape[2:], dtype=torch.float32).to(images)
        # A draw of the whole patch, moved by what its ring got wrong, is a draw given the ring (Matheron's rule).
        whole = weights @ self._centered() + self.ridge.sqrt() * white.flatten(1)
        whole = whole.reshape(*whole.shape[:2], *white.shape[1:]) + self.mean  # (G, S, C, L, L)
        height, width = images.shape[2:]
        reach = self.ring + self.inner
        cut = (
            max(0, self.ring - top),
            max(0, top + reach - height),
            max(0, self.ring - left),
            max(0, left + reach - width),
        )
        around = F.pad(images, (self.ring,) * 4)[..., top : top + reach + self.ring, left : left + reach + self.ring]
        visible = self._visible(cut)
        error = (around[:, None] - whole).flatten(2)[..., visible]  # (N, S, visible)
        shift = (error @ self._gain(cut, visible)).reshape(len(images), count, -1, self.inner, self.inner)
        moved: Tensor = whole[self.middle] + shift
        return moved

    def _centered(self) -> Tensor:
        return (self.patches - self.mean).flatten(2) / math.sqrt(self.patches.shape[1])  # (G, P, C * L * L)

    def _visible(self, cut: tuple[int, int, int, int]) -> Tensor:
        mask = torch.zeros_like(self.mean[0, 0], dtype=torch.bool)
        side = mask.shape[-1]
        mask[:, cut[0] : side - cut[1], cut[2] : side - cut[3]] = True
        mask[self.middle] = False
        return mask.flatten()

    def _gain(self, cut: tuple[int, int, int, int], visible: Tensor) -> Tensor:
        """``Cov(ring, ring)^-1 Cov(ring, inner)``, ``(G, visible, C * inner * inner)``."""
        if cut not in self.gains:
            centered = self._centered().double()
            hidden = torch.zeros_like(self.mean[0, 0], dtype=torch.bool)
            hidden[self.middle] = True
            ring, inner = centered[..., visible], centered[..., hidden.flatten()]
            noise = self.ridge.double() * torch.eye(ring.shape[2], dtype=ring.dtype, device=ring.device)
            self.gains[cut] = torch.linalg.solve(ring.mT @ ring + noise, ring.mT @ inner).to(self.mean.dtype)
        return self.gains[cut]


def starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of windows that cover a side: every ``stride`` pixels, and one flush with the end."""
    last = side - window
    return sorted({*range(0, last + 1, stride), last})


def log_probabilities(outputs: Tensor, target: Tensor | None) -> Tensor:
    """Logarithms of the explained class's probability and of its complement's; ``(N, 2)``."""
    if outputs.ndim < 2 or outputs.shape[1] == 1:
        single = outputs.reshape(-1).double()
        return torch.stack([F.logsigmoid(single), F.logsigmoid(-single)], 1)
    if target is None:
        raise ValueError("prediction difference analysis needs a class, because the model has several outputs")
    logs = outputs.double().log_softmax(1)
    explained = target.reshape(-1, 1)
    others = logs.scatter(1, explained, -torch.inf).logsumexp(1)
    return torch.stack([logs.gather(1, explained)[:, 0], others], 1)
