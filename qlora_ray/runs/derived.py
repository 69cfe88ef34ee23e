"""The two files of a sweep that only repeat what others say: summary.json and trials.csv.

summary.json is what the last `sweep_ended` of events.jsonl says, and trials.csv has a row of each trial's record. What
writes them while a sweep runs, `end_sweep` and `TrialsTable`, is what writes them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.formats import plural
from qlora_ray.runs.events import EventLog, read_events
from qlora_ray.runs.files import format_json
from qlora_ray.runs.live import is_running
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.records import (
    Manifest,
    Summary,
    TrialRecord,
    TrialStatus,
    from_dict,
    read_record,
    to_dict,
    write_record,
)
from qlora_ray.runs.trials_table import TrialsTable

ENDED, RESUMED = "sweep_ended", "sweep_resumed"


class RebuildState(StrEnum):
    """What became of a file: it was as it must be, was written again, or could not be, or not wholly."""

    UNCHANGED = "unchanged"
    REBUILT = "rebuilt"
    LEFT = "left"
    PARTIAL = "partial"


@dataclass(frozen=True)
class Rebuilt:
    """A file that was to be written again.

    Attributes:
        words: What was done with it, for the user.
    """

    name: str
    state: RebuildState
    words: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing that belongs into the file is missing for want of what it is made of."""
        return self.state in (RebuildState.UNCHANGED, RebuildState.REBUILT)


def end_sweep(paths: SweepPaths, summary: Summary) -> None:
    """Ends a sweep's run: the event that says how, on the disk before the file that repeats it.

    Raises:
        RunError: If one of the two cannot be written.
    """
    EventLog(paths.events).write(ENDED, reason=summary.status, is_synced=True, **to_dict(summary))
    write_record(paths.summary, summary)


def find_summary(events: Sequence[Mapping[str, Any]]) -> Summary | None:
    """How the last run that ended did; None if none has, or the version that ran it did not log it.

    Args:
        events: The sweep's, oldest first.
    """
    for event in reversed(events):
        if event.get("event") == ENDED:
            try:
                return from_dict(event, Summary, where=Path("events.jsonl"))
            except RunError:
                return None
    return None


def was_resumed_since(events: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a sweep's last run is a resume that has not ended: what ended is the run before."""
    last = next((name for event in reversed(events) if (name := event.get("event")) in (ENDED, RESUMED)), None)
    return last == RESUMED


def rebuild(paths: SweepPaths) -> tuple[Rebuilt, ...]:
    """Writes trials.csv and summary.json again where they are not as manifest, records and events say.

    Raises:
        RunError: If a process holds the sweep, its manifest cannot be read, or a file cannot be written.
    """
    manifest = read_record(paths.manifest, Manifest)
    if is_running(paths):
        raise RunError(paths.describe_holder())
    with paths.lock():
        return _rebuild_table(paths, manifest.objectives), _rebuild_summary(paths)


def _rebuild_table(paths: SweepPaths, objectives: Sequence[str]) -> Rebuilt:
    table, file = TrialsTable(paths.trials_table, objectives=objectives), paths.trials_table
    num_rows, unreadable = 0, []
    for trial in paths.list_trials():
        try:
            record = read_record(trial.record, TrialRecord)
        except RunError:
            unreadable.append(trial.root.name)
            continue
        if record.state is not TrialStatus.RUNNING:
            table.take(record)
            num_rows += 1
    ids = ", ".join(unreadable)
    if _holds(file, table.format()):
        return Rebuilt(file.name, RebuildState.UNCHANGED, "unchanged")
    if unreadable and file.exists():
        # It may be the last that knows of them.
        words = f"left as it is: record.json of {ids} cannot be read. Delete it to have the rows of the other trials"
        return Rebuilt(file.name, RebuildState.LEFT, words)
    table.rewrite()
    words = f"rebuilt, {plural(num_rows, 'trial')}"
    if unreadable:
        return Rebuilt(file.name, RebuildState.PARTIAL, f"{words}, without {ids}: record.json cannot be read")
    return Rebuilt(file.name, RebuildState.REBUILT, words)


def _rebuild_summary(paths: SweepPaths) -> Rebuilt:
    file, summary = paths.summary, find_summary(read_events(paths.events))
    if summary is None:
        return _without_end(paths)
    if _holds(file, format_json(to_dict(summary))):
        return Rebuilt(file.name, RebuildState.UNCHANGED, "unchanged")
    write_record(file, summary)
    return Rebuilt(file.name, RebuildState.REBUILT, f"rebuilt, {summary.status}")


def _without_end(paths: SweepPaths) -> Rebuilt:
    """What is said of summary.json where no event says how the sweep ended."""
    file, why = paths.summary, f"{paths.events.name} does not say how the sweep ended"
    if not file.exists():
        return Rebuilt(file.name, RebuildState.UNCHANGED, f"none, since {why}. Go on with: {paths.resume_command}")
    try:
        read_record(file, Summary)
    except RunError:
        words = f"damaged, and left as it is: {why}. Go on with: {paths.resume_command}"
        return Rebuilt(file.name, RebuildState.LEFT, words)
    return Rebuilt(file.name, RebuildState.UNCHANGED, f"left as it is: {why}")


def _holds(path: Path, text: str) -> bool:
    """Whether a file of the folder's own, and no link, has this content."""
    content = text.encode()
    try:
        is_as_long = path.is_file() and not path.is_symlink() and path.stat().st_size == len(content)
        return is_as_long and path.read_bytes() == content
    except OSError:
        return False
