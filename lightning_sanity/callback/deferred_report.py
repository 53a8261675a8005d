"""Shows the callback's results: files and numbers at once, figures and page when there is time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_sanity.callback.result_files import Folder
from lightning_sanity.report.loggers import log_result
from lightning_sanity.report.shown import remembered
from lightning_sanity.result.sanity_result import Outcome, SanityResult

LATEST = "latest.json"


class Publication:
    """What a run shows of its results. A full disk or a failing logger is a warning.

    Every measurement has a file of its own, which says stage and step of the weights: ``step=<n>.json`` in training,
    ``<stage>-step=<n>.json`` otherwise. Where weights of one step are measured again, the number of the batch is added,
    and where a file of another run is in the way, a version.

    Args:
        prefix: Begins every key and file name.
        images: Whether figures go to the loggers.
        report: Whether files are written.
        keep: How many measurements keep their files, beside the best and those that did not pass; None for all.
    """

    def __init__(self, prefix: str, *, images: bool, report: bool, keep: int | None = None) -> None:
        self._prefix, self._images, self._report, self._keep = prefix, images, report, keep
        self._files: list[_File] = []
        self._current: _Shown | None = None
        self._last: SanityResult | None = None
        self._earlier: list[SanityResult] = []

    def write(self, result: SanityResult, labels: SanityResult | None, step: int, folder: str) -> None:
        """Write the results as JSON; all else is owed.

        Args:
            result: Of the parameter randomization test.
            labels: Of the data randomization test, if there is one.
            step: The loggers' step.
            folder: Where the run keeps its files.
        """
        if self._current is not None:
            self._earlier.append(remembered(self._current.result))
        self._current = _Shown(result, labels, step, folder)
        if not self._report:
            return
        try:
            place = self._place(folder)
            name = place.add(names(result), result.to_json)
            self._current.result = _named(result, name)
        except Exception as error:
            self.outdate(folder, f"a later result, of step {result.step}, could not be written")
            self._warn(f"the result of the randomization test could not be written to '{folder}'", error)
            return
        self._last = result
        self._files.append(_File(folder, name, *_worth(result)))
        try:
            place.write(LATEST, result.to_json)
            if labels is not None:
                self._place(folder, "_labels").write(LATEST, labels.to_json)
        except Exception as error:
            self._remove(folder)
            self._warn(f"'{LATEST}' of the randomization test could not be written to '{folder}'", error)

    def outdate(self, folder: str, why: str) -> None:
        """Mark ``latest.json``, so that nobody takes it for what the last validation found.

        Args:
            folder: Where the run keeps its files.
            why: In words.
        """
        if not self._report:
            return
        try:
            place = self._place(folder)
            if not place.has(LATEST):
                return
            if self._last is None:  # of an earlier run, about which nothing is known here
                place.remove(LATEST)
            else:
                marked = replace(self._last, valid=False, validity=f"this result is outdated: {why}")
                place.write(LATEST, marked.to_json)
        except Exception as error:
            self._warn(f"'{LATEST}' in '{folder}' is outdated ({why}) and could not be marked", error)
            self._remove(folder)

    def _thin(self) -> None:
        """Remove the files of measurements that are neither among the last, nor the best, nor failed."""
        if self._keep is None:
            return
        best = max((each.worth for each in self._files), default=0.0)
        for each in self._files[: -self._keep]:
            if each.failed or each.worth == best:
                continue
            try:
                self._place(each.folder).remove(each.name)
                for picture in self._place(each.folder).pictures(each.name.removesuffix(".json")):
                    picture.unlink(missing_ok=True)
            except Exception as error:
                self._warn(f"'{each.name}' in '{each.folder}', which is not to be kept, could not be removed", error)
            self._files.remove(each)

    def _remove(self, folder: str) -> None:
        try:
            self._place(folder).remove(LATEST)
        except Exception:  # it has been said
            return

    @property
    def owes(self) -> bool:
        """Whether the last result's figures and page are still to be made."""
        return self._current is not None and not self._current.drawn

    @property
    def page(self) -> Path | None:
        """Where the page of the last result lies, if it was made."""
        folder = None if self._current is None else Path(self._current.folder, self._prefix)
        return None if folder is None or not self._report else folder / "report.html"

    def tell(self, loggers: Sequence[Any]) -> None:
        """Give the loggers the numbers and files of the last result, whose figures and page may wait."""
        if self._current is not None and not self._current.told:
            self._current.told = True
            self._log(loggers, self._current, images=False, numbers=True)
            self._thin()

    def show(self, loggers: Sequence[Any]) -> None:
        """Draw the last result; with its numbers, if they have not been told."""
        if self._current is None or self._current.drawn:
            return
        numbers, self._current.told, self._current.drawn = not self._current.told, True, True
        self._log(loggers, self._current, images=True, numbers=numbers)
        if self._report:
            try:
                self._place(self._current.folder).write("report.html", self._current.result.to_html)
            except Exception as error:
                folder = self._current.folder
                self._warn(f"the report of the randomization test could not be written to '{folder}'", error)
        self._thin()

    def _log(self, loggers: Sequence[Any], what: _Shown, *, images: bool, numbers: bool) -> None:
        if not self._images:
            return
        send = partial(log_result, loggers, step=what.step, images=images, numbers=numbers)
        send(what.result, prefix=self._prefix, earlier=self._earlier)
        if what.labels is not None:
            send(what.labels, prefix=f"{self._prefix}_labels")

    def _place(self, folder: str, suffix: str = "") -> Folder:
        return Folder(os.path.join(folder, f"{self._prefix}{suffix}"))

    def _warn(self, what: str, error: Exception) -> None:
        rank_zero_warn(f"{what}; training goes on. {type(error).__name__}: {error}")


@dataclass
class _Shown:
    """What is shown of a measurement, and how far that went.

    Attributes:
        result: Of the parameter randomization test.
        labels: Of the data randomization test, if there is one.
        step: The loggers' step.
        folder: Where the run keeps its files.
        told: Whether the loggers have its numbers.
        drawn: Whether its figures and page were made.
    """

    result: SanityResult
    labels: SanityResult | None
    step: int
    folder: str
    told: bool = False
    drawn: bool = False


@dataclass(frozen=True)
class _File:
    """The file of a measurement.

    Attributes:
        folder: Where the run kept its files.
        name: Of the file.
        worth: Of the weakest method, the lower end of its index.
        failed: Whether a method failed, or the run was not valid.
    """

    folder: str
    name: str
    worth: float
    failed: bool


def _worth(result: SanityResult) -> tuple[float, bool]:
    gated = [verdict for verdict in result.verdicts.values() if verdict.gated]
    low = min((verdict.psi_low if math.isfinite(verdict.psi_low) else 0.0 for verdict in gated), default=0.0)
    return low, not result.valid or any(verdict.outcome is Outcome.FAIL for verdict in gated)


def names(result: SanityResult) -> Iterator[str]:
    """Names for the file of a measurement, the best one first."""
    stage, batch = result.settings.get("stage", "fit"), result.settings.get("batch")
    begin = f"{'' if stage == 'fit' else f'{stage}-'}step={'unknown' if result.step is None else result.step}"
    yield f"{begin}.json"
    if stage == "fit" and batch is not None:
        begin += f"-batch={batch}"
        yield f"{begin}.json"
    yield from (f"{begin}-v{number}.json" for number in count(1))


def _named(result: SanityResult, name: str) -> SanityResult:
    """The result, saying what its file is called, so that its pictures are called the same."""
    return replace(result, settings={**result.settings, "file": name})
