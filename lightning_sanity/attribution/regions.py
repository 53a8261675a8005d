"""XRAI: integrated gradients summed over regions of the image."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sanity.attribution.batching import ROWS, Rows, rows_of, target_of
from lightning_sanity.attribution.method import AttributionFn, Method, factory, first, output_gradient
from lightning_sanity.attribution.perturbation import check_count, not_an_image, spread, whole

_MISSING = "xrai needs the PAIR saliency package: pip install lightning-sanity[xrai]"
_SCALES = (50, 100, 150, 250, 500, 1200)


@factory
def xrai(n_steps: int = 50, algorithm: str = "full", min_side: int = 100, max_batch: int = ROWS) -> Method:
    """Integrated gradients summed over regions, best region first; XRAI, Kapishnikov et al. 2019 (arXiv:1906.02825).

    The PAIR ``saliency`` package ranks the regions; the gradients are computed here, in batches. The regions come from
    the image, so maps of unrelated models share their outlines, and below about 100 pixels a side the regions mean
    little.

    Args:
        n_steps: Points of each of the two paths, from the image's smallest and from its largest value.
        algorithm: "full", or "fast", which ranks the regions once.
        min_side: Images with a shorter side are refused.
        max_batch: Most rows sent through the model at once.
    """
    whole("xrai", 2, n_steps=n_steps)
    whole("xrai", 1, min_side=min_side)
    rows = Rows(max_batch, "xrai")
    if algorithm not in ("full", "fast"):
        raise ValueError(f"xrai: unknown algorithm '{algorithm}'; choose from: full, fast")

    def prepare(model: nn.Module, inputs: Any) -> AttributionFn:
        package = _pair_saliency()
        outlines = [_outlines(_pixels(image)) for image in first(inputs)]
        how = package.XRAIParameters(algorithm=algorithm)

        def attribute(model: nn.Module, inputs: Any, target: Tensor | None) -> Tensor:
            value = first(inputs).detach()
            check_count("xrai", len(outlines), value)
            base = _two_sided_gradients(model, inputs, target, n_steps, rows)
            maps = [
                package.XRAI().GetMask(
                    _pixels(image), None, segments=masks, base_attribution=_pixels(gradients), extra_parameters=how
                )
                for image, masks, gradients in zip(value, outlines, base, strict=True)
            ]
            return spread(torch.from_numpy(np.stack(maps)).to(value.device, value.dtype), value)

        return attribute

    def refuses(model: nn.Module, inputs: Any, target: Tensor | None) -> str | None:
        if (reason := not_an_image(model, inputs, target)) is not None:
            return reason
        if min(first(inputs).shape[2:]) < min_side:
            return f"its regions mean little below {min_side} pixels a side; pass xrai(min_side=...) to try"
        try:
            _pair_saliency()
        except ImportError as missing:
            return str(missing)
        return None

    return Method(
        "xrai",
        lambda model, inputs, target: prepare(model, inputs)(model, inputs, target),
        needs="xrai",
        passes=2 * n_steps,
        refuses=refuses,
        prepare=prepare,
    )


def _pair_saliency() -> Any:
    try:
        return importlib.import_module("saliency.core")
    except ImportError as error:
        raise ImportError(_MISSING) from error


def _pixels(image: Tensor) -> Any:
    return image.detach().float().cpu().permute(1, 2, 0).numpy()  # (H, W, C)


def _outlines(pixels: Any) -> list[Any]:
    """XRAI's regions ``(H, W)``: Felzenszwalb's at six scales, found at 224 x 224 and dilated by five pixels."""
    from skimage.morphology import dilation, disk  # a tenth of a second to import, for this method alone
    from skimage.segmentation import felzenszwalb
    from skimage.transform import resize

    spread = pixels.max() - pixels.min()
    scaled = (pixels - pixels.min()) / (spread if spread > 0 else 1.0) * 2 - 1
    scale_to: Any = resize  # scikit-image gives no types
    scaled = scale_to(scaled, (224, 224), order=3, mode="constant", preserve_range=True, anti_aliasing=True)
    found = []
    for scale in _SCALES:
        labels = felzenszwalb(scaled, scale=scale, sigma=0.8, min_size=150)
        labels = scale_to(labels, pixels.shape[:2], order=0, preserve_range=True, anti_aliasing=False).astype(int)
        found += [labels == label for label in range(labels.min(), labels.max() + 1)]
    footprint = disk(5)
    return [dilation(mask, footprint=footprint) for mask in found]


def _two_sided_gradients(model: nn.Module, inputs: Any, target: Tensor | None, n_steps: int, rows: Rows) -> Tensor:
    """Mean of the integrated gradients from each image's smallest and from its largest value."""
    value = first(inputs).detach()
    ends = torch.stack([value.flatten(1).amin(1), value.flatten(1).amax(1)]).reshape(2, -1, 1, 1, 1)
    alphas = torch.linspace(0, 1, n_steps).tolist()

    def run(samples: slice, copies: range) -> Tensor:
        steps = [value[samples] - ends[point % 2, samples] for point in copies]
        path = [ends[k % 2, samples] + alphas[k // 2] * step for k, step in zip(copies, steps, strict=True)]
        stacked = rows_of(inputs, samples, len(copies), torch.cat(path))
        gradient = output_gradient(model, stacked, target_of(target, samples, len(copies)))
        return (gradient.reshape(len(copies), -1, *value.shape[1:]) * torch.stack(steps)).sum(0)

    total = torch.zeros_like(value)
    for samples, _, found in rows.chunks(len(value), 2 * n_steps, run):
        total[samples] += found
    return total / (2 * n_steps)
