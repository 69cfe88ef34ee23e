"""The sweeps of one folder, side by side: how each stands, read from as little as says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_ray.dashboard.following import FileReplaced, TailedLines, WatchedFile
from qlora_ray.dashboard.model import OtherSweep
from qlora_ray.errors import RunError
from qlora_ray.runs.live import is_running
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.records import Manifest, Summary, SweepStatus, TrialRecord, TrialStatus, read_record
from qlora_ray.runs.typed_json import parse_number

# Of a folder with more, the newest.
MAX_SWEEPS = 50


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's: it has a manifest, or the lock of one that has not got so far."""
    return (folder / "manifest.json").is_file() or ((folder / ".lock").is_file() and (folder / "trials").is_dir())


def find_sweeps(folder: Path) -> list[Path]:
    """The sweeps in a folder, the one that was begun, or resumed, last first."""
    found = []
    children: list[Path] = []
    with suppress(OSError):
        children = list(folder.iterdir())
    for child in children:
        # One that is closed to this user, or goes just now, hides none of the others.
        with suppress(OSError):
            if child.is_dir() and is_sweep(child):
                manifest = child / "manifest.json"
                found.append(((manifest if manifest.is_file() else child).stat().st_mtime, child))
    return [child for _, child in sorted(found, reverse=True)[:MAX_SWEEPS]]


class OtherSweeps:
    """Follows the sweeps beside one.

    Args:
        folder: Where they lie.
        own: The name of the one that the page shows.
    """

    def __init__(self, folder: Path, own: str) -> None:
        self._folder = folder
        self._own = own
        self._known: dict[str, _Followed] = {}
        self._shown: tuple[OtherSweep, ...] | None = None

    def look(self) -> tuple[OtherSweep, ...] | None:
        """How the others stand, the newest first; None if that is as at the last call."""
        folders = [folder for folder in find_sweeps(self._folder) if folder.name != self._own]
        self._known = {folder.name: self._known.get(folder.name) or _Followed(folder) for folder in folders}
        shown = tuple(sweep for followed in self._known.values() if (sweep := _look_safely(followed)) is not None)
        changed = shown != self._shown
        self._shown = shown
        return shown if changed else None

    def last(self) -> tuple[OtherSweep, ...]:
        """What the last call found."""
        return self._shown or ()


@dataclass
class _Ended:
    """What the ends of a sweep's trials add up to."""

    counts: Counter[str] = field(default_factory=Counter)
    best: str | None = None
    best_loss: float | None = None

    def add(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            state = str(event.get("event", "")).removeprefix("trial_")
            if state not in (TrialStatus.COMPLETE, TrialStatus.PRUNED, TrialStatus.FAILED, TrialStatus.INTERRUPTED):
                continue
            self.counts[state] += 1
            metrics = event.get("metrics")
            loss = parse_number(metrics.get("eval_loss")) if isinstance(metrics, dict) else None
            is_better = loss is not None and (self.best_loss is None or loss < self.best_loss)
            if state == TrialStatus.COMPLETE and is_better:
                self.best, self.best_loss = str(event.get("trial")), loss


class _Followed:
    """One of the others. A sweep that has ended is read once, from its summary and its winner's record."""

    def __init__(self, folder: Path) -> None:
        self._paths = SweepPaths(folder)
        self._summary = WatchedFile(self._paths.summary)
        self._events = TailedLines(self._paths.events)
        self._ended = _Ended()
        self._shown: OtherSweep | None = None
        self._manifest: Manifest | None = None

    def look(self) -> OtherSweep:
        is_held = is_running(self._paths)
        if self._summary.has_changed() or self._shown is None or is_held or self._shown.status == "running":
            self._shown = self._read(is_held)
        return self._shown

    def _read(self, is_held: bool) -> OtherSweep:
        if self._manifest is None:
            self._manifest = _read(self._paths.manifest, Manifest)
        manifest = self._manifest or Manifest()
        objectives = manifest.config.get("search", {}).get("objectives", {})
        shared: dict[str, Any] = {
            "name": self._paths.name,
            "base": manifest.setting("model", "name"),
            "objective": next(iter(objectives), None) if isinstance(objectives, dict) else None,
        }
        summary = None if is_held else _read(self._paths.summary, Summary)
        if summary is not None and summary.status is not SweepStatus.UNFINISHED:
            winner = _read(self._paths.best / "record.json", TrialRecord) if summary.winner else None
            return OtherSweep(
                status=summary.status,
                counts=summary.counts,
                best=summary.winner,
                best_loss=winner.metrics.get("eval_loss") if winner else None,
                verdict=summary.verdict,
                **shared,
            )
        try:
            self._ended.add(self._events.read_new())
        except FileReplaced:
            self._events, self._ended = TailedLines(self._paths.events), _Ended()
        ended = self._ended
        status = "running" if is_held else "killed"
        return OtherSweep(
            status=status, counts=dict(ended.counts), best=ended.best, best_loss=ended.best_loss, **shared
        )


def _look_safely(followed: _Followed) -> OtherSweep | None:
    """How another sweep stands; None for one whose damaged files break its reader: this page goes on without it."""
    try:
        return followed.look()
    except Exception:
        return None


def _read(path: Path, kind: Any) -> Any:
    try:
        return read_record(path, kind)
    except RunError:
        return None
