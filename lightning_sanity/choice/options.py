"""What a choice can be told, stated once for the function and the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_sanity.attribution import available, resolve, resolve_all
from lightning_sanity.choice.faithfulness import METRICS
from lightning_sanity.explanation.options import check_integer, check_yes_no
from lightning_sanity.parameter_randomization.options import DEFAULTS as OF_WALK
from lightning_sanity.parameter_randomization.options import WalkOptions
from lightning_sanity.resources.progress import Progress
from lightning_sanity.resources.suggestions import unknown


class ChoiceOptions(WalkOptions, total=False):
    """How a choice is made.

    Args:
        labels: The samples' classes ``(N,)``, where they are known: a model that knows them no better than chance has
            nothing to be explained.
        masks: What is known to matter of every sample, ``(N, *sides)``, True or not 0 where it does: one more metric,
            "localization", says how far maps fall on it.
        tune: Search parameters of the best methods that passed (noise, layer, baseline) on one half of the samples,
            and judge them on the other.
        profile: Measure for the recommended method which steps of the network its map depends on.
        progress: True for a progress bar, or ``progress(done, total, label)`` in milliseconds, of what is foreseen by
            then; None shows a bar on a terminal.
    """

    labels: Tensor | None
    masks: Tensor | None
    tune: bool
    profile: bool
    progress: Progress | bool | None


DEFAULTS: ChoiceOptions = {
    **OF_WALK,
    "trials": 10,
    "max_steps": 8,
    "labels": None,
    "masks": None,
    "tune": False,
    "profile": True,
    "progress": None,
}
OWN = ("labels", "masks", "tune", "profile", "progress")
"""The options that are not the walk's."""


def check(options: Mapping[str, Any], quality: Sequence[str]) -> tuple[str, ...]:
    """The metrics, once the options are found to be right.

    Raises:
        ValueError: Which option is wrong, and what would be right.
    """
    for name in ("tune", "profile"):
        check_yes_no(name, options[name])
    check_integer("trials", options["trials"], 3)
    if options["order"] != "cascading":
        raise ValueError(f"order must be 'cascading', in which alone a method can pass, not {options['order']!r}")
    if not options["controls"]:
        raise ValueError("controls=False: without its controls a test cannot show that it worked")
    known = (*METRICS, "localization")
    names = [quality] if isinstance(quality, str) else list(quality)
    for name in names:
        if name not in known:
            raise ValueError(unknown("quality", name, known))
    if "localization" in names and options["masks"] is None:
        raise ValueError("quality 'localization' needs masks=, what is known to matter of every sample")
    if options["masks"] is not None and "localization" not in names:
        names.append("localization")
    if not names:
        raise ValueError(f"quality must name at least one of {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def candidates_of(given: Any, layer: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The methods that are tried, and those whose package is not installed, with what to do.

    Args:
        given: "auto" for all that there are but the controls, else what ``methods=`` takes.
        layer: For class activation maps.

    Raises:
        ValueError: If a method is unknown.
    """
    if not (isinstance(given, str) and given == "auto"):
        return dict(resolve_all(given, layer)), {}
    found, missing = {}, {}
    for name in available():
        try:
            method = resolve(name, layer)
        except ImportError as error:
            missing[name] = str(error)
            continue
        if not method.control:
            found[name] = method
    return found, missing
