"""Shows the callback's results: files at once, figures and page when there is time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_sanity.report.loggers import log_result
from lightning_sanity.result.sanity_result import SanityResult


class Publication:
    """What a run shows of its results. A full disk or a failing logger is a warning.

    Args:
        prefix: Begins every key and file name.
        images: Whether figures go to the loggers.
        report: Whether files are written.
    """

    def __init__(self, prefix: str, *, images: bool, report: bool) -> None:
        self._prefix, self._images, self._report = prefix, images, report
        self._owed: tuple[SanityResult, SanityResult | None, int, Path] | None = None

    def write(self, result: SanityResult, labels: SanityResult | None, step: int, folder: Path) -> None:
        """Write the results as JSON; figures and page are owed.

        Args:
            result: Of the parameter randomization test.
            labels: Of the data randomization test, if there is one.
            step: The loggers' step.
            folder: Where the run keeps its files.
        """
        self._owed = result, labels, step, folder
        if not self._report:
            return
        place = folder / self._prefix
        try:
            result.to_json(place / f"step={result.step}.json")
            result.to_json(place / "latest.json")
            if labels is not None:
                labels.to_json(folder / f"{self._prefix}_labels" / "latest.json")
        except OSError as error:
            rank_zero_warn(f"the result of the randomization test could not be written to '{place}': {error}")

    @property
    def owes(self) -> bool:
        """Whether a result has not been shown yet."""
        return self._owed is not None

    def show(self, loggers: Sequence[Any]) -> None:
        """Draw what is owed."""
        if self._owed is None:
            return
        (result, labels, step, folder), self._owed = self._owed, None
        if self._images:
            log_result(loggers, result, prefix=self._prefix, step=step)
            if labels is not None:
                log_result(loggers, labels, prefix=f"{self._prefix}_labels", step=step)
        if self._report:
            place = folder / self._prefix
            try:
                result.to_html(place / "report.html")
            except OSError as error:
                rank_zero_warn(f"the report of the randomization test could not be written to '{place}': {error}")
