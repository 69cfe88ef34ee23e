"""The figure of a search for two objectives: every complete trial, and those that no other beats in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_ray.reporting.story import Story
from qlora_ray.reporting.style import INK, MARKS, REST, WINNER_MARK, describe_trial, is_wide, new_figure, scale_losses
from qlora_ray.reporting.trials import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LOSS_TITLE = "validation loss, nats per trained token"
SIZE_TITLE = "trained parameters"
FRONT_MARK = {"symbol": "circle", "size": 8, "color": INK}


def draw_front(story: Story) -> Figure | None:
    """Loss against trained parameters of the complete trials, the front as a line; None without such trials."""
    trials = [trial for trial in story.trials if trial.state == "complete" and _place(trial) is not None]
    if story.front is None or not trials:
        return None
    sizes = [float(trial.trainable_parameters or 0) for trial in trials]
    is_log = is_wide(sizes)
    figure = new_figure(title=LOSS_TITLE, x_title=SIZE_TITLE + (" (log scale)" if is_log else ""), height=380)
    front = sorted(front_of(story), key=lambda trial: trial.trainable_parameters or 0)
    rest = [trial for trial in trials if trial not in front and trial.id != story.outcome.winner]
    if rest:
        _add_points(figure, "other complete trials", rest, MARKS["complete"], mode="markers")
    if front:
        _add_points(figure, "front", front, FRONT_MARK, mode="lines+markers")
    if story.winner in trials and story.winner is not None:
        _add_points(figure, f"winner {story.winner.id}", [story.winner], WINNER_MARK, mode="markers")
    if scale_losses(figure, [trial.loss for trial in trials]):
        figure.layout.annotations[0].text += " (log scale)"
    figure.update_xaxes(type="log" if is_log else "linear", tickformat=".3~s", nticks=6)
    return figure


def front_of(story: Story) -> list[Trial]:
    """The trials of the front."""
    numbers = story.front.numbers if story.front is not None else frozenset()
    return [trial for trial in story.trials if trial.number in numbers and _place(trial) is not None]


def _place(trial: Trial) -> tuple[int, float] | None:
    if trial.trainable_parameters is None or trial.loss is None:
        return None
    return trial.trainable_parameters, trial.loss


def _add_points(figure: Figure, name: str, group: list[Trial], mark: dict[str, object], *, mode: str) -> None:
    places = [place for trial in group if (place := _place(trial)) is not None]
    figure.add_scatter(
        x=[size for size, _ in places],
        y=[loss for _, loss in places],
        mode=mode,
        name=name,
        # A step: between two trials of the front, nothing better than the worse of each is known.
        line={"color": REST, "width": 1.5, "shape": "hv"},
        marker=mark,
        customdata=[(trial.id, describe_trial(trial)) for trial in group],
        hovertemplate="trial %{customdata[0]}<br>loss %{y:.4f}<br>%{x:,} parameters<br>%{customdata[1]}<extra></extra>",
    )
