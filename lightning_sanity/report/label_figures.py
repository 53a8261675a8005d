"""The picture of a data randomization test: maps of a model with true labels beside those of one with random labels."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_sanity.report import decided
from lightning_sanity.report.illustrated import absent
from lightning_sanity.report.palette import DARK, LIGHT, Theme
from lightning_sanity.report.style import KEY, headline, key_of_maps, literal, new_figure
from lightning_sanity.report.wording import SYMBOL, ordered, role, subject, wrapped
from lightning_sanity.result.sanity_result import SanityResult, Verdict

_COLUMNS = ("true\nlabels", "random\nlabels")
_SIDE, _GAP, _BETWEEN, _LEFT = 1.1, 0.07, 0.3, 2.3  # inches


def label_maps(result: SanityResult, *, dark: bool = False) -> Figure:
    """Maps of the same inputs from both kinds of models, one row per method; the inputs stand above.

    Each map is scaled by its own 99th percentile. A method that draws the same in both columns does not show
    what the model learned.

    Args:
        result: Of ``data_randomization_test``.
        dark: Light ink on dark paper; zero has the colour of the paper either way.

    Raises:
        ValueError: If the result is of another test, or kept no pictures.
    """
    if subject(result) != "labels":
        raise ValueError("label_maps draws results of data_randomization_test; for others there is figures.maps")
    pictures = result.pictures
    if pictures is None or not pictures.maps:
        raise ValueError(absent(result))
    theme = DARK if dark else LIGHT
    names = [name for name in ordered(result) if name in pictures.maps]
    count, *sides = pictures.inputs.shape[:3]
    height, width = (_SIDE * side / max(sides) for side in sides)
    group = 2 * width + _GAP
    figure = new_figure(max(6.0, _LEFT + count * (group + _BETWEEN)), 1, theme)
    title = headline(figure, result, theme)
    top = 0.3 + 0.19 * len(title.get_text().splitlines())  # of the inputs
    first = top + height + 0.5  # of the first method
    bottom = first + len(names) * (height + _GAP)
    figure.set_figheight(bottom + KEY)
    title.set_y(1 - 0.1 / figure.get_figheight())
    axes = figure.add_axes((0, 0, 1, 1))  # in inches: a pair of axes for each map would take seconds to lay out
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(figure.get_figheight(), 0))
    axes.set_axis_off()
    axes.text(_LEFT - 0.1, top + height / 2, "input", ha="right", va="center", color=theme.ink, fontsize=9)
    colours = [LinearSegmentedColormap.from_list("", shades) for shades in (theme.signed, theme.unsigned)]
    for sample in range(count):
        left = _LEFT + sample * (group + _BETWEEN)
        middle = left + (group - width) / 2
        _draw(axes, pictures.inputs[sample], (middle, middle + width, top + height, top), None, theme)
        for column, text in enumerate(_COLUMNS):
            x = left + column * (width + _GAP) + width / 2
            axes.text(x, first - 0.06, text, ha="center", va="bottom", color=theme.ink, fontsize=8)
        for row, name in enumerate(names):
            shown, y = pictures.maps[name][sample], first + row * (height + _GAP)
            scale = (colours[0], -127) if bool((shown < 0).any()) else (colours[1], 0)
            for column, picture in enumerate(shown[:2]):
                x = left + column * (width + _GAP)
                _draw(axes, picture, (x, x + width, y + height, y), scale, theme)
    for row, name in enumerate(names):
        _label(axes, first + row * (height + _GAP) + height / 2, name, result.verdicts[name], theme)
    key_of_maps(figure, [maps[:, :2] for name, maps in pictures.maps.items() if name in names], theme)
    return figure


def _draw(
    axes: Axes,
    picture: Tensor,
    extent: tuple[float, float, float, float],
    scale: tuple[LinearSegmentedColormap, int] | None,
    theme: Theme,
) -> None:
    colours, low = scale or (None, 0)
    left, right, bottom, top = extent
    axes.imshow(
        picture.numpy(), cmap=colours, vmin=low, vmax=127, extent=extent, aspect="auto", interpolation="nearest"
    )
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=theme.grid, linewidth=0.8))
    if scale is not None and not bool(picture.any()):
        where = (left + right) / 2, (top + bottom) / 2
        axes.text(*where, "blank", ha="center", va="center", color=theme.grey, style="italic", fontsize=9)


def _label(axes: Axes, y: float, name: str, verdict: Verdict, theme: Theme) -> None:
    outcome = f"{SYMBOL[verdict.outcome]} {verdict.outcome.value}"
    colour = theme.outcome[verdict.outcome] if verdict.gated else theme.grey
    index = f"DRI {decided.number(verdict)}"
    axes.text(_LEFT - 0.1, y - 0.1, literal(wrapped(name, 26)), ha="right", va="bottom", color=theme.ink, fontsize=9)
    axes.text(_LEFT - 0.1, y, outcome, ha="right", va="center", color=colour, fontsize=9, fontweight="bold")
    noted = f"{index}{role(name, verdict)}"
    axes.text(_LEFT - 0.1, y + 0.1, noted, ha="right", va="top", color=theme.grey, fontsize=8)
