"""The figures of answers.html as plots, lengths.png and refusals.png: how long answers are, and how many decline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qlora_ray.evaluation.answers.figures import MODEL_COLOUR_NAMES, counts_tokens, measure_length
from qlora_ray.evaluation.answers.statistics import AnsweredSet
from qlora_ray.pages.plots import TEXT_POINTS, light, new_plot, set_title, set_x_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PT = 640
LANE_PT = 26
# The title of a panel, and what is below the last one.
HEADING_PT, FOOT_PT = 26, 40
# The text of a full bar stands right of it.
MAX_SHARE_SHOWN = 120


def plot_lengths(sets: Sequence[AnsweredSet]) -> Figure:
    """Returns a box of answer lengths per model, a panel per prompt set, in tokens if all files count them."""
    in_tokens = counts_tokens(sets)
    figure, panels = _new_panels(sets)
    for panel, answered in zip(panels, sets, strict=True):
        for lane, rows in enumerate(answered.answers.values()):
            if not rows:
                continue
            line = {"color": _colour(lane)}
            panel.boxplot(
                [[measure_length(row, in_tokens=in_tokens) for row in rows]],
                positions=[lane],
                orientation="horizontal",
                widths=0.6,
                boxprops=line,
                whiskerprops=line,
                capprops=line,
                medianprops={**line, "linewidth": 2},
                flierprops={"marker": ".", "markeredgecolor": _colour(lane), "markersize": 4},
            )
        _name_lanes(panel, answered)
    # Of all panels, and so after the last one: it ends at the longest answer of any.
    panels[-1].set_xlim(left=0)
    set_x_label(panels[-1], f"{'tokens' if in_tokens else 'words'} of an answer")
    return figure


def plot_refusals(sets: Sequence[AnsweredSet]) -> Figure:
    """Returns a bar per model, a panel per prompt set: the share of answers that begin by declining, in percent."""
    figure, panels = _new_panels(sets)
    for panel, answered in zip(panels, sets, strict=True):
        for lane, stats in enumerate(answered.stats.values()):
            if not stats.num_answers:
                continue
            bar = panel.barh([lane], [100 * stats.num_refusals / stats.num_answers], height=0.6, color=_colour(lane))
            told = f"{stats.num_refusals} of {stats.num_answers}"
            panel.bar_label(bar, [told], padding=4, fontsize=TEXT_POINTS, color=light("ink"))
        _name_lanes(panel, answered)
        panel.set_xlim(0, MAX_SHARE_SHOWN)
        panel.set_xticks([0, 25, 50, 75, 100])
    set_x_label(panels[-1], "answers that begin by declining, %")
    return figure


def _new_panels(sets: Sequence[AnsweredSet]) -> tuple[Figure, list[Axes]]:
    lanes = sum(max(1, len(answered.answers)) for answered in sets)
    height_pt = HEADING_PT * len(sets) + LANE_PT * lanes + FOOT_PT
    return new_plot(width_pt=WIDTH_PT, height_pt=height_pt, num_panels=len(sets))


def _name_lanes(panel: Axes, answered: AnsweredSet) -> None:
    """Writes the set's name above the panel, and its models' names beside it, the first one on top."""
    set_title(panel, answered.name)
    names = list(answered.answers)
    panel.set_yticks(range(len(names)), names, fontsize=TEXT_POINTS)
    panel.set_ylim(len(names) - 0.5, -0.5)


def _colour(lane: int) -> str:
    return light(MODEL_COLOUR_NAMES[min(lane, len(MODEL_COLOUR_NAMES) - 1)])
