"""What one trial's own files say: its record, its reports, its events, the end of its log."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_ray.regular_files import open_regular
from qlora_ray.runs.events import read_events
from qlora_ray.runs.files import read_lines, to_plain_json
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.typed_json import parse_number

# Of a text file its end is shown, where tracebacks have what matters.
MAX_TEXT_BYTES = 64 * 1024
# Points of a training loss; a browser draws no more side by side.
MAX_POINTS = 600
MAX_EVENTS = 400


@dataclass(frozen=True, kw_only=True)
class TrialFiles:
    """A trial's files.

    Attributes:
        record: record.json as it stands; empty where there is none that can be read.
        train_losses: (step, loss), every few steps.
        metrics: The lines of metrics.jsonl without the training losses.
        events: Its lines of events.jsonl.
        error: The end of error.txt; None where there is none.
    """

    id: str
    record: str = ""
    train_losses: list[tuple[float, float | None]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


def read_trial_files(paths: SweepPaths, trial: str) -> TrialFiles | None:
    """Reads a trial's files; None if there is no such trial.

    Args:
        trial: The trial's id. Anything but digits is no id, and no path is made of it.
    """
    if not (trial.isascii() and trial.isdecimal()) or not is_inside(paths.trial(trial).root, paths.root):
        return None
    files = paths.trial(trial)
    if not files.root.is_dir():
        return None
    metrics = _lines(files.metrics, paths)
    points = [point for line in metrics for point in _read_points(line.pop("train_losses", None))]
    step = max(1, len(points) // MAX_POINTS)
    events = [event for event in read_events(paths.events) if event.get("trial") == trial]
    return TrialFiles(
        id=trial,
        record=read_end(files.record, paths.root) or "",
        train_losses=to_plain_json(points[::step]),
        metrics=to_plain_json(metrics),
        events=to_plain_json(events[-MAX_EVENTS:]),
        error=read_end(files.error, paths.root),
    )


def read_end(path: Path, root: Path) -> str | None:
    """The end of a text file of a sweep; None if it is not there, or is a link that leads out of the folder."""
    if not is_inside(path, root):
        return None
    try:
        with open_regular(path) as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - MAX_TEXT_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return None


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, links followed, lies in a folder: a stranger's sweep may hold links to the reader's own files."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return False


def _read_points(losses: object) -> list[tuple[float, float | None]]:
    """The points of a line that are a step and a loss."""
    if not isinstance(losses, list):
        return []
    pairs = [point for point in losses if isinstance(point, list) and len(point) == 2]
    points = [(parse_number(step), parse_number(loss)) for step, loss in pairs]
    return [(step, loss) for step, loss in points if step is not None]


def _lines(path: Path, paths: SweepPaths) -> list[dict[str, Any]]:
    return read_lines(path) if is_inside(path, paths.root) else []
