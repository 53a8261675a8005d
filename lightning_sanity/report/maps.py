"""The grid of maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from lightning_sanity.report import decided, strips
from lightning_sanity.report.illustrated import absent, defined_share, fullest
from lightning_sanity.report.palette import DARK, LIGHT, Theme
from lightning_sanity.report.style import KEY, colour_of, headline, key_of_maps, literal, new_figure, scale_of
from lightning_sanity.report.wording import SYMBOL, index_name, ordered, origin, role, step_title, wrapped
from lightning_sanity.result.sanity_result import SanityResult

_LABEL = 0.62  # inches of what is said of a method
_GHOST = 0.55  # how far the picture under an overlay fades into the paper


def maps(result: SanityResult, sample: int | None = None, *, overlay: bool = False, dark: bool = False) -> Figure:
    """One sample's maps, one row per method, from the trained model's to the last step's, beside verdict and PSI.

    Each map is scaled by its own 99th percentile, as the result keeps them.

    Args:
        result: What to draw.
        sample: Which of the kept pictures; the one with the fewest blank maps if None.
        overlay: Lay the maps over the faded grey input: strong values cover it, weak ones let it through.
        dark: Light ink on dark paper; zero has the colour of the paper either way.

    Raises:
        ValueError: If the result kept no pictures, or no such sample.
    """
    pictures = result.pictures
    if pictures is None or not pictures.maps:
        raise ValueError(absent(result))
    if sample is None:
        sample = fullest(pictures, [name for name, verdict in result.verdicts.items() if verdict.gated])
    if not 0 <= sample < len(pictures.inputs):
        raise ValueError(f"sample must be from 0 to {len(pictures.inputs) - 1}, the pictures kept, not {sample}")
    theme = DARK if dark else LIGHT
    if pictures.in_rows:
        return strips.draw(result, sample, theme, 9)
    names = [name for name in ordered(result) if name in pictures.maps]
    titles = ["input", origin(result), *(step_title(result, depth) for depth in pictures.depths)]
    height, width = (1.1 * side / max(pictures.inputs.shape[1:3]) for side in pictures.inputs.shape[1:3])
    left, gap = 2.15, 0.09
    row_height = max(height, _LABEL)
    figure = new_figure(max(6.0, left + len(titles) * (width + gap)), 1, theme)
    title = headline(figure, result, theme)
    top = 0.65 + 0.19 * len(title.get_text().splitlines())
    bottom = top + len(names) * (row_height + gap)
    figure.set_figheight(bottom + KEY)
    title.set_y(1 - 0.1 / figure.get_figheight())
    # One pair of axes in inches: one for each map would take seconds to lay out.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0))
    axes.set_axis_off()
    for column, text in enumerate(titles):
        x = left + column * (width + gap) + width / 2
        axes.text(x, top - 0.05, literal(text), ha="center", va="bottom", color=theme.ink, fontsize=8)
    frames = []
    for row, name in enumerate(names):
        y = top + row * (row_height + gap)
        shown = pictures.maps[name][sample]
        _row_label(axes, left - 0.1, y + height / 2, name, result, theme)
        scale = scale_of(shown, theme)
        for column, picture in enumerate((pictures.inputs[sample], *shown)):
            x = left + column * (width + gap)
            extent = (x, x + width, y + height, y)
            frames.append([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
            if overlay and column > 0:
                _ghost(axes, pictures.inputs[sample], extent)
            picture_of(axes, picture, extent, scale, theme, overlay=overlay and column > 0)
    axes.add_collection(PolyCollection(frames, facecolors="none", edgecolors=theme.grid, linewidths=0.8))
    key_of_maps(figure, [pictures.maps[name][sample] for name in names], theme)
    return figure


def every_sample(result: SanityResult) -> Iterator[Any]:
    """What ``maps`` shows of each kept sample, as pixels ``(H, W, 4)``; the words, which they share, are drawn once."""
    pictures = result.pictures
    assert pictures is not None
    for sample in range(len(pictures.inputs)) if pictures.in_rows else ():
        figure = maps(result, sample)
        figure.canvas.draw()
        yield numpy.array(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        figure.clear()
    if pictures.in_rows:
        return
    figure = maps(result, 0)
    figure.canvas.draw()
    axes = figure.axes[0]
    names = [name for name in ordered(result) if name in pictures.maps]
    for sample in range(len(pictures.inputs)):
        cells = [(pictures.inputs[sample], *pictures.maps[name][sample]) for name in names]
        shown = [(values, scale_of(row[1:], LIGHT)) for row in cells for values in row]
        for image, (values, scale) in zip(axes.images, shown, strict=True) if sample else ():
            image.set_data(_coloured(values, scale))
            left, right, bottom, top = image.get_extent()
            for artist in (image, *_blank(axes, values, (left, right, bottom, top), LIGHT)):
                axes.draw_artist(artist)
        for frames in axes.collections if sample else ():
            axes.draw_artist(frames)
        yield numpy.array(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
    figure.clear()


def _coloured(values: Tensor, scale: tuple[Colormap, int]) -> Any:
    """An input as it is, a map in its colours: done here, pixel by pixel, in half the time that the artist needs."""
    colours, low = scale
    if values.ndim == 3:
        return values.numpy()
    return colours((values.numpy().astype("float32") - low) / (127 - low), bytes=True)


def picture_of(
    axes: Axes,
    values: Tensor,
    extent: tuple[float, float, float, float],
    scale: tuple[Colormap, int],
    theme: Theme,
    *,
    overlay: bool = False,
) -> None:
    """An input ``(H, W, 3)``, which brings its colours, or a map ``(H, W)``."""
    colours, low = scale
    axes.imshow(
        values.numpy() if overlay else _coloured(values, scale),
        cmap=colours,
        vmin=low,
        vmax=127,
        extent=extent,
        aspect="auto",
        interpolation="nearest",
        alpha=(values.abs() / 127).sqrt().numpy() if overlay else None,
    )
    _blank(axes, values, extent, theme)


def _blank(axes: Axes, values: Tensor, extent: tuple[float, float, float, float], theme: Theme) -> list[Text]:
    """Says that a map is, if it is."""
    if values.ndim == 3 or bool(values.any()):
        return []
    left, right, bottom, top = extent
    middle = (left + right) / 2, (top + bottom) / 2
    style: dict[str, Any] = {"ha": "center", "va": "center", "style": "italic", "fontsize": 9}
    return [axes.text(*middle, "blank", color=theme.grey, **style)]


def _ghost(axes: Axes, picture: Tensor, extent: tuple[float, float, float, float]) -> None:
    """The input ``(H, W, 3)`` in faded greys, under an overlay."""
    grey = picture.float().mean(2).numpy()
    colours = LinearSegmentedColormap.from_list("", ["black", "white"])
    axes.imshow(grey, cmap=colours, vmin=0, vmax=255, extent=extent, aspect="auto", alpha=1 - _GHOST)


def _row_label(axes: Axes, x: float, y: float, name: str, result: SanityResult, theme: Theme) -> None:
    verdict = result.verdicts[name]
    outcome = f"{SYMBOL[verdict.outcome]} {verdict.outcome.value}"
    outcome, colour = f"{outcome}{role(name, verdict)}", colour_of(result, name, theme)
    axes.text(x, y - 0.1, literal(wrapped(name, 26)), ha="right", va="bottom", color=theme.ink, fontsize=9)
    axes.text(x, y - 0.07, outcome, ha="right", va="top", color=colour, fontsize=9, fontweight="bold")
    number = f"{index_name(result)} {decided.number(verdict)}"
    axes.text(x, y + 0.1, number, ha="right", va="top", color=theme.grey, fontsize=8)
    share = defined_share(result, name)
    axes.text(x, y + 0.26, wrapped(share, 30), ha="right", va="top", color=theme.grey, fontsize=7)
