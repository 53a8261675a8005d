"""What the callback says on the terminal: a line per validation, a warning once per kind, the table at the end."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from lightning_sanity.report.text import account, line, reasons
from lightning_sanity.result.sanity_result import Outcome, SanityResult

_DOUBTS = (
    (Outcome.FAIL, "saliency maps failed the randomization test at step {step}"),
    (Outcome.INCONCLUSIVE, "the randomization test is inconclusive at step {step}"),
)


class Narration:
    """Says each kind of trouble once in a run, and all else only if ``verbose``; on rank 0 alone.

    Args:
        title: What the run's keys begin with.
        verbose: Whether there is a line per validation and a table at the end. Warnings always come.
    """

    def __init__(self, title: str, *, verbose: bool) -> None:
        self._title, self._verbose = title, verbose
        self._told: set[tuple[str, ...]] = set()
        self._known = False  # why there will be no result

    def warn(self, message: str, *kind: str) -> None:
        """Warn, unless it has been done in this run; messages of one ``kind`` count as the same."""
        if (kind or (message,)) not in self._told:
            self._told.add(kind or (message,))
            warn(message)

    def measured(self, result: SanityResult, gated: Sequence[str]) -> None:
        """A validation was measured: its line, and what is doubtful for the first time."""
        self._say(f"{self._title}, step {result.step}: {line(result)} ({result.seconds:.1f} s)")
        if not result.valid:
            self.warn(
                f"no verdict of the randomization test stands at step {result.step}: {result.validity}", "invalid"
            )
            return
        for outcome, words in _DOUBTS:
            new = [
                name
                for name in gated
                if result.verdicts[name].outcome is outcome and (name, outcome.value) not in self._told
            ]
            self._told |= {(name, outcome.value) for name in new}
            if new:
                why = "; ".join(f"{names}: {reason}" for names, _, reason in reasons(result, new))
                warn(f"{words.format(step=result.step)}: {why}")

    def put_off(self, max_time: object) -> None:
        """A validation goes by; said once."""
        if ("put off",) not in self._told:
            self._told.add(("put off",))
            self._say(f"{self._title}: validations go by until max_time={max_time!r} pays for the next measurement")

    def nothing_to_come(self, why: str) -> None:
        """Training begins that will never be measured."""
        self._known = True
        self.warn(f"the randomization test will measure nothing: {why}")

    def foresee(self, why: str) -> None:
        """Training begins, and the test cannot be run as things are."""
        self.warn(f"the randomization test cannot be run as things are, and training goes on. {why}", "failed", why)

    def failed(self, step: int, why: str) -> None:
        """A validation could not be measured."""
        self._known = True
        self.warn(f"the randomization test could not be run; training goes on. {why}", "failed", why)
        self._say(f"{self._title}, step {step}: not measured: {why}")

    def end(
        self, result: SanityResult | None, unmeasured: str | None, page: Path | None = None, cost: str | None = None
    ) -> None:
        """The table, or that there is none and why; where the page is, and what it all took."""
        if result is None:
            why = unmeasured or "nobody knows why"
            if not self._known:
                self.warn(f"the randomization test gave no result for these weights: {why}")
            self._say(f"{self._title}: no result: {why}")
            return
        table = account(result, f"{self._title}: ", colour=sys.stdout.isatty())
        beside = [cost, None if page is None else f"report: {page}"]
        self._say("\n".join(["", table, *(each for each in beside if each is not None)]))

    def _say(self, text: str) -> None:
        if self._verbose:
            say(text)


@rank_zero_only
def warn(message: str) -> None:
    """A warning on a line of its own, without a file's path in front, every time it is given.

    Python shows a warning of one place and text once in a process, however many trainings run in it; an own registry
    of places each time leaves it to the user's filters alone.
    """
    usual = warnings.formatwarning
    warnings.formatwarning = lambda text, category, *_: f"{category.__name__}: {text}\n"
    try:
        with _beside_bars():
            warnings.warn_explicit(message, UserWarning, __name__, 1, __name__, registry={})
    finally:
        warnings.formatwarning = usual


@rank_zero_only
def say(text: str) -> None:
    """Print, whatever letters the terminal knows, and whether or not anybody listens."""
    with _beside_bars():
        try:
            _write(text)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding or "ascii"
            _write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):  # a closed pipe or stream must not cost the training run
            return


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")  # at once: rich draws its bar again after every piece that comes in
    sys.stdout.flush()


@contextmanager
def _beside_bars() -> Iterator[None]:
    """Take progress bars off the terminal, and draw them again below what was written."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        yield
