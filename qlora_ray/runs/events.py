"""The sweep's log of transitions: one JSON line each, with its time and its reason."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_ray.runs.files import append_line, read_lines


class EventLog:
    """Appends events to events.jsonl. The process that holds the sweep is its only writer, on several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, *, reason: str = "", is_synced: bool = False, **facts: Any) -> None:
        """Appends one event.

        Args:
            event: What happened, as `subject_verb` (trial_started, executor_lost).
            reason: Why it happened, as a sentence for the user.
            is_synced: Whether it is on the disk when this returns, and all before it.
            facts: What belongs to it; JSON values.
        """
        line = {"time": round(time.time(), 3), "event": event, "reason": reason, **facts}
        append_line(self._path, line, is_synced=is_synced)


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a sweep, oldest first; lines that are none are left out."""
    return [event for event in read_lines(path) if is_event(event)]


def is_event(line: Mapping[str, Any]) -> bool:
    """Whether a line of events.jsonl says what happened."""
    return isinstance(line.get("event"), str)
