"""What the figures share: paper and axes, the headline, and text that matplotlib takes literally."""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from lightning_sanity.report.palette import Theme
from lightning_sanity.report.wording import SYMBOL, answer
from lightning_sanity.result import SanityResult


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
    outcome, text = answer(result)
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


def literal(text: str) -> str:
    """The same text for matplotlib: a dollar sign in a user's name must not start a formula."""
    return text.replace("$", r"\$")
