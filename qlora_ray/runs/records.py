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
from qlora_ray.runs.typed_json import parse_record, renamed, to_json

# Files of the version before have no `schema`. Raised when a reader of this version could no longer read a file.
SCHEMA = 1
# What the version before called the engines, in records and in cluster.packing.
OLD_ENGINES = {"fused": "packed", "sft": "single"}
OLD_PACKING = {"fused": "packed", "process": "single"}


class TrialState(StrEnum):
    """How a trial stands. The order is a leaderboard's: trials that saw all samples first."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    RUNNING = "running"


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """A base: its name in the config, the revision, and its fingerprint by `modeling.loading.hash_base`."""

    name: str | None = None
    revision: str | None = None
    hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """The rows of a sweep, by split or by pair of splits, as each trial's record has them."""

    fingerprint: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)
    num_truncated: Mapping[str, int] = field(default_factory=dict)
    overlap: Mapping[str, int] = field(default_factory=dict)
    overlap_check: str | None = None


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """The seeds of a sweep."""

    seed: int | None = None
    data_seed: int | None = None
    search_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class GitState:
    """The commit of the folder that the user works in; None outside a repository."""

    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True, kw_only=True)
class SweepFacts:
    """What the manifest and every trial's record have in common."""

    base: BaseRecord = BaseRecord()
    dataset: DatasetRecord = DatasetRecord()
    seeds: Seeds = Seeds()
    versions: Mapping[str, str] = field(default_factory=dict)
    git: GitState = GitState()


@dataclass(frozen=True, kw_only=True)
class QuantizationRecord:
    """The fields of modeling.quantization.QuantizationSpec."""

    method: str | None = None
    bits: int | None = None
    backend: str | None = None
    block_size: int | None = None
    double_quantization: bool | None = None
    compute_dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoraRecord:
    """PEFT's LoraConfig as it ran."""

    r: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float | None = None
    target_modules: tuple[str, ...] = ()
    bias: str | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    modules_to_save: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RanFacts:
    """What a trial really ran with, as its engine resolved it.

    Attributes:
        training: TrainingArguments by their own names.
        lora: None before the trial's first report.
        restarted: Why a resumed trial started at its beginning; None where it did not.
        extra: What an engine says of itself.
    """

    engine: str | None = renamed(values=OLD_ENGINES)
    training: Mapping[str, Any] = field(default_factory=dict)
    lora: LoraRecord | None = None
    effective_batch: int | None = None
    num_samples: int | None = None
    num_steps: int | None = None
    precision: str | None = None
    quantization: QuantizationRecord | None = None
    max_tokens_per_micro_batch: int | None = renamed(key="max_tokens_per_pass")
    trainable_parameters: int | None = None
    restarted: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ExecutorRecord:
    """The executor that a trial ran on last, and its device.

    Attributes:
        versions: Of the packages in the executor's own process.
        estimated_memory_bytes: The planner's figure for the whole executor.
    """

    engine: str | None = renamed(values=OLD_ENGINES)
    slots: int | None = None
    hostname: str | None = None
    device: str | None = None
    device_class: str | None = None
    compute_capability: str | None = None
    precision: str | None = None
    precision_reason: str | None = None
    bf16: bool | None = None
    fp16: bool | None = None
    cuda_available: bool | None = None
    cuda: str | None = None
    driver: str | None = None
    cpu: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    estimated_memory_bytes: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """Measured and estimated memory of the executor that a trial ran on."""

    peak_bytes: int | None = None
    estimated_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TimesRecord:
    """`opened` and `closed` in seconds since 1970; how long the trial waited for slots, and how long it trained."""

    opened: float | None = None
    closed: float | None = None
    waited_s: float = 0.0
    train_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrialRecord(SweepFacts):
    """record.json: what a trial really ran with, no value left as an expression, and how it ended.

    Attributes:
        trial: The trial's id.
        cause: Why it was stopped or interrupted, or the failure's cause.
        message: What the failure says.
        params: Values of the search space, by config path.
        resumed_from: Id of the interrupted trial that it goes on with.
        metrics: Of its last report; losses in nats per answer token.
        reports: The first objective by report, 1 to search.num_reports.
        tokens_per_s: Over all of its training.
        adapter: Where its adapter is; None unless it is complete.
    """

    trial: str = ""
    number: int = 0
    state: TrialState = TrialState.RUNNING
    cause: str | None = None
    message: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    resumed_from: str | None = None
    objective: Mapping[str, float | None] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reports: Mapping[int, float | None] = field(default_factory=dict)
    ran: RanFacts = RanFacts()
    bf16: bool | None = None
    fp16: bool | None = None
    executor: ExecutorRecord = ExecutorRecord()
    tokens_per_s: float | None = None
    memory: MemoryRecord = MemoryRecord()
    times: TimesRecord = TimesRecord()
    num_retries: int = 0
    adapter: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The fields of data.report.DataReport; all but the first five by split or by pair of splits."""

    format: str | None = None
    format_reason: str | None = None
    template: str | None = None
    template_reason: str | None = None
    fingerprint: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)
    num_tokens: Mapping[str, int] = field(default_factory=dict)
    num_completion_tokens: Mapping[str, int] = field(default_factory=dict)
    num_truncated: Mapping[str, int] = field(default_factory=dict)
    num_dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    overlap: Mapping[str, int] = field(default_factory=dict)
    overlap_answers: Mapping[str, int] = field(default_factory=dict)
    overlap_verdict: str | None = None
    lengths: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    from_cache: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PrecisionRecord:
    """What a device computes in, and why."""

    name: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlacementRecord:
    """The fields of hardware.plan.Placement that reports read; the others are in `extra`."""

    device_name: str | None = None
    num_devices: int | None = None
    engine: str | None = renamed(values=OLD_ENGINES)
    slots_per_device: int | None = None
    packs_per_device: int | None = None
    precision: PrecisionRecord = PrecisionRecord()
    micro_batch: int | None = None
    gradient_accumulation_steps: int | None = None
    max_tokens_per_micro_batch: int | None = renamed(key="max_tokens_per_pass")
    needed_bytes: int | None = None
    available_bytes: int | None = None
    reason: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """The fields of hardware.plan.Plan."""

    placements: tuple[PlacementRecord, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    total_slots: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """How one run of a resumed sweep was called, and with what code; its base where that is another than at first."""

    command: tuple[str, ...] = ()
    folder: str | None = None
    qlora_ray: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git: GitState = GitState()
    base: BaseRecord | None = None


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
    """

    qlora_ray: str | None = None
    folder: str | None = None
    command: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)
    plan: PlanRecord = PlanRecord()
    nodes: tuple[Mapping[str, Any], ...] = ()
    data: DataRecord | None = None
    metrics: str | None = None
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    resumes: tuple[RunRecord, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, section: str, key: str) -> Any:
        """A value of the config; None where it has none."""
        values = self.config.get(section)
        return values.get(key) if isinstance(values, Mapping) else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """summary.json: how a sweep ended, written last.

    Attributes:
        status: complete, no_winner or interrupted; None where the file does not say.
        counts: Trials by state.
        winner: The winning trial's id.
        verdict: Winner against base: `better`, `no different` or `worse`; None without a winner.
        verdict_note: What weakens the verdict; None if nothing does.
        device_wait_share: Of the time from first step to last, how much devices waited; None if it was not measured.
    """

    status: str | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    winner: str | None = None
    verdict: str | None = None
    objective: str | None = None
    first_failure: str | None = None
    device_wait_share: float | None = None
    verdict_note: str | None = None


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
        RunError: If the file is missing, no JSON, or no record of this kind.
    """
    return from_dict(read_json(path), kind, where=path)


def from_dict(data: Any, kind: type[AnyRecord], *, where: Path) -> AnyRecord:
    """A record from its JSON; unknown keys are kept, and written again.

    Args:
        data: What the file holds.
        kind: TrialRecord, Manifest or Summary.
        where: The file, for the message.

    Raises:
        RunError: If it is no record of this kind.
    """
    mark = _MARKS[kind]
    if not isinstance(data, dict):
        raise RunError(f"{where}: must be {mark.name}, a JSON object, got {type(data).__name__}.")
    if mark.key not in data or not isinstance(data[mark.key], mark.types):
        raise RunError(f"{where}: must be {mark.name}, got a JSON object without a valid {mark.key!r}.")
    known = {key: value for key, value in data.items() if key != "schema"}
    if kind is Manifest:
        known["config"] = modernize_config(known["config"])
    return parse_record(kind, known)


def modernize_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that an older version wrote, in today's words."""
    cluster = config.get("cluster")
    if not isinstance(cluster, Mapping) or cluster.get("packing") not in OLD_PACKING:
        return dict(config)
    return {**config, "cluster": {**cluster, "packing": OLD_PACKING[cluster["packing"]]}}


def to_dict(record: TrialRecord | Manifest | Summary) -> dict[str, Any]:
    """A record as JSON values, with the number of the schema; what it shares with others of its sweep comes last."""
    written = to_json(record)
    shared = {name: written.pop(name) for name in SweepFacts.__annotations__ if name in written}
    return {"schema": SCHEMA, **written, **shared}


def write_record(path: Path, record: TrialRecord | Manifest | Summary) -> None:
    """Writes a record whole or not at all; raises RunError if the file cannot be written."""
    write_json(path, to_dict(record))
