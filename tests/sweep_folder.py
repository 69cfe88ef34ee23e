"""A sweep's folder as the driver leaves one, written by the code that writes real ones; nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from qlora_ray import embedded
from qlora_ray.config.documents import Document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs import SweepPaths, append_line, read_json, write_json, write_text
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.runs.records import Summary, SweepStatus, TrialStatus, write_record
from qlora_ray.search.parsing import parse_space
from qlora_ray.search.study import open_study
from qlora_ray.training.engine import Failure
from tests.sweep_records import GIB, NUM_STEPS, SAMPLES_PER_STEP, make_facts, make_manifest, make_ran, make_scores

START = 1_700_000_000.0
NUM_REPORTS = 4
STEPS_PER_REPORT = NUM_STEPS // NUM_REPORTS
# Points of the training loss up to a report.
POINTS_PER_REPORT = 3
REPORT_S = 10.0
SPACE = {
    "lora.r": {"choices": [4, 8, 16]},
    "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
}
OPTUNA_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "interrupted": "FAIL"}


@dataclass
class Sketch:
    """A trial to write: NaN losses are written as the sweep writes them, as null."""

    losses: Sequence[float] = ()
    params: dict[str, Any] = field(default_factory=lambda: {"lora.r": 8, "training.learning_rate": 1e-3})
    state: str = "complete"
    cause: str | None = None
    message: str | None = None
    error: str | None = None
    executor: int = 0
    start_s: float | None = None
    peak_bytes: int = GIB


def usual_sketches() -> list[Sketch]:
    """Six trials: two complete, the later one better; two stopped; one failed after a report, one before any."""
    oom = "CUDA out of memory: <script>alert('x')</script>\nTried to allocate 漢字 GiB"
    return [
        Sketch([1.0, 0.5, 0.3, 0.2], {"lora.r": 8, "training.learning_rate": 1e-3}),
        Sketch([1.2], {"lora.r": 4, "training.learning_rate": 1e-5}, "pruned", "stopped by asha at report 1"),
        Sketch([1.1, 0.8], {"lora.r": 16, "training.learning_rate": 1e-4}, "pruned", "stopped by asha at report 2"),
        Sketch([0.9, 0.4, 0.2, 0.1], {"lora.r": 16, "training.learning_rate": 2e-3}, executor=1),
        Sketch([3.0], {"lora.r": 16, "training.learning_rate": 1e-2}, "failed", "oom", oom, f"Traceback\n{oom}\n"),
        Sketch([], {"lora.r": 4, "training.learning_rate": 9e-3}, "failed", "diverged", "the loss became NaN"),
    ]


def write_sweep(
    root: Path,
    sketches: Sequence[Sketch],
    *,
    config: SweepConfig | None = None,
    space: Mapping[str, Any] = SPACE,
    status: str | None = "complete",
    winner: int | None = None,
    verdict: str = "better",
    has_leases: bool = True,
    has_journal: bool = True,
    has_adapters: bool = False,
) -> SweepPaths:
    """Writes a sweep's folder as a sweep would.

    Args:
        config: The sweep's; None: the defaults.
        status: Of summary.json; None: the sweep runs, or was killed.
        winner: Number of the winning trial.
        verdict: On the winner: better, worse or no different.
        has_leases: Whether events know leases; those of older sweeps do not.
        has_journal: Whether there is the study, which importance is read from.
        has_adapters: Whether complete trials have their adapters.
    """
    config = config or SweepConfig.model_validate({"search": {"num_trials": max(len(sketches), 1)}})
    paths = SweepPaths(root)
    root.mkdir(parents=True)
    paths.trials.mkdir()
    facts = make_facts(config)
    write_record(paths.manifest, make_manifest(config, space=space, folder=str(root.parent), facts=facts))
    entries = [_make_entry(number, sketch, config) for number, sketch in enumerate(sketches)]
    for entry, sketch in zip(entries, sketches, strict=True):
        _write_trial(paths, entry, sketch, facts)
        if has_adapters and entry.state is TrialStatus.COMPLETE:
            write_adapter(paths.trial(entry.id).adapter, base=config.model.name)
    _write_events(paths, entries, sketches, status=status, has_leases=has_leases)
    if has_journal:
        _write_journal(paths, space, entries)
    if status is not None:
        _write_summary(paths, entries, status=status, winner=winner, verdict=verdict)
    if winner is not None:
        paths.best.mkdir()
        record = entries[winner].to_record(adapter=paths.best / "adapter", common=facts)
        write_record(paths.best / "record.json", record)
        complete = [entry.id for entry in entries if entry.state is TrialStatus.COMPLETE]
        write_json(paths.best / "scores.json", make_scores(verdict, winner=record.trial, rescored=complete))
        if has_adapters:
            write_adapter(paths.best / "adapter", base=config.model.name)
            write_text(paths.best / "adapter" / "tokenizer_config.json", "{}")
    return paths


def write_adapter(folder: Path, *, base: str = "embedded") -> Path:
    """An adapter in PEFT's format, of few weights."""
    folder.mkdir(parents=True)
    name = str(embedded.base_path()) if base == "embedded" else base
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": name, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    save_file({"x.lora_A.weight": np.ones((4, 8), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text("PEFT's own")
    return folder


@contextmanager
def edited(path: Path) -> Iterator[dict[str, Any]]:
    """A JSON file's object, which is written again with what the block changes."""
    data = read_json(path)
    yield data
    write_json(path, data)


def train_losses(report_index: int, loss: float) -> list[tuple[int, float]]:
    """A training loss that falls to a tenth below the validation loss of its report."""
    first = STEPS_PER_REPORT * (report_index - 1)
    return [
        (first + STEPS_PER_REPORT * point // POINTS_PER_REPORT, loss * (1.2 - 0.1 * point))
        for point in range(1, POINTS_PER_REPORT + 1)
    ]


def traces(figure: object) -> dict[str, dict]:
    """A figure's traces by name."""
    found = json.loads(figure.to_json())["data"]  # type: ignore[attr-defined]
    return {trace["name"]: trace for trace in found}


def _make_entry(number: int, sketch: Sketch, config: SweepConfig) -> TrialEntry:
    """A trial that holds a slot for 10 s a report, and 1 s more."""
    opened = START + 1 + (12.0 * number if sketch.start_s is None else sketch.start_s)
    entry = TrialEntry(number, sketch.params, opened, state=TrialStatus(sketch.state), cause=sketch.cause, waited_s=2.0)
    if entry.state is not TrialStatus.RUNNING:
        entry.closed_at = _time_of_report(entry, len(sketch.losses)) + 1
    entry.facts = make_ran(config, sketch.params, number=number)
    if sketch.message is not None:
        entry.failure = Failure(sketch.cause or "error", sketch.message, sketch.error or "")
    for index, loss in enumerate(sketch.losses, start=1):
        entry.metrics = _metrics_of_report(index, loss, sketch)
        entry.intermediate[index] = loss
        entry.train_s += REPORT_S
        entry.tokens += 1000.0
    return entry


def _time_of_report(entry: TrialEntry, index: int) -> float:
    """When a report came; report 0 is when the trial got its slot."""
    return entry.opened_at + entry.waited_s + REPORT_S * index


def _metrics_of_report(index: int, loss: float, sketch: Sketch) -> dict[str, float]:
    step = STEPS_PER_REPORT * index
    return {
        "eval_loss": loss,
        "samples_seen": SAMPLES_PER_STEP * step,
        "step": step,
        "peak_memory_bytes": sketch.peak_bytes,
    }


def _write_trial(paths: SweepPaths, entry: TrialEntry, sketch: Sketch, facts: SweepFacts) -> None:
    trial = paths.trial(entry.id)
    trial.root.mkdir(parents=True)
    for index, loss in enumerate(sketch.losses, start=1):
        line = {"report_index": index, "time": _time_of_report(entry, index), **_metrics_of_report(index, loss, sketch)}
        append_line(trial.metrics, {**line, "train_losses": train_losses(index, loss)})
    write_record(trial.record, entry.to_record(adapter=trial.adapter, common=facts))
    if sketch.error is not None:
        write_text(trial.error, sketch.error)


def _write_events(
    paths: SweepPaths,
    entries: Sequence[TrialEntry],
    sketches: Sequence[Sketch],
    *,
    status: str | None,
    has_leases: bool,
) -> None:
    events: list[dict[str, Any]] = [{"time": START, "event": "sweep_started", "reason": ""}]
    for entry, sketch in zip(entries, sketches, strict=True):
        held = {"trial": entry.id, "executor": sketch.executor}
        events.append({"time": entry.opened_at, "event": "trial_opened", "trial": entry.id, "params": sketch.params})
        for index in entry.intermediate:
            time = _time_of_report(entry, index)
            events.append({"time": time, "event": "trial_reported", "report_index": index, **held})
        if has_leases:
            held["hostname"] = "node"
            events.append({"time": _time_of_report(entry, 0), "event": "trial_leased", **held})
            if entry.closed_at is not None:
                events.append({"time": entry.closed_at, "event": "trial_released", **held})
    events.sort(key=lambda event: event["time"])
    if status is not None:
        events.append({"time": events[-1]["time"] + 5, "event": "sweep_ended", "reason": status})
    for event in events:
        append_line(paths.events, event)


def _write_journal(paths: SweepPaths, words: Mapping[str, Any], entries: Sequence[TrialEntry]) -> None:
    import optuna

    config = SweepConfig()
    space = parse_space(Document("space", dict(words)), config)
    study = open_study(paths.study, name="sweep", search=config.search, space=space)
    for entry in entries:
        if entry.state is TrialStatus.RUNNING:
            continue
        # Optuna takes no NaN; the searcher tells it none either.
        reports = {index: loss for index, loss in entry.intermediate.items() if loss == loss}
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[OPTUNA_STATES[entry.state]],
                value=list(reports.values())[-1] if entry.state is TrialStatus.COMPLETE else None,
                params=space.encode(entry.params),
                distributions=space.distributions(),
                intermediate_values=reports,
            )
        )


def _write_summary(
    paths: SweepPaths, entries: Sequence[TrialEntry], *, status: str, winner: int | None, verdict: str
) -> None:
    failed = next((entry for entry in entries if entry.failure), None)
    states = [entry.state for entry in entries]
    summary = Summary(
        status=SweepStatus(status),
        counts={state: states.count(state) for state in dict.fromkeys(states)},
        winner=None if winner is None else entries[winner].id,
        verdict=None if winner is None else verdict,
        objective="eval_loss",
        first_failure=f"trial {failed.id}: {failed.failure.message}" if failed and failed.failure else None,
        device_wait_share=0.25,
    )
    write_record(paths.summary, summary)
