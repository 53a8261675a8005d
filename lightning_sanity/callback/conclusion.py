"""The end of a run: what came out is said once, and raised where that was asked for."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from lightning_sanity.callback.narration import Narration
from lightning_sanity.result.sanity_result import Outcome, SanityCheckFailed, SanityResult

NEVER_REACHED = "no validation was run to its end (no loader, no such step, a limit of 0, or no time for it)"
"""Why there is no result, where nothing else is known."""


class Conclusion:
    """What a run comes to.

    Args:
        narration: Told at the end.
        gated: The methods that count.
        raises: Whether anything but a pass of all of them is an error.
        running: Whether a run has begun, whose end will have to be told.
    """

    def __init__(self, narration: Narration, gated: Collection[str], *, raises: bool, running: bool = False) -> None:
        self._narration, self._gated, self._raises = narration, gated, raises
        self.told = not running

    def tell(
        self, result: SanityResult | None, unmeasured: str | None, *, page: Path | None = None, cost: str | None = None
    ) -> None:
        """Say what came out; once in a run.

        Args:
            result: What was measured last, if anything was.
            unmeasured: Why there is no result.
            page: Where the report is, if it was written.
            cost: What it took, in words.
        """
        if not self.told:
            self._narration.end(result, unmeasured, page if page is not None and page.exists() else None, cost)
        self.told = True

    def check(self, result: SanityResult | None, unmeasured: str | None) -> None:
        """Raise unless all passed, where that was asked for.

        Args:
            result: Of the weights that the run ends with, if they were measured.
            unmeasured: Why there is no result.

        Raises:
            SanityCheckFailed: Which method did not pass, and why; or why nothing is known.
        """
        if not self._raises or (result is not None and result.passed):
            return
        if result is None:
            why = f": {unmeasured}" if unmeasured else ""
            raise SanityCheckFailed(
                f"the randomization test never gave a result for these weights, which is not a pass{why}"
            )
        verdicts = {key: result.verdicts[key] for key in self._gated if not result.verdicts[key].passed}
        lines = "; ".join(f"{key} is {v.outcome.value}: {v.reason}" for key, v in verdicts.items()) or "no gated method"
        raise SanityCheckFailed(f"saliency maps did not pass the randomization test: {lines}")


def undecided(result: SanityResult | None, gated: Collection[str], most: int) -> bool:
    """Whether there are verdicts that more trials could decide.

    Args:
        result: What was measured.
        gated: The methods that count.
        most: How many trials a method may have.
    """
    if result is None or not result.valid:
        return False
    trials = result.settings.get("trials_run", {})
    verdicts = {name: result.verdicts[name] for name in gated if trials.get(name, 0) < most}
    return any(each.outcome is Outcome.INCONCLUSIVE and math.isfinite(each.psi) for each in verdicts.values())
