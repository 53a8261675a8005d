"""Other tests of the literature on the maps of one run: second opinions beside the verdict, none of which gates.

``cross_image`` (Arun et al. 2021), ``random_logit`` (Sixt et al. 2020), ``entropy`` (Hedström et al. 2024) and
``dependence`` (does the map depend on the weights at all).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_sanity import similarity
from lightning_sanity.explanation.maps import Maps
from lightning_sanity.explanation.measurements import Track
from lightning_sanity.resources.random_streams import generator
from lightning_sanity.resources.suggestions import unknown
from lightning_sanity.result.signal import dependence, holm
from lightning_sanity.similarity.registry import LEAST_SIDE

NAMES = ("cross_image", "random_logit", "entropy", "dependence")

_OFF_CLASSES = 3


def check_names(names: Sequence[str] | str) -> tuple[str, ...]:
    """The diagnostics asked for, each once.

    Raises:
        ValueError: If one is unknown.
    """
    given = (names,) if isinstance(names, str) else tuple(names)
    for name in given:
        if name not in NAMES:
            raise ValueError(unknown("diagnostic", name, NAMES))
    return tuple(dict.fromkeys(given))


def other_classes(target: Tensor | None, outputs: Tensor, seed: int) -> dict[str, tuple[Tensor, ...]]:
    """Classes to explain instead: up to three drawn ones, and the runner-up of each sample.

    Args:
        target: The explained class of each sample ``(N,)``, or None for a single output.
        outputs: Class scores ``(N, classes)``; their number of classes is the model's.
        seed: Of the draw; a sample's classes do not depend on the other samples.

    Returns:
        ``{"random_logit": targets, "runner_up": targets}``, each ``(N,)``; empty where there is no other class.
    """
    if target is None or outputs.ndim != 2 or outputs.shape[1] < 2:
        return {}
    classes = outputs.shape[1]
    offsets = 1 + torch.randperm(classes - 1, generator=generator(seed, "off classes"))[:_OFF_CLASSES]
    runner_up = outputs.scatter(1, target[:, None], -torch.inf).argmax(1)
    return {
        "random_logit": tuple((target + int(offset)) % classes for offset in offsets),
        "runner_up": (runner_up,),
    }


def between_classes(kind: str, maps: Maps, others: Sequence[Maps]) -> dict[str, Tensor]:
    """Similarity of maps to those for other classes, mean over classes; ``(N,)`` each.

    ``<kind>`` and ``<kind>_signed`` are Spearman correlations of magnitudes and of signed maps; ``<kind>_ssim`` is
    ``max(SSIM(a, b), SSIM(a, -b))`` of signed maps scaled to [0, 1], which a flipped sign does not change.

    Sixt et al., "When Explanations Lie", ICML 2020 (arXiv:1912.09818).
    """
    signed, magnitude, structure = (similarity.resolve(n) for n in ("spearman_signed", "spearman", "ssim"))
    found = {
        kind: [magnitude(maps.magnitude, other.magnitude) for other in others],
        f"{kind}_signed": [signed(maps.signed, other.signed) for other in others],
    }
    if min(maps.signed.shape[1:]) >= LEAST_SIDE:
        found[f"{kind}_ssim"] = [
            torch.maximum(structure(maps.signed, other.signed), structure(maps.signed, -other.signed))
            for other in others
        ]
    return {name: torch.stack(values).nanmean(0) for name, values in found.items()}


def diagnose(tracks: Mapping[str, Track], gated: set[str], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The diagnostics of every method, ``{method: {name: value}}``; NaN where one is undefined.

    ``cross_image``: mean Spearman correlation between the trained maps of different samples; ``cross_image_passes``: 1
    where the maps at full randomization are less alike than that (Arun et al., "Assessing the Trustworthiness of
    Saliency Maps for Localizing Abnormalities in Medical Imaging", Radiology: AI 2021). ``random_logit...`` and
    ``runner_up...``: see ``between_classes``; near 1, the map ignores the class. ``entropy_rise``: see
    ``complexity.efficient_mprt``. ``p_dependence``: see ``statistics.dependence``, adjusted by Holm's method over the
    gated methods.
    """
    found: dict[str, dict[str, float]] = {}
    for name, track in tracks.items():
        if track.error is not None or track.trials is None:
            continue
        row = found[name] = {}
        if "cross_image" in names and track.cross is not None:
            row["cross_image"] = float(track.cross.nanmean())
            last = float(track.trials.values["spearman"][:, -1].nanmean())
            known = math.isfinite(row["cross_image"]) and math.isfinite(last)
            row["cross_image_passes"] = float(last < row["cross_image"]) if known else math.nan
        row |= {key: float(values.nanmean()) for key, values in track.other_class.items()}
        if track.trials.entropy_rise is not None:
            row["entropy_rise"] = float(track.trials.entropy_rise.nanmean())
        if track.trials.dependence is not None and track.noise is not None:
            row["p_dependence"] = dependence(track.noise[0], track.trials.dependence)
    raw = {name: row["p_dependence"] for name, row in found.items() if name in gated and "p_dependence" in row}
    for name, p in holm(raw).items():
        found[name]["p_dependence"] = p
    return found
