"""The figures of the page of answers: how long they are, and how many decline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlora_ray.evaluation.answers.files import AnswerRow
from qlora_ray.evaluation.answers.statistics import AnsweredSet
from qlora_ray.pages.html import figure_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# In the order of models: what the others are held against is grey.
MODEL_COLOUR_NAMES = ("rest", "accent", "second", "good")
# Up to here every answer is a point on its box.
MAX_POINTS = 60
LANE_PX = 34
HEADING_PX = 30


def draw_lengths(sets: Sequence[AnsweredSet]) -> Figure:
    """Returns a box of answer lengths per model, a panel per prompt set, in tokens if all files count them."""
    in_tokens = counts_tokens(sets)
    figure = _draw_panels(sets)
    for panel, answered in enumerate(sets, start=1):
        for at, (model, rows) in enumerate(answered.answers.items()):
            figure.add_box(
                x=[measure_length(row, in_tokens=in_tokens) for row in rows],
                name=figure_text(model),
                orientation="h",
                boxpoints="all" if len(rows) <= MAX_POINTS else "outliers",
                pointpos=0,
                jitter=0.5,
                line={"color": _colour(at), "width": 1.5},
                marker={"size": 4, "opacity": 0.6},
                fillcolor="rgba(0,0,0,0)",
                row=panel,
                col=1,
            )
    figure.update_xaxes(rangemode="tozero")
    figure.update_xaxes(title_text="tokens" if in_tokens else "words", row=len(sets), col=1)
    return figure


def draw_refusals(sets: Sequence[AnsweredSet]) -> Figure:
    """Returns a bar per model, a panel per prompt set: the share of answers that begin by declining, in percent."""
    figure = _draw_panels(sets)
    for panel, answered in enumerate(sets, start=1):
        for at, (model, stats) in enumerate(answered.stats.items()):
            if not stats.num_answers:
                continue
            figure.add_bar(
                y=[figure_text(model)],
                x=[100 * stats.num_refusals / stats.num_answers],
                text=[f"{stats.num_refusals} of {stats.num_answers}"],
                name=figure_text(model),
                orientation="h",
                marker={"color": _colour(at)},
                textposition="outside",
                cliponaxis=False,
                textfont={"color": "var(--ink)"},
                row=panel,
                col=1,
            )
    # The text of a full bar stands right of it.
    figure.update_xaxes(range=[0, 140], tickvals=[0, 25, 50, 75, 100])
    figure.update_xaxes(title_text="answers that decline, %", row=len(sets), col=1)
    figure.update_layout(bargap=0.3)
    return figure


def _draw_panels(sets: Sequence[AnsweredSet]) -> Figure:
    """Returns an empty panel per prompt set, with its name above it, where a narrow window has room for it."""
    from plotly.subplots import make_subplots

    lanes = [max(1, len(answered.answers)) for answered in sets]
    figure = make_subplots(
        rows=len(sets),
        shared_xaxes=True,
        row_heights=lanes,
        vertical_spacing=HEADING_PX / (HEADING_PX * len(sets) + LANE_PX * sum(lanes)),
        subplot_titles=[figure_text(answered.name) for answered in sets],
    )
    figure.update_annotations(x=0, xanchor="left", font={"size": 13})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(showlegend=False, height=HEADING_PX * (len(sets) + 1) + LANE_PX * (sum(lanes) + 1))
    return figure


def counts_tokens(sets: Sequence[AnsweredSet]) -> bool:
    """Returns whether the files say the tokens of every answer, so that lengths are in tokens and not in words."""
    return all(stats.tokens is not None for answered in sets for stats in answered.stats.values())


def measure_length(row: AnswerRow, *, in_tokens: bool) -> int:
    """Returns the tokens of an answer, or its words where these are asked for or all that is known."""
    return row.num_tokens if in_tokens and row.num_tokens is not None else len(row.answer.split())


def _colour(at: int) -> str:
    return f"var(--{MODEL_COLOUR_NAMES[min(at, len(MODEL_COLOUR_NAMES) - 1)]})"
