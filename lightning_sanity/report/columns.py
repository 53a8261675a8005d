"""Tables of fixed-width text that fit their width: cells are wrapped between words, or rows become records."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_GAP = "  "
_INDENT = "  "
_INK = {"PASS": "32", "FAIL": "31", "INCONCLUSIVE": "33"}  # green, red, yellow of a terminal
_WORDS = re.compile(r"[-+]?\d\S* \[[^\]]{0,24}\]|\S+")  # a number stays with its interval
_SOFT = re.compile(r"[^_.\-/]*[_.\-/]+|[^_.\-/]+")


def fitted(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, *, leading: int = 1
) -> list[str]:
    r"""Lines of at most ``width`` columns in which no word is cut.

    Where the columns are too wide as they are, the widest are wrapped between words. Where even single words are too
    wide, a row becomes a record: its leading cells on a line, the others below, each behind its heading. Only a word
    wider than the whole line is broken, after an underscore, a dot, a hyphen or a slash if it has one.

    Args:
        headings: One per column.
        rows: Their cells.
        width: Columns of the terminal, at least 20; None for as wide as the rows are.
        leading: So many cells begin a record without their heading.

    >>> print("\n".join(fitted(["method", "why"], [["gradient", "it hardly changes"]], 20)))
    method    why
    gradient  it hardly
              changes
    """
    table = [list(headings), *map(list, rows)]
    natural = [max(columns(cells[k]) for cells in table) for k in range(len(headings))]
    free = None if width is None else width - len(_GAP) * (len(headings) - 1)
    if free is None or sum(natural) <= free:
        return _laid_out(table, natural)
    least = [max(max(map(columns, _words(cells[k])), default=0) for cells in table) for k in range(len(headings))]
    if sum(least) <= free:
        return _laid_out(table, _shrunk(table, natural, least, free))
    return [line for cells in rows for line in _record(headings, cells, max(width or 0, 20), leading)]


def paragraph(text: str, width: int) -> str:
    """A sentence on lines of at most ``width`` columns, indented from the second on; no word is cut, as above."""
    return ("\n" + _INDENT).join(_wrapped(" ".join(text.split()), width - len(_INDENT)))


def coloured(line: str) -> str:
    """A line whose cells PASS, FAIL and INCONCLUSIVE have the colours of a terminal."""
    return re.sub(
        r"(^|  )(PASS|FAIL|INCONCLUSIVE)(?=  |$)", lambda m: f"{m[1]}\033[{_INK[m[2]]}m{m[2]}\033[0m", line, count=1
    )


def columns(text: str) -> int:
    r"""How many columns of a terminal a text takes: East Asian letters take two, accents none.

    >>> columns("gradient"), columns("\u52fe\u914d"), columns("e\u0301")
    (8, 4, 1)
    """
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def _words(cell: str) -> list[str]:
    return _WORDS.findall(cell)


def _shrunk(table: Sequence[Sequence[str]], natural: Sequence[int], least: Sequence[int], free: int) -> Sequence[int]:
    """Widths that fit, none below its longest word: one column gives way if it can, that which makes fewest lines."""
    excess = sum(natural) - free
    alone = [
        [*natural[:k], natural[k] - excess, *natural[k + 1 :]]
        for k in range(len(natural))
        if natural[k] - excess >= least[k]
    ]
    if alone:
        return min(alone, key=lambda widths: len(_laid_out(table, widths)))
    widths = list(natural)
    while sum(widths) > free:
        widths[max((k for k in range(len(widths)) if widths[k] > least[k]), key=lambda k: widths[k])] -= 1
    return widths


def _laid_out(table: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    lines = []
    for cells in table:
        parts = [_wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
        for k in range(max(map(len, parts))):
            row = [part[k] if k < len(part) else "" for part in parts]
            lines.append(_GAP.join(_padded(text, width) for text, width in zip(row, widths, strict=True)).rstrip())
    return lines


def _padded(text: str, width: int) -> str:
    return text + " " * (width - columns(text))


def _record(headings: Sequence[str], cells: Sequence[str], width: int, leading: int) -> list[str]:
    """A row as a record: no line is wider than ``width`` unless a single letter is."""
    first = _filled([cell for cell in cells[:leading] if cell], width)
    named = [f"{heading} {cell}" for heading, cell in zip(headings[leading:], cells[leading:], strict=True) if cell]
    return [*first, *(_INDENT + line for line in _filled(named, width - len(_INDENT)))]


def _filled(parts: Sequence[str], width: int) -> list[str]:
    """Parts side by side while they fit; one that is too wide takes lines of its own."""
    lines: list[str] = []
    for part in parts:
        if lines and columns(lines[-1]) + len(_GAP) + columns(part) <= width:
            lines[-1] += _GAP + part
        else:
            lines += _wrapped(part, width)
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width``, broken between words; a word that is wider is broken where it may be."""
    if columns(text) <= width:
        return [text]
    lines = [""]
    for word in (piece for whole in _words(text) for piece in _pieces(whole, width)):
        glued, word = word[0] == "\0", word.lstrip("\0")
        gap = "" if glued or not lines[-1] else " "
        if columns(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
        else:
            lines.append(word)
    return [line for line in lines if line] or [""]


def _pieces(word: str, width: int) -> list[str]:
    """A word, or the pieces of one that is wider than a line; those that continue a word begin with a null."""
    if columns(word) <= width:
        return [word]
    most = width if word.isascii() else max(1, width // 2)  # a letter takes two columns at most
    found = [piece[k : k + most] for piece in _SOFT.findall(word) for k in range(0, len(piece), most)]
    return [found[0], *(f"\0{piece}" for piece in found[1:])]
