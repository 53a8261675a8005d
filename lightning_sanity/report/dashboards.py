"""TensorBoard, Weights & Biases, MLflow and Comet: to each what it shows best, at one step, without flooding it."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_sanity.report import psi
from lightning_sanity.report.shown import AS_NUMBER, Shown, image
from lightning_sanity.report.wording import reference


def to_tensorboard(logger: Any, writer: Any, shown: Shown, *, over_training: bool) -> None:
    """Cards, every outcome as a number, the verdicts in text; a chart of all indices with the threshold.

    Curves over depth are in the cards only: as scalars each would be a chart of its own, smoothed, and those of several
    measurements would lie on one axis.
    """
    for name, pixels in shown.cards():
        writer.add_image(f"{shown.prefix}/{name}", pixels, global_step=shown.step, dataformats="HWC")
    if not shown.numbers:
        return
    for name, outcome in shown.outcomes().items():
        writer.add_scalar(f"{shown.prefix}/{name}", AS_NUMBER[outcome], shown.step)
    writer.add_text(f"{shown.prefix}/verdicts", shown.words(), global_step=shown.step)
    threshold = psi.threshold(shown.result)
    if over_training and threshold is not None:
        _threshold_beside_indices(logger, writer, shown, threshold)


def _threshold_beside_indices(logger: Any, writer: Any, shown: Shown, threshold: float) -> None:
    """A layout whose chart holds every method's index and the threshold as a line.

    A run has one layout, and TensorBoard joins those of all runs: it stands in a run of its own, where it replaces
    neither a user's nor that of another prefix. A purge step of 0 makes TensorBoard forget the line before.
    """
    line = f"{shown.prefix}/passes from"
    start = re.escape(shown.prefix)
    beside = type(writer)(f"{logger.log_dir}/{shown.prefix}_threshold", purge_step=0)
    try:
        beside.add_custom_scalars({shown.prefix: {"index": ["Multiline", [rf"^{start}/(?:[^/]+/psi|passes from)$"]]}})
        for step in {0, shown.step}:
            beside.add_scalar(line, threshold, step)
    finally:
        beside.close()


def to_wandb(run: Any, shown: Shown) -> None:
    """One row: images, a table of the verdicts of all measurements, the curves over depth as charts of their own.

    Beside it the verdicts in the run's summary, and the result as artifact, a version for each measurement.
    """
    import wandb  # type: ignore[import-not-found,unused-ignore]  # present wherever a run is

    row: dict[str, Any] = {}
    for name, pixels in shown.figures():
        # Not the figure itself: wandb asks for matplotlib.pyplot without importing it, and patches matplotlib.
        row[f"{shown.prefix}/{name}"] = wandb.Image(image(pixels))
    if shown.numbers:
        row |= _charts(shown)
    run.log({**row, "trainer/global_step": shown.step})
    if not shown.numbers:
        return
    run.summary.update({f"{shown.prefix}/{name}": outcome.value for name, outcome in shown.outcomes().items()})
    with shown.saved() as path:
        name = re.sub(r"[^\w.-]", "-", f"{shown.prefix}-{run.id}", flags=re.ASCII)
        run.log_artifact(str(path), name=name, type="sanity-result", aliases=["latest", f"step-{shown.number}"])


def _charts(shown: Shown) -> dict[str, Any]:
    """The verdicts of all measurements as a table, and a chart over depth for each similarity."""
    import wandb

    rows = shown.rows()
    columns: list[str | int] = list(rows[0]) if rows else []
    table = wandb.Table(columns=columns, data=[list(each.values()) for each in rows])
    found: dict[str, Any] = {f"{shown.prefix}/table": table}
    for similarity, lines in shown.curves():
        points = list(lines.values())
        found[f"{shown.prefix}/over depth/{similarity}"] = wandb.plot.line_series(
            xs=[[depth for depth, _ in line] for line in points],
            ys=[[mean for _, mean in line] for line in points],
            keys=list(lines),
            title=f"{similarity} to the {reference(shown.result)}'s map, step {shown.number}",
            xname="steps re-initialised",
        )
    return found


def to_mlflow(client: Any, run_id: str, shown: Shown) -> None:
    """Among the artifacts the report, a table of verdicts and one of curves that grow, figures and the result.

    The verdicts are tags as well. Curves are no metrics: with depth as their step, those of several measurements would
    lie on one axis.
    """
    folder = f"{shown.prefix}/step_{shown.number}"
    for name, pixels in shown.figures():
        client.log_image(run_id, pixels, f"{folder}/{name}.png")
    if not shown.numbers:
        return
    with shown.saved() as path:
        client.log_artifact(run_id, str(path), folder)
    with shown.page() as path:
        client.log_artifact(run_id, str(path), shown.prefix)
    if importlib.util.find_spec("pandas") is not None:  # the client makes its tables with it
        records = [{"step": shown.number, **record} for record in shown.result.to_records()]
        for name, rows in (("verdicts", shown.verdicts()), ("curves", records)):
            if rows:
                table = {key: [row[key] for row in rows] for key in rows[0]}
                with _without_bars():
                    client.log_table(run_id, table, f"{shown.prefix}/{name}.json")
    for name, outcome in shown.outcomes().items():
        client.set_tag(run_id, re.sub(r"[^\w/. -]", "_", f"{shown.prefix}/{name}", flags=re.ASCII), outcome.value)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without a bar of its own for each small file that the client fetches, in the middle of the training's."""
    before = os.environ.get(_BARS)
    os.environ[_BARS] = "false"
    try:
        yield
    finally:
        os.environ.pop(_BARS)
        os.environ.update({} if before is None else {_BARS: before})


_BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


def to_comet(experiment: Any, shown: Shown) -> None:
    """Figures, curves, the result as an asset, and the verdicts as other values."""
    for name, pixels in shown.figures():
        experiment.log_image(image(pixels), name=f"{shown.prefix}/{name}", step=shown.step)
    if not shown.numbers:
        return
    for similarity, lines in shown.curves():
        for method, line in lines.items():
            depths, means = map(list, zip(*line, strict=True))
            name = f"{shown.prefix}_curve/{method}/{similarity}"
            experiment.log_curve(name, x=depths, y=means, step=shown.step)
    with shown.saved() as path:
        experiment.log_asset(str(path), file_name=f"{shown.prefix}/step={shown.number}.json", step=shown.step)
    experiment.log_others({f"{shown.prefix}/{name}": outcome.value for name, outcome in shown.outcomes().items()})
