"""What a measurement is compared with: the last release's result, and weights trained on permuted labels."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_sanity.model import checkpoint
from lightning_sanity.result.noninferiority import against
from lightning_sanity.result.sanity_result import SanityResult


class References:
    """Read before training, so that a file that is missing costs no epoch.

    Args:
        baseline: Result file of the last release, if any.
        max_drop: See ``noninferiority.compare``.
        random_labels: Checkpoint of the module trained on permuted labels, if any.

    Attributes:
        baseline: The last release's result, once read.
    """

    def __init__(self, baseline: str | Path | None, max_drop: float, random_labels: str | Path | None) -> None:
        self._file, self._max_drop, self._random_labels = baseline, max_drop, random_labels
        self.baseline: SanityResult | None = None

    def read(self) -> None:
        """Find out now, not after an epoch, that a file is missing or none of ours.

        Raises:
            MisconfigurationException: Which argument names it, and what is wrong with it.
        """
        try:
            self.baseline = None if self._file is None else SanityResult.from_json(self._file)
        except (OSError, ValueError) as error:
            raise MisconfigurationException(f"`baseline` cannot be read: {error}") from error
        if self._random_labels is not None:
            try:
                checkpoint.load(self._random_labels)
            except (OSError, ValueError) as error:
                raise MisconfigurationException(f"`reference_checkpoint` cannot be read: {error}") from error

    def beside(self, result: SanityResult) -> SanityResult:
        """The result as it stands beside the baseline, if there is one."""
        return result if self.baseline is None else against(result, self.baseline, self._max_drop)
