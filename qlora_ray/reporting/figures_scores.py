"""The figure of scores: how far a tuned model is from its base, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlora_ray.formats import format_loss, format_score, format_signed
from qlora_ray.pages.html import figure_text
from qlora_ray.reporting.style import ACCENT, BAD, INK, MUTED, PAPER, add_label, new_figure
from qlora_ray.scoring.comparison import LOSS, Comparison

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ROW_PX = 56
COLORS = {"better": ACCENT, "worse": BAD, "no different": MUTED}
# Room beside the base's line and the farthest end, in shares of the farthest end.
SIDE = 0.12


def draw_differences(comparisons: Sequence[Comparison]) -> Figure | None:
    """A row per measure: the improvement over the base and its interval; None if no interval is known.

    Measures have units of their own, so each row is scaled to its farthest end. Improvements point to the right
    whichever way the measure counts, so that rows can be read alike.
    """
    shown = [
        comparison
        for comparison in comparisons
        if all(map(math.isfinite, (*comparison.interval, comparison.difference)))
    ]
    if not shown:
        return None
    figure = new_figure(title="", height=ROW_PX * len(shown) + 40)
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    add_label(figure, "base", x=0, y=1, yref="paper", yanchor="bottom", color=INK)
    ends = [0.0]
    for row, comparison in enumerate(shown):
        ends += _add_row(figure, row, comparison)
    figure.update_xaxes(visible=False, range=[min(ends) - SIDE, max(ends) + SIDE])
    figure.update_yaxes(visible=False, range=[len(shown) - 0.35, -0.65])
    figure.update_layout(margin={"l": 8, "r": 8, "t": 24, "b": 8})
    return figure


def _add_row(figure: Figure, row: int, one: Comparison) -> tuple[float, float]:
    """Draws one measure; returns where it begins and ends."""
    sign = 1 if one.higher_is_better else -1
    reach = max(abs(end) for end in (*one.interval, one.difference)) or 1.0
    low, high = sorted(sign * end / reach for end in one.interval)
    middle = sign * one.difference / reach
    color = COLORS[one.verdict]
    figure.add_scatter(
        x=[low, high],
        y=[row, row],
        mode="lines",
        name=f"{one.measure} interval",
        line={"color": color, "width": 4},
        opacity=0.5,
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[middle],
        y=[row],
        mode="markers+text",
        name=one.measure,
        marker={"size": 12, "color": color},
        text=[format_signed(one.difference)],
        textposition="bottom center",
        textfont={"color": color},
        hovertemplate=f"{figure_text(one.measure)}: {figure_text(one.verdict)}<extra></extra>",
        cliponaxis=False,
    )
    show = format_loss if one.measure == LOSS else format_score
    words = f"{one.measure} {show(one.base)} → {show(one.tuned)}"
    # From the edge on, so that a narrow window has room for it wherever the base's line is.
    add_label(figure, words, x=0, xref="paper", y=row, xanchor="left", yshift=16, color=INK, bgcolor=PAPER)
    return low, high
