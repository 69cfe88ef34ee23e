"""All trials of a sweep, kept up by its events; a trial's own files are read when an event says that they are new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qlora_ray.dashboard.following import TailedLines
from qlora_ray.dashboard.model import TrialRow
from qlora_ray.errors import RunError
from qlora_ray.reporting.axes import Axis
from qlora_ray.runs.files import read_json
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.record_parts import MemoryRecord, TimesRecord
from qlora_ray.runs.records import TrialStatus
from qlora_ray.runs.typed_json import parse_number, parse_record

ENDS = {f"trial_{state}": state for state in TrialStatus if state is not TrialStatus.RUNNING}
# As the ledger says it of a trial that a killed driver left running.
CUT_OFF = "the sweep was stopped"


@dataclass(frozen=True)
class _Line:
    """What the page shows of a line of metrics.jsonl."""

    report_index: int | None = None
    samples_seen: int | None = None
    eval_loss: float | None = None
    tokens_per_s: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class _Record:
    """What the page shows of record.json; of thousands of trials, whole TrialRecords take too long to read."""

    state: TrialStatus = TrialStatus.RUNNING
    cause: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    resumed_from: str | None = None
    seed_of: str | None = None
    cloned_from: str | None = None
    cloned_at: int | None = None
    reports: Mapping[int, float | None] = field(default_factory=dict)
    tokens_per_s: float | None = None
    memory: MemoryRecord = field(default_factory=MemoryRecord)
    times: TimesRecord = field(default_factory=TimesRecord)


class TrialBook:
    """The rows of all trials.

    Args:
        paths: The sweep's folder.

    Attributes:
        axes: Of the search space; rows that come after they are set have their places on them.
    """

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._rows: dict[str, TrialRow] = {}
        self._metrics: dict[str, TailedLines] = {}
        # Ids in order, without repeats.
        self._changed: dict[str, None] = {}
        self._grown: dict[str, None] = {}
        self._recorded: dict[str, None] = {}
        self._is_running = True
        self.axes: Sequence[Axis] = ()

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes one event, in the order of events.jsonl."""
        name, trial = event.get("event"), event.get("trial")
        if name == "sweep_resumed":
            # Trials that a killed driver left running ended without an event.
            self._recorded |= {row.id: None for row in self._rows.values() if row.state is TrialStatus.RUNNING}
        if not isinstance(trial, str) or not trial.isdecimal():
            return
        if name == "trial_opened":
            params = event.get("params")
            row = TrialRow(
                id=trial,
                params=params if isinstance(params, dict) else {},
                opened_at=parse_number(event.get("time")),
            )
            self._put(replace(row, places=self._places_of(row.params)))
            # One that goes on with an interrupted trial begins with its reports.
            self._grown[trial] = self._recorded[trial] = None
        elif trial not in self._rows:
            return
        elif name == "trial_leased":
            self._put(replace(self._rows[trial], executor=parse_number(event.get("executor"), int)))
        elif name == "trial_reported":
            self._grown[trial] = None
        elif name in ENDS:
            cause = str(event.get("reason") or "") or None
            ended = replace(
                self._rows[trial], state=ENDS[str(name)], cause=cause, closed_at=parse_number(event.get("time"))
            )
            self._put(ended)
            self._grown[trial] = self._recorded[trial] = None

    def read_files(self) -> None:
        """Reads what the events since the last call said is new.

        Raises:
            FileReplaced: If the sweep's folder has become another one.
        """
        grown, self._grown = self._grown, {}
        for trial in grown:
            self._read_metrics(trial)
        recorded, self._recorded = self._recorded, {}
        for trial in recorded:
            self._read_record(trial)

    def read_unnamed(self) -> None:
        """Reads the records of trials that no event names: the events of a sweep may be lost, its records are not."""
        for folder in sorted(self._paths.trials.glob("*")):
            if folder.name.isdecimal() and folder.name not in self._rows:
                self._put(TrialRow(id=folder.name))
                self._grown[folder.name] = self._recorded[folder.name] = None
        self.read_files()

    def place_all(self, axes: Sequence[Axis]) -> None:
        """Sets the axes, and where every trial lies on them."""
        self.axes = axes
        for row in list(self._rows.values()):
            self._put(replace(row, places=self._places_of(row.params)))

    def set_running(self, is_running: bool) -> None:
        """Whether a process holds the sweep; while none does, trials without an end are shown as interrupted."""
        if is_running is not self._is_running:
            self._is_running = is_running
            self._changed |= {row.id: None for row in self._rows.values() if row.state is TrialStatus.RUNNING}

    def rows(self) -> list[TrialRow]:
        """All trials, in the order in which they were opened."""
        return [self._shown(row) for row in self._rows.values()]

    def take_changed(self) -> list[TrialRow]:
        """The rows that are new or have changed since the last call."""
        changed, self._changed = self._changed, {}
        return [self._shown(self._rows[trial]) for trial in changed]

    def _put(self, row: TrialRow) -> None:
        self._rows[row.id] = row
        self._changed[row.id] = None

    def _shown(self, row: TrialRow) -> TrialRow:
        if row.state is not TrialStatus.RUNNING or self._is_running:
            return row
        return replace(row, state=TrialStatus.INTERRUPTED, cause=CUT_OFF)

    def _places_of(self, params: Mapping[str, Any]) -> tuple[float | None, ...]:
        return tuple(axis.place(params[axis.path]) if axis.path in params else None for axis in self.axes)

    def _read_metrics(self, trial: str) -> None:
        tail = self._metrics.get(trial)
        if tail is None:
            tail = self._metrics[trial] = TailedLines(self._paths.trial(trial).metrics)
        row = self._rows[trial]
        reports = {index: (index, samples, loss) for index, samples, loss in row.reports}
        for line in (parse_record(_Line, line) for line in tail.read_new()):
            if line.report_index is None:
                continue
            # Of a report with several lines, the last one counts.
            reports[line.report_index] = (line.report_index, line.samples_seen, line.eval_loss)
            row = replace(
                row,
                reports=tuple(reports[index] for index in sorted(reports)),
                loss=line.eval_loss,
                tokens_per_s=line.tokens_per_s or row.tokens_per_s,
                peak_bytes=line.peak_memory_bytes or row.peak_bytes,
            )
        if row is not self._rows[trial]:
            self._put(row)

    def _read_record(self, trial: str) -> None:
        try:
            data = read_json(self._paths.trial(trial).record)
        except RunError:
            data = None
        if not isinstance(data, dict):
            # What the events and metrics say is shown all the same.
            return
        record = parse_record(_Record, data)
        row = self._rows[trial]
        state = row.state if record.state is TrialStatus.RUNNING else record.state
        reports = row.reports or tuple((index, None, loss) for index, loss in sorted(record.reports.items()))
        row = replace(
            row,
            state=state,
            cause=record.cause or row.cause,
            params=row.params or record.params,
            reports=reports,
            loss=reports[-1][2] if reports else None,
            tokens_per_s=record.tokens_per_s or row.tokens_per_s,
            peak_bytes=record.memory.peak_bytes or row.peak_bytes,
            planned_bytes=record.memory.estimated_bytes,
            resumed_from=record.resumed_from,
            seed_of=record.seed_of,
            cloned_from=record.cloned_from,
            cloned_at=record.cloned_at,
            opened_at=row.opened_at or record.times.opened,
            closed_at=row.closed_at or record.times.closed,
        )
        self._put(replace(row, places=self._places_of(row.params)))


def best_of(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The complete trial with the lowest loss; until there is one, the trial whose last report is lowest."""
    known = [row for row in rows if row.loss is not None and row.state is not TrialStatus.FAILED]
    complete = [row for row in known if row.state is TrialStatus.COMPLETE]
    return min(complete or known, key=lambda row: row.loss or 0.0, default=None)
