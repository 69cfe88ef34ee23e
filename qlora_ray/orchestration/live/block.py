"""The block that lives on a terminal while a sweep runs: a row per running trial, then how the sweep stands."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from qlora_ray.formats import MISSING, format_bytes, format_count, format_duration, format_loss, plural
from qlora_ray.runs.live import LiveExecutor, LiveFigures, LivePhase, LiveTrial
from qlora_ray.runs.records import TrialStatus

if TYPE_CHECKING:
    from rich.table import Table

# Rows of the terminal that the block leaves to the lines above it, and those of its own that are no trial's: the head
# of the table, "and N more", and the four lines below it.
ROWS_ABOVE, OTHER_ROWS = 4, 6
FEWEST_ROWS = 1
# Columns that go where the terminal is narrow, the first ones first.
NARROW_COLUMNS, NARROWER_COLUMNS = 100, 70
DEVICE = "device"
# Spaces between columns.
GAP = 2
# From here on it is said that nothing has moved.
QUIET_S = 10.0


@dataclass(frozen=True)
class Standing:
    """How a sweep stands by its books.

    Attributes:
        counts: Trials by state.
        best: The best complete trial so far, in words.
    """

    num_planned: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    best: str | None = None

    @property
    def num_ended(self) -> int:
        """Trials that will not go on."""
        return sum(
            self.counts.get(state, 0) for state in (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED)
        )


@dataclass(frozen=True)
class Activity:
    """What is under way.

    Attributes:
        phase: How far the sweep is; the figures may be of the one before.
        words: What, as a phrase such as `loading the base`.
        for_s: For how long.
        quiet_s: How long no trial has taken a step or changed its state; None where none runs.
    """

    phase: LivePhase
    words: str
    for_s: float
    quiet_s: float | None = None


def render_block(figures: LiveFigures, standing: Standing, activity: Activity, *, columns: int, rows: int) -> list[str]:
    """The block's lines, none wider than the terminal, with colours unless NO_COLOR is set.

    Args:
        figures: What runs.
        standing: How the sweep stands.
        activity: What is under way.
        columns: Of the terminal.
        rows: Of the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(
        file=io.StringIO(),
        width=max(1, columns - 1),
        force_terminal=True,
        color_system=None if os.environ.get("NO_COLOR") else "standard",
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        if figures.trials and activity.phase is LivePhase.SEARCH:
            room = max(FEWEST_ROWS, rows - ROWS_ABOVE - OTHER_ROWS)
            console.print(_make_table(figures, num_rows=room, columns=columns))
            if len(figures.trials) > room:
                console.print(Text(f"and {len(figures.trials) - room} more"))
        for line in describe_sweep(figures, standing, activity):
            console.print(Text(line, no_wrap=True, overflow="ellipsis"), no_wrap=True, overflow="ellipsis", crop=True)
    # A block that is higher than the terminal could not be taken away again.
    return capture.get().rstrip("\n").split("\n")[-max(1, rows - 1) :]


def describe_sweep(figures: LiveFigures, standing: Standing, activity: Activity) -> list[str]:
    """The lines below the table: what is under way, how trials stand, what was spent and is left."""
    lines = [_describe_activity(figures, activity)]
    if standing.num_planned:
        waiting = sum(trial.executor is None for trial in figures.trials.values())
        running = len(figures.trials) - waiting
        parts = [f"{standing.num_ended}/{standing.num_planned} trials ended"]
        parts += [
            f"{standing.counts[state]} {state}"
            for state in (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED)
            if standing.counts.get(state)
        ]
        parts += [f"{number} {word}" for number, word in ((running, "running"), (waiting, "waiting")) if number]
        lines.append(" · ".join(parts))
    if standing.best is not None:
        lines.append(standing.best)
    if figures.executors:
        kind = "GPU-hours" if figures.device_kind == "cuda" else "device-hours"
        lines.append(f"{_describe_time_left(figures, activity.phase)} · {figures.gpu_hours:.2f} {kind}")
    return lines


def _describe_activity(figures: LiveFigures, activity: Activity) -> str:
    words, so_long = activity.words, format_duration(activity.for_s)
    if activity.phase is LivePhase.SCORING and figures.scoring is not None:
        scoring = figures.scoring
        rows = f"{format_count(scoring.done)} of {format_count(scoring.total)} rows"
        parts = [f"scoring: {rows}, {so_long}", scoring.what]
    elif activity.phase is LivePhase.STARTING:
        parts = [f"{words}, {so_long}"]
    else:
        parts = [f"{activity.phase}: {words}, {so_long}"]
    if activity.quiet_s is not None and activity.quiet_s >= QUIET_S:
        parts.insert(1, f"no step or report ended for {format_duration(activity.quiet_s)}")
    return " · ".join(parts)


def _describe_time_left(figures: LiveFigures, phase: LivePhase) -> str:
    whole = f"ETA {MISSING if figures.eta_s is None else format_duration(figures.eta_s)}"
    if phase not in (LivePhase.STARTING, LivePhase.SEARCH):
        return whole
    parts = {"search": figures.search_eta_s, "scoring": figures.scoring_eta_s}
    known = [f"{name} {format_duration(seconds)}" for name, seconds in parts.items() if seconds is not None]
    unknown = [name for name, seconds in parts.items() if seconds is None]
    if unknown:
        known.append(f"{' and '.join(unknown)} not known yet")
    return f"{whole} ({', '.join(known)})"


def _make_table(figures: LiveFigures, *, num_rows: int, columns: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    executors = {executor.executor: executor for executor in figures.executors}
    rows = [
        _describe_trial(trial_id, trial, executors.get(-1 if trial.executor is None else trial.executor))
        for trial_id, trial in list(figures.trials.items())[:num_rows]
    ]
    cells = [(name, justify) for name, justify, least in _COLUMNS if columns >= least]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name, _ in cells}
    if DEVICE in widths:
        # Where there is little room, the device's name is cut, and no figure.
        others = sum(width + GAP for name, width in widths.items() if name != DEVICE)
        widths[DEVICE] = max(len(DEVICE), min(widths[DEVICE], columns - 1 - others))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
    for name, justify in cells:
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", width=widths[name])
    for row in rows:
        # Text, since a name in brackets is no markup.
        table.add_row(*(Text(row[name], no_wrap=True, overflow="ellipsis") for name, _ in cells))
    return table


# Name, side, and the narrowest terminal that has it.
_COLUMNS: Sequence[tuple[str, Literal["left", "right"], int]] = (
    ("trial", "left", 0),
    ("state", "left", 0),
    ("step", "right", 0),
    ("train loss", "right", 0),
    ("val loss", "right", 50),
    ("tokens/s", "right", 60),
    (DEVICE, "left", NARROWER_COLUMNS),
    ("memory / planned", "right", NARROW_COLUMNS),
)


def _describe_trial(trial_id: str, trial: LiveTrial, executor: LiveExecutor | None) -> dict[str, str]:
    device = memory = MISSING
    if executor is not None:
        device = f"{executor.executor}: {executor.device}"
        memory = f"{format_bytes(executor.memory_bytes)} / {format_bytes(executor.planned_memory_bytes)}"
    return {
        "trial": trial_id,
        "state": str(trial.state),
        "step": f"{trial.step}/{trial.num_steps or MISSING}",
        "train loss": format_loss(trial.train_loss),
        "val loss": format_loss(trial.eval_loss),
        "tokens/s": format_count(trial.tokens_per_s),
        DEVICE: device,
        "memory / planned": memory,
    }


def describe_status(figures: LiveFigures, standing: Standing, activity: Activity) -> str:
    """One line for a log: what the block says below its table."""
    tasks = [plural(len(figures.executors), "executor")] if figures.executors else []
    return " · ".join([*describe_sweep(figures, standing, activity), *tasks])
