"""RUN_RECORD.md: every value that a trial really ran with, none left as an expression."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from qlora_ray.exporting.selection import Selection
from qlora_ray.formats import format_gib
from qlora_ray.runs.typed_json import to_json
from qlora_ray.training.budget import make_budget

NOT_RECORDED = "not recorded"
# Arguments of the record that are told in other words than the trainer's own.
_SEEDS = ("seed", "data_seed", "search_seed")
_TOLD_APART = ("max_steps", "warmup_steps", "bf16", "fp16", "seed", "data_seed")


def render_run_record(selection: Selection, *, name: str, evaluation_files: Sequence[str]) -> str:
    """The record of one trial as Markdown, from record.json and manifest.json alone.

    Args:
        selection: The trial, as `select_trial` returned it.
        name: What the record is headed with.
        evaluation_files: Paths of evaluation outputs in the bundle.

    Source: the keys are those that a run record of TrainingArguments, LoraConfig and environment needs to be
        repeated; a value that neither file holds is said to be not recorded.
    """
    sections = [
        _head(selection, name),
        _section("TrainingArguments", _training(selection)),
        _section("LoRA", _lora(selection)),
        *([_section("Auxiliary heads", heads)] if (heads := _heads(selection)) else []),
        _section("Quantization", _quantization(selection)),
        _section("Environment", _environment(selection)),
        _section("Seeds", [f"{key}={value(getattr(selection.record.seeds, key))}" for key in _SEEDS]),
        _section("Measured", _measured(selection)),
        _section("Evaluation outputs", [f"`{path}`" for path in evaluation_files] or ["none: not evaluated"]),
    ]
    return "\n\n".join(sections) + "\n"


def value(found: Any) -> str:
    """A value as it would be typed; `not recorded` for None."""
    if found is None:
        return NOT_RECORDED
    if isinstance(found, bool | int):
        return str(found)
    if isinstance(found, float):
        return f"{found:g}" if float(f"{found:g}") == found else repr(found)
    return json.dumps(found)


def resolved_command(command: Sequence[str] | None) -> str | None:
    """The command line of a sweep as it can be typed again."""
    if not command:
        return None
    return shlex.join(["python", "-m", "qlora_ray.sweep", *command[1:]])


def _head(selection: Selection, name: str) -> str:
    record, data, base = selection.record, selection.record.dataset, selection.record.base
    closed, commit = record.times.closed, record.git.commit
    changed = " (with uncommitted changes)" if record.git.dirty else ""
    train = selection.data.digests.get("train")
    command = resolved_command(selection.manifest.command)
    return "\n".join(
        [
            f"### QLoRA Run Record: {name}",
            "",
            f"- Date: {datetime.fromtimestamp(closed, UTC).date() if closed else NOT_RECORDED}",
            f"- Commit: {commit[:7] + changed if commit else NOT_RECORDED}",
            "- Notebook: none, a command",
            f"- Command: {f'`{command}`' if command else NOT_RECORDED}",
            f"- Sweep: `{selection.paths.name}`, trial {selection.trial}",
            *_origin(selection),
            f"- Base model: `{base.name}` (revision {base.revision or 'main'}, `{base.hash}`)",
            f"- Train file: `{data.sources.get('train', NOT_RECORDED)}` (n={data.num_rows.get('train', NOT_RECORDED)}, "
            f"overlap check={data.overlap_check or NOT_RECORDED}, sha256={train or NOT_RECORDED})",
            f"- Truncated train rows: {data.num_truncated.get('train', NOT_RECORDED)}",
            "- Output dir: `adapter`",
        ]
    )


def _origin(selection: Selection) -> list[str]:
    record = selection.record
    if record.cloned_from is None:
        return []
    return [f"- Clone of trial {record.cloned_from} at report {record.cloned_at}: the values below hold from there on"]


def _training(selection: Selection) -> list[str]:
    ran, config, record = selection.record.ran, selection.trial_config, selection.record
    training, num_samples = ran.training, ran.num_samples
    num_rows = record.dataset.num_rows["train"]
    epochs = f"{num_samples / num_rows:.6g} ({num_samples} samples of {num_rows} rows)" if num_samples else NOT_RECORDED
    reports = make_budget(config.training, num_train_rows=num_rows, num_reports=config.search.num_reports).report_steps
    interval = _interval(reports)
    keeps = config.cluster.keep_trial_state
    losses = training.get("logging_steps")
    lines = [
        _line(training, "per_device_train_batch_size"),
        _line(training, "gradient_accumulation_steps"),
        f"effective_batch_size={value(ran.effective_batch)}",
        _line(training, "learning_rate"),
        f"num_train_epochs={epochs}",
        f"max_steps={value(ran.num_steps)}",
        f"warmup_ratio={value(config.training.warmup_ratio)}",
        _line(training, "warmup_steps"),
        # Records from before the training loss had points of its own know the reports only.
        f"logging_steps={interval} ({len(reports)} reports)" if losses is None else f"logging_steps={losses}",
        f"eval_steps={interval} ({len(reports)} reports)",
        f"save_steps={interval} (at each report)" if keeps else "save_steps=none (no states were kept)",
        f"save_total_limit={1 if keeps else 0}",
        _line(training, "optim"),
        f"bf16={value(record.bf16)}",
        f"fp16={value(record.fp16)}",
        "report_to=[]",
        f"max_length={config.data.max_length}",
    ]
    told = {line.partition("=")[0] for line in lines} | set(_TOLD_APART)
    return lines + [f"{key}={value(found)}" for key, found in training.items() if key not in told]


def _lora(selection: Selection) -> list[str]:
    lora = to_json(selection.lora)
    told = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules")
    rest = [f"{key}={value(found) if found is not None else None}" for key, found in lora.items() if key not in told]
    return [_line(lora, key) for key in told] + rest


def _heads(selection: Selection) -> list[str]:
    """A line for each head that was trained."""
    return [
        f"{name}: " + ", ".join(f"{key}={value(found)}" for key, found in facts.items())
        for name, facts in selection.record.ran.heads.items()
    ]


def _quantization(selection: Selection) -> list[str]:
    quantization = selection.quantization.to_dict()
    block_size = quantization.pop("block_size")
    # What is None means nothing for this method.
    lines = [f"{key}={value(found)}" for key, found in quantization.items() if found is not None]
    lines.append(f"block_size={'none' if block_size is None else block_size}")
    # bitsandbytes has no other for 4 and 8 bits, and quantizes nothing but weights.
    return [*lines, "activations=none (not quantized)", "kv_cache=none (not quantized)"]


def _environment(selection: Selection) -> list[str]:
    executor = selection.record.executor
    ran_with = executor.versions or selection.record.versions
    on_cpu = executor.cuda_available is False
    gpu = f"none (CPU: {executor.cpu})" if on_cpu else executor.device or NOT_RECORDED
    not_there = "none" if on_cpu else NOT_RECORDED
    return [
        f"GPU: {gpu}",
        f"Compute capability: {executor.compute_capability or not_there}",
        f"CUDA available: {value(executor.cuda_available)}",
        f"CUDA: {executor.cuda or not_there}",
        f"Driver: {executor.driver or not_there}",
        f"Precision: {executor.precision_reason or NOT_RECORDED}",
        f"Engine: {executor.engine or NOT_RECORDED}",
        *(f"{package}={version}" for package, version in ran_with.items()),
        f"qlora_ray={selection.manifest.qlora_ray or NOT_RECORDED}",
    ]


def _measured(selection: Selection) -> list[str]:
    record = selection.record
    lines = [f"{name}={value(found)}" for name, found in record.objective.items()]
    lines.append(f"trainable_parameters={value(record.ran.trainable_parameters)}")
    for name, found in (("peak", record.memory.peak_bytes), ("estimated", record.memory.estimated_bytes)):
        lines.append(f"{name}_memory_bytes={f'{found} ({format_gib(found)})' if found else NOT_RECORDED}")
    lines.append(f"train_s={value(record.times.train_s)}")
    lines.append(f"tokens_per_s={value(record.tokens_per_s)}")
    return lines


def _interval(report_steps: Sequence[int]) -> str:
    """The steps between two reports; all report steps where they are not evenly apart."""
    first = report_steps[0]
    is_even = all(step == first * index for index, step in enumerate(report_steps, start=1))
    return str(first) if is_even else str(list(report_steps))


def _line(values: Mapping[str, Any], key: str) -> str:
    return f"{key}={value(values.get(key))}"


def _section(title: str, lines: Sequence[str]) -> str:
    return f"{title}:\n" + "\n".join(f"- {line}" for line in lines)
