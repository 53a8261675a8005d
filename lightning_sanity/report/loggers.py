"""Sends a result to the user's experiment loggers, to each in the form it shows best."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from lightning_sanity.report.dashboards import to_comet, to_mlflow, to_tensorboard, to_wandb
from lightning_sanity.report.shown import AS_NUMBER, Shown, image
from lightning_sanity.result.sanity_result import SanityResult


@rank_zero_only
def log_result(
    loggers: Iterable[Any],
    result: SanityResult,
    *,
    prefix: str = "sanity",
    step: int,
    images: bool = True,
    numbers: bool = True,
    over_training: bool = True,
    earlier: Sequence[SanityResult] = (),
) -> None:
    """Show a result in every logger: figures, the verdicts in words, and the curves over depth.

    A logger is recognised by what it can do:

    - TensorBoard gets figures as narrow as its cards, verdicts first, every outcome as a number (``PASS`` 1,
      ``INCONCLUSIVE`` 0, ``FAIL`` -1), a table in text, and a layout for its custom scalars: all methods' indices and
      the threshold in one chart, for which the run ``<prefix>_threshold`` stands beside.
    - Weights & Biases gets one row: images, a table of all verdicts so far, a chart over depth for each similarity.
      The verdicts are in its summary, and the result is artifact ``<prefix>-<run id>``, a version per measurement.
    - MLflow gets as artifacts figures, the result, the report, and two tables that grow, of verdicts and of curves;
      the verdicts are tags as well.
    - Comet gets figures, curves, the result as an asset, and the verdicts as other values.
    - Any other logger gets the figures if it or its experiment has ``log_image``, or is a run of Aim, and the outcomes
      as numbers if it has no directory. What it cannot show goes to its directory, where it has one: PNG files in
      ``<directory>/<prefix>/`` and the records of every measurement, one below the other, in
      ``<directory>/<prefix>_curve.csv``. It is said once what a kind of logger does not show, and where that is.

    Scalars over training are the caller's business: ``LightningModule.log`` reaches every logger.

    A logger that raises costs one warning, never the training run. Does nothing on other ranks than zero.

    Args:
        loggers: Such as ``trainer.loggers``; may be empty.
        result: What to show.
        prefix: Begins every key and file name; may contain slashes.
        step: The trainer's step, x axis of everything that is not over depth. Files and titles name the result's own
            where it has one.
        images: Whether to draw figures.
        numbers: Whether verdicts, tables, curves and files go out: not where they have, and the figures follow.
        over_training: Whether the caller logs ``<prefix>/<method>/psi``, so that TensorBoard gets a chart of them.
        earlier: Results of the same run before this one, for figures and tables over training.
    """
    shown = Shown(result, prefix, step, earlier, images=images, numbers=numbers)
    for logger in loggers:
        try:
            _send(logger, shown, over_training)
        except Exception as error:  # whatever a remote service or a full disk can raise
            rank_zero_warn(
                f"{type(logger).__name__} could not show the randomization test of step {shown.number} and was left "
                f"out: {type(error).__name__}: {error}"
            )


def _send(logger: Any, shown: Shown, over_training: bool) -> None:
    # An instance test would need every logger's package, and fails between `lightning` and `pytorch_lightning`.
    experiment = getattr(logger, "experiment", None)  # a logger need not have one
    if hasattr(experiment, "add_figure"):
        to_tensorboard(logger, experiment, shown, over_training=over_training)
    elif hasattr(experiment, "define_metric") and hasattr(experiment, "log_artifact"):
        to_wandb(experiment, shown)
    elif hasattr(experiment, "log_figure") and hasattr(logger, "run_id"):
        to_mlflow(experiment, logger.run_id, shown)
    elif hasattr(experiment, "log_curve"):
        to_comet(experiment, shown)
    else:
        _to_another(logger, experiment, shown)


def _to_another(logger: Any, experiment: Any, shown: Shown) -> None:
    """What a logger nobody knows can show; the rest to its directory, which is said once."""
    pictured = _with_pictures(logger, experiment, shown)
    directory = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
    directory = directory or getattr(experiment, "dir", None)
    if isinstance(directory, (str, Path)):
        _to_directory(str(directory), shown, pictures=not pictured)
        lacking = "curves over depth" if pictured or not shown.images else "figures and curves"
        said = f"shows no {lacking}: those of the randomization test are in '{directory}'"
    else:
        if hasattr(logger, "log_metrics") and shown.numbers:
            numbers = shown.outcomes().items()
            logger.log_metrics({f"{shown.prefix}/{name}": float(AS_NUMBER[o]) for name, o in numbers}, step=shown.step)
        lacking = "figures" if shown.images and not pictured else ""
        said = "shows no pictures and has no directory: figures of the randomization test are in the report alone"
    if lacking and type(logger) not in _told:
        _told.add(type(logger))
        rank_zero_info(f"{type(logger).__name__} {said}")


_WORDS = "verdicts in words"  # a name of its own: a picture has the other, and Aim keeps one kind under a name
_told: set[type] = set()
"""Kinds of loggers of which it has been said what they do not show."""


def _with_pictures(logger: Any, experiment: Any, shown: Shown) -> bool:
    """Whether the logger takes pictures; it has got them then."""
    if hasattr(logger, "log_image"):  # as Weights & Biases' logger has it, and SwanLab's
        for name, pixels in shown.figures():
            logger.log_image(f"{shown.prefix}/{name}", [image(pixels)], step=shown.step)
        if hasattr(logger, "log_text"):
            logger.log_text(f"{shown.prefix}/{_WORDS}", [shown.words()], step=shown.step)
    elif hasattr(experiment, "log_image"):  # DVCLive shows the files of a folder as a slider
        for name, pixels in shown.figures():
            experiment.log_image(f"{shown.prefix}/{name}/{shown.number}.png", image(pixels))
    elif type(experiment).__module__.partition(".")[0] == "aim" and hasattr(experiment, "track"):
        from aim import Image, Text  # type: ignore[import-not-found,unused-ignore]  # present wherever such a run is

        for name, pixels in shown.figures():
            experiment.track(Image(image(pixels)), name=f"{shown.prefix}/{name}", step=shown.step)
        experiment.track(Text(shown.words()), name=f"{shown.prefix}/{_WORDS}", step=shown.step)
    else:
        return False
    return True


def _to_directory(directory: str, shown: Shown, *, pictures: bool) -> None:
    if "://" in directory:
        raise ValueError(f"figures and curves are written to local directories only, not to '{directory}'")
    measured = f"step={shown.number}"
    if "file" in shown.result.settings:  # the result beside it, which says the step of the weights
        measured = Path(str(shown.result.settings["file"])).stem
    for name, pixels in shown.figures() if pictures else ():
        path = Path(directory, shown.prefix, f"{name}-{measured}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        image(pixels).save(path)
    rows: list[Mapping[str, Any]] = [{"step": shown.number, **record} for record in shown.result.to_records()]
    if not rows or not shown.numbers:
        return
    path = Path(directory, f"{shown.prefix}_curve.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        if file.tell() == 0:
            table.writeheader()
        table.writerows(rows)
