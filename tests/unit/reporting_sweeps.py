"""Sweeps' folders for tests of the report: written by the code that writes real ones, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_ray.config.documents import Document
from qlora_ray.config.schema import SweepConfig
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs import SweepPaths, append_line, write_json, write_text
from qlora_ray.runs.record_parts import GitState, SweepFacts
from qlora_ray.runs.records import Summary, SweepStatus, TrialStatus, write_record
from qlora_ray.scoring.comparison import compare_rows
from qlora_ray.scoring.verdict import Verdict
from qlora_ray.search.parsing import parse_space
from qlora_ray.search.study import open_study

GIB = 1024**3
START = 1_700_000_000.0
SAMPLES_PER_REPORT = 600
NUM_REPORTS = 4
STEPS_PER_REPORT = 75
# Points of the training loss up to a report.
POINTS_PER_REPORT = 3
REPORT_S = 10.0
SPACE = {
    "lora.r": {"choices": [4, 8, 16]},
    "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
}
EXECUTOR = {
    "engine": "packed",
    "slots": 2,
    "hostname": "node",
    "device": "CPU of a test",
    "precision": "fp32",
    "cuda_available": False,
    "estimated_memory_bytes": 2 * GIB,
}
COMMON = SweepFacts(git=GitState(commit="abc123"))
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
    space: dict[str, Any] | None = None,
    status: str | None = "complete",
    winner: int | None = None,
    has_leases: bool = True,
    has_journal: bool = True,
) -> SweepPaths:
    """Writes a sweep's folder as a sweep would.

    Args:
        status: Of summary.json; None: the sweep runs, or was killed.
        winner: Number of the winning trial.
        has_leases: Whether events know leases; those of older sweeps do not.
    """
    words = SPACE if space is None else space
    paths = SweepPaths(root)
    root.mkdir(parents=True)
    paths.trials.mkdir()
    write_json(paths.manifest, _manifest(words, len(sketches)))
    events: list[dict[str, Any]] = [{"time": START, "event": "sweep_started", "reason": ""}]
    entries = [_write_trial(paths, number, sketch, events, has_leases) for number, sketch in enumerate(sketches)]
    events.sort(key=lambda event: event["time"])
    if status is not None:
        events.append({"time": events[-1]["time"] + 5, "event": "sweep_ended", "reason": status})
    for event in events:
        append_line(paths.events, event)
    if has_journal:
        _write_journal(paths, words, entries)
    if status is not None:
        _write_end(paths, entries, status=status, winner=winner)
    return paths


def write_verdict(paths: SweepPaths, *, winner: int) -> Verdict:
    """best/scores.json of a winner that is better than its base on 40 of 60 rows."""
    base, tuned = [0.0] * 50 + [1.0] * 10, [1.0] * 45 + [0.0] * 5 + [1.0] * 10
    deciding = compare_rows("exact_match", base, tuned, higher_is_better=True)
    loss = compare_rows("loss", [1.0, 1.2, 0.9] * 20, [0.2, 0.3, 0.1] * 20, higher_is_better=False)
    verdict = Verdict("test", deciding, [loss], note=None)
    scores = {"loss": 0.2, "num_rows": 60, "num_answers": 60, "metrics": {"exact_match": deciding.tuned}}
    base_scores = {**scores, "loss": loss.base, "metrics": {"exact_match": deciding.base}}
    paths.best.mkdir(exist_ok=True)
    trial = f"{winner:04d}"
    write_json(
        paths.best / "scores.json",
        {
            "trial": trial,
            "verdict": verdict.to_dict(),
            "winner": scores,
            "base": base_scores,
            "rescored": {trial: scores, "0000": {**scores, "loss": 0.3}},
        },
    )
    return verdict


def _manifest(space: dict[str, Any], num_trials: int) -> dict[str, Any]:
    config = SweepConfig().model_dump()
    config["search"]["num_trials"] = num_trials
    placement = {
        "device_name": "CPU of a test",
        "num_devices": 2,
        "slots_per_device": 2,
        "engine": "packed",
        "precision": {"name": "fp32", "reason": "a CPU"},
        "micro_batch": 8,
        "gradient_accumulation_steps": 1,
        "needed_bytes": 2 * GIB,
        "available_bytes": 16 * GIB,
        "reason": "packed: two trials fill the device",
    }
    return {
        "qlora_ray": "0.1.0",
        "command": ["sweep.py", "--set", "results.name=a b"],
        "config": config,
        "space": space,
        "plan": {"placements": [placement], "notes": [], "skipped": ["old GPU: too small"], "total_slots": 4},
        "data": {
            "format": "columns",
            "format_reason": "two columns",
            "template": "chat",
            "template_reason": "auto",
            "fingerprint": "f" * 64,
            "sources": {"train": "train.jsonl"},
            "num_rows": {"train": 1234},
            "num_tokens": {"train": 5678},
            "num_completion_tokens": {"train": 2345},
            "num_truncated": {"train": 7},
            "num_dropped": {"train": {"empty": 3}},
            "overlap": {"train/validation": 0},
            "overlap_verdict": "pass",
            "lengths": {"train": {"mean": 4.6, "p95": 9, "max": 12}},
            "warnings": ["7 rows were cut"],
        },
        "versions": {"torch": "2.13.0"},
        "git": {"commit": "abc123", "dirty": True},
        "unused": [],
    }


def _write_trial(
    paths: SweepPaths, number: int, sketch: Sketch, events: list[dict[str, Any]], has_leases: bool
) -> TrialEntry:
    """Writes a trial's folder, and adds its events. It holds a slot for 10 s a report, and 1 s more."""
    start_s = 12.0 * number if sketch.start_s is None else sketch.start_s
    opened = START + 1 + start_s
    leased = opened + 2
    ended = leased + REPORT_S * len(sketch.losses) + 1
    is_open = sketch.state == "running"
    entry = TrialEntry(number, sketch.params, opened, state=TrialStatus(sketch.state), cause=sketch.cause, waited_s=2.0)
    entry.closed_at = None if is_open else ended
    entry.facts = {"trainable_parameters": 1000 * (number + 1), "precision": "fp32", "executor": EXECUTOR}
    if sketch.message is not None:
        entry.failure = [sketch.cause or "error", sketch.message, sketch.error or ""]
    trial = paths.trial(entry.id)
    trial.root.mkdir(parents=True)
    events.append({"time": opened, "event": "trial_opened", "trial": entry.id, "params": sketch.params})
    for index, loss in enumerate(sketch.losses, start=1):
        entry.metrics = {
            "eval_loss": loss,
            "samples_seen": SAMPLES_PER_REPORT * index,
            "step": STEPS_PER_REPORT * index,
            "peak_memory_bytes": sketch.peak_bytes,
        }
        entry.intermediate[index] = loss
        entry.train_s += REPORT_S
        entry.tokens += 1000.0
        time = leased + REPORT_S * index
        line = {"report_index": index, "time": time, **entry.metrics, "train_losses": train_losses(index, loss)}
        append_line(trial.metrics, line)
        events.append(
            {
                "time": time,
                "event": "trial_reported",
                "trial": entry.id,
                "report_index": index,
                "executor": sketch.executor,
            }
        )
    if has_leases:
        slot = {"trial": entry.id, "executor": sketch.executor, "hostname": "node"}
        events.append({"time": leased, "event": "trial_leased", **slot})
        if not is_open:
            events.append({"time": ended, "event": "trial_released", **slot})
    write_record(trial.record, entry.to_record(adapter=trial.adapter, common=COMMON))
    if sketch.error is not None:
        write_text(trial.error, sketch.error)
    return entry


def train_losses(report_index: int, loss: float) -> list[tuple[int, float]]:
    """A training loss that falls to a tenth below the validation loss of its report."""
    first = STEPS_PER_REPORT * (report_index - 1)
    return [
        (first + STEPS_PER_REPORT * point // POINTS_PER_REPORT, loss * (1.2 - 0.1 * point))
        for point in range(1, POINTS_PER_REPORT + 1)
    ]


def _write_journal(paths: SweepPaths, words: dict[str, Any], entries: Sequence[TrialEntry]) -> None:
    import optuna

    config = SweepConfig()
    space = parse_space(Document("space", words), config)
    study = open_study(paths.study, name="sweep", search=config.search, space=space)
    for entry in entries:
        if entry.state == "running":
            continue
        # Optuna takes no NaN; the searcher tells it none either.
        reports = {index: loss for index, loss in entry.intermediate.items() if loss == loss}
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[OPTUNA_STATES[entry.state]],
                value=list(reports.values())[-1] if entry.state == "complete" else None,
                params=space.encode(entry.params),
                distributions=space.distributions(),
                intermediate_values=reports,
            )
        )


def _write_end(paths: SweepPaths, entries: Sequence[TrialEntry], *, status: str, winner: int | None) -> None:
    failed = next((entry for entry in entries if entry.failure), None)
    states = [entry.state for entry in entries]
    summary = Summary(
        status=SweepStatus(status),
        counts={state: states.count(state) for state in dict.fromkeys(states)},
        winner=None if winner is None else entries[winner].id,
        verdict=None if winner is None else "better",
        objective="eval_loss",
        first_failure=f"trial {failed.id}: {failed.failure[1]}" if failed and failed.failure else None,
        device_wait_share=0.25,
    )
    write_record(paths.summary, summary)
    if winner is not None:
        write_verdict(paths, winner=winner)
        write_record(
            paths.best / "record.json", entries[winner].to_record(adapter=paths.best / "adapter", common=COMMON)
        )


def traces(figure: object) -> dict[str, dict]:
    """A figure's traces by name."""
    found = json.loads(figure.to_json())["data"]  # type: ignore[attr-defined]
    return {trace["name"]: trace for trace in found}
