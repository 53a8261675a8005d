"""What stands for "nothing there": a number, a tensor, or a name that makes one from each sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

Baseline = float | Tensor | str
"""A value for every element; a tensor; or "min", "max", "mean" (of each sample's channel) or "blur"."""

NAMES = ("blur", "max", "mean", "min")
_BLUR = 0.1
"""Standard deviation of the blur as a share of the image's shorter side."""


def check_baseline(baseline: Baseline, name: str) -> None:
    """Raise a ValueError that names the method if this is no baseline."""
    if isinstance(baseline, str) and baseline not in NAMES:
        raise ValueError(f"{name}: unknown baseline '{baseline}'; choose from: {', '.join(NAMES)} (or a number)")
    if not isinstance(baseline, (str, int, float, Tensor)):
        raise ValueError(f"{name}: baseline must be a number, a tensor or a name, not {type(baseline).__name__}")


def baseline_for(baseline: Baseline, value: Tensor) -> Tensor:
    """The baseline of every sample; shaped like ``value``.

    Args:
        baseline: See ``Baseline``; a tensor may hold one sample for all or one for each.
        value: The explained input ``(N, ...)``.

    Raises:
        ValueError: If a tensor does not fit, or a blur is asked of something that is no image.
    """
    value = value.detach()
    if isinstance(baseline, Tensor):
        try:
            return baseline.to(value).expand(value.shape)
        except RuntimeError as error:
            raise ValueError(
                f"a baseline of shape {tuple(baseline.shape)} does not fit inputs of shape {tuple(value.shape)}"
            ) from error
    if not isinstance(baseline, str):
        return torch.full_like(value, float(baseline))
    dims = tuple(range(2, value.ndim)) if value.ndim > 2 else (1,)
    if baseline == "blur":
        return _blurred(value)
    if baseline == "mean":
        return value.mean(dims, keepdim=True).expand(value.shape)
    extreme = value.amin(dims, keepdim=True) if baseline == "min" else value.amax(dims, keepdim=True)
    return extreme.expand(value.shape)


def _blurred(value: Tensor) -> Tensor:
    if value.ndim != 4:
        raise ValueError(f"baseline 'blur' needs images (N, C, H, W), not {tuple(value.shape)}; use 'mean' or a number")
    shorter = min(value.shape[-2:])
    sigma = max(_BLUR * shorter, 0.5)
    reach = min(round(3 * sigma), shorter - 1)  # the mirrored border cannot be wider than the image
    blurred: Tensor = vision.gaussian_blur(value, [2 * reach + 1] * 2, [sigma] * 2)
    return blurred
