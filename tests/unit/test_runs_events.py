"""The sweep's log: one line per transition, oldest first, each with its time and its reason."""

from __future__ import annotations

import math
import time

from qlora_ray.runs.events import EventLog, read_events


def test_events_come_back_in_order_with_time_reason_and_facts(tmp_path):
    path = tmp_path / "events.jsonl"
    assert read_events(path) == []
    before = time.time()
    EventLog(path).write("trial_started", trial="0001", slot=2)
    EventLog(path).write("trial_ended", reason="loss is NaN", loss=math.nan)  # opened again, as by a resume
    after = time.time()
    started, ended = read_events(path)
    assert (started["event"], started["reason"], started["trial"], started["slot"]) == ("trial_started", "", "0001", 2)
    assert (ended["event"], ended["reason"], ended["loss"]) == ("trial_ended", "loss is NaN", None)
    # Times are rounded to milliseconds.
    assert before - 1e-3 <= started["time"] <= ended["time"] <= after + 1e-3
