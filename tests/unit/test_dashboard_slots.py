"""Which trial holds which slot when, event by event, against the report's timeline of the same events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_ray.dashboard.slots import SlotTimes
from qlora_ray.reporting.timeline import read_timeline
from qlora_ray.reporting.trials import read_trials
from qlora_ray.runs import read_events
from tests.sweep_folder import usual_sketches, write_sweep


def _lease(time: float, name: str, trial: str, executor: int = 0) -> dict[str, Any]:
    return {"time": time, "event": f"trial_{name}", "trial": trial, "executor": executor, "hostname": "node"}


def _told(events: list[dict[str, Any]]) -> SlotTimes:
    slots = SlotTimes()
    for event in events:
        slots.apply(event)
    return slots


def test_spans_are_those_of_the_report(tmp_path: Path) -> None:
    paths = write_sweep(tmp_path / "s", usual_sketches())
    events = read_events(paths.events)
    timeline = read_timeline(events, read_trials(paths)[0])
    assert timeline is not None
    ours = _told(events).spans
    key = lambda span: (span.trial, span.executor, round(span.start_s, 3), round(span.end_s or -1.0, 3))  # noqa: E731
    assert sorted(map(key, ours)) == sorted(map(key, timeline.spans))
    assert len(ours) == 6


def test_a_resume_that_breaks_long_after_the_run_before_moves_no_clock() -> None:
    slots = _told(
        [
            {"time": 100.0, "event": "sweep_started"},
            _lease(110.0, "leased", "0000"),
            _lease(150.0, "released", "0000"),
            {"time": 90_000.0, "event": "sweep_failed", "reason": "no executor"},
        ]
    )
    assert slots.clock() == 50.0
    slots.apply({"time": 100_000.0, "event": "sweep_resumed"})
    assert slots.clock(100_010.0) == 60.0


def test_a_trial_takes_the_first_slot_that_is_free() -> None:
    slots = _told(
        [
            {"time": 100.0, "event": "sweep_started"},
            _lease(101.0, "leased", "0000"),
            _lease(102.0, "leased", "0001"),
            _lease(103.0, "released", "0000"),
            _lease(104.0, "leased", "0002"),
        ]
    )
    assert [(span.trial, span.slot, span.start_s, span.end_s) for span in slots.spans] == [
        ("0000", 0, 1.0, 3.0),
        ("0001", 1, 2.0, None),
        ("0002", 0, 4.0, None),
    ]
    assert slots.num_slots == {"node · executor 0": 2}


def test_the_clock_stands_still_between_two_runs_and_what_was_open_ended_with_the_first() -> None:
    slots = _told(
        [
            {"time": 100.0, "event": "sweep_started"},
            _lease(101.0, "leased", "0000"),
            {"time": 110.0, "event": "trial_opened", "trial": "0001"},
            {"time": 1000.0, "event": "sweep_resumed"},
            _lease(1005.0, "leased", "0002"),
        ]
    )
    assert [(span.start_s, span.end_s) for span in slots.spans] == [(1.0, 10.0), (15.0, None)]
    assert slots.clock() == 15.0
    assert slots.clock(1007.5) == 17.5


def test_changed_spans_are_told_once_and_an_idle_executor_has_a_slot() -> None:
    slots = _told([{"time": 1.0, "event": "executor_ready", "executor": 3, "hostname": "node"}])
    assert slots.num_slots == {"node · executor 3": 1}
    slots.apply(_lease(2.0, "leased", "0000"))
    assert [span.trial for span in slots.take_changed()] == ["0000"]
    assert slots.take_changed() == []
    slots.apply(_lease(3.0, "released", "0000"))
    assert [span.end_s for span in slots.take_changed()] == [2.0]
