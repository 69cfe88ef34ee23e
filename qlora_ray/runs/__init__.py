"""What a sweep leaves on disk: paths, whole files, events and records."""

from qlora_ray.runs.events import EventLog, read_events
from qlora_ray.runs.files import append_line, read_json, write_json, write_text
from qlora_ray.runs.paths import SweepPaths, TrialPaths

__all__ = [
    "EventLog",
    "SweepPaths",
    "TrialPaths",
    "append_line",
    "read_events",
    "read_json",
    "write_json",
    "write_text",
]
