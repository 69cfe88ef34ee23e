"""The sweep's log: one line per transition, oldest first, each with its time and its reason."""

from __future__ import annotations

import math
import time

from qlora_ray.runs.events import EventLog, read_events


def test_events_come_back_in_order_with_time_reason_and_facts(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    before = time.time()
    log.write("trial_started", trial="0001", slot=2)
    log.write("trial_ended", reason="loss is NaN", loss=math.nan)
    after = time.time()
    started, ended = read_events(path)
    assert (started["event"], started["reason"], started["trial"], started["slot"]) == ("trial_started", "", "0001", 2)
    assert (ended["event"], ended["reason"], ended["loss"]) == ("trial_ended", "loss is NaN", None)
    # Times are rounded to milliseconds.
    assert before - 1e-3 <= started["time"] <= ended["time"] <= after + 1e-3


def test_a_log_that_is_opened_again_goes_on(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).write("sweep_started")
    EventLog(path).write("sweep_resumed")
    assert [event["event"] for event in read_events(path)] == ["sweep_started", "sweep_resumed"]


def test_a_sweep_without_a_log_has_no_events(tmp_path):
    assert read_events(tmp_path / "events.jsonl") == []
