"""Sends a result to the user's experiment loggers, to each in the form it shows best."""

from __future__ import annotations

import csv
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_sanity.report.markdown import table
from lightning_sanity.result.sanity_result import Outcome, SanityResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AS_NUMBER = {Outcome.PASS.value: 1, Outcome.INCONCLUSIVE.value: 0, Outcome.FAIL.value: -1}
_MLFLOW_BATCH = 1000  # the most metrics that a tracking server takes at once


@rank_zero_only
def log_result(
    loggers: Iterable[Any],
    result: SanityResult,
    *,
    prefix: str = "sanity",
    step: int,
    images: bool = True,
    over_training: bool = True,
) -> None:
    """Show a result in every logger: figures, the verdicts in words, and the curves over depth.

    A logger is recognised by what it can do:

    - TensorBoard gets figures as narrow as its cards, verdicts first, every outcome as a number (``PASS`` 1,
      ``INCONCLUSIVE`` 0, ``FAIL`` -1), a table in text, and a layout for its custom scalars in which all
      methods share a chart; the curves of the last measurement have depth as their x axis, in a run
      ``<prefix>_curve`` of their own.
    - Weights & Biases gets images, a table, curves over depth with a step metric of their own, the verdicts as summary,
      and the result as artifact ``<prefix>-<run id>``, one version per measurement.
    - MLflow gets figures, metrics with depth as their step, the result as an artifact, and the verdicts as tags.
    - Comet gets figures, curves, the result as an asset, and the verdicts as other values.
    - Any other logger with a directory gets PNG files in ``<directory>/<prefix>/`` and the records of every
      measurement, one below the other, in ``<directory>/<prefix>_curve.csv``.

    Scalars over training are the caller's business: ``LightningModule.log`` reaches every logger.

    A logger that raises costs one warning, never the training run. Does nothing on other ranks than zero.

    Args:
        loggers: Such as ``trainer.loggers``; may be empty.
        result: What to show.
        prefix: Begins every key and file name; may contain slashes.
        step: The trainer's step, x axis of everything that is not over depth.
        images: Whether to draw figures; words and curves always go out.
        over_training: Whether the caller logs ``<prefix>/<method>/psi``, so that TensorBoard gets a chart of them.
    """
    figures = _Figures(result, images)
    for logger in loggers:
        try:
            _send(logger, result, figures, prefix, step, over_training)
        except Exception as error:  # whatever a remote service or a full disk can raise
            rank_zero_warn(
                f"{type(logger).__name__} could not show the randomization test of step {step} and was left out: "
                f"{type(error).__name__}: {error}"
            )


def _send(logger: Any, result: SanityResult, figures: _Figures, prefix: str, step: int, over_training: bool) -> None:
    # An instance test would need every logger's package, and fails between `lightning` and `pytorch_lightning`.
    experiment = logger.experiment
    if hasattr(experiment, "add_figure"):
        _to_tensorboard(logger, experiment, result, figures, prefix, step, over_training)
    elif hasattr(logger, "log_image"):
        _to_wandb(logger, experiment, result, figures, prefix, step)
    elif hasattr(experiment, "log_figure") and hasattr(logger, "run_id"):
        _to_mlflow(experiment, logger.run_id, result, figures, prefix, step)
    elif hasattr(experiment, "log_curve"):
        _to_comet(experiment, result, figures, prefix, step)
    else:
        directory = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
        if directory is not None:
            _to_directory(str(directory), result, figures, prefix, step)


def _to_tensorboard(
    logger: Any, writer: Any, result: SanityResult, figures: _Figures, prefix: str, step: int, over_training: bool
) -> None:
    for name, pixels in figures.cards():
        writer.add_image(f"{prefix}/{name}", pixels, global_step=step, dataformats="HWC")
    for name, value in _outcomes(result).items():
        writer.add_scalar(f"{prefix}/{name}", _AS_NUMBER[value], step)
    writer.add_text(f"{prefix}/verdicts", _markdown(result), global_step=step)
    # A run of its own, because its steps are depths. A purge step of 0 makes TensorBoard forget the measurement before:
    # of several curves under one name it would draw a zigzag. A run has one layout, and TensorBoard joins those of all
    # runs: the layout stands here, where no other prefix can replace it.
    curves = type(writer)(f"{logger.log_dir}/{prefix}_curve", purge_step=0)
    try:
        start = re.escape(prefix)
        layout = {
            f"{prefix}, over depth at the last measurement": {
                key: ["Multiline", [rf"{start}_curve/{re.escape(key)}/"]]
                for key in dict.fromkeys(similarity for _, similarity in result.curves)
            }
        }
        if over_training:
            layout[f"{prefix}, over training"] = {"PSI": ["Multiline", [rf"{start}/[^/]+/psi$"]]}
        curves.add_custom_scalars(layout)
        for (method, similarity), curve in result.curves.items():
            for depth, mean in enumerate(curve.mean.tolist(), 1):
                if math.isfinite(mean):
                    curves.add_scalar(f"{prefix}_curve/{similarity}/{method}", mean, depth)
    finally:
        curves.close()


def _to_wandb(logger: Any, run: Any, result: SanityResult, figures: _Figures, prefix: str, step: int) -> None:
    for name, pixels in figures:
        # Not the figure itself: wandb asks for matplotlib.pyplot without importing it, and patches matplotlib.
        logger.log_image(f"{prefix}/{name}", [_image(pixels)], step=step)
    if result.curves:
        _wandb_curves(logger, run, result, prefix, step)
    run.summary.update({f"{prefix}/{name}": value for name, value in _outcomes(result).items()})
    with _saved(result) as path:
        name = re.sub(r"[^\w.-]", "-", f"{prefix}-{run.id}", flags=re.ASCII)
        run.log_artifact(str(path), name=name, type="sanity-result", aliases=["latest", f"step-{step}"])


def _wandb_curves(logger: Any, run: Any, result: SanityResult, prefix: str, step: int) -> None:
    records = result.to_records()
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

    for name, pixels in figures:
        client.log_image(run_id, pixels, f"{prefix}/step_{step}/{name}.png")
    now = int(time.time() * 1000)
    metrics = [
        Metric(_mlflow_key(_key(prefix, record)), record["mean"], now, record["depth"])
        for record in result.to_records()
    ]
    for start in range(0, len(metrics), _MLFLOW_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _MLFLOW_BATCH])
    with _saved(result) as path:
        client.log_artifact(run_id, str(path), f"{prefix}/step_{step}")
    for name, value in _outcomes(result).items():
        client.set_tag(run_id, _mlflow_key(f"{prefix}/{name}"), value)


def _mlflow_key(name: str) -> str:
    """MLflow refuses other characters in keys."""
    return re.sub(r"[^\w/. -]", "_", name, flags=re.ASCII)


def _to_comet(experiment: Any, result: SanityResult, figures: _Figures, prefix: str, step: int) -> None:
    for name, pixels in figures:
        experiment.log_image(_image(pixels), name=f"{prefix}/{name}", step=step)
    for (method, similarity), curve in result.curves.items():
        depths = list(range(1, len(result.units) + 1))
        experiment.log_curve(f"{prefix}_curve/{method}/{similarity}", x=depths, y=curve.mean.tolist(), step=step)
    with _saved(result) as path:
        experiment.log_asset(str(path), file_name=f"{prefix}/step={step}.json", step=step)
    experiment.log_others({f"{prefix}/{name}": value for name, value in _outcomes(result).items()})


def _to_directory(directory: str, result: SanityResult, figures: _Figures, prefix: str, step: int) -> None:
    if "://" in directory:
        raise ValueError(f"figures and curves are written to local directories only, not to '{directory}'")
    measured = f"step={step}"
    if "file" in result.settings:  # the result beside it, which says the step of the weights
        measured, step = Path(str(result.settings["file"])).stem, step if result.step is None else result.step
    for name, pixels in figures:
        path = Path(directory, prefix, f"{name}-{measured}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        _image(pixels).save(path)
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
    """The figures of a result with their names, as pixels ``(H, W, 3)``; drawn when first asked for, then shared."""

    def __init__(self, result: SanityResult, images: bool) -> None:
        self._result = result
        self._images = images
        self._making: dict[str, Callable[[], Any]] | None = None
        self._drawn: dict[str, Any] = {}

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._making = self._recipes() if self._making is None else self._making
        for name, draw in self._making.items():
            if name not in self._drawn:
                self._drawn[name] = draw()
            yield name, self._drawn[name]

    def cards(self) -> Iterator[tuple[str, Any]]:
        """The same as narrow as a dashboard's card, under names that put the verdicts first."""
        if not self._images:
            return
        from lightning_sanity.report import cards  # matplotlib takes a second to import

        result, pictures = self._result, self._result.pictures
        yield "1-verdicts", _pixels(cards.verdicts(result))
        for sample in range(len(pictures.inputs)) if pictures is not None and pictures.maps else ():
            yield f"2-maps-{sample}", _pixels(cards.maps(result, sample))
        yield "3-sensitivity", _pixels(cards.sensitivity(result))
        if result.curves:
            yield "4-curves", _pixels(cards.curves(result))

    def _recipes(self) -> dict[str, Callable[[], Any]]:
        if not self._images:
            return {}
        from lightning_sanity.report.figures import (  # matplotlib takes a second to import
            curves,
            every_sample,
            sensitivity,
            verdicts,
        )

        result, pictures = self._result, self._result.pictures
        samples = range(len(pictures.inputs)) if pictures is not None and pictures.maps else ()
        shown = every_sample(result)
        return {
            "verdicts": lambda: _pixels(verdicts(result)),
            "curves": lambda: _pixels(curves(result)),
            "sensitivity": lambda: _pixels(sensitivity(result)),
            **{f"maps-{sample}": lambda: next(shown)[..., :3] for sample in samples},
        }


def _pixels(figure: Figure) -> Any:
    """What Agg draws, uint8 ``(H, W, 3)``; the figure's artists, which refer to each other, are freed."""
    import numpy

    figure.canvas.draw()
    pixels = numpy.array(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    figure.clear()
    return numpy.ascontiguousarray(pixels)


def _image(pixels: Any) -> Any:
    """The same as a PIL image."""
    from PIL import Image

    return Image.fromarray(pixels)


def _key(prefix: str, record: Mapping[str, Any]) -> str:
    return f"{prefix}_curve/{record['method']}/{record['similarity']}"


def _markdown(result: SanityResult) -> str:
    words = table(result)
    return words if result.valid else f"**Not valid:** {result.validity}\n\n{words}"


def _outcomes(result: SanityResult) -> dict[str, str]:
    """The verdict of every gated method, and of all together; void where a control came out wrong."""
    gated = {name: verdict for name, verdict in result.verdicts.items() if verdict.gated}
    together = next(
        (o for o in (Outcome.FAIL, Outcome.INCONCLUSIVE) if any(v.outcome is o for v in gated.values())), Outcome.PASS
    )
    if not result.valid or not gated:
        together = Outcome.INCONCLUSIVE
    return {"outcome": together.value} | {f"{name}/outcome": v.outcome.value for name, v in gated.items()}


@contextmanager
def _saved(result: SanityResult) -> Iterator[Path]:
    """The result as a file that exists for the duration of the context."""
    with TemporaryDirectory() as folder:
        yield result.to_json(Path(folder, "result.json"))
