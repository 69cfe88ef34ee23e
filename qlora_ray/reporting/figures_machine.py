"""Figures of the machine: which trial held which slot when, and how much memory it took against the estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qlora_ray.formats import GIB
from qlora_ray.pages.html import figure_text
from qlora_ray.reporting.story import Story
from qlora_ray.reporting.style import ACCENT, BAD, INK, MUTED, PAPER, REST, RULE, add_label, new_figure
from qlora_ray.reporting.thinning import drawn_trials, merge_spans
from qlora_ray.reporting.timeline import Span, Timeline
from qlora_ray.reporting.trials import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LANE_PX = 26
# Many slots get thin lanes: 64 still fit a tall screen.
THIN_LANE_PX = 13
MANY_LANES = 24
# Lines around more bars than this would cover them, and their names would not fit.
MANY_SPANS = 200
MINUTE_S = 60.0
# A sweep of more hours than this is told in hours.
LONG_S = 3 * 3600.0
MAX_TICKS = 12
# Labels closer than this share of the axis would cover each other, and are moved apart.
LABEL_GAP = 0.1
LABEL_SHIFT_PX = 8


def draw_timeline(story: Story) -> Figure | None:
    """A lane per slot, a bar per trial; where there is no bar, the slot waited. None if no trial had a slot."""
    timeline = story.timeline
    if timeline is None or timeline.end_s <= timeline.start_s:
        return None
    unit_s, unit = (3600.0, "hours") if timeline.end_s > LONG_S else (MINUTE_S, "minutes")
    if timeline.end_s < 2 * MINUTE_S:
        unit_s, unit = 1.0, "seconds"
    lane_px = LANE_PX if len(timeline.lanes) <= MANY_LANES else THIN_LANE_PX
    figure = new_figure(title="", x_title=f"{unit} since the sweep began", height=lane_px * len(timeline.lanes) + 64)
    _add_lanes(figure, timeline, unit_s)
    by_id = {trial.id: trial for trial in story.trials}
    special = {
        "failed": (BAD, PAPER, [s for s in timeline.spans if _is_failed(by_id.get(s.trial))]),
        "winner": (ACCENT, PAPER, [s for s in timeline.spans if s.trial == story.outcome.winner]),
    }
    special_ids = {id(span) for _, _, spans in special.values() for span in spans}
    others = [span for span in timeline.spans if id(span) not in special_ids]
    # From the back to the front: bars of several trials may cover one of another kind.
    for name, (color, text_color, spans) in {"trials": (REST, INK, others), **special}.items():
        if spans:
            bars = merge_spans(spans, width_s=timeline.end_s)
            _add_bars(figure, name, bars, unit_s, unit, color, text_color)
    for time_s in timeline.resumed_s:
        figure.add_vline(x=time_s / unit_s, line={"color": MUTED, "width": 1, "dash": "dot"})
        add_label(figure, "resumed", x=time_s / unit_s, y=1, yref="paper", yanchor="bottom", xanchor="left")
    figure.update_yaxes(
        tickvals=list(range(len(timeline.lanes))),
        ticktext=[figure_text(lane) for lane in timeline.lanes],
        tickfont={"size": 11},
        range=[len(timeline.lanes) - 0.4, -0.6],
        showgrid=False,
    )
    figure.update_xaxes(range=[0, timeline.end_s / unit_s * 1.01])
    figure.update_layout(
        barmode="overlay",
        margin={"l": 8, "r": 8, "t": 20 if timeline.resumed_s else 6},
        uniformtext={"minsize": 9, "mode": "hide"},
    )
    return figure


def _is_failed(trial: Trial | None) -> bool:
    return trial is not None and trial.state == "failed"


def _add_lanes(figure: Figure, timeline: Timeline, unit_s: float) -> None:
    """Hatched ground from first lease to last release: what stays uncovered is idle."""
    num_lanes = len(timeline.lanes)
    figure.add_bar(
        x=[(timeline.end_s - timeline.start_s) / unit_s] * num_lanes,
        base=[timeline.start_s / unit_s] * num_lanes,
        y=list(range(num_lanes)),
        orientation="h",
        name="idle",
        width=0.72,
        marker={
            "color": PAPER,
            "line": {"width": 0},
            "pattern": {"shape": "/", "size": 6, "solidity": 0.25, "fgcolor": REST, "bgcolor": PAPER},
        },
        hoverinfo="skip",
    )


def _add_bars(
    figure: Figure, name: str, bars: list[tuple[Span, int]], unit_s: float, unit: str, color: str, text_color: str
) -> None:
    figure.add_bar(
        x=[(span.end_s - span.start_s) / unit_s for span, _ in bars],
        base=[span.start_s / unit_s for span, _ in bars],
        y=[span.lane for span, _ in bars],
        orientation="h",
        name=name,
        width=0.72,
        marker={"color": color, "line": {"color": PAPER, "width": 1 if len(bars) <= MANY_SPANS else 0}},
        text=[(figure_text(span.trial) if n == 1 else str(n)) + (" …" if span.is_open else "") for span, n in bars],
        customdata=[f"trial {figure_text(span.trial)}" if n == 1 else f"{n} trials" for span, n in bars],
        # The browser measures each text to see whether it fits: of very many, none does.
        textposition="inside" if len(bars) <= MANY_SPANS else "none",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": text_color, "size": 11},
        hovertemplate=f"%{{customdata}}<br>%{{base:.3~g}} to %{{x:.3~g}} {unit}<extra></extra>",
    )


def draw_memory(story: Story) -> Figure | None:
    """Peak memory of each trial beside what was estimated for its process; None if neither was written."""
    trials = [trial for trial in drawn_trials(story) if trial.peak_bytes or trial.estimated_bytes]
    if not trials:
        return None
    figure = new_figure(title="GiB", x_title="trial", height=260, right=110)
    estimated = [trial for trial in trials if trial.estimated_bytes]
    measured = [trial for trial in trials if trial.peak_bytes]
    figure.add_scatter(
        x=[trial.number for trial in estimated],
        y=[(trial.estimated_bytes or 0) / GIB for trial in estimated],
        mode="markers",
        name="estimated",
        marker={"symbol": "line-ew", "size": 12, "line": {"width": 2, "color": REST}},
        customdata=[trial.id for trial in estimated],
        hovertemplate="trial %{customdata}<br>estimated %{y:.2f} GiB<extra></extra>",
    )
    for name, color, group in (
        ("measured", MUTED, [trial for trial in measured if trial.id != story.outcome.winner]),
        ("winner", ACCENT, [trial for trial in measured if trial.id == story.outcome.winner]),
    ):
        if not group:
            continue
        figure.add_scatter(
            x=[trial.number for trial in group],
            y=[(trial.peak_bytes or 0) / GIB for trial in group],
            mode="markers",
            name=name,
            marker={"size": 8, "color": color},
            customdata=[trial.id for trial in group],
            hovertemplate="trial %{customdata}<br>measured %{y:.2f} GiB<extra></extra>",
        )
    ends = [("estimated", (trial.estimated_bytes or 0) / GIB, MUTED) for trial in estimated[-1:]]
    ends += [("measured", (trial.peak_bytes or 0) / GIB, INK) for trial in measured[-1:]]
    _label_ends(figure, ends, highest=max(trial.peak_bytes or trial.estimated_bytes or 0 for trial in trials) / GIB)
    figure.update_yaxes(rangemode="tozero", nticks=5, gridcolor=RULE)
    # Trials have whole numbers: plotly would put ticks between few of them.
    steps = {"dtick": 1} if len(trials) <= MAX_TICKS else {"nticks": MAX_TICKS}
    figure.update_xaxes(tickformat="d", **steps)
    return figure


def _label_ends(figure: Figure, ends: list[tuple[str, float, str]], *, highest: float) -> None:
    """Names what the last trial's marks are, at the right edge, apart from each other; values are GiB."""
    is_near = len(ends) == 2 and abs(ends[0][1] - ends[1][1]) < LABEL_GAP * highest
    for index, (name, gib, color) in enumerate(sorted(ends, key=lambda end: end[1])):
        shift = (LABEL_SHIFT_PX if index else -LABEL_SHIFT_PX) if is_near else 0
        text = f"{name} {gib:.2f}"
        add_label(figure, text, x=1, xref="paper", y=gib, xanchor="left", xshift=4, yshift=shift, color=color)
