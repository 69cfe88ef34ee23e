"""Slots as lanes: who held which, and how much of their time nobody did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_ray.reporting.timeline import Timeline, read_timeline
from qlora_ray.reporting.trials import read_trials
from qlora_ray.runs import SweepPaths, read_events
from tests.sweep_folder import REPORT_S, Sketch, write_sweep


def timeline_of(paths: SweepPaths) -> Timeline:
    trials, _ = read_trials(paths)
    return timeline_from(read_events(paths.events), trials)


def timeline_from(events: list[dict[str, Any]], trials: Any = (), **settings: Any) -> Timeline:
    timeline = read_timeline(events, trials, **settings)
    assert timeline is not None
    return timeline


def lease(time: float, trial: str, event: str = "trial_leased", executor: int = 0) -> dict[str, Any]:
    return {"time": time, "event": event, "trial": trial, "executor": executor, "hostname": "node"}


def release(time: float, trial: str) -> dict[str, Any]:
    return lease(time, trial, "trial_released")


def test_the_idle_share_is_what_no_lease_covers() -> None:
    events = [
        {"time": 100.0, "event": "sweep_started"},
        lease(110.0, "0000"),
        lease(110.0, "0001"),
        release(130.0, "0001"),
        lease(140.0, "0002"),
        release(150.0, "0000"),
        release(150.0, "0002"),
    ]
    timeline = timeline_from(events)
    assert [(span.trial, span.lane, span.start_s, span.end_s) for span in timeline.spans] == [
        ("0000", 0, 10.0, 50.0),
        ("0001", 1, 10.0, 30.0),
        ("0002", 1, 40.0, 50.0),
    ]
    # 10 of 2 x 40 s.
    assert timeline.idle_share == pytest.approx(0.125)
    assert timeline.source == "leases"


def test_slots_that_never_held_a_trial_are_lanes_too(tmp_path: Path) -> None:
    timeline = timeline_of(write_sweep(tmp_path / "s", [Sketch([1.0, 0.5])]))
    assert timeline.lanes == ("node · executor 0 · slot 1", "node · executor 0 · slot 2")
    assert timeline.idle_share == pytest.approx(0.5)


def test_the_clock_stands_still_between_two_runs() -> None:
    events = [
        {"time": 0.0, "event": "sweep_started"},
        lease(10.0, "0000"),
        {"time": 20.0, "event": "trial_reported", "trial": "0000"},
        {"time": 5000.0, "event": "sweep_resumed"},
        lease(5010.0, "0001"),
        release(5020.0, "0001"),
    ]
    timeline = timeline_from(events)
    # The killed run's lease ends with its last event.
    assert [(span.trial, span.start_s, span.end_s) for span in timeline.spans] == [("0000", 10, 20), ("0001", 30, 40)]
    assert timeline.resumed_s == (20.0,)
    assert not any(span.is_open for span in timeline.spans)


def test_a_lease_without_an_end_lasts_until_the_last_event() -> None:
    events = [lease(0.0, "0000"), {"time": 30.0, "event": "trial_reported", "trial": "0000"}]
    timeline = timeline_from(events)
    (span,) = timeline.spans
    assert (span.end_s, span.is_open) == (30.0, True)


def test_a_trial_that_moved_to_another_executor_has_two_spans() -> None:
    events = [lease(0.0, "0000"), lease(10.0, "0000", executor=1), release(30.0, "0000")]
    timeline = timeline_from(events)
    assert [(span.executor, span.start_s, span.end_s) for span in timeline.spans] == [
        ("node · executor 0", 0.0, 10.0),
        ("node · executor 1", 10.0, 30.0),
    ]


def test_older_sweeps_are_told_by_their_records(tmp_path: Path) -> None:
    sketches = [Sketch([1.0] * 2, start_s=0.0), Sketch([1.0] * 2, start_s=0.0), Sketch([1.0], start_s=15.0)]
    timeline = timeline_of(write_sweep(tmp_path / "s", sketches, has_leases=False))
    assert timeline.source == "records"
    # Two slots, so the third trial begins when the first of them is free, and not in a third lane.
    assert len(timeline.lanes) == 2
    assert [span.lane for span in timeline.spans] == [0, 1, 0]
    first, _, third = timeline.spans
    assert first.end_s - first.start_s == pytest.approx(2 * REPORT_S + 1)
    assert third.start_s == first.end_s


def test_without_any_slot_there_is_no_timeline() -> None:
    assert read_timeline([{"time": 1.0, "event": "sweep_started"}], []) is None
    assert read_timeline([], []) is None


def test_an_executor_that_was_ready_and_held_nothing_is_idle() -> None:
    ready = {"event": "executor_ready", "hostname": "node"}
    events = [
        {"time": 0.0, "event": "sweep_started"},
        {**ready, "time": 1.0, "executor": 0},
        {**ready, "time": 1.0, "executor": 1},
        lease(2.0, "0000"),
        release(102.0, "0000"),
    ]
    timeline = timeline_from(events, num_slots=2)
    assert timeline.lanes == (
        "node · executor 0 · slot 1",
        "node · executor 1 · slot 1",
        "node · executor 1 · slot 2",
    )
    assert timeline.idle_share == pytest.approx(2 / 3)


def test_scoring_after_the_last_release_and_the_start_of_a_resume_are_not_idle() -> None:
    events = [
        {"time": 0.0, "event": "sweep_started"},
        lease(10.0, "0000"),
        release(110.0, "0000"),
        {"time": 400.0, "event": "sweep_ended"},
        {"time": 1000.0, "event": "sweep_resumed"},
        lease(1030.0, "0001"),
        release(1080.0, "0001"),
        {"time": 1100.0, "event": "sweep_ended"},
    ]
    timeline = timeline_from(events)
    assert [(span.start_s, span.end_s, span.run) for span in timeline.spans] == [(10, 110, 0), (140, 190, 1)]
    assert timeline.resumed_s == (110.0,)
    assert timeline.idle_share == 0.0


def test_a_run_has_the_slots_of_its_own_executors() -> None:
    events = [
        {"time": 0.0, "event": "sweep_started"},
        lease(0.0, "0000"),
        lease(0.0, "0001", executor=1),
        release(100.0, "0000"),
        lease(100.0, "0001", "trial_released", executor=1),
        {"time": 1000.0, "event": "sweep_resumed"},
        lease(1000.0, "0002"),
        release(1050.0, "0002"),
        lease(1060.0, "0003"),
        release(1100.0, "0003"),
    ]
    timeline = timeline_from(events)
    assert len(timeline.lanes) == 2
    # 10 of 2 x 100 s + 1 x 100 s.
    assert timeline.idle_share == pytest.approx(10 / 300)
