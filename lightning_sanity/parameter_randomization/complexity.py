"""Complexity of saliency maps, and how much it rises when the model is randomised."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_sanity.similarity.normalization import defined, wide


def entropy(maps: Tensor, bins: int = 100) -> Tensor:
    """Shannon entropy, in nats, of the histogram of each map's values; one number per sample.

    The bins are equally wide and span each map's own range, as in `numpy.histogram`. Scaling or shifting a map
    therefore changes nothing, and no normalisation is needed.

    Args:
        maps: Maps ``(N, H, W)``, any float dtype; counted on their own device.
        bins: Bins of every histogram, at least 1.

    Returns:
        Entropies ``(N,)`` in ``[0, log(min(bins, H * W))]``; NaN where a map is constant or not finite.

    Raises:
        ValueError: If the maps are not ``(N, H, W)`` or ``bins`` is no whole number above 0.

    >>> entropy(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    tensor([0.6931])
    """
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"entropy: bins must be a whole number, at least 1, not {bins!r}")
    usable = defined(maps)
    values = wide(_ascending(usable.flatten(1)))  # (N, P)
    low, high = values[:, :1], values[:, -1:]
    edges = torch.arange(1, bins, device=values.device, dtype=values.dtype) * ((high - low) / bins) + low
    # Sorting and looking up the edges counts without scattered additions, which no accelerator orders the same twice.
    below = torch.searchsorted(values, edges)  # (N, bins - 1)
    ends = torch.cat([below.new_zeros(len(below), 1), below, below.new_full((len(below), 1), values.shape[1])], dim=1)
    shares = ends.diff(dim=1).to(values.dtype) / values.shape[1]
    undefined = ~values.isfinite().all(dim=1)
    return torch.special.entr(shares).sum(dim=1).masked_fill(undefined, torch.nan).to(usable.dtype)


def _ascending(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    # NumPy sorts plain floats with vector instructions, several times faster than torch; NaN come last in both.
    return torch.from_numpy(np.sort(np.asarray(values), axis=1))


def efficient_mprt(trained_maps: Tensor, random_maps: Tensor, bins: int = 100) -> Tensor:
    """Relative rise of each map's entropy when the model is fully randomised, ``(H_random - H_trained) / H_trained``.

    Higher counts as better: a random model should have messier maps. **Not for gating.** In the authors' own results
    it ranks Guided Backprop first, the method that the other tests condemn, and GradCAM below random attributions.
    It looks at each map's histogram alone, so a map that ignores the model but changes its contrast scores as well as
    one that follows the model.

    Args:
        trained_maps: Maps ``(N, H, W)`` of the trained model.
        random_maps: Maps of the same inputs and method on the fully randomised model; same shape.
        bins: See `entropy`.

    Returns:
        Rises ``(N,)``, 0 where both maps are equally complex; NaN where either map is constant or not finite, or the
        trained one has no entropy.

    Raises:
        ValueError: If the shapes differ, and as `entropy`.

    Hedström et al., "A Fresh Look at Sanity Checks for Saliency Maps", 2024 (arXiv:2405.02383).

    >>> flat, spread = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    >>> efficient_mprt(flat, spread)
    tensor([1.])
    """
    if trained_maps.shape != random_maps.shape:
        raise ValueError(
            f"efficient_mprt compares maps of the same inputs, got shapes {tuple(trained_maps.shape)} and "
            f"{tuple(random_maps.shape)}"
        )
    trained, randomised = entropy(trained_maps, bins), entropy(random_maps, bins)
    return (randomised - trained) / trained.masked_fill(trained == 0, torch.nan)
