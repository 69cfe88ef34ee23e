"""The terminal's block: what stands in it, at any size of the terminal, and that names in brackets are no markup."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from qlora_ray.orchestration.live.block import Activity, Standing, describe_status, render_block
from qlora_ray.runs.live import LiveExecutor, LiveFigures, LivePhase, LiveScoring, LiveTrial, LiveTrialState
from qlora_ray.runs.records import TrialStatus

TRIALS = {
    f"{number:04d}": LiveTrial(
        state=LiveTrialState.TRAINING,
        step=10 + number,
        num_steps=300,
        train_loss=0.5,
        eval_loss=0.75,
        tokens_per_s=1234.5,
        executor=0,
    )
    for number in range(3)
}
FIGURES = LiveFigures(
    phase=LivePhase.SEARCH,
    eta_s=100.0,
    search_eta_s=70.0,
    scoring_eta_s=27.0,
    gpu_hours=1.5,
    device_kind="cuda",
    trials={**TRIALS, "0003": LiveTrial()},
    executors=(
        LiveExecutor(executor=0, device="[bold]T4[/bold]", memory_bytes=2 * 1024**3, planned_memory_bytes=3 * 1024**3),
    ),
)
STANDING = Standing(12, {TrialStatus.COMPLETE: 2, TrialStatus.PRUNED: 1}, "best eval_loss 0.1234 (trial 0001)")
ACTIVITY = Activity(LivePhase.SEARCH, "training", 65.0, 1.0)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without colours, so that the text can be compared."""
    monkeypatch.setenv("NO_COLOR", "1")


def render(figures: LiveFigures = FIGURES, *, columns: int = 130, rows: int = 40) -> list[str]:
    """The block on a terminal of this size."""
    return render_block(figures, STANDING, ACTIVITY, columns=columns, rows=rows)


def test_each_trial_has_a_row_with_what_it_does() -> None:
    (row,) = (line for line in render() if line.startswith("0001"))
    words = " ".join(row.split())
    assert words == "0001 training 11/300 0.5000 0.7500 1,234 0: [bold]T4[/bold] 2 GiB / 3 GiB"
    (waiting,) = (line for line in render() if line.startswith("0003"))
    assert waiting.split()[:3] == ["0003", "waiting", "0/-"]


def test_below_the_rows_stand_what_is_under_way_the_counts_the_best_the_time_left_and_the_hours() -> None:
    assert render()[-4:] == [
        "search: training, 1:05",
        "3/12 trials ended · 2 complete · 1 pruned · 3 running · 1 waiting",
        "best eval_loss 0.1234 (trial 0001)",
        "ETA 1:40 (search 1:10, scoring 0:27) · 1.50 GPU-hours",
    ]


@pytest.mark.parametrize("columns", [1, 20, 49, 60, 80, 99, 200])
def test_no_line_is_as_wide_as_the_terminal(columns: int) -> None:
    lines = render(columns=columns)
    assert all(len(line) < max(2, columns) for line in lines), lines


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_where_there_is_little_room_the_devices_name_is_cut_and_no_figure(columns: int) -> None:
    device = replace(FIGURES.executors[0], device="NVIDIA A100-SXM4-40GB in a node with a long name")
    (row,) = (line for line in render(replace(FIGURES, executors=(device,)), columns=columns) if line[:4] == "0001")
    assert row.split()[:6] == ["0001", "training", "11/300", "0.5000", "0.7500", "1,234"]
    assert ("0: NVIDIA" in row) == (columns >= 80)
    assert row.endswith("2 GiB / 3 GiB") == (columns >= 100)


@pytest.mark.parametrize("rows", [14, 24, 60])
def test_as_many_trials_are_shown_as_there_is_room_for_and_the_rest_is_counted(rows: int) -> None:
    many = replace(FIGURES, trials={f"{number:04d}": LiveTrial(executor=0) for number in range(200)})
    lines = render(many, rows=rows)
    shown = [line for line in lines if re.match(r"\d{4} ", line)]
    assert shown and f"and {200 - len(shown)} more" in [line.strip() for line in lines]
    assert len(lines) < rows


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_on_a_low_terminal_the_last_lines_are_left(rows: int) -> None:
    lines = render(rows=rows)
    assert len(lines) < max(2, rows)
    assert lines[-1].startswith("ETA 1:40")


def test_what_is_not_known_yet_is_said_so() -> None:
    unknown = replace(FIGURES, eta_s=None, scoring_eta_s=None)
    assert "ETA - (search 1:10, scoring not known yet)" in "\n".join(render(unknown))


def test_scoring_shows_its_rows_and_a_sweep_that_stands_still_for_how_long() -> None:
    scoring = LiveScoring(what="answers of 0001 on test", done=1200, total=5000)
    figures = replace(FIGURES, phase=LivePhase.SCORING, scoring=scoring)
    activity = Activity(LivePhase.SCORING, "the best trials and the base", 30.0, 14.0)
    first, *_ = render_block(figures, STANDING, activity, columns=200, rows=40)
    assert first == ("scoring: 1,200 of 5,000 rows, 0:30 · no step or report ended for 0:14 · answers of 0001 on test")


def test_before_there_are_books_only_what_is_under_way_is_shown() -> None:
    lines = render_block(
        LiveFigures(), Standing(), Activity(LivePhase.STARTING, "starting Ray", 3.0), columns=80, rows=24
    )
    assert lines == ["starting Ray, 0:03"]


def test_a_log_gets_the_same_in_one_line_without_codes() -> None:
    line = describe_status(FIGURES, STANDING, ACTIVITY)
    assert "\n" not in line and "\x1b" not in line
    assert line.startswith("search: training, 1:05 · 3/12 trials ended")


def test_colours_come_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in "".join(render())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[1m" in "".join(render())
