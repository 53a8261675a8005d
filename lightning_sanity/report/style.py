"""What the figures share: colours, paper and axes, the headline, and names made short enough to print."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from lightning_sanity.result import Outcome, SanityResult

SYMBOL = {Outcome.PASS: "\N{CHECK MARK}", Outcome.FAIL: "\N{BALLOT X}", Outcome.INCONCLUSIVE: "?"}

_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_STAGE = {
    "cascading": "unit re-initialised last; those to its left are re-initialised too (output first)",
    "bottom_up": "unit re-initialised last; those to its left are re-initialised too (input first)",
    "independent": "the only unit re-initialised",
    "full": "all units re-initialised at once",
}
_STEP = {"cascading": "down to\n", "bottom_up": "up to\n", "independent": "only\n"}


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


def new_figure(width: float, height: float, theme: Theme, layout: Any = "constrained") -> Figure:
    """An empty figure that draws itself with Agg, wherever it ends up."""
    figure = Figure(figsize=(width, height), dpi=100, layout=layout, facecolor=theme.paper)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, theme: Theme) -> None:
    """Axes for data: left and bottom line, a faint horizontal grid."""
    axes.set_facecolor(theme.paper)
    axes.grid(visible=True, axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.grey)
    axes.tick_params(colors=theme.grey, labelcolor=theme.ink, labelsize=8)


def headline(figure: Figure, result: SanityResult, theme: Theme) -> Text:
    """The answer in one line on top; if the run is not valid, a banner with the reason."""
    outcome, text = _answer(result)
    lines = textwrap.fill(f"{SYMBOL[outcome]} {text}", int(figure.get_figwidth() * 11.5), break_on_hyphens=False)
    style: dict[str, Any] = {"x": 0.01, "ha": "left"}
    if not result.valid:
        lines = textwrap.fill(
            f"! NOT VALID, no verdict can be trusted: {result.validity}",
            int(figure.get_figwidth() * 10),
            break_on_hyphens=False,
        )
        box = {
            "boxstyle": "round,pad=0.3",
            "facecolor": theme.paper,
            "edgecolor": theme.outcome[outcome],
            "linewidth": 2,
        }
        style = {"x": 0.5, "ha": "center", "bbox": box}
    return figure.suptitle(literal(lines), color=theme.outcome[outcome], fontsize=11, fontweight="bold", **style)


def ordered(result: SanityResult) -> list[str]:
    """Method names, gated ones first."""
    return sorted(result.verdicts, key=lambda name: not result.verdicts[name].gated)


def subject(result: SanityResult) -> str:
    """What the test randomised."""
    return "labels" if str(result.settings.get("test", "")).startswith("data") else "weights"


def index_name(result: SanityResult) -> str:
    """Short name of the index that the verdicts rest on: of data or of parameter randomization."""
    return "DRI" if subject(result) == "labels" else "PSI"


def stage(result: SanityResult) -> str:
    """What a point of the depth axis means."""
    return "" if subject(result) == "labels" else _STAGE.get(str(result.settings.get("order")), "re-initialised")


def step_title(result: SanityResult, depth: int) -> str:
    """What had been re-initialised at a depth, in at most two short lines."""
    name = short_tail(result.units[depth - 1], 17)
    plain = subject(result) == "labels" or len(result.units) == 1
    return name if plain else _STEP.get(str(result.settings.get("order")), "") + name


def literal(text: str) -> str:
    """The same text for matplotlib: a dollar sign in a user's name must not start a formula."""
    return text.replace("$", r"\$")


def short_head(name: str, limit: int) -> str:
    """At most ``limit`` characters, cut at the end."""
    return name if len(name) <= limit else name[: limit - 1] + _ELLIPSIS


def short_tail(name: str, limit: int) -> str:
    """At most ``limit`` characters: module paths differ at their ends, so the end stays, cut at a word if one is near.

    >>> short_tail("backbone.encoder.layers.11.mlp.fc2", 16)
    '…11.mlp.fc2'
    """
    if len(name) <= limit:
        return name
    tail = name[1 - limit :]
    word = re.search(r"[._]", tail[: limit // 2])
    return _ELLIPSIS + (tail[word.end() :] if word else tail)


def wrapped(name: str, width: int) -> str:
    r"""Lines of about ``width``, broken after dots and underscores where possible.

    >>> wrapped("integrated_gradients", 14)
    'integrated_\ngradients'
    """
    spaced = name.replace("_", "_\0 ").replace(".", ".\0 ")
    return textwrap.fill(spaced, width + 1).replace("\0 ", "").replace("\0", "")


def _answer(result: SanityResult) -> tuple[Outcome, str]:
    gated = {name: verdict.outcome for name, verdict in result.verdicts.items() if verdict.gated}
    failed = [name for name, outcome in gated.items() if outcome is Outcome.FAIL]
    undecided = [name for name, outcome in gated.items() if outcome is Outcome.INCONCLUSIVE]
    if not result.valid:
        return Outcome.FAIL, "NOT VALID"
    if not gated:
        return Outcome.INCONCLUSIVE, "Only controls were tested"
    what, step = subject(result), "" if result.step is None else f" (step {result.step})"
    if failed:
        return Outcome.FAIL, f"FAIL: maps of {_some(failed, gated)} change too little with the {what}{step}"
    if undecided:
        return Outcome.INCONCLUSIVE, f"INCONCLUSIVE: no decision on {_some(undecided, gated)}{step}"
    return Outcome.PASS, f"PASS: maps of {_some(list(gated), gated)} change with the {what}{step}"


def _some(names: Sequence[str], gated: Sequence[str] | dict[str, Outcome]) -> str:
    if len(names) < 3:
        return " and ".join(short_head(name, 30) for name in names)
    return f"{len(names)} of {len(gated)} methods"
