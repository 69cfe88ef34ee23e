"""What the driver knows of one trial while the sweep runs, and its record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.record_parts import ExecutorRecord, MemoryRecord, RanFacts, SweepFacts, TimesRecord
from qlora_ray.runs.records import LOSS, PARAMETERS, TrialRecord, TrialStatus
from qlora_ray.runs.typed_json import parse_record, to_json
from qlora_ray.training.engine import Failure, FailureCause, Report


@dataclass(frozen=True)
class TrialResult:
    """One of a trial's reports, with how it came to it.

    Attributes:
        executor: The index of the executor that made it; None where the trial has none.
        executor_facts: What that executor is.
        waited_s: Seconds the trial has waited for slots by then.
        num_retries: Slots it has lost by then.
    """

    number: int
    report: Report
    executor: int | None = None
    executor_facts: Mapping[str, Any] | None = None
    waited_s: float = 0.0
    num_retries: int = 0


@dataclass(frozen=True)
class CloneOrigin:
    """The trial that a clone is a copy of.

    Attributes:
        at: The report that the copied state is of, the last one that the clone has from that trial.
        step: The optimizer steps of that state, which may be more than those up to the report.
    """

    number: int
    at: int
    step: int | None = None

    def describe(self) -> str:
        """`clone of 0003 at report 2`."""
        return f"clone of {trial_id_of(self.number)} at report {self.at}"


@dataclass
class TrialEntry:
    """One trial, as far as it has come. Times are in seconds since 1970, and tokens those that were trained.

    Attributes:
        params: Values of the search space, by config path.
        seed_of: Number of the trial that it repeats with another seed.
        clone_of: Which trial's state it went on from with other values.
        metrics: Of its last report.
        intermediate: The first objective by report.
        facts: What really ran, by its last report; under `executor`, what it ran on.
        failure: Why it ended without a result.
        stopped_by: Who stopped it, in words, where that was not its scheduler.
        cut_by: Why it is interrupted, to go on in a resume, where the search goes on to its end without it.
    """

    number: int
    params: dict[str, Any]
    opened_at: float
    resumed_from: int | None = None
    seed_of: int | None = None
    clone_of: CloneOrigin | None = None
    state: TrialStatus = TrialStatus.RUNNING
    cause: str | None = None
    closed_at: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    intermediate: dict[int, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    stopped_by: str | None = None
    cut_by: str | None = None
    is_final: bool = False
    num_retries: int = 0
    waited_s: float = 0.0
    train_s: float = 0.0
    tokens: float = 0.0

    @property
    def id(self) -> str:
        """The trial's id."""
        return trial_id_of(self.number)

    @property
    def tokens_per_s(self) -> float | None:
        """Over all of its training; None before its first report."""
        return round(self.tokens / self.train_s, 1) if self.train_s else None

    def value_of(self, objective: str) -> float | None:
        """An objective's last value."""
        return self.facts.get(objective) if objective == PARAMETERS else self.metrics.get(objective)

    def to_record(self, *, adapter: Path, common: SweepFacts, closed_at: float | None = None) -> TrialRecord:
        """The trial's record.

        Args:
            adapter: Where its adapter is if it was completed.
            common: What every record of the sweep holds.
            closed_at: When it ended; None: by the entry itself.
        """
        facts = dict(self.facts)
        executor = parse_record(ExecutorRecord, facts.pop("executor", {}))
        peak_bytes = self.metrics.get("peak_memory_bytes")
        return TrialRecord(
            trial=self.id,
            number=self.number,
            state=self.state,
            cause=self.cause,
            message=self.failure.message if self.failure else None,
            params=self.params,
            resumed_from=None if self.resumed_from is None else trial_id_of(self.resumed_from),
            seed_of=None if self.seed_of is None else trial_id_of(self.seed_of),
            cloned_from=None if self.clone_of is None else trial_id_of(self.clone_of.number),
            cloned_at=None if self.clone_of is None else self.clone_of.at,
            objective={LOSS: self.metrics.get(LOSS)},
            metrics=self.metrics,
            reports=self.intermediate,
            ran=parse_record(RanFacts, facts),
            bf16=executor.bf16,
            fp16=executor.fp16,
            executor=executor,
            tokens_per_s=self.tokens_per_s,
            memory=MemoryRecord(
                peak_bytes=None if peak_bytes is None else int(peak_bytes),
                estimated_bytes=executor.estimated_memory_bytes,
            ),
            times=TimesRecord(
                opened=self.opened_at,
                closed=self.closed_at if closed_at is None else closed_at,
                waited_s=round(self.waited_s, 3),
                train_s=round(self.train_s, 3),
            ),
            num_retries=self.num_retries,
            adapter=str(adapter) if self.state is TrialStatus.COMPLETE else None,
            **vars(common),
        )

    def brought_up(self, record: TrialRecord) -> TrialRecord:
        """The trial's record with its state, and with what was reported since it was written.

        Args:
            record: The record, which an earlier driver wrote.
        """
        now = self.to_record(adapter=Path(), common=SweepFacts())
        told = ("state", "cause", "objective", "metrics", "reports", "tokens_per_s")
        return replace(
            record,
            **{name: getattr(now, name) for name in told},
            memory=replace(record.memory, peak_bytes=now.memory.peak_bytes),
            times=replace(record.times, train_s=now.times.train_s),
        )

    @classmethod
    def of_record(cls, record: TrialRecord) -> TrialEntry:
        """A trial that an earlier driver finished, by its record."""
        times = record.times
        opened_at = times.opened or 0.0
        failure = None
        if record.state is TrialStatus.FAILED:
            failure = Failure(cast(FailureCause, record.cause or "error"), record.message or "")
        return cls(
            number=record.number,
            params=dict(record.params),
            opened_at=opened_at,
            resumed_from=None if record.resumed_from is None else int(record.resumed_from),
            seed_of=None if record.seed_of is None else int(record.seed_of),
            clone_of=None
            if record.cloned_from is None
            else CloneOrigin(int(record.cloned_from), record.cloned_at or 0),
            state=record.state,
            cause=record.cause,
            closed_at=times.closed or opened_at,
            metrics={name: value for name, value in record.metrics.items() if value is not None},
            # A loss that was not finite is null in JSON.
            intermediate={at: math.nan if loss is None else loss for at, loss in record.reports.items()},
            facts={**to_json(record.ran), "executor": to_json(record.executor)},
            failure=failure,
            is_final=record.state is TrialStatus.COMPLETE,
            num_retries=record.num_retries,
            waited_s=times.waited_s,
            train_s=times.train_s,
            tokens=(record.tokens_per_s or 0.0) * times.train_s,
        )
