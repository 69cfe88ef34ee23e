"""What a sweep's folder says of each trial: its record, its reports, and the last line of its traceback."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qlora_ray.errors import RunError
from qlora_ray.runs import SweepPaths, TrialPaths, read_json
from qlora_ray.runs.files import read_lines

State = Literal["complete", "pruned", "failed", "interrupted", "running"]
# The order of a leaderboard: trials that saw all samples first.
STATES: tuple[State, ...] = ("complete", "pruned", "failed", "interrupted", "running")


@dataclass(frozen=True)
class Report:
    """One report of a trial: its validation loss after so many samples. `loss` is None where it was not finite."""

    index: int
    num_samples: int | None
    loss: float | None


@dataclass(frozen=True)
class Trial:
    """One trial, as its files tell it. What no file says is None.

    Attributes:
        train_losses: (samples seen, mean training loss since the point before), in nats per trained token.
        loss: Validation loss at its last report, in nats per trained token.
        error_line: Last line of its traceback.
        opened_at: Seconds since 1970; `closed_at` likewise.
        waited_s: Seconds it waited for slots.
        is_gpu: Whether it ran on a GPU; on a CPU memory is the whole process's.
        record: The record as it stands, for the tables of the winner.
    """

    id: str
    number: int
    state: State
    cause: str | None
    message: str | None
    error_line: str | None
    params: Mapping[str, Any]
    reports: tuple[Report, ...]
    train_losses: tuple[tuple[int, float], ...]
    loss: float | None
    trainable_parameters: int | None
    tokens_per_s: float | None
    train_s: float | None
    opened_at: float | None
    closed_at: float | None
    waited_s: float
    peak_bytes: int | None
    estimated_bytes: int | None
    device: str | None
    hostname: str | None
    num_slots: int | None
    is_gpu: bool | None
    precision: str | None
    num_retries: int
    record: Mapping[str, Any]


def read_trials(paths: SweepPaths) -> tuple[list[Trial], list[str]]:
    """All trials by number, and what could not be read, in words."""
    trials, problems = [], []
    folders = sorted(folder for folder in paths.trials.glob("*") if folder.is_dir())
    for folder in folders:
        try:
            trials.append(_read_trial(TrialPaths(folder)))
        except RunError as error:
            problems.append(f"trial {folder.name} is left out: {error}")
    return sorted(trials, key=lambda trial: trial.number), problems


def rank_trials(trials: Iterable[Trial]) -> list[Trial]:
    """The leaderboard's order: complete ones by loss, then stopped ones, those that got further first, then the rest.

    Losses of trials that were stopped at different reports cannot be compared, so reports come before loss.
    """

    def key(trial: Trial) -> tuple[int, int, float, int]:
        num_reports = 0 if trial.state == "complete" else -len(trial.reports)
        loss = math.inf if trial.loss is None else trial.loss
        return (STATES.index(trial.state), num_reports, loss, trial.number)

    return sorted(trials, key=key)


def _read_trial(paths: TrialPaths) -> Trial:
    record = read_json(paths.record)
    if not isinstance(record, dict):
        raise RunError(f"{paths.record}: a record must be a JSON object, got {type(record).__name__}.")
    metrics, ran, executor = (as_mapping(record.get(key)) for key in ("metrics", "ran", "executor"))
    times, memory = as_mapping(record.get("times")), as_mapping(record.get("memory"))
    state = record.get("state")
    name = paths.root.name
    lines = _read_lines(paths)
    reports = _read_reports(lines, record)
    loss = as_number(metrics.get("eval_loss"))
    return Trial(
        id=str(record.get("trial", name)),
        number=record.get("number", int(name) if name.isdigit() else 0),
        state=state if state in STATES else "running",
        cause=as_text(record.get("cause")),
        message=as_text(record.get("message")),
        error_line=_last_line(paths),
        params=as_mapping(record.get("params")),
        reports=reports,
        train_losses=_read_train_losses(lines),
        # The record of a running trial is its first; its reports know more.
        loss=loss if loss is not None or not reports else reports[-1].loss,
        trainable_parameters=as_whole(ran.get("trainable_parameters")),
        tokens_per_s=as_number(record.get("tokens_per_s")),
        train_s=as_number(times.get("train_s")),
        opened_at=as_number(times.get("opened")),
        closed_at=as_number(times.get("closed")),
        waited_s=as_number(times.get("waited_s")) or 0.0,
        peak_bytes=as_whole(memory.get("peak_bytes")),
        estimated_bytes=as_whole(memory.get("estimated_bytes")),
        device=as_text(executor.get("device")),
        hostname=as_text(executor.get("hostname")),
        num_slots=as_whole(executor.get("slots")),
        is_gpu=executor.get("cuda_available"),
        precision=as_text(ran.get("precision") or executor.get("precision")),
        num_retries=as_whole(record.get("num_retries")) or 0,
        record=record,
    )


def _read_lines(paths: TrialPaths) -> dict[int, Mapping[str, Any]]:
    """The lines of metrics.jsonl by report."""
    lines = {
        line["report_index"]: line
        for line in read_lines(paths.metrics)
        if isinstance(line, dict) and isinstance(line.get("report_index"), int)
    }
    return dict(sorted(lines.items()))


def _read_train_losses(lines: Mapping[int, Mapping[str, Any]]) -> tuple[tuple[int, float], ...]:
    """The training loss by samples seen; of a sweep from before there were points, its mean up to each report."""
    points = []
    for line in lines.values():
        step, samples = as_number(line.get("step")), as_whole(line.get("samples_seen"))
        if not step or samples is None:
            continue
        for point in as_list(line.get("train_losses")) or [[step, line.get("train_loss")]]:
            if len(point) == 2 and None not in (as_number(point[0]), loss := as_number(point[1])):
                assert loss is not None
                # A step is as many samples all along.
                points.append((round(point[0] * samples / step), loss))
    return tuple(points)


def _read_reports(lines: Mapping[int, Mapping[str, Any]], record: Mapping[str, Any]) -> tuple[Report, ...]:
    """The reports by metrics.jsonl, or by the record where that file is not there."""
    by_index = {
        index: Report(index, as_whole(line.get("samples_seen")), as_number(line.get("eval_loss")))
        for index, line in lines.items()
    }
    if not by_index:
        written = as_mapping(record.get("reports"))
        by_index = {int(index): Report(int(index), None, as_number(loss)) for index, loss in written.items()}
    return tuple(by_index[index] for index in sorted(by_index))


def _last_line(paths: TrialPaths) -> str | None:
    try:
        text = paths.error.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: files of older sweeps lack keys."""
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def as_number(value: Any) -> float | None:
    """The value if it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def as_whole(value: Any) -> int | None:
    """The value as a whole number, if it is a finite number."""
    number = as_number(value)
    return None if number is None else int(number)


def as_text(value: Any) -> str | None:
    """The value as text; None and the empty text are None."""
    return str(value) if value not in (None, "") else None
