"""The colours of figures and pages, on light and on dark paper."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sanity.result.sanity_result import Outcome


@dataclass(frozen=True)
class Theme:
    """Colours. The lines' are Okabe and Ito's, which colour-blind readers can tell apart."""

    paper: str
    ink: str
    grey: str
    grid: str
    lines: tuple[str, ...]
    outcome: dict[Outcome, str]
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]


LIGHT = Theme(
    paper="#ffffff",
    ink="#1b1f24",
    grey="#666e78",
    grid="#e3e6ea",
    lines=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"),
    outcome={Outcome.PASS: "#00704f", Outcome.FAIL: "#b8430a", Outcome.INCONCLUSIVE: "#5a4a9c"},
    signed=("#053061", "#2f79b5", "#a7cfe4", "#ffffff", "#f7b799", "#ca4741", "#67001f"),
    unsigned=("#ffffff", "#f8c9a0", "#e2646b", "#8c2981", "#1b1044"),
)
DARK = Theme(
    paper="#14171c",
    ink="#e8eaed",
    grey="#98a1ab",
    grid="#2c323a",
    lines=("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#ffffff"),
    outcome={Outcome.PASS: "#41d3a2", Outcome.FAIL: "#ff8f52", Outcome.INCONCLUSIVE: "#b9a8ff"},
    signed=("#cfe8ff", "#5aa9e6", "#1c4b73", "#14171c", "#7a3414", "#ee8a4f", "#ffe3cc"),
    unsigned=("#14171c", "#51127c", "#b63679", "#fb8861", "#fcfdbf"),
)
