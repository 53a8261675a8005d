"""The kept pictures as a page shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lightning_sanity.report import illustrated, strips, thumbnails
from lightning_sanity.report.wording import origin, step_title
from lightning_sanity.result.sanity_result import SanityResult

Tile = tuple[str, str] | None
"""A map in greys, and the scale that gives it colours, "signed" or "unsigned"; None if it is blank."""


@dataclass(frozen=True)
class Gallery:
    """The kept pictures as data URLs.

    Attributes:
        columns: What each map column shows, the trained model's first.
        inputs: One per sample.
        maps: ``maps[method][sample][column]``, in greys with its scale; None = blank.
        best: The sample with the fewest blank maps, which illustrates every method.
        shares: Per method, how many pairs its index rests on, where maps are blank; else empty.
        width: Pixels across.
        height: Pixels down.
        kind: Of the inputs, see ``Pictures``.
        scales: Which of the scales of colours occur, ``"signed"`` and ``"unsigned"``.
        traces: Per sample, the channels of a signal as SVG paths.
        words: ``words[method][sample][column]``, a sentence with its colours.
        features: ``features[method][sample]``, the features of a table that matter most, with a cell per column.
    """

    columns: tuple[str, ...]
    inputs: tuple[str, ...]
    maps: Mapping[str, tuple[tuple[Tile, ...], ...]]
    best: int
    shares: Mapping[str, str]
    width: int
    height: int
    kind: str = "image"
    scales: tuple[str, ...] = ()
    traces: tuple[list[str], ...] = ()
    words: Mapping[str, list[list[list[strips.Cell]]]] = field(default_factory=dict)
    features: Mapping[str, list[list[tuple[str, list[strips.Cell]]]]] = field(default_factory=dict)

    @property
    def in_rows(self) -> bool:
        """Whether maps are rows of numbers."""
        return self.kind in ("signal", "tokens", "table")

    @property
    def samples(self) -> int:
        """How many inputs are pictured."""
        return len(next(iter(self.maps.values())))

    @classmethod
    def of(cls, result: SanityResult) -> Gallery | None:
        """The pictures of ``result``, or None if it kept none."""
        pictures = result.pictures
        if pictures is None or not pictures.maps or not len(pictures.inputs):
            return None
        height, width = pictures.inputs.shape[1:3]
        scale = (80 if pictures.kind == "image" else 150) / max(height, width)
        samples, methods = range(len(pictures.inputs)), pictures.maps
        signs = {
            "signed" if pictures.kind in ("tokens", "table") or bool((maps < 0).any()) else "unsigned"
            for maps in methods.values()
        }
        return cls(
            (origin(result), *(step_title(result, depth).replace("\n", " ") for depth in pictures.depths)),
            () if pictures.in_rows else tuple(thumbnails.of_input(picture) for picture in pictures.inputs),
            {name: _rows(maps) for name, maps in methods.items()},
            illustrated.fullest(pictures, [name for name, v in result.verdicts.items() if v.gated]),
            {name: illustrated.defined_share(result, name) for name in pictures.maps},
            round(width * scale),
            round(height * scale),
            pictures.kind,
            tuple(sorted(signs)),
            tuple(strips.trace(pictures, k) for k in samples) if pictures.kind == "signal" else (),
            {name: [strips.spoken(pictures, name, k) for k in samples] for name in methods}
            if pictures.kind == "tokens"
            else {},
            {name: [strips.features(pictures, name, k) for k in samples] for name in methods}
            if pictures.kind == "table"
            else {},
        )


def _rows(maps: Iterable[Tensor]) -> tuple[tuple[Tile, ...], ...]:
    """Data URLs of the maps of each sample; a row shares its scale, as a method has one sign."""
    return tuple(tuple(_tile(shown, signed=bool((sample < 0).any())) for shown in sample) for sample in maps)


def _tile(shown: Tensor, *, signed: bool) -> Tile:
    url = thumbnails.of_map(shown, signed=signed)
    return None if url is None else (url, "signed" if signed else "unsigned")
