"""Figures of one trial's losses: in training, as its steps went, and on the validation rows, at its reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlora_ray.formats import format_number
from qlora_ray.reporting.style import ACCENT, INK, MUTED, add_label, new_figure, scale_losses
from qlora_ray.reporting.trials import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LOSS_TITLE = "loss, nats per trained token"
HEIGHT_PX = 360
SMALL_HEIGHT_PX = 200
# Labels at the ends of two lines nearer than this share of the axis would lie on each other.
LABEL_GAP = 0.07
LABEL_SHIFT_PX = 9
# So few points are marked, since a line of one is invisible.
FEW_POINTS = 12


def has_losses(trial: Trial) -> bool:
    """Whether there is anything to draw of a trial."""
    return bool(trial.train_losses) or any(report.loss is not None for report in trial.reports)


def draw_losses(trial: Trial, *, is_small: bool = False) -> Figure | None:
    """Training and validation loss of one trial against samples seen; None where it has reported neither.

    Args:
        is_small: One of many side by side: titled by its trial, without labels.
    """
    validation = [
        (report.num_samples, report.loss)
        for report in trial.reports
        if report.num_samples is not None and report.loss is not None
    ]
    if not trial.train_losses and not validation:
        return None
    figure = new_figure(
        title=f"trial {trial.id}, {trial.state}" if is_small else LOSS_TITLE,
        x_title="" if is_small else "training samples seen",
        height=SMALL_HEIGHT_PX if is_small else HEIGHT_PX,
        right=16 if is_small else 128,
    )
    if trial.train_losses:
        _add_line(figure, "training", trial.train_losses, color=MUTED, width=1.2, is_marked=False)
    if validation:
        _add_line(figure, "validation", validation, color=ACCENT, width=2.5, is_marked=True)
    losses = [loss for _, loss in (*trial.train_losses, *validation)]
    is_log = scale_losses(figure, losses)
    if is_log and not is_small:
        figure.layout.annotations[0].text += " (log scale)"
    if not is_small:
        _add_end_labels(figure, trial, validation, is_log=is_log)
    last = max(samples for samples, _ in (*trial.train_losses, *validation))
    figure.update_xaxes(range=[0, last * 1.015], tickformat=",~d", nticks=3 if is_small else 7)
    return figure


def describe_losses(trial: Trial) -> str:
    """What the figure of a trial shows, in words."""
    words = []
    if trial.train_losses:
        first, last = trial.train_losses[0][1], trial.train_losses[-1][1]
        words.append(f"training loss {format_number(first)} to {format_number(last)}")
    reports = [report for report in trial.reports if report.loss is not None]
    if reports:
        best = min(reports, key=lambda report: report.loss or 0.0)
        where = f" after {best.num_samples:,} samples" if best.num_samples is not None else f" at report {best.index}"
        words.append(f"lowest validation loss {format_number(best.loss)}{where}")
        if best is not reports[-1]:
            words.append(f"{format_number(reports[-1].loss)} at the last report")
    return f"Trial {trial.id}: {', '.join(words)}."


def _add_line(
    figure: Figure, name: str, points: Sequence[tuple[int, float]], *, color: str, width: float, is_marked: bool
) -> None:
    figure.add_scatter(
        x=[samples for samples, _ in points],
        y=[loss for _, loss in points],
        mode="lines+markers" if is_marked or len(points) <= FEW_POINTS else "lines",
        name=name,
        line={"color": color, "width": width},
        marker={"size": 6 if is_marked else 4, "color": color},
        hovertemplate=f"{name} loss %{{y:.4f}}<br>after %{{x:,}} samples<extra></extra>",
    )


def _add_end_labels(figure: Figure, trial: Trial, validation: Sequence[tuple[int, float]], *, is_log: bool) -> None:
    """Names the lines where they end, apart from each other."""
    ends = [
        (name, points[-1][1], color)
        for name, points, color in (("training", trial.train_losses, INK), ("validation", validation, ACCENT))
        if points
    ]
    places = [math.log10(loss) if is_log else loss for _, loss, _ in ends]
    losses = [loss for _, loss in (*trial.train_losses, *validation)]
    low, high = (math.log10(end) if is_log else end for end in (min(losses), max(losses)))
    is_near = len(ends) == 2 and abs(places[0] - places[1]) < LABEL_GAP * (high - low or 1.0)
    upper = max(range(len(ends)), key=places.__getitem__)
    for index, ((name, loss, color), place) in enumerate(zip(ends, places, strict=True)):
        shift = (LABEL_SHIFT_PX if index == upper else -LABEL_SHIFT_PX) if is_near else 0
        text = f"{name} {format_number(loss)}"
        add_label(
            figure, text, x=1, xref="paper", y=place, xanchor="left", xshift=6, yshift=shift, color=color, size=13
        )
