"""The three records of a sweep: record.json of each trial, manifest.json and summary.json.

`read_record` reads them, those of the version before too, and `write_record` writes them. Fields have the keys of the
files. What a file does not say is None, or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar

from qlora_ray.errors import RunError
from qlora_ray.runs.files import read_json, write_json
from qlora_ray.runs.record_parts import (
    DataRecord,
    ExecutorRecord,
    MemoryRecord,
    PlanRecord,
    PushesRecord,
    RanFacts,
    RunRecord,
    SweepFacts,
    TimesRecord,
)
from qlora_ray.runs.typed_json import parse_number, parse_record, to_json

# Files of the version before have no `schema`. Raised when a reader of this version could no longer read a file.
SCHEMA = 1
# What the version before called the choices of cluster.packing.
OLD_PACKING = {"fused": "packed", "process": "single"}
# The objective that is no metric, and the one of a sweep from before there were others.
PARAMETERS = "trainable_parameters"
LOSS = "eval_loss"
# Of a written search space: what names no parameter.
POINTS_KEY, RECOMMENDED_KEY = "points_to_evaluate", "recommended_points"
POINT_KEYS = (POINTS_KEY, RECOMMENDED_KEY)


class TrialStatus(StrEnum):
    """How a trial stands. The order is a leaderboard's: trials that saw all samples first."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    RUNNING = "running"


class SweepStatus(StrEnum):
    """How a sweep ended; unfinished: it still runs, or was killed, which no summary says."""

    COMPLETE = "complete"
    NO_WINNER = "no_winner"
    INTERRUPTED = "interrupted"
    UNFINISHED = "unfinished"


@dataclass(frozen=True, kw_only=True)
class TrialRecord(SweepFacts):
    """record.json: what a trial really ran with, no value left as an expression, and how it ended.

    Attributes:
        trial: The trial's id.
        cause: Why it was stopped or interrupted, or the failure's cause.
        message: What the failure says.
        params: Values of the search space, by config path.
        resumed_from: Id of the interrupted trial that it goes on with.
        seed_of: Id of the trial that it repeats with another seed.
        cloned_from: Id of the trial whose state it went on from with other values; `params` are those since then.
        cloned_at: The report of that state, the last one that it has from that trial.
        metrics: Of its last report; losses in nats per answer token.
        reports: The first objective by report, 1 to search.num_reports.
        tokens_per_s: Over all of its training.
        adapter: Where its adapter is; None unless it is complete.
    """

    trial: str = ""
    number: int = 0
    state: TrialStatus = TrialStatus.RUNNING
    cause: str | None = None
    message: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    resumed_from: str | None = None
    seed_of: str | None = None
    cloned_from: str | None = None
    cloned_at: int | None = None
    objective: Mapping[str, float | None] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reports: Mapping[int, float | None] = field(default_factory=dict)
    ran: RanFacts = field(default_factory=RanFacts)
    bf16: bool | None = None
    fp16: bool | None = None
    executor: ExecutorRecord = field(default_factory=ExecutorRecord)
    tokens_per_s: float | None = None
    memory: MemoryRecord = field(default_factory=MemoryRecord)
    times: TimesRecord = field(default_factory=TimesRecord)
    num_retries: int = 0
    adapter: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def value_of(self, objective: str) -> float | None:
        """An objective's last value."""
        return self.ran.trainable_parameters if objective == PARAMETERS else self.metrics.get(objective)


@dataclass(frozen=True, kw_only=True)
class Manifest(SweepFacts):
    """manifest.json: what a sweep was told and what it found, written before any training.

    Attributes:
        qlora_ray: The version that began the sweep.
        folder: Where the command ran: relative paths of the config are from there.
        config: The resolved config, as config.schema.SweepConfig dumps it.
        space: The search space by config path, as a space's YAML has it.
        nodes: hardware.probe.NodeProfile of each node.
        data: None in a manifest that says nothing of the rows.
        metrics: What answers are scored with, and why.
        unused: What the config says that nothing uses.
        resumes: The runs after the first.
        owner_mark: By which runs.ownership tells whether the user's own sweeps wrote it; None where there is no key.
    """

    qlora_ray: str | None = None
    folder: str | None = None
    command: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)
    plan: PlanRecord = field(default_factory=PlanRecord)
    nodes: tuple[Mapping[str, Any], ...] = ()
    data: DataRecord | None = None
    metrics: str | None = None
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    resumes: tuple[RunRecord, ...] = ()
    owner_mark: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, section: str, key: str) -> Any:
        """A value of the config; None where it has none."""
        values = self.config.get(section)
        return values.get(key) if isinstance(values, Mapping) else None

    @property
    def searched(self) -> dict[str, Any]:
        """The search space's parameters, without its points."""
        return {path: words for path, words in self.space.items() if path not in POINT_KEYS}

    @property
    def objectives(self) -> tuple[str, ...]:
        """What was searched for, the objective that decides the winner first."""
        written = self.setting("search", "objectives")
        return tuple(written) if isinstance(written, Mapping) and written else (LOSS,)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """summary.json: how a sweep ended, written last.

    Attributes:
        counts: Trials by state.
        winner: The winning trial's id.
        verdict: Winner against base: `better`, `no different` or `worse`; None without a winner.
        verdict_note: What weakens the verdict; None if nothing does.
        end_reason: Which budget ended the search before all its trials; None if none did.
        device_wait_share: Of the time from first step to last, how much devices waited; None if it was not measured.
        heads: Accuracy and macro F1 of the winner's auxiliary heads on the verdict's rows, by head.
        pushes: What went to the hub while the sweep ran; None where nothing was to.
    """

    status: SweepStatus = SweepStatus.UNFINISHED
    counts: Mapping[str, int] = field(default_factory=dict)
    winner: str | None = None
    verdict: str | None = None
    objective: str | None = None
    first_failure: str | None = None
    device_wait_share: float | None = None
    verdict_note: str | None = None
    end_reason: str | None = None
    heads: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    pushes: PushesRecord | None = None

    @property
    def exit_code(self) -> int:
        """0 only with a winner; 130 after Ctrl-C, as shells expect."""
        return {SweepStatus.COMPLETE: 0, SweepStatus.INTERRUPTED: 130}.get(self.status, 1)


class _Mark(NamedTuple):
    """By what a record is told from another program's JSON: a key, and the type of its value."""

    name: str
    key: str
    types: tuple[type, ...]


_MARKS: Mapping[type, _Mark] = {
    TrialRecord: _Mark("a trial's record", "trial", (str,)),
    Manifest: _Mark("a sweep's manifest", "config", (dict,)),
    Summary: _Mark("a sweep's summary", "winner", (str, NoneType)),
}
AnyRecord = TypeVar("AnyRecord", TrialRecord, Manifest, Summary)


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord:
    """The record in a file.

    Raises:
        RunError: If the file is missing, no JSON, no record of this kind, or one of a later schema.
    """
    return from_dict(read_json(path), kind, where=path)


def from_dict(data: Any, kind: type[AnyRecord], *, where: Path) -> AnyRecord:
    """A record from its JSON; unknown keys are kept, and written again.

    Args:
        data: The file's content, as `json.loads` returned it.
        kind: TrialRecord, Manifest or Summary.
        where: The file, for the message.

    Raises:
        RunError: If it is no record of this kind, or one of a later schema.
    """
    mark = _MARKS[kind]
    if not isinstance(data, dict):
        raise RunError(f"{where}: must be {mark.name}, a JSON object, got {type(data).__name__}.")
    if mark.key not in data or not isinstance(data[mark.key], mark.types):
        raise RunError(f"{where}: must be {mark.name}, got a JSON object without a valid {mark.key!r}.")
    known = dict(data)
    schema = parse_number(known.pop("schema", None)) or 0
    if schema > SCHEMA:
        raise RunError(f"{where}: must have schema {SCHEMA} or older, got {schema}. Read it with a newer qlora_ray.")
    if kind is Manifest:
        known["config"] = modernize_config(known["config"])
    return parse_record(kind, known)


def modernize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that an older version wrote, in today's words."""
    cluster = config.get("cluster")
    if not isinstance(cluster, Mapping):
        return dict(config)
    packing = cluster.get("packing")
    if not isinstance(packing, str) or packing not in OLD_PACKING:
        return dict(config)
    return {**config, "cluster": {**cluster, "packing": OLD_PACKING[packing]}}


def to_dict(record: TrialRecord | Manifest | Summary) -> dict[str, Any]:
    """A record as JSON values, with the number of the schema; what it shares with others of its sweep comes last."""
    written = to_json(record)
    shared = {name: written.pop(name) for name in SweepFacts.__annotations__ if name in written}
    return {"schema": SCHEMA, **written, **shared}


def as_read(record: AnyRecord) -> AnyRecord:
    """A record as it is read from its file: what JSON cannot hold is not in it."""
    return parse_record(type(record), to_dict(record))


def write_record(path: Path, record: TrialRecord | Manifest | Summary) -> None:
    """Writes a record whole or not at all; raises RunError if the file cannot be written."""
    write_json(path, to_dict(record))
