"""Slots as lanes: who held which, and how much of their time nobody did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlora_ray.reporting.timeline import Timeline, read_timeline
from qlora_ray.reporting.trials import read_trials
from qlora_ray.runs import SweepPaths, read_events
from tests.sweep_folder import REPORT_S, Sketch, write_sweep

EVENTS = {
    "started": "sweep_started",
    "resumed": "sweep_resumed",
    "ended": "sweep_ended",
    "ready": "executor_ready",
    "leased": "trial_leased",
    "reported": "trial_reported",
    "released": "trial_released",
    "preempted": "trial_preempted",
    # As sweeps of version 0.1 say it.
    "put-out": "trial_put_out",
}


def events_of(*lines: str) -> list[dict[str, Any]]:
    """Events from lines of a time in seconds, what happened, which trial (`-`: none), and on which executor (0)."""
    events: list[dict[str, Any]] = []
    for line in lines:
        time, name, *slot = line.split()
        event: dict[str, Any] = {"time": float(time), "event": EVENTS[name]}
        if slot:
            event |= {"executor": int(slot[1]) if slot[1:] else 0, "hostname": "node"}
        if slot and slot[0] != "-":
            event["trial"] = slot[0]
        events.append(event)
    return events


def timeline_of(paths: SweepPaths) -> Timeline:
    trials, _ = read_trials(paths)
    return timeline_from(read_events(paths.events), trials)


def timeline_from(events: list[dict[str, Any]], trials: Any = (), **settings: Any) -> Timeline:
    timeline = read_timeline(events, trials, **settings)
    assert timeline is not None
    return timeline


def test_the_idle_share_is_what_no_lease_covers() -> None:
    timeline = timeline_from(
        events_of(
            "100 started",
            "110 leased 0000",
            "110 leased 0001",
            "130 released 0001",
            "140 leased 0002",
            "150 released 0000",
            "150 released 0002",
        )
    )
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
    killed = ("0 started", "10 leased 0000", "20 reported 0000")
    timeline = timeline_from(events_of(*killed, "5000 resumed", "5010 leased 0001", "5020 released 0001"))
    # The killed run's lease ends with its last event.
    assert [(span.trial, span.start_s, span.end_s) for span in timeline.spans] == [("0000", 10, 20), ("0001", 30, 40)]
    assert timeline.resumed_s == (20.0,)
    assert not any(span.is_open for span in timeline.spans)


def test_a_lease_without_an_end_lasts_until_the_last_event() -> None:
    (span,) = timeline_from(events_of("0 leased 0000", "30 reported 0000")).spans
    assert (span.end_s, span.is_open) == (30.0, True)


def test_a_trial_that_moved_to_another_executor_has_two_spans() -> None:
    timeline = timeline_from(events_of("0 leased 0000", "10 leased 0000 1", "30 released 0000"))
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
    assert read_timeline(events_of("1 started"), []) is None
    assert read_timeline([], []) is None


def test_an_executor_that_was_ready_and_held_nothing_is_idle() -> None:
    ready = ("0 started", "1 ready - 0", "1 ready - 1")
    timeline = timeline_from(events_of(*ready, "2 leased 0000", "102 released 0000"), num_slots=2)
    assert timeline.lanes == (
        "node · executor 0 · slot 1",
        "node · executor 1 · slot 1",
        "node · executor 1 · slot 2",
    )
    assert timeline.idle_share == pytest.approx(2 / 3)


def test_scoring_after_the_last_release_and_the_start_of_a_resume_are_not_idle() -> None:
    first = ("0 started", "10 leased 0000", "110 released 0000", "400 ended")
    second = ("1000 resumed", "1030 leased 0001", "1080 released 0001", "1100 ended")
    timeline = timeline_from(events_of(*first, *second))
    assert [(span.start_s, span.end_s, span.run) for span in timeline.spans] == [(10, 110, 0), (140, 190, 1)]
    assert timeline.resumed_s == (110.0,)
    assert timeline.idle_share == 0.0


def test_a_run_has_the_slots_of_its_own_executors() -> None:
    first = ("0 started", "0 leased 0000", "0 leased 0001 1", "100 released 0000", "100 released 0001 1")
    second = ("1000 resumed", "1000 leased 0002", "1050 released 0002", "1060 leased 0003", "1100 released 0003")
    timeline = timeline_from(events_of(*first, *second))
    assert len(timeline.lanes) == 2
    # 10 of 2 x 100 s + 1 x 100 s.
    assert timeline.idle_share == pytest.approx(10 / 300)


@pytest.mark.parametrize("name", ["preempted", "put-out"])
def test_a_preempted_trial_leaves_its_slot_and_goes_on_in_another(name: str) -> None:
    held = ("0 started", "0 leased 0001", f"40 {name} 0001", "40 released 0001")
    timeline = timeline_from(events_of(*held, "50 leased 0001 1", "90 released 0001 1"))
    assert [(span.executor, span.start_s, span.end_s) for span in timeline.spans] == [
        ("node · executor 0", 0, 40),
        ("node · executor 1", 50, 90),
    ]
