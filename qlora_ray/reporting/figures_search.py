"""Figures of the search: every trial's learning curve, and every trial as a line through its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from qlora_ray.formats import format_number, format_value, shorten
from qlora_ray.pages.html import figure_text
from qlora_ray.reporting.axes import MAX_LABEL, Axis, axis_of_values
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.style import (
    ACCENT,
    INK,
    LOSS_TITLE,
    MANY_TRIALS,
    MARKS,
    MUTED,
    PAPER,
    REST,
    RULE,
    WINNER_MARK,
    add_label,
    describe_trial,
    is_wide,
    new_figure,
    scale_losses,
)
from qlora_ray.reporting.thinning import drawn_trials
from qlora_ray.reporting.trials import Report, Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Room per axis, so that names and values do not run into each other.
AXIS_PX = 118
# Of a label's letter, with room to spare.
LETTER_PX = 7.5
# Drawn from the back to the front.
DRAW_ORDER = ("pruned", "interrupted", "running", "failed", "complete")


def draw_learning_curves(story: Story) -> Figure | None:
    """Validation loss against samples seen: a line per trial, its end marked by how it ended; None without reports."""
    trials = [trial for trial in drawn_trials(story) if any(report.loss is not None for report in trial.reports)]
    if not trials:
        return None
    by_samples = all(report.num_samples is not None for trial in trials for report in trial.reports)
    x_title = "training samples seen" if by_samples else "report"
    figure = new_figure(title=LOSS_TITLE, x_title=x_title, height=400, right=96)
    for state in DRAW_ORDER:
        group = [trial for trial in trials if trial.state == state and trial.id != story.outcome.winner]
        if group:
            _add_lines(figure, state, group, by_samples)
            _add_ends(figure, state, group, by_samples)
    losses = [report.loss for trial in trials for report in trial.reports]
    base_loss = base_validation_loss(story)
    if story.winner in trials:
        assert story.winner is not None
        _add_winner(figure, story.winner, by_samples)
    is_log = scale_losses(figure, [*losses, base_loss])
    if is_log:
        figure.layout.annotations[0].text += " (log scale)"
    if base_loss is not None:
        figure.add_hline(y=base_loss, line={"color": MUTED, "width": 1, "dash": "dot"})
        _add_end_label(figure, f"base {format_number(base_loss)}", base_loss, is_log=is_log, color=MUTED)
    winner_end = story.winner.reports[-1].loss if story.winner in trials and story.winner is not None else None
    if winner_end is not None:
        label = f"{story.outcome.winner} {format_number(winner_end)}"
        _add_end_label(figure, label, winner_end, is_log=is_log, color=ACCENT)
    last = max(_x(report, by_samples) or 0 for trial in trials for report in trial.reports)
    figure.update_xaxes(range=[0, last * 1.015], tickformat=",~d", nticks=7 if by_samples else last + 1)
    return figure


def base_validation_loss(story: Story) -> float | None:
    """The base's loss, if it was scored on the rows that the trials report on."""
    # As the file says it: a verdict that cannot be shown still tells which rows they were.
    scores = story.outcome.scores
    # Sweeps from before verdicts scored the base on the validation rows.
    is_elsewhere = scores.verdict and scores.verdict.get("split") != "validation"
    return None if is_elsewhere or scores.base is None else scores.base.loss


def draw_parallel_coordinates(story: Story) -> Figure | None:
    """Every trial as a line over its parameters, to the loss it reached; None without parameters or losses.

    Drawn of plain lines: plotly's own parallel coordinates need WebGL, which not every browser has.
    """
    losses = [trial.loss for trial in story.trials if trial.loss is not None]
    if not story.axes or not losses:
        return None
    drawn = drawn_trials(story)
    axes = [*story.axes, axis_of_values("loss", losses, log=is_wide(losses))]
    figure = new_figure(title="", height=380)
    for state in DRAW_ORDER:
        group = [trial for trial in drawn if trial.state == state and trial.id != story.outcome.winner]
        color, width = (MUTED, 1.4) if state == "complete" else (REST, 1.0)
        width = 0.5 if len(group) > MANY_TRIALS else width
        dash = "dot" if state in ("failed", "interrupted") else "solid"
        _add_paths(figure, state, group, axes, {"color": color, "width": width, "dash": dash}, opacity=0.75)
    if story.winner is not None:
        _add_paths(figure, "winner", [story.winner], axes, {"color": ACCENT, "width": 3}, opacity=1.0)
    for index, axis in enumerate(axes):
        _add_axis(figure, index, axis, story.winner)
    figure.update_xaxes(visible=False, range=[-_left_side(axes[0]), len(axes) - 0.4])
    figure.update_yaxes(visible=False, range=[-0.12, 1.22])
    figure.update_layout(margin={"l": 8, "r": 8, "t": 4, "b": 4})
    return figure


def parallel_width_px(story: Story) -> int:
    """The width below which the axes get too close."""
    return round(AXIS_PX * (len(story.axes) + 0.6 + (_left_side(story.axes[0]) if story.axes else 0)))


def _left_side(first: Axis) -> float:
    """Room for the first axis's labels, in distances between axes."""
    longest = max(len(text) for _, text in first.ticks())
    return max(0.45, (longest * LETTER_PX + 12) / AXIS_PX)


def _x(report: Report, by_samples: bool) -> int | None:
    return report.num_samples if by_samples else report.index


def _add_lines(figure: Figure, state: str, group: Sequence[Trial], by_samples: bool) -> None:
    xs: list[int | None] = []
    ys: list[float | None] = []
    hover: list[tuple[str, str]] = []
    for trial in group:
        for report in trial.reports:
            xs.append(_x(report, by_samples))
            ys.append(report.loss)
            hover.append((trial.id, describe_trial(trial)))
        # A gap, so that one trace holds the lines of all: 500 trials would be 500 traces.
        xs.append(None)
        ys.append(None)
        hover.append(("", ""))
    is_complete, is_many = state == "complete", len(group) > MANY_TRIALS
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines" if is_many else "lines+markers",
        name=f"{state} trials",
        line={"color": MUTED if is_complete else REST, "width": 0.5 if is_many else 1.5 if is_complete else 1.1},
        marker={"size": 3.5, "color": MUTED if is_complete else REST},
        opacity=0.8,
        customdata=hover,
        hovertemplate=_hover_text(by_samples),
    )


def _add_ends(figure: Figure, state: str, group: Sequence[Trial], by_samples: bool) -> None:
    """Marks where each trial ended: at its last report with a loss, which a diverged one has before its end."""
    ends = [(trial, next(r for r in reversed(trial.reports) if r.loss is not None)) for trial in group]
    if state == "complete":
        return
    figure.add_scatter(
        x=[_x(report, by_samples) for _, report in ends],
        y=[report.loss for _, report in ends],
        mode="markers",
        name=f"{state}, last report",
        marker={**MARKS[state], "size": 5} if len(ends) > MANY_TRIALS else MARKS[state],
        customdata=[(trial.id, describe_trial(trial)) for trial, _ in ends],
        hovertemplate=_hover_text(by_samples),
    )


def _add_winner(figure: Figure, winner: Trial, by_samples: bool) -> None:
    figure.add_scatter(
        x=[_x(report, by_samples) for report in winner.reports],
        y=[report.loss for report in winner.reports],
        mode="lines+markers",
        name=f"winner {winner.id}",
        line={"color": ACCENT, "width": 3},
        marker={"size": 7, "color": ACCENT},
        customdata=[(f"{winner.id}, the winner", describe_trial(winner))] * len(winner.reports),
        hovertemplate=_hover_text(by_samples),
    )


def _add_end_label(figure: Figure, text: str, loss: float, *, is_log: bool, color: str) -> None:
    # Annotations on a log axis take the exponent.
    y = math.log10(loss) if is_log else loss
    add_label(figure, text, x=1, xref="paper", y=y, xanchor="left", xshift=6, color=color, size=13)


def _hover_text(by_samples: bool) -> str:
    where = "after %{x:,} samples" if by_samples else "at report %{x}"
    return f"trial %{{customdata[0]}}<br>loss %{{y:.4f}} {where}<br>%{{customdata[1]}}<extra></extra>"


def _add_paths(
    figure: Figure, name: str, group: Iterable[Trial], axes: Sequence[Axis], line: dict[str, Any], *, opacity: float
) -> None:
    xs: list[float | None] = []
    ys: list[float | None] = []
    hover: list[str] = []
    for trial in group:
        values = [trial.params.get(axis.path) for axis in axes[:-1]] + [trial.loss]
        for index, (axis, value) in enumerate(zip(axes, values, strict=True)):
            xs.append(index)
            ys.append(axis.place(value))
            hover.append(f"trial {trial.id}<br>{figure_text(axis.name)} {figure_text(format_value(value))}")
        xs.append(None)
        ys.append(None)
        hover.append("")
    if not xs:
        return
    is_winner = name == "winner"
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines+markers" if is_winner or line["width"] >= 1 else "lines",
        name=name if is_winner else f"{name} trials",
        line=line,
        marker=WINNER_MARK if is_winner else {"size": 4, "color": line["color"]},
        opacity=opacity,
        text=hover,
        hovertemplate="%{text}<extra></extra>",
    )


def _add_axis(figure: Figure, index: int, axis: Axis, winner: Trial | None) -> None:
    figure.add_shape(type="line", x0=index, x1=index, y0=0, y1=1, line={"color": RULE, "width": 1}, layer="below")
    scale = ", log" if axis.kind == "log" else ""
    add_label(figure, f"{shorten(axis.name, MAX_LABEL)}{scale}", x=index, y=1.14, color=INK, size=12)
    value = None if winner is None else winner.loss if axis.path == "loss" else winner.params.get(axis.path)
    winner_place = axis.place(value)
    for place, text in axis.ticks():
        if winner_place is None or abs(place - winner_place) > 0.04:
            add_label(figure, text, x=index, y=place, xanchor="right", xshift=-6, bgcolor=PAPER, size=11)
    if winner_place is not None:
        label = shorten(format_value(value), MAX_LABEL)
        add_label(
            figure, label, x=index, y=winner_place, xanchor="right", xshift=-9, bgcolor=PAPER, color=ACCENT, size=12
        )
