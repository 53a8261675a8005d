"""Sanity checks for saliency maps inside a Lightning Trainer.

    resources                time, memory, processes, random streams that a test may use
    model                    the module: its graph, its copy, its weights, its checkpoint
    randomization            which weights become random, in what order, how
    similarity               how alike two maps are
    attribution              the methods, by name
    result                   what a test returns, its file, the verdict
    explanation              what is explained, and the maps of it
    engine                   the maps of many depths at once
    parameter_randomization  test 1: random weights
    data_randomization       test 2: random labels
    quality                  beside the verdict: faithfulness, localization and others
    choice                   which method to show
    report                   figures, page, loggers
    release                  the gate
    callback                 the test inside a Trainer
    cli                      the command line

A package imports from those above it in this list, never from one below. None is imported before it is asked for: the
gate, which reads files, does not wait for the Trainer.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from lightning_sanity._version import __version__

if _TYPE_CHECKING:
    from lightning_sanity import attribution, randomization, similarity
    from lightning_sanity.callback import SaliencySanityCallback
    from lightning_sanity.choice import Budget, choose_methods
    from lightning_sanity.data_randomization import RandomLabelDataModule, data_randomization_test
    from lightning_sanity.explanation import targets
    from lightning_sanity.parameter_randomization import parameter_randomization_test
    from lightning_sanity.randomization import RandomizationError
    from lightning_sanity.result import Choice, Criterion, Outcome, SanityCheckFailed, SanityResult

__all__ = [
    "Budget",
    "Choice",
    "Criterion",
    "Outcome",
    "RandomLabelDataModule",
    "RandomizationError",
    "SaliencySanityCallback",
    "SanityCheckFailed",
    "SanityResult",
    "__version__",
    "attribution",
    "choose_methods",
    "data_randomization_test",
    "parameter_randomization_test",
    "randomization",
    "similarity",
    "targets",
]

_ROOM_OF = {
    "Budget": "choice",
    "Choice": "result",
    "Criterion": "result",
    "Outcome": "result",
    "RandomLabelDataModule": "data_randomization",
    "RandomizationError": "randomization",
    "SaliencySanityCallback": "callback",
    "SanityCheckFailed": "result",
    "SanityResult": "result",
    "choose_methods": "choice",
    "data_randomization_test": "data_randomization",
    "parameter_randomization_test": "parameter_randomization",
    "targets": "explanation",
}
_ROOMS = (
    *("resources", "model", "randomization", "similarity", "attribution", "result", "explanation", "engine"),
    *("parameter_randomization", "data_randomization", "quality", "choice", "report", "release", "callback", "cli"),
)


def __getattr__(name: str) -> object:
    if name in _ROOM_OF:
        found = getattr(_import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    elif name in _ROOMS:
        found = _import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
