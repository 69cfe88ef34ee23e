"""The loss curves of one trial as a plot: what `draw_losses` draws on the page, for loss_curves.png."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qlora_ray.formats import format_number
from qlora_ray.pages.plots import light, new_plot, set_title, set_x_label
from qlora_ray.reporting.axes import log_values
from qlora_ray.reporting.style import is_wide
from qlora_ray.reporting.trials import Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_PT, HEIGHT_PT = 640, 300


def plot_losses(trial: Trial) -> Figure | None:
    """Training and validation loss of a trial against samples seen, in nats; None where it has reported neither."""
    validation = [
        (report.num_samples, report.loss)
        for report in trial.reports
        if report.num_samples is not None and report.loss is not None
    ]
    lines: list[tuple[str, list[tuple[int, float]], dict[str, Any]]] = [
        (name, points, style)
        for name, points, style in (
            ("training", list(trial.train_losses), {"color": light("muted"), "linewidth": 1.0}),
            ("validation", validation, {"color": light("accent"), "linewidth": 2.0, "marker": "o", "markersize": 4}),
        )
        if points
    ]
    if not lines:
        return None
    figure, [panel] = new_plot(width_pt=WIDTH_PT, height_pt=HEIGHT_PT)
    for name, points, style in lines:
        if len(points) == 1:
            # A line through one point is nothing to be seen.
            style = {"marker": "o", "markersize": 4} | style
        panel.plot([samples for samples, _ in points], [loss for _, loss in points], label=name, **style)
    losses = [loss for _, points, _ in lines for _, loss in points]
    is_log = is_wide(losses)
    if is_log:
        panel.set_yscale("log")
        panel.minorticks_off()
        values = log_values(min(losses), max(losses))
        panel.set_yticks(values, [format_number(value) for value in values])
    scale = " (log scale)" if is_log else ""
    set_title(panel, f"Trial {trial.id}: loss, nats per trained token{scale}")
    set_x_label(panel, "training samples seen")
    panel.set_xlim(left=0)
    panel.legend(frameon=False)
    return figure
