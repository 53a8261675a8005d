"""Sanity checks for saliency maps inside a Lightning Trainer."""

from lightning_sanity.callback import SaliencySanityCallback
from lightning_sanity.data_randomization import data_randomization_test
from lightning_sanity.datamodule import RandomLabelDataModule
from lightning_sanity.randomization import RandomizationError
from lightning_sanity.randomization_tests import parameter_randomization_test
from lightning_sanity.result import Outcome, SanityCheckFailed, SanityResult
from lightning_sanity.verdict import Criterion

__version__ = "0.1.0"

__all__ = [
    "Criterion",
    "Outcome",
    "RandomLabelDataModule",
    "RandomizationError",
    "SaliencySanityCallback",
    "SanityCheckFailed",
    "SanityResult",
    "data_randomization_test",
    "parameter_randomization_test",
]
