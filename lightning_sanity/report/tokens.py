"""Pictures of token scores: every word on a ground whose colour says for or against."""

from __future__ import annotations

import html as markup
from collections.abc import Sequence

from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex
from matplotlib.figure import Figure
from torch import Tensor

from lightning_sanity.report.palette import DARK, LIGHT, Theme, ink_on
from lightning_sanity.report.style import KEY, key, literal, new_figure
from lightning_sanity.report.wording import short_tail

_WIDE = 96  # characters of a line
_SHADES = 7  # of each sign, on a page
_SIZE, _LEADING = 9, 0.24  # font size in points, height of a line in inches


def draw(
    words: Sequence[Sequence[str]],
    scores: Sequence[Tensor] | Tensor,
    titles: Sequence[str] | None = None,
    *,
    dark: bool = False,
) -> Figure:
    """Sentences with coloured words: red for the explained output, blue against it, by the sentence's largest score.

    A key of the colours stands below.

    Args:
        words: The words of every sentence, without padding.
        scores: Their scores, signed, one tensor per sentence at least as long; NaN is left uncoloured.
        titles: A line above each sentence.
        dark: Light ink on dark paper.

    Raises:
        ValueError: If a sentence has more words than scores, or their numbers differ.
    """
    theme = DARK if dark else LIGHT
    given = titles if titles is not None else [""] * len(words)
    laid = [_lines(line) for line in words]
    count = sum(len(lines) + 1.3 for lines in laid)
    figure = new_figure(_WIDE * 0.082 + 0.3, count * _LEADING + 0.2 + KEY, theme)
    width, height = figure.get_figwidth(), figure.get_figheight()
    top = height - 0.1
    for number, (lines, title) in enumerate(zip(laid, given, strict=True)):
        colours = coloured(_scores_of(scores, number, len(words[number])), theme)
        top -= _LEADING
        figure.text(0.15 / width, top / height, literal(title), color=theme.grey, fontsize=_SIZE - 1)
        for line in lines:
            top -= _LEADING
            for place, index in line:
                figure.text(
                    (0.15 + 0.082 * place) / width,
                    top / height,
                    literal(short_tail(words[number][index], _WIDE)),
                    family="monospace",
                    fontsize=_SIZE,
                    color=colours[index][1],
                    bbox={"facecolor": colours[index][0], "edgecolor": "none", "pad": 1.5},
                )
        top -= 0.3 * _LEADING
    grounds = [ground for ground, _ in shades(theme)]
    meaning = "for or against the explained output; each sentence by its own largest score"
    key(figure, [("against", grounds, "for")], meaning, theme)
    return figure


def html(words: Sequence[str], scores: Tensor) -> str:
    """One sentence as HTML spans in the colours of ``draw``; needs no style sheet and no script."""
    colours = coloured(_scores_of([scores], 0, len(words)), LIGHT)
    spans = [
        f'<span style="background:{ground};color:{ink}" title="{score:.3g}">{markup.escape(word)}</span>'
        for word, (ground, ink), score in zip(words, colours, scores.tolist(), strict=False)
    ]
    return f'<p style="font-family:monospace;line-height:1.7">{" ".join(spans)}</p>'


def _scores_of(scores: Sequence[Tensor] | Tensor, number: int, words: int) -> list[float]:
    if number >= len(scores) or len(scores[number]) < words:
        raise ValueError(f"sentence {number} has {words} words, but not as many scores")
    return [float(score) for score in scores[number][:words].detach().float().cpu()]


def coloured(scores: Sequence[float], theme: Theme) -> list[tuple[str, str]]:
    """Ground and ink of every score: red for, blue against, the stronger the larger beside the largest."""
    finite = [abs(score) for score in scores if score == score]
    largest = max(finite, default=0.0) or 1.0
    colour = LinearSegmentedColormap.from_list("signed", theme.signed)
    scale = Normalize(-1.35 * largest, 1.35 * largest)  # short of the darkest ends, so that ink stays readable
    found = []
    for score in scores:
        ground = to_hex(colour(scale(score))) if score == score else theme.paper
        found.append((ground, ink_on(ground)))
    return found


def shades(theme: Theme) -> list[tuple[str, str]]:
    """Ground and ink of every shade, from the strongest against to the strongest for."""
    return coloured([k / _SHADES for k in range(-_SHADES, _SHADES + 1)], theme)


def shade(share: float) -> int:
    """Which of the shades stands for a share of the largest score, -1 to 1."""
    return round(share * _SHADES) + _SHADES


def _lines(words: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Lines of (place in characters, index of the word)."""
    lines: list[list[tuple[int, int]]] = [[]]
    place = 0
    for index, word in enumerate(words):
        long = min(len(word), _WIDE)
        if place and place + long > _WIDE:
            lines.append([])
            place = 0
        lines[-1].append((place, index))
        place += long + 1
    return lines
