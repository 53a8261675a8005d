"""Sends a result to the user's experiment loggers, to each in the form it shows best."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_sanity.result import SanityResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MLFLOW_BATCH = 1000  # the most metrics that a tracking server takes at once


@rank_zero_only
def log_result(
    loggers: Iterable[Any], result: SanityResult, *, prefix: str = "sanity", step: int, images: bool = True
) -> None:
    """Show a result in every logger: figures, the verdicts in words, and the curves over depth.

    A logger is recognised by what it can do. TensorBoard gets figures and a table in text; Weights & Biases images, a
    table and curves with depth as their own x axis; MLflow figures and metrics with depth as their step; any other
    logger with a directory gets PNG files in ``<directory>/<prefix>/`` and the records of every measurement, one below
    the other, in ``<directory>/<prefix>_curve.csv``. Curves of several measurements share a chart in Weights & Biases
    and MLflow. Scalars are the caller's business: ``LightningModule.log`` reaches every logger.

    A logger that raises costs one warning, never the training run. Does nothing on other ranks than zero.

    Args:
        loggers: Such as ``trainer.loggers``; may be empty.
        result: What to show.
        prefix: Begins every key and file name; may contain slashes.
        step: The trainer's step, x axis of everything that is not over depth.
        images: Whether to draw figures; the words and curves go out in any case.
    """
    figures = _Figures(result, images)
    try:
        for logger in loggers:
            try:
                _send(logger, result, figures, prefix, step)
            except Exception as error:  # whatever a remote service or a full disk can raise
                rank_zero_warn(
                    f"{type(logger).__name__} could not show the randomization test of step {step} and was left out: "
                    f"{type(error).__name__}: {error}"
                )
    finally:
        figures.close()


def _send(logger: Any, result: SanityResult, figures: _Figures, prefix: str, step: int) -> None:
    # An instance test would need every logger's package, and fails between `lightning` and `pytorch_lightning`.
    experiment = logger.experiment
    if hasattr(experiment, "add_figure"):
        _to_tensorboard(experiment, result, figures, prefix, step)
    elif hasattr(logger, "log_image"):
        _to_wandb(logger, experiment, result, figures, prefix, step)
    elif hasattr(experiment, "log_figure") and hasattr(logger, "run_id"):
        _to_mlflow(experiment, logger.run_id, result, figures, prefix, step)
    else:
        directory = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
        if directory is not None:
            _to_directory(str(directory), result, figures, prefix, step)


def _to_tensorboard(writer: Any, result: SanityResult, figures: _Figures, prefix: str, step: int) -> None:
    for name, figure in figures:
        writer.add_figure(f"{prefix}/{name}", figure, global_step=step, close=False)
    writer.add_text(f"{prefix}/verdicts", _markdown(result), global_step=step)


def _to_wandb(logger: Any, run: Any, result: SanityResult, figures: _Figures, prefix: str, step: int) -> None:
    for name, figure in figures:
        # Not the figure itself: wandb asks for matplotlib.pyplot without importing it, and patches matplotlib.
        logger.log_image(f"{prefix}/{name}", [_pixels(figure)], step=step)
    records = result.to_records()
    if not records:
        return
    columns = list(records[0])
    logger.log_table(f"{prefix}/records", columns=columns, data=[[r[c] for c in columns] for r in records], step=step)
    # Depth is an axis of its own. As the `step` of run.log it would lie behind the run's, and such rows are dropped.
    axis = f"{prefix}_curve/depth"
    run.define_metric(axis)
    run.define_metric(f"{prefix}_curve/*", step_metric=axis)
    for depth in range(1, len(result.units) + 1):
        row = {_key(prefix, record): record["mean"] for record in records if record["depth"] == depth}
        run.log({**row, axis: depth, "trainer/global_step": step})


def _to_mlflow(client: Any, run_id: str, result: SanityResult, figures: _Figures, prefix: str, step: int) -> None:
    from mlflow.entities import Metric  # type: ignore[import-not-found,unused-ignore]  # present wherever a client is

    for name, figure in figures:
        client.log_figure(run_id, figure, f"{prefix}/step_{step}/{name}.png")
    now = int(time.time() * 1000)
    metrics = [
        # MLflow refuses other characters in keys.
        Metric(re.sub(r"[^\w/. -]", "_", _key(prefix, record), flags=re.ASCII), record["mean"], now, record["depth"])
        for record in result.to_records()
    ]
    for start in range(0, len(metrics), _MLFLOW_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _MLFLOW_BATCH])


def _to_directory(directory: str, result: SanityResult, figures: _Figures, prefix: str, step: int) -> None:
    if "://" in directory:
        raise ValueError(f"figures and curves are written to local directories only, not to '{directory}'")
    for name, figure in figures:
        path = Path(directory, prefix, f"{name}-step={step}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    rows: list[Mapping[str, Any]] = [{"step": step, **record} for record in result.to_records()]
    if not rows:
        return
    path = Path(directory, f"{prefix}_curve.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        if file.tell() == 0:
            table.writeheader()
        table.writerows(rows)


class _Figures:
    """The figures of a result with their names; each is drawn when first asked for, then shared between loggers."""

    def __init__(self, result: SanityResult, images: bool) -> None:
        self._result = result
        self._images = images
        self._drawn: dict[str, Figure] = {}

    def __iter__(self) -> Iterator[tuple[str, Figure]]:
        for name, draw in self._recipes().items():
            if name not in self._drawn:
                self._drawn[name] = draw()
            yield name, self._drawn[name]

    def close(self) -> None:
        """Free the pixels and artists, which refer to each other."""
        for figure in self._drawn.values():
            figure.clear()
        self._drawn.clear()

    def _recipes(self) -> dict[str, Callable[[], Figure]]:
        if not self._images:
            return {}
        from lightning_sanity.report.figures import curves, maps, verdicts  # matplotlib takes a second to import

        result, pictures = self._result, self._result.pictures
        samples = range(len(pictures.inputs)) if pictures is not None and pictures.maps else ()
        return {
            "verdicts": partial(verdicts, result),
            "curves": partial(curves, result),
            **{f"maps-{sample}": partial(maps, result, sample) for sample in samples},
        }


def _pixels(figure: Figure) -> Any:
    """The figure as a PIL image."""
    from PIL import Image

    file = BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)


def _key(prefix: str, record: Mapping[str, Any]) -> str:
    return f"{prefix}_curve/{record['method']}/{record['similarity']}"


def _markdown(result: SanityResult) -> str:
    rows = [
        (f"{name} (control)" if not verdict.gated else name, verdict.outcome.value, verdict.reason)
        for name, verdict in sorted(result.verdicts.items(), key=lambda item: not item[1].gated)
    ]
    # A bar would end a cell and a line break the row.
    cells = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (["method", "verdict", "why"], ["---"] * 3, *cells))
    return table if result.valid else f"**Not valid:** {result.validity}\n\n{table}"
