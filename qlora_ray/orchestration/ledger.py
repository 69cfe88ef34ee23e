"""The driver's books: what each trial is, how it stands, and how it ended. Records, events and lines come from here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.formats import format_loss, format_setting, short_path
from qlora_ray.orchestration.standings import Standings
from qlora_ray.orchestration.trial_entry import CloneOrigin, TrialEntry, TrialResult
from qlora_ray.runs import EventLog, SweepPaths, append_line, write_text
from qlora_ray.runs.files import mend_lines, read_lines
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.runs.records import TrialRecord, TrialStatus, as_read, read_record, write_record
from qlora_ray.runs.trials_table import TrialsTable
from qlora_ray.runs.typed_json import parse_number
from qlora_ray.runs.whole import restore_folder, tidy_folder
from qlora_ray.search.study import CAUSE_ATTRIBUTE, STATE_ATTRIBUTE
from qlora_ray.training.engine import Report

# What a line of metrics.jsonl holds besides a report's metrics.
NO_METRICS = ("report_index", "time", "train_losses")
# Metrics that an entry is the sum of.
_SUMMED = ("train_s", "tokens_per_s")
# Metrics that stand in the study, too.
NOTED_METRICS = ("tokens_per_s", "peak_memory_bytes")
# Failures that say nothing about the trial: it goes on from its state in a resume.
NOT_ITS_OWN = ("lost", "preempted", "unevaluated")
SWEEP_STOPPED = "the sweep was stopped"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, for the study.

    Attributes:
        values: Its objectives.
        notes: What Optuna's states cannot say, and what its dashboard may show: state, cause, speed, memory.
    """

    state: TrialStatus
    cause: str | None
    values: list[float]
    notes: Mapping[str, str | float] = field(default_factory=dict)


class TrialsObserver(Protocol):
    """Hears of what the books hold, once it is there."""

    def opened(self, entry: TrialEntry, record: TrialRecord) -> None:
        """A trial was entered; `record` is what was written of it."""

    def reported(self, entry: TrialEntry, report: Report) -> None:
        """A new report of a trial was entered."""

    def closed(self, entry: TrialEntry, *, is_best: bool) -> None:
        """A trial has ended; `is_best` where it is complete and the best so far."""


class Ledger:
    """Keeps every trial's entry, writes its record, and says each transition once, in a line and an event.

    Args:
        config: The sweep's config.
        paths: Its folder.
        console: The user's lines.
        common: What every record holds besides its own trial: versions, commit, data, base.
        observers: Hear of trials.

    Attributes:
        num_planned: Trials of the sweep; those with new seeds are added as they are planned.
        is_stopping: Whether the search is cut off: what runs is interrupted.
        is_finishing: Whether no more trials begin, new seeds neither: the user wants none, or a budget is spent.
        end_reason: Which budget ended the search before all its trials; None: none did.
    """

    def __init__(
        self,
        config: SweepConfig,
        *,
        paths: SweepPaths,
        console: Console,
        common: SweepFacts,
        observers: Sequence[TrialsObserver] = (),
    ) -> None:
        self._config = config
        self._observers = observers
        self._paths = paths
        self._console = console
        self._common = common
        self._events = EventLog(paths.events)
        self._table = TrialsTable(paths.trials_table, objectives=list(config.search.objectives))
        self.entries: dict[int, TrialEntry] = {}
        self.objective, self.mode = next(iter(config.search.objectives.items()))
        self._standings = Standings(mode=self.mode)
        self.num_planned = config.search.num_trials
        self.is_stopping = False
        self.is_finishing = False
        self.end_reason: str | None = None
        self.first_failure: tuple[str, str] | None = None

    @property
    def num_begun(self) -> int:
        """Trials that run or have ended; those that were interrupted go on under other numbers."""
        # A copy: other threads ask too.
        return sum(entry.state is not TrialStatus.INTERRUPTED for entry in list(self.entries.values()))

    def open(
        self,
        number: int,
        params: dict[str, Any],
        *,
        ancestors: Sequence[int] = (),
        seed_of: int | None = None,
        clone_of: CloneOrigin | None = None,
    ) -> None:
        """Enters a new trial.

        Args:
            number: Its number in the study.
            params: Values of the search space, by config path.
            ancestors: Numbers of the interrupted trials that it goes on with, the latest first.
            seed_of: Number of the trial that it repeats with another seed.
            clone_of: The trial whose state lies in its folder already; one that goes on inherits reports as any other.
        """
        resumed_from = ancestors[0] if ancestors else None
        entry = TrialEntry(number, params, time.time(), resumed_from, seed_of=seed_of, clone_of=clone_of)
        self.entries[number] = entry
        self._standings.open(entry)
        self._paths.trial(entry.id).root.mkdir(parents=True, exist_ok=True)
        for ancestor in ancestors:
            # A driver killed in the middle of a resume leaves the state with an earlier one.
            state = self._paths.trial(trial_id_of(ancestor)).state
            restore_folder(state)
            if state.exists():
                self._inherit(entry, ancestor)
                break
        if clone_of is not None and not ancestors:
            self._copy_reports(entry, clone_of.number, until=clone_of.at)
        reason = "asked of the study" if seed_of is None else f"another seed of trial {trial_id_of(seed_of)}"
        if clone_of is not None:
            reason = clone_of.describe()
        if resumed_from is not None:
            reason = f"goes on with trial {trial_id_of(resumed_from)}"
        self._events.write("trial_opened", reason=reason, trial=entry.id, params=params)
        if clone_of is not None and not ancestors:
            self._note_clone(entry, clone_of)
        record = self._write_record(entry)
        for observer in self._observers:
            observer.opened(entry, record)

    def restore(self) -> None:
        """Takes over the trials that an earlier driver finished, from their records."""
        for folder in sorted(self._paths.trials.glob("*")):
            # What else lies there is the user's.
            if not (folder.is_dir() and folder.name.isdecimal()):
                continue
            tidy_folder(folder)
            # Stopped before it was in the books, or while a clone's state was copied: the study knows of no more.
            if not (folder / "record.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
        for trial in self._paths.list_trials():
            record = read_record(trial.record, TrialRecord)
            entry = TrialEntry.of_record(record)
            was_running = entry.state is TrialStatus.RUNNING
            if was_running:
                # Its driver was killed before it could say so.
                entry.state, entry.cause = TrialStatus.INTERRUPTED, SWEEP_STOPPED
            if entry.state is TrialStatus.INTERRUPTED:
                mend_lines(trial.metrics)
                entered = [self._enter(entry, at, line) for at, line in _read_reports(trial.metrics)]
                if was_running or any(entered):
                    record = as_read(entry.brought_up(record))
                    write_record(trial.record, record)
            self.entries[entry.number] = entry
            self._table.take(record)
            is_more = entry.seed_of is not None or entry.clone_of is not None
            self.num_planned += is_more and entry.state is not TrialStatus.INTERRUPTED
            # Its driver may have been killed after the record and before that.
            self._drop_files(entry)
            self._standings.end(entry, self.value_of(entry))
            if entry.failure:
                self.first_failure = self.first_failure or (entry.id, entry.failure.message)
        if self.entries:
            self.write_table()

    def report(self, result: TrialResult) -> None:
        """Enters one of a trial's reports."""
        entry, report = self.entries[result.number], result.report
        told = entry.facts.get("restarted")
        facts = {**report.facts, **({} if result.executor_facts is None else {"executor": result.executor_facts})}
        # A failure may know no more than where it was: what ran till then stays true.
        entry.facts = {**entry.facts, **facts} if report.failure else facts or entry.facts
        why = entry.facts.get("restarted")
        if why and why != told:
            words = f"trial {entry.id} starts at its beginning: its state {why}"
            self.note("trial_restarted", reason=why, line=words, trial=entry.id)
        entry.num_retries = result.num_retries
        entry.waited_s = result.waited_s
        entry.is_final = report.is_final
        if report.failure:
            entry.failure = report.failure
            if entry.failure.cause == "lost" and not self.is_stopping:
                self.is_stopping = True
                reason = entry.failure.message
                self.first_failure = self.first_failure or (entry.id, reason)
                self.note("search_stopped", reason=reason, line=f"the search ends: {reason}")
            return
        if not self._enter(entry, report.index, report.metrics):
            return
        line: dict[str, Any] = {"report_index": report.index, "time": round(time.time(), 3), **entry.metrics}
        if report.train_losses:
            line["train_losses"] = report.train_losses
        append_line(self._paths.trial(entry.id).metrics, line)
        self._events.write("trial_reported", trial=entry.id, report_index=report.index, executor=result.executor)
        for observer in self._observers:
            observer.reported(entry, report)

    def close(self, number: int) -> Outcome:
        """Ends a trial as what it was, and says so."""
        entry = self.entries[number]
        if entry.closed_at is None:
            entry.state, entry.cause = self._judge(entry)
            closed_at = time.time()
            if entry.failure:
                write_text(self._paths.trial(entry.id).error, entry.failure.traceback or entry.failure.message)
                self.first_failure = self.first_failure or (entry.id, entry.failure.message)
            # The record comes before all that follows from it: a driver killed in between reads it and goes on.
            record = self._write_record(entry, closed_at=closed_at)
            entry.closed_at = closed_at
            self._drop_files(entry)
            self._standings.end(entry, self.value_of(entry))
            self._table.append(as_read(record))
            self._events.write(f"trial_{entry.state}", reason=entry.cause or "", trial=entry.id, metrics=entry.metrics)
            self._console.event(self._describe_end(entry))
            for observer in self._observers:
                observer.closed(entry, is_best=self._standings.best is entry)
        return self.outcome_of(entry)

    def outcome_of(self, entry: TrialEntry) -> Outcome:
        """How a trial ended, as the study is told it."""
        values = [entry.value_of(name) for name in self._config.search.objectives]
        notes: dict[str, str | float] = {STATE_ATTRIBUTE: str(entry.state)}
        if entry.cause:
            notes[CAUSE_ATTRIBUTE] = entry.cause
        notes |= {name: entry.metrics[name] for name in NOTED_METRICS if name in entry.metrics}
        return Outcome(entry.state, entry.cause, [value for value in values if value is not None], notes)

    def interrupt(self) -> None:
        """Closes all running trials as interrupted."""
        self.is_stopping = True
        for entry in self.running():
            self.close(entry.number)
        self.write_table()

    def write_table(self) -> None:
        """Writes trials.csv in the order of the trials' numbers; while the sweep runs, it has that of their ends."""
        self._table.rewrite()

    def note(self, event: str, *, reason: str = "", line: str | None = None, **facts: Any) -> None:
        """Writes an event that is no trial's, and a line where the user should know.

        Args:
            event: The event's name.
            reason: Why it happened.
            line: What the terminal shows; None shows nothing.
            **facts: Further keys of the event.
        """
        self._events.write(event, reason=reason, **facts)
        if line:
            self._console.event(line)

    def running(self) -> list[TrialEntry]:
        """Trials that have not ended."""
        return self._standings.running()

    @property
    def best(self) -> TrialEntry | None:
        """The best complete trial."""
        return self._standings.best

    def ranked(self) -> list[TrialEntry]:
        """Complete trials, best first."""
        return self._standings.ranked()

    def resumable(self) -> list[TrialEntry]:
        """Interrupted trials that no later one goes on with."""
        taken_up = {entry.resumed_from for entry in self.entries.values()}
        return [e for e in self.entries.values() if e.state is TrialStatus.INTERRUPTED and e.number not in taken_up]

    def value_of(self, entry: TrialEntry) -> float | None:
        """The first objective's last value."""
        return entry.value_of(self.objective)

    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return self._standings.counts()

    def _enter(self, entry: TrialEntry, report_index: int, metrics: dict[str, float]) -> bool:
        """Enters a report's metrics; False if it was there already."""
        if report_index in entry.intermediate:
            return False
        entry.metrics = {name: value for name, value in metrics.items() if name not in NO_METRICS}
        entry.train_s += entry.metrics.get("train_s", 0.0)
        entry.tokens += entry.metrics.get("train_s", 0.0) * entry.metrics.get("tokens_per_s", 0.0)
        value = self.value_of(entry)
        if value is not None:
            entry.intermediate[report_index] = value
        return True

    def _inherit(self, entry: TrialEntry, earlier_number: int) -> None:
        """Takes over the state of the trial that this one goes on with, and the reports behind it.

        The state moves last: a driver killed before leaves it where the next resume finds it.
        """
        earlier, trial = self._paths.trial(trial_id_of(earlier_number)), self._paths.trial(entry.id)
        if earlier.metrics.exists():
            shutil.copy(earlier.metrics, trial.metrics)
            for report_index, line in _read_reports(trial.metrics):
                self._enter(entry, report_index, line)
        self._write_record(entry)
        earlier.state.replace(trial.state)
        # Written again with the state's pending report.
        shutil.rmtree(earlier.adapter, ignore_errors=True)

    def _copy_reports(self, entry: TrialEntry, other_number: int, *, until: int) -> None:
        """Gives a trial another one's reports, up to one of them, as its own."""
        for report_index, line in _read_reports(self._paths.trial(trial_id_of(other_number)).metrics):
            if report_index <= until and self._enter(entry, report_index, line):
                append_line(self._paths.trial(entry.id).metrics, line)

    def _note_clone(self, entry: TrialEntry, origin: CloneOrigin) -> None:
        earlier = self.entries[origin.number]
        changed = {path: value for path, value in entry.params.items() if earlier.params.get(path) != value}
        self._events.write(
            "trial_cloned",
            reason=f"{origin.describe()} with {describe_params(changed)}",
            trial=entry.id,
            cloned_from=earlier.id,
            cloned_at=origin.at,
            step=origin.step,
            changed=changed,
        )

    def _drop_files(self, entry: TrialEntry) -> None:
        """Takes away what a trial that has ended as this has no use for."""
        trial = self._paths.trial(entry.id)
        if entry.state is not TrialStatus.INTERRUPTED:
            # Only a trial that can go on needs its state; adapters of large bases would fill the disk.
            shutil.rmtree(trial.state, ignore_errors=True)
        if entry.state is TrialStatus.FAILED:
            # Written before the evaluation that it did not survive; its record names none.
            shutil.rmtree(trial.adapter, ignore_errors=True)

    def _judge(self, entry: TrialEntry) -> tuple[TrialStatus, str | None]:
        if entry.failure and entry.failure.cause in NOT_ITS_OWN:
            return TrialStatus.INTERRUPTED, entry.failure.message
        if entry.failure:
            return TrialStatus.FAILED, entry.failure.cause
        if entry.is_final:
            return TrialStatus.COMPLETE, None
        if entry.cut_by:
            return TrialStatus.INTERRUPTED, entry.cut_by
        if entry.stopped_by:
            return TrialStatus.PRUNED, entry.stopped_by
        if self.is_stopping:
            return TrialStatus.INTERRUPTED, SWEEP_STOPPED
        last_report = max(entry.intermediate, default=0)
        return TrialStatus.PRUNED, f"stopped by {self._config.search.scheduler} at report {last_report}"

    def _describe_end(self, entry: TrialEntry) -> str:
        value = self.value_of(entry)
        parts = [f"trial {entry.id}", f"{entry.state:<8}"]
        if value is not None:
            parts.append(f"{self.objective} {format_loss(value)}")
        if entry.state is TrialStatus.PRUNED:
            parts.append(f"after {max(entry.intermediate, default=0)}/{self._config.search.num_reports} reports")
        if entry.state in ("failed", "interrupted") and entry.failure:
            parts.append(f"{entry.failure.cause}: {entry.failure.message.splitlines()[0]}")
        parts.append(describe_params(entry.params))
        if self._standings.best is entry:
            parts.append("<- best so far")
        return "  ".join(parts)

    def _write_record(self, entry: TrialEntry, *, closed_at: float | None = None) -> TrialRecord:
        paths = self._paths.trial(entry.id)
        record = entry.to_record(adapter=paths.adapter, common=self._common, closed_at=closed_at)
        write_record(paths.record, record)
        return record


def _read_reports(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A trial's reports by their index; lines that are damaged are left out."""
    for line in read_lines(path):
        report_index = parse_number(line.get("report_index"), int)
        if report_index is not None and all(parse_number(line.get(name, 0.0)) is not None for name in _SUMMED):
            yield report_index, line


def describe_params(params: dict[str, Any]) -> str:
    """Parameters in short: `r=8 learning_rate=2e-04`."""
    return " ".join(f"{short_path(path)}={format_setting(value)}" for path, value in params.items())
