"""Maps that are rows of numbers: of signals under their trace, of sentences word by word, of tables by feature."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_sanity.report import decided
from lightning_sanity.report.palette import Theme
from lightning_sanity.report.style import CARD, KEY, colour_of, headline, key_of_maps, literal, new_figure, scale_of
from lightning_sanity.report.tokens import shade
from lightning_sanity.report.wording import (
    SYMBOL,
    index_name,
    ordered,
    origin,
    role,
    short_head,
    short_middle,
    shown_on_cards,
    step_title,
)
from lightning_sanity.result.sanity_result import Pictures, SanityResult

_TOP = 8  # features of a table that are shown
_ROW = 0.17  # inches of a step
_TRACE = 0.7  # inches of a signal
Cell = tuple[str, int]
"""A text with its shade, see ``tokens.shades``."""


def trace(pictures: Pictures, sample: int) -> list[str]:
    """A signal as SVG paths, one per channel, in a box of 100 by 100."""
    rows = pictures.inputs[sample, :, :, 0].float()
    length = max(rows.shape[1] - 1, 1)
    return [
        "M" + "L".join(f"{100 * k / length:.1f} {100 - value / 2.55:.0f}" for k, value in enumerate(row.tolist()))
        for row in rows
    ]


def spoken(pictures: Pictures, method: str, sample: int) -> list[list[Cell]]:
    """A sentence after each step, word by word with its colour; padding at its end is left out."""
    maps = pictures.maps[method][sample, :, 0].float()
    words = pictures.words[sample][: _length(pictures, sample)]
    return [
        [
            (word, shade(score))
            for word, score in zip(words, (row / row.abs().max().clamp_min(1)).tolist(), strict=False)
        ]
        for row in maps
    ]


def features(pictures: Pictures, method: str, sample: int) -> list[tuple[str, list[Cell]]]:
    """The features that mattered most to the trained model, each with its share of the largest after every step."""
    maps = pictures.maps[method][sample, :, 0].float()
    rows = []
    for place in _most(pictures, method, sample):
        shares = (maps[:, place] / 127).tolist()
        cells = [(f"{share:+.2f}" if share else "0", shade(share)) for share in shares]
        rows.append((f"feature {place + 1}", cells))
    return rows


def draw(result: SanityResult, sample: int, theme: Theme, width: float) -> Figure:
    """One sample's maps as strips, one below the other from the trained model's to the last step's.

    Args:
        result: One with pictures in rows.
        sample: Which of the kept pictures.
        theme: Colours.
        width: Inches; of a page or of a dashboard's card.
    """
    pictures = result.pictures
    assert pictures is not None
    names = shown_on_cards(result) if width == CARD else ordered(result)
    names = [name for name in names if name in pictures.maps]
    titles = [origin(result), *(step_title(result, depth, 17).split("\n")[-1] for depth in pictures.depths)]
    figure = new_figure(width, 1, theme)
    title = headline(figure, result, theme)
    title.set(fontsize=11 if width > 5 else 9, va="top")
    above = 0.2 + 0.19 * len(title.get_text().splitlines())
    plot, below = _ROW * len(titles), 0.12 if pictures.kind == "signal" else 0.72
    block = 0.3 + plot + below
    traced = _TRACE + 0.15 if pictures.kind == "signal" else 0.0
    height = above + traced + block * len(names) + KEY
    figure.set_figheight(height)
    title.set_y(1 - 0.08 / height)
    left = 1.75 if width > 5 else 1.15
    box = (left / width, (width - left - 0.15) / width)
    if traced:
        axes = figure.add_axes((box[0], (height - above - _TRACE) / height, box[1], _TRACE / height))
        _traced(axes, pictures, sample, theme)
    for row, name in enumerate(names):
        top = above + traced + row * block
        axes = figure.add_axes((box[0], (height - top - 0.3 - plot) / height, box[1], plot / height))
        _strip(axes, pictures, name, sample, titles, theme)
        _named(figure, result, name, (0.1 / width, (height - top - 0.24) / height), theme)
    key_of_maps(figure, [pictures.maps[name][sample] for name in names], theme, "strip")
    return figure


def _traced(axes: Axes, pictures: Pictures, sample: int, theme: Theme) -> None:
    for number, channel in enumerate(pictures.inputs[sample, :, :, 0].float()):
        axes.plot(channel.tolist(), color=theme.lines[number % len(theme.lines)], linewidth=1.1)
    axes.set(xlim=(-0.5, pictures.inputs.shape[2] - 0.5), facecolor=theme.paper)
    axes.set_axis_off()


def _strip(axes: Axes, pictures: Pictures, name: str, sample: int, titles: list[str], theme: Theme) -> None:
    maps = pictures.maps[name][sample, :, 0]
    places = list(range(_length(pictures, sample)))
    if pictures.kind == "table":
        places = _most(pictures, name, sample)
    colours, low = scale_of(maps, theme)
    axes.imshow(maps[:, places].numpy(), cmap=colours, vmin=low, vmax=127, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(titles)), [literal(short_middle(text, 17)) for text in titles], fontsize=7.5)
    axes.tick_params(length=0, labelcolor=theme.ink)
    axes.spines[:].set_color(theme.grid)
    if pictures.kind == "signal":
        axes.set_xticks([])
        return
    spoken_of = pictures.kind == "tokens"
    said = [pictures.words[sample][place] if spoken_of else f"feature {place + 1}" for place in places]
    labels = [literal(short_head(word, 12)) for word in said]
    step = max(1, round(len(places) / (9.5 * axes.bbox.width / 100)))  # so many slanted labels fit an inch
    axes.set_xticks(range(0, len(places), step), labels[::step], fontsize=7.5, rotation=50, ha="right")


def _named(figure: Figure, result: SanityResult, name: str, at: tuple[float, float], theme: Theme) -> None:
    verdict = result.verdicts[name]
    colour = colour_of(result, name, theme)
    wide = figure.get_figwidth() > 5
    words = f"{SYMBOL[verdict.outcome]} {short_head(name, 30 if wide else 22)}{role(name, verdict)}"
    words += f" {verdict.outcome.value}"
    if wide:
        words += f", {index_name(result)} {decided.number(verdict)}"
    figure.text(*at, literal(words), color=colour, fontsize=9 if wide else 8)


def _length(pictures: Pictures, sample: int) -> int:
    """How many places are shown: of a sentence up to its last word that any map speaks of."""
    if pictures.kind != "tokens":
        return pictures.inputs.shape[2]
    spoken_of = [maps[sample].any(0).any(0).nonzero() for maps in pictures.maps.values()]
    last = max((int(places[-1]) for places in spoken_of if len(places)), default=-1)
    return last + 1 or pictures.inputs.shape[2]


def _most(pictures: Pictures, method: str, sample: int) -> list[int]:
    trained = pictures.maps[method][sample, 0, 0].abs().int()
    order: list[int] = trained.argsort(descending=True, stable=True).tolist()
    return order[:_TOP]
