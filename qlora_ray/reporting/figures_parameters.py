"""Figures of the parameters: which of them mattered, and how the loss moves along each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_ray.formats import format_share, format_value
from qlora_ray.pages.html import figure_text
from qlora_ray.reporting.axes import Axis
from qlora_ray.reporting.figures_search import DRAW_ORDER
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.style import (
    ACCENT,
    INK,
    LABEL_SIZE,
    LOSS_TITLE,
    MANY_TRIALS,
    MARKS,
    REST,
    WINNER_MARK,
    describe_trial,
    is_wide,
    new_figure,
    scale_losses,
)
from qlora_ray.reporting.thinning import drawn_trials
from qlora_ray.reporting.trials import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


SIZE_TITLE = "trained parameters"
FRONT_MARK = {"symbol": "circle", "size": 8, "color": INK}

BAR_PX = 30
SLICE_PX = 230
# Room for the largest bar's own label, in shares.
LABEL_ROOM = 0.14


def draw_importance(story: Story) -> Figure | None:
    """A bar per parameter, the most important at the top; None where importance could not be told."""
    shares = story.importance.shares
    if not shares:
        return None
    figure = new_figure(title="", height=BAR_PX * len(shares) + 24)
    names = [figure_text(path) for path in shares]
    figure.add_bar(
        x=list(shares.values()),
        y=names,
        orientation="h",
        name="importance",
        marker={"color": REST},
        width=0.62,
        text=[format_share(share, digits=0) for share in shares.values()],
        textposition="outside",
        textfont={"color": INK, "size": LABEL_SIZE},
        hovertemplate="%{y}: %{text}<extra></extra>",
        cliponaxis=False,
    )
    figure.update_xaxes(visible=False, range=[0, max(shares.values()) * (1 + LABEL_ROOM)])
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="", tickfont={"color": INK})
    figure.update_layout(margin={"l": 8, "r": 8, "t": 4, "b": 4})
    return figure


def draw_slice(story: Story, axis: Axis) -> Figure | None:
    """The last loss of each trial against one parameter, the winner marked; None without a trial that has both."""
    points = [
        (trial, place, trial.loss)
        for trial in drawn_trials(story)
        if trial.loss is not None and (place := axis.place(trial.params.get(axis.path))) is not None
    ]
    if not points:
        return None
    figure = new_figure(title=_slice_title(story, axis), height=SLICE_PX)
    for state in DRAW_ORDER:
        group = [point for point in points if point[0].state == state and point[0].id != story.outcome.winner]
        if group:
            mark = {**MARKS[state], "size": 4} if len(group) > MANY_TRIALS else MARKS[state]
            _add_points(figure, f"{state} trials", group, axis, mark)
    winner = [point for point in points if point[0].id == story.outcome.winner]
    if winner:
        _add_points(figure, "winner", winner, axis, WINNER_MARK)
        _, place, _ = winner[0]
        figure.add_vline(x=place, line={"color": ACCENT, "width": 1, "dash": "dot"}, layer="below")
    scale_losses(figure, [trial.loss for trial in story.trials])
    ticks = axis.ticks()
    figure.update_xaxes(
        range=[-0.1, 1.1],
        tickvals=[place for place, _ in ticks],
        ticktext=[figure_text(text) for _, text in ticks],
        tickfont={"size": 11},
    )
    return figure


def _slice_title(story: Story, axis: Axis) -> str:
    """The parameter, and the winner's value where no tick says it."""
    if axis.kind == "choice":
        return axis.path
    title = axis.path if story.winner is None else axis.name
    title += ", log" if axis.kind == "log" else ""
    value = None if story.winner is None else story.winner.params.get(axis.path)
    return title if value is None else f"{title}: winner {format_value(value)}"


def _add_points(
    figure: Figure, name: str, group: list[tuple[Trial, float, float]], axis: Axis, mark: dict[str, object]
) -> None:
    figure.add_scatter(
        x=[place for _, place, _ in group],
        y=[loss for _, _, loss in group],
        mode="markers",
        name=name,
        marker=mark,
        customdata=[(trial.id, trial.state, describe_trial(trial)) for trial, _, _ in group],
        hovertemplate="trial %{customdata[0]}, %{customdata[1]}<br>loss %{y:.4f}<br>%{customdata[2]}<extra></extra>",
    )


def draw_front(story: Story) -> Figure | None:
    """Loss against trained parameters of the complete trials, the front as a line; None without such trials."""
    trials = [trial for trial in story.trials if trial.state == "complete" and _place(trial) is not None]
    if story.front is None or not trials:
        return None
    sizes = [float(trial.trainable_parameters or 0) for trial in trials]
    is_log = is_wide(sizes)
    figure = new_figure(title=LOSS_TITLE, x_title=SIZE_TITLE + (" (log scale)" if is_log else ""), height=380)
    front = sorted(front_of(story), key=lambda trial: trial.trainable_parameters or 0)
    shown = {trial.id for trial in front} | {story.outcome.winner}
    drawn = {trial.id for trial in drawn_trials(story)}
    rest = [trial for trial in trials if trial.id in drawn and trial.id not in shown]
    if rest:
        _add_front_points(figure, "other complete trials", rest, MARKS["complete"], mode="markers")
    if front:
        _add_front_points(figure, "front", front, FRONT_MARK, mode="lines+markers")
    if story.winner in trials and story.winner is not None:
        _add_front_points(figure, f"winner {story.winner.id}", [story.winner], WINNER_MARK, mode="markers")
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


def _add_front_points(figure: Figure, name: str, group: list[Trial], mark: dict[str, object], *, mode: str) -> None:
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
