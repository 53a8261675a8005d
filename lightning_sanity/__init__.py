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

A package imports from those above it in this list, never from one below.
"""

from lightning_sanity import attribution, randomization, similarity
from lightning_sanity._version import __version__
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
