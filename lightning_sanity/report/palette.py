"""The colours of figures and pages, on light and on dark paper."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sanity.result.sanity_result import Outcome


@dataclass(frozen=True)
class Theme:
    """Colours. Those of lines keep away from those of verdicts, and have a contrast of 3 : 1 on the paper."""

    paper: str
    ink: str
    grey: str
    grid: str
    lines: tuple[str, ...]
    outcome: dict[Outcome, str]
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]


def ink_on(ground: str) -> str:
    """Black or white, whichever stands out more: at least 4.5 : 1 on any ground.

    >>> ink_on("#ffffff"), ink_on("#67001f")
    ('#000000', '#ffffff')
    """
    channels = [int(ground[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # as WCAG 2 defines it
    return "#000000" if (luminance + 0.05) ** 2 >= 0.05 * 1.05 else "#ffffff"


LIGHT = Theme(
    paper="#ffffff",
    ink="#1b1f24",
    grey="#666e78",
    grid="#e3e6ea",
    lines=("#0072B2", "#c8509b", "#8a6d00", "#2191b5", "#000000", "#7a3b1e", "#a01060"),
    outcome={Outcome.PASS: "#00704f", Outcome.FAIL: "#b8430a", Outcome.INCONCLUSIVE: "#5a4a9c"},
    signed=("#053061", "#2f79b5", "#a7cfe4", "#ffffff", "#f7b799", "#ca4741", "#67001f"),
    unsigned=("#ffffff", "#f8c9a0", "#e2646b", "#8c2981", "#1b1044"),
)
DARK = Theme(
    paper="#14171c",
    ink="#e8eaed",
    grey="#98a1ab",
    grid="#2c323a",
    lines=("#56B4E9", "#F0E442", "#ff6fb5", "#ffffff", "#3f87ff", "#b08f4a", "#c0405f"),
    outcome={Outcome.PASS: "#41d3a2", Outcome.FAIL: "#ff8f52", Outcome.INCONCLUSIVE: "#b9a8ff"},
    signed=("#cfe8ff", "#5aa9e6", "#1c4b73", "#14171c", "#7a3414", "#ee8a4f", "#ffe3cc"),
    unsigned=("#14171c", "#51127c", "#b63679", "#fb8861", "#fcfdbf"),
)
