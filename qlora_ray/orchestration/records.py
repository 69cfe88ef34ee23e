"""One trial's page in the driver's books, and its forms on disk: record.json and a row of trials.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qlora_ray.runs.paths import trial_id_of

State = Literal["running", "complete", "pruned", "failed", "interrupted"]


@dataclass
class TrialEntry:
    """One trial's page."""

    number: int
    params: dict[str, Any]
    opened_at: float
    resumed_from: int | None = None
    state: State = "running"
    cause: str | None = None
    closed_at: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    intermediate: dict[int, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failure: list[str] | None = None
    is_final: bool = False
    num_retries: int = 0
    waited_s: float = 0.0
    train_s: float = 0.0
    tokens: float = 0.0

    @property
    def id(self) -> str:
        """The trial's id."""
        return trial_id_of(self.number)


def metric_of(entry: TrialEntry, name: str) -> float | None:
    """An objective's last value."""
    return entry.facts.get(name) if name == "trainable_parameters" else entry.metrics.get(name)


def record_of(entry: TrialEntry, *, adapter: Path | None, common: dict[str, Any]) -> dict[str, Any]:
    """A trial's record: every value that really ran, none left as an expression.

    Args:
        entry: The trial.
        adapter: Where its adapter is, if it was completed.
        common: What every record of the sweep holds: versions, commit, data, base.
    """
    executor = entry.facts.get("executor", {})
    return {
        "trial": entry.id,
        "number": entry.number,
        "state": entry.state,
        "cause": entry.cause,
        "message": entry.failure[1] if entry.failure else None,
        "params": entry.params,
        "resumed_from": None if entry.resumed_from is None else trial_id_of(entry.resumed_from),
        "objective": {"eval_loss": entry.metrics.get("eval_loss")},
        "metrics": entry.metrics,
        "reports": entry.intermediate,
        "ran": {key: value for key, value in entry.facts.items() if key != "executor"},
        "bf16": executor.get("bf16"),
        "fp16": executor.get("fp16"),
        "executor": executor,
        "tokens_per_s": round(entry.tokens / entry.train_s, 1) if entry.train_s else None,
        "memory": {
            "peak_bytes": entry.metrics.get("peak_memory_bytes"),
            "estimated_bytes": executor.get("estimated_memory_bytes"),
        },
        "times": {
            "opened": entry.opened_at,
            "closed": entry.closed_at,
            "waited_s": round(entry.waited_s, 3),
            "train_s": round(entry.train_s, 3),
        },
        "num_retries": entry.num_retries,
        "adapter": str(adapter) if entry.state == "complete" else None,
        **common,
    }


def format_csv(entries: Iterable[TrialEntry], *, objectives: Iterable[str]) -> str:
    """trials.csv: one row per trial, by number."""
    entries = sorted(entries, key=lambda entry: entry.number)
    paths = sorted({path for entry in entries for path in entry.params})
    columns = [
        "trial",
        "state",
        *objectives,
        "reports",
        "train_s",
        "tokens_per_s",
        *paths,
        "cause",
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        writer.writerow(
            {
                "trial": entry.id,
                "state": entry.state,
                **{name: metric_of(entry, name) for name in objectives},
                "reports": len(entry.intermediate),
                "train_s": round(entry.train_s, 3),
                "tokens_per_s": round(entry.tokens / entry.train_s, 1) if entry.train_s else "",
                **entry.params,
                "cause": entry.cause or "",
            }
        )
    return buffer.getvalue()
