"""How every figure looks: grey for the many, one accent for the winner, titles at the top left, no zoom to get lost in.

Colours are the page's own names (qlora_ray.pages.html), which a page turns into those of the reader's scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qlora_ray.formats import format_number, format_value
from qlora_ray.pages.html import figure_text
from qlora_ray.reporting.axes import log_values
from qlora_ray.reporting.trials import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ACCENT, MUTED, REST, RULE, BAD, INK, PAPER, SECOND = (
    f"var(--{name})" for name in ("accent", "muted", "rest", "rule", "bad", "ink", "paper", "second")
)
# Losses that differ by more than this are drawn on a log scale.
LOG_RATIO = 8.0
# A label of a figure, in px.
LABEL_SIZE = 12

LOSS_TITLE = "validation loss, nats per trained token"
# More trials than this in one state are drawn thinner and smaller.
MANY_TRIALS = 60

MARKS = {
    "complete": {"symbol": "circle", "size": 7, "color": MUTED},
    "pruned": {"symbol": "x-thin", "size": 8, "color": REST, "line": {"width": 1.8, "color": REST}},
    "failed": {"symbol": "triangle-down", "size": 9, "color": BAD},
    "interrupted": {"symbol": "square-open", "size": 7, "color": REST},
    "running": {"symbol": "circle-open", "size": 7, "color": REST},
}
# What a caption calls the marks above.
MARK_WORDS = {
    "complete": "● complete",
    "pruned": "✕ stopped early",
    "failed": "▼ failed",
    "interrupted": "□ interrupted",
    "running": "○ still running",
}
WINNER_MARK = {"symbol": "circle", "size": 11, "color": ACCENT, "line": {"width": 2, "color": PAPER}}


def new_figure(*, title: str, x_title: str = "", height: int = 340, right: int = 16) -> Figure:
    """An empty figure.

    Args:
        title: What the y axis measures, and its unit; stands at the top left, where it is read first.
        right: Margin in px, for labels at the ends of lines.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        # Plotly's own template would bring colours that are not the page's.
        template="none",
        height=height,
        margin={"l": 44, "r": right, "t": 40 if title else 12, "b": 48 if x_title else 30},
        showlegend=False,
        hovermode="closest",
        dragmode=False,
        xaxis={"title": {"text": x_title, "font": {"size": LABEL_SIZE, "color": MUTED}}, "showgrid": False},
    )
    # A page is scrolled by finger over figures: they must not take the drag for a zoom.
    figure.update_xaxes(fixedrange=True, zeroline=False)
    figure.update_yaxes(fixedrange=True, zeroline=False)
    if title:
        add_label(figure, title, x=0, y=1, xref="paper", yref="paper", yshift=22, xshift=-40, xanchor="left")
    return figure


def add_label(figure: Figure, text: str, **where: Any) -> None:
    """Adds words without an arrow; `where` are plotly's own keys."""
    color = where.pop("color", MUTED)
    size = where.pop("size", LABEL_SIZE)
    figure.add_annotation(text=figure_text(text), showarrow=False, font={"size": size, "color": color}, **where)


def scale_losses(figure: Figure, losses: Iterable[float | None]) -> bool:
    """Sets the y axis for losses, log where they are far apart; returns whether it is log."""
    known = [loss for loss in losses if loss is not None]
    if known and min(known) == max(known):
        reach = abs(known[0]) / 2 or 1.0
        figure.update_yaxes(range=[known[0] - reach, known[0] + reach], nticks=4)
        return False
    if not is_wide(known):
        figure.update_yaxes(tickformat=".3~g", nticks=6)
        return False
    values = log_values(min(known), max(known))
    pad = 0.06 * math.log10(max(known) / min(known))
    figure.update_yaxes(
        type="log",
        tickvals=values,
        ticktext=[format_number(value) for value in values],
        range=[math.log10(min(known)) - pad, math.log10(max(known)) + pad],
    )
    return True


def is_wide(losses: Sequence[float]) -> bool:
    """Whether positive losses are too far apart for a linear axis."""
    return bool(losses) and min(losses) > 0 and max(losses) / min(losses) > LOG_RATIO


def describe_trial(trial: Trial) -> str:
    """A trial's parameters for a hover, a line each."""
    lines = [f"{path.rsplit('.', 1)[-1]} {format_value(value)}" for path, value in trial.params.items()]
    return "<br>".join(figure_text(line) for line in lines)
