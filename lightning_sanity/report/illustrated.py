"""Which of the kept pictures illustrates a result, and what its blank maps say."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sanity.report.text import undefined_share
from lightning_sanity.result.sanity_result import Pictures, SanityResult


def fullest(pictures: Pictures, methods: Sequence[str]) -> int:
    """The kept sample with the fewest blank maps of these methods; of several, the first."""
    shown = [pictures.maps[name] for name in methods if name in pictures.maps] or list(pictures.maps.values())
    blank = [sum(int((~maps[k].flatten(1).any(1)).sum()) for maps in shown) for k in range(len(pictures.inputs))]
    return blank.index(min(blank))


def defined_share(result: SanityResult, method: str) -> str:
    """How many pairs the index of a method with blank maps rests on; empty where no map is blank."""
    pictures = result.pictures
    if pictures is None or not bool((~pictures.maps[method].flatten(2).any(2)).any()):
        return ""
    if result.verdicts[method].measure is None:
        return "no pair is defined"
    return f"{1 - undefined_share(result, method):.0%} of the pairs are defined"


def absent(result: SanityResult) -> str:
    """Why a result has no pictures, in a sentence; empty where it has some."""
    if result.pictures is not None and result.pictures.maps and len(result.pictures.inputs):
        return ""
    settings = result.settings
    kind = dict(settings.get("axes") or {}).get("kind", "an unknown kind")
    shape = settings.get("input_shape")
    sides = f" of shape {tuple(shape)}" if isinstance(shape, list) else ""
    why = f"there is none of inputs of this kind ({kind}{sides})"
    if settings.get("pictures") is False:
        why = "the test ran without them (pictures=False, or log_images=False in a Trainer)"
    elif result.pictures is not None:
        why = "no method left a map"
    elif isinstance(settings.get("explained"), list):
        why = "none are kept where several inputs are explained together"
    return f"This result kept no pictures: {why}."
