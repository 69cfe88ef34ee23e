"""Figures as PNG, for where no page can be shown: a README, an issue, a slide. Drawn by matplotlib, without a screen.

Colours are those of the pages in a light scheme. matplotlib costs half a second to import, so that it is imported when
something is drawn.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from qlora_ray.pages.html import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of a figure that is shown at half its size, as screens with two pixels to a point do.
DOTS_PER_INCH = 144
POINTS_PER_INCH = 72
TEXT_POINTS = 9


def new_plot(*, width_pt: float, height_pt: float, num_panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Returns an empty figure and its panels, one below the other.

    Args:
        width_pt: Width in points of 1/72 inch; the PNG has two pixels for each.
        height_pt: Height, in the same unit.
        num_panels: How many panels there are; they share the x axis.
    """
    # Not pyplot, which keeps every figure, and looks for a screen.
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width_pt / POINTS_PER_INCH, height_pt / POINTS_PER_INCH),
        dpi=DOTS_PER_INCH,
        facecolor=light("paper"),
        layout="constrained",
    )
    panels = list(figure.subplots(num_panels, sharex=True, squeeze=False)[:, 0])
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(light("rule"))
        panel.tick_params(colors=light("muted"), labelsize=TEXT_POINTS)
    return figure, panels


def set_title(panel: Axes, text: str) -> None:
    """Writes what a panel shows at its top left; `$` in it is a character as any other."""
    panel.set_title(text, loc="left", fontsize=TEXT_POINTS + 1, color=light("ink"), parse_math=False)


def set_x_label(panel: Axes, text: str) -> None:
    """Writes what the x axis measures, and its unit."""
    panel.set_xlabel(text, fontsize=TEXT_POINTS, color=light("muted"))


def light(name: str) -> str:
    """Returns a colour of the pages by its name, as `#rrggbb`."""
    return COLOURS[name][0]


def render_png(figure: Figure) -> bytes:
    """Returns the figure as a PNG; the same figure gives the same bytes."""
    stream = io.BytesIO()
    # By default the version of matplotlib stands in it.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
