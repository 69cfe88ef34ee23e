"""The parts of a sweep's records: of the base, the rows, the plan, and what a trial ran with and on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_ray.runs.typed_json import renamed

# What the version before called the engines.
OLD_ENGINES = {"fused": "packed", "sft": "single"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a record. What a file says there besides is in `extra`, and is written again."""

    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BaseRecord(Part):
    """A base: its name in the config, the revision, and its fingerprint by `modeling.loading.hash_base`."""

    name: str | None = None
    revision: str | None = None
    hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetRecord(Part):
    """The rows of a sweep, by split or by pair of splits, as each trial's record has them."""

    fingerprint: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)
    num_truncated: Mapping[str, int] = field(default_factory=dict)
    overlap: Mapping[str, int] = field(default_factory=dict)
    overlap_check: str | None = None


@dataclass(frozen=True, kw_only=True)
class Seeds(Part):
    """The seeds of a sweep."""

    seed: int | None = None
    data_seed: int | None = None
    search_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class GitState(Part):
    """The commit of the folder that the user works in; None outside a repository."""

    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True, kw_only=True)
class SweepFacts:
    """What the manifest and every trial's record have in common."""

    base: BaseRecord = field(default_factory=BaseRecord)
    dataset: DatasetRecord = field(default_factory=DatasetRecord)
    seeds: Seeds = field(default_factory=Seeds)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    git: GitState = field(default_factory=GitState)


@dataclass(frozen=True, kw_only=True)
class QuantizationRecord(Part):
    """The fields of modeling.quantization.QuantizationSpec."""

    method: str | None = None
    bits: int | None = None
    backend: str | None = None
    block_size: int | None = None
    double_quantization: bool | None = None
    compute_dtype: str | None = None
    is_stored: bool | None = None
    symmetric: bool | None = None
    desc_act: bool | None = None
    layout: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoraRecord(Part):
    """PEFT's LoraConfig as it ran."""

    r: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float | None = None
    target_modules: tuple[str, ...] = ()
    bias: str | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    modules_to_save: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class RanFacts(Part):
    """What a trial really ran with, as its engine resolved it.

    Attributes:
        training: TrainingArguments by their own names.
        lora: None before the trial's first report.
        heads: The auxiliary heads that were trained: column, classes, pooling and weight, by name.
        restarted: Why a resumed trial started at its beginning; None where it did not.
        extra: Also what an engine says of itself.
    """

    engine: str | None = renamed(values=OLD_ENGINES)
    training: Mapping[str, Any] = field(default_factory=dict)
    lora: LoraRecord | None = None
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    effective_batch: int | None = None
    num_samples: int | None = None
    num_steps: int | None = None
    precision: str | None = None
    quantization: QuantizationRecord | None = None
    max_tokens_per_micro_batch: int | None = renamed(key="max_tokens_per_pass")
    trainable_parameters: int | None = None
    restarted: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExecutorRecord(Part):
    """The executor that a trial ran on last, and its device.

    Attributes:
        device: Its name; that of a simulated one says so.
        simulated: Whether a CPU stood for the device.
        precision: What was computed in.
        planned_precision: What the device's class computes in; another one only where it is simulated.
        versions: Of the packages in the executor's own process.
        estimated_memory_bytes: The planner's figure for the whole executor.
        ray_node_id: Ray's id of its node.
        address: The IP address that Ray knows its node by.
    """

    engine: str | None = renamed(values=OLD_ENGINES)
    slots: int | None = None
    hostname: str | None = None
    ray_node_id: str | None = None
    address: str | None = None
    device: str | None = None
    device_class: str | None = None
    compute_capability: str | None = None
    simulated: bool | None = None
    precision: str | None = None
    planned_precision: str | None = None
    precision_reason: str | None = None
    bf16: bool | None = None
    fp16: bool | None = None
    cuda_available: bool | None = None
    cuda: str | None = None
    driver: str | None = None
    cpu: str | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    estimated_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryRecord(Part):
    """Measured and estimated memory of the executor that a trial ran on."""

    peak_bytes: int | None = None
    estimated_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TimesRecord(Part):
    """`opened` and `closed` in seconds since 1970; how long the trial waited for slots, and how long it trained."""

    opened: float | None = None
    closed: float | None = None
    waited_s: float = 0.0
    train_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class DataRecord(Part):
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
class PrecisionRecord(Part):
    """What a device computes in, and why."""

    name: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlacementRecord(Part):
    """The fields of hardware.plan.Placement that reports read; the others are in `extra`."""

    device_name: str | None = None
    num_devices: int | None = None
    engine: str | None = renamed(values=OLD_ENGINES)
    slots_per_device: int | None = None
    packs_per_device: int | None = None
    precision: PrecisionRecord = field(default_factory=PrecisionRecord)
    micro_batch: int | None = None
    gradient_accumulation_steps: int | None = None
    max_tokens_per_micro_batch: int | None = renamed(key="max_tokens_per_pass")
    needed_bytes: int | None = None
    available_bytes: int | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class PlanRecord(Part):
    """The fields of hardware.plan.Plan."""

    placements: tuple[PlacementRecord, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    total_slots: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord(Part):
    """How one run of a resumed sweep was called, and with what code.

    Attributes:
        base: Where that is another than at first.
        changes: What of config and space it changed, a line each.
    """

    command: tuple[str, ...] = ()
    folder: str | None = None
    qlora_ray: str | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    git: GitState = field(default_factory=GitState)
    base: BaseRecord | None = None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PushesRecord(Part):
    """What a sweep has pushed to the hub while it ran.

    Attributes:
        repository: The repository's page; None where none was reached.
        num_pushed: Trials whose adapters are there.
        waiting: Trials whose adapters could not be pushed.
        reason: Why not.
        command: What pushes them later.
    """

    repository: str | None = None
    num_pushed: int = 0
    waiting: tuple[str, ...] = ()
    reason: str | None = None
    command: str | None = None
