"""What a dashboard is shown of a measurement: figures and cards as pixels, the verdicts as rows, files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lightning_sanity.report import decided
from lightning_sanity.report.markdown import table
from lightning_sanity.report.wording import ordered
from lightning_sanity.result.sanity_result import Outcome, SanityResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AS_NUMBER = {Outcome.PASS: 1, Outcome.INCONCLUSIVE: 0, Outcome.FAIL: -1}


class Shown:
    """A measurement and those before it, in the forms that loggers take; drawn when first asked for, then shared.

    Args:
        result: What was measured.
        prefix: Begins every key and file name.
        step: The trainer's step, for the x axis.
        earlier: The results of the measurements before it, see ``remembered``.
        images: Whether figures are drawn.
        numbers: Whether all else is shown.
    """

    def __init__(
        self,
        result: SanityResult,
        prefix: str,
        step: int,
        earlier: Sequence[SanityResult] = (),
        *,
        images: bool = True,
        numbers: bool = True,
    ) -> None:
        self.result, self.prefix, self.step = result, prefix, step
        self.images, self.numbers = images, numbers
        self._all = [*earlier, result]
        self._recipes: dict[str, Callable[[], Any]] | None = None
        self._drawn: dict[str, Any] = {}

    @property
    def number(self) -> int:
        """The step that headlines, files and checkpoints name."""
        return self.step if self.result.step is None else self.result.step

    def figures(self) -> Iterator[tuple[str, Any]]:
        """Every figure with its name, as pixels ``(H, W, 3)``."""
        self._recipes = self._making() if self._recipes is None else self._recipes
        for name, draw in self._recipes.items():
            if name not in self._drawn:
                self._drawn[name] = draw()
            yield name, self._drawn[name]

    def cards(self) -> Iterator[tuple[str, Any]]:
        """The same as narrow as a dashboard's card, under names that put the verdicts first."""
        if not self.images:
            return
        from lightning_sanity.report import cards  # matplotlib takes a second to import

        yield "1-verdicts", _pixels(cards.verdicts(self.result))
        if self._has_history():
            yield "2-over-training", _pixels(cards.history(self._all))
        for sample in self._samples():
            yield f"3-maps-{sample}", _pixels(cards.maps(self.result, sample))
        yield "4-sensitivity", _pixels(cards.sensitivity(self.result))
        if self.result.curves:
            yield "5-curves", _pixels(cards.curves(self.result))

    def rows(self) -> list[dict[str, Any]]:
        """The verdicts of this measurement and of those before it; what is undefined is None."""
        return [row for result in self._all for row in self._verdicts(result)]

    def verdicts(self) -> list[dict[str, Any]]:
        """The verdicts of this measurement alone."""
        return self._verdicts(self.result)

    def words(self) -> str:
        """The verdicts as a table in Markdown."""
        words = table(self.result)
        return words if self.result.valid else f"**Not valid:** {self.result.validity}\n\n{words}"

    def outcomes(self) -> dict[str, Outcome]:
        """The verdict of every gated method, and of all together; void where a control came out wrong."""
        gated = {name: verdict for name, verdict in self.result.verdicts.items() if verdict.gated}
        worst_first = (Outcome.FAIL, Outcome.INCONCLUSIVE)
        together = next((o for o in worst_first if any(v.outcome is o for v in gated.values())), Outcome.PASS)
        if not self.result.valid or not gated:
            together = Outcome.INCONCLUSIVE
        return {"outcome": together} | {f"{name}/outcome": verdict.outcome for name, verdict in gated.items()}

    def curves(self) -> Iterator[tuple[str, dict[str, list[tuple[int, float]]]]]:
        """For each similarity, every method's mean after each step, as ``(depth, mean)``; undefined ones left out."""
        for similarity in dict.fromkeys(key for _, key in self.result.curves):
            lines = {}
            for name in ordered(self.result):
                curve = self.result.curves.get((name, similarity))
                means = [] if curve is None else enumerate(curve.mean.tolist(), 1)
                known = [(depth, mean) for depth, mean in means if math.isfinite(mean)]
                if known:
                    lines[name] = known
            if lines:
                yield similarity, lines

    @contextmanager
    def saved(self) -> Iterator[Path]:
        """The result as a file that exists for the duration of the context."""
        with TemporaryDirectory() as folder:
            yield self.result.to_json(Path(folder, "result.json"))

    @contextmanager
    def page(self) -> Iterator[Path]:
        """The report as a file that exists for the duration of the context."""
        with TemporaryDirectory() as folder:
            yield self.result.to_html(Path(folder, "report.html"))

    def _verdicts(self, result: SanityResult) -> list[dict[str, Any]]:
        rows = []
        for name in ordered(result):
            verdict = result.verdicts[name]
            psi, low, high = (x if math.isfinite(x) else None for x in (verdict.psi, verdict.psi_low, verdict.psi_high))
            by = decided.by(verdict, 60)
            rows.append(
                {
                    "step": self.step if result.step is None else result.step,
                    "method": name,
                    "verdict": verdict.outcome.value if result.valid else "not valid",
                    "index": psi,
                    "low": low,
                    "high": high,
                    "by": by,
                    "reason": verdict.reason,
                    "gated": verdict.gated,
                }
            )
        return rows

    def _has_history(self) -> bool:
        return len({result.step for result in self._all} - {None}) > 1

    def _samples(self) -> range:
        pictures = self.result.pictures
        return range(len(pictures.inputs) if pictures is not None and pictures.maps else 0)

    def _making(self) -> dict[str, Callable[[], Any]]:
        if not self.images:
            return {}
        from lightning_sanity.report import figures  # matplotlib takes a second to import

        result, shown = self.result, figures.every_sample(self.result)
        recipes: dict[str, Callable[[], Any]] = {"verdicts": lambda: _pixels(figures.verdicts(result))}
        if self._has_history():
            recipes["over-training"] = lambda: _pixels(figures.history(self._all))
        return recipes | {
            "curves": lambda: _pixels(figures.curves(result)),
            "sensitivity": lambda: _pixels(figures.sensitivity(result)),
            **{f"maps-{sample}": lambda: next(shown)[..., :3] for sample in self._samples()},
        }


def remembered(result: SanityResult) -> SanityResult:
    """What later measurements are shown beside: verdicts and settings, without curves, pictures and maps."""
    return replace(result, curves={}, pictures=None, trained_maps={}, grounds={}, reproducibility={}, diagnostics={})


def image(pixels: Any) -> Any:
    """Pixels as a PIL image."""
    from PIL import Image

    return Image.fromarray(pixels)


def _pixels(figure: Figure) -> Any:
    """What Agg draws, uint8 ``(H, W, 3)``; the figure's artists, which refer to each other, are freed."""
    import numpy

    figure.canvas.draw()
    pixels = numpy.array(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    figure.clear()
    return numpy.ascontiguousarray(pixels)
