"""What a sweep's folder says of each trial: its record, its reports, and the last line of its traceback."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_ray.errors import RunError
from qlora_ray.regular_files import read_bytes
from qlora_ray.runs import SweepPaths, TrialPaths
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.records import TrialRecord, TrialStatus, read_record
from qlora_ray.runs.typed_json import parse_record


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
        resumed_from: Id of the interrupted trial that it goes on with.
        seed_of: Id of the trial that it repeats with another seed.
        cloned_from: Id of the trial whose state it went on from with other values, at the report `cloned_at`.
    """

    id: str
    number: int
    state: TrialStatus
    cause: str | None
    message: str | None
    error_line: str | None
    params: Mapping[str, Any]
    reports: tuple[Report, ...]
    train_losses: tuple[tuple[int, float], ...]
    loss: float | None
    trainable_parameters: int | None
    tokens_per_s: float | None
    train_s: float
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
    resumed_from: str | None
    seed_of: str | None = None
    cloned_from: str | None = None
    cloned_at: int | None = None


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
        num_reports = 0 if trial.state is TrialStatus.COMPLETE else -len(trial.reports)
        loss = math.inf if trial.loss is None else trial.loss
        return (list(TrialStatus).index(trial.state), num_reports, loss, trial.number)

    return sorted(trials, key=key)


@dataclass(frozen=True)
class _Line:
    """A line of metrics.jsonl; the fields are those of training.engine.Report."""

    report_index: int | None = None
    step: float | None = None
    samples_seen: int | None = None
    eval_loss: float | None = None
    train_loss: float | None = None
    train_losses: tuple[tuple[float | None, ...], ...] = ()


def _read_trial(paths: TrialPaths) -> Trial:
    record = read_record(paths.record, TrialRecord)
    executor, times = record.executor, record.times
    lines = _read_lines(paths)
    reports = _read_reports(lines, record)
    loss = record.metrics.get("eval_loss")
    return Trial(
        id=record.trial,
        number=record.number,
        state=record.state,
        cause=record.cause,
        message=record.message,
        error_line=_last_line(paths),
        params=record.params,
        reports=reports,
        train_losses=_read_train_losses(lines),
        # The record of a running trial is its first; its reports know more.
        loss=loss if loss is not None or not reports else reports[-1].loss,
        trainable_parameters=record.ran.trainable_parameters,
        tokens_per_s=record.tokens_per_s,
        train_s=times.train_s,
        opened_at=times.opened,
        closed_at=times.closed,
        waited_s=times.waited_s,
        peak_bytes=record.memory.peak_bytes,
        estimated_bytes=record.memory.estimated_bytes,
        device=executor.device,
        hostname=executor.hostname,
        num_slots=executor.slots,
        is_gpu=executor.cuda_available,
        precision=record.ran.precision or executor.precision,
        num_retries=record.num_retries,
        resumed_from=record.resumed_from,
        seed_of=record.seed_of,
        cloned_from=record.cloned_from,
        cloned_at=record.cloned_at,
    )


def _read_lines(paths: TrialPaths) -> list[_Line]:
    """The lines of metrics.jsonl by report; of a report with several, the last."""
    lines = [parse_record(_Line, line) for line in read_lines(paths.metrics)]
    by_index = {line.report_index: line for line in lines if line.report_index is not None}
    return [by_index[index] for index in sorted(by_index)]


def _read_train_losses(lines: Iterable[_Line]) -> tuple[tuple[int, float], ...]:
    """The training loss by samples seen; of a sweep from before there were points, its mean up to each report."""
    points = []
    for line in lines:
        if not line.step or line.samples_seen is None:
            continue
        for point in line.train_losses or ((line.step, line.train_loss),):
            step, loss = point if len(point) == 2 else (None, None)
            if step is not None and loss is not None:
                # A step is as many samples all along.
                points.append((round(step * line.samples_seen / line.step), loss))
    return tuple(points)


def _read_reports(lines: Sequence[_Line], record: TrialRecord) -> tuple[Report, ...]:
    """The reports by metrics.jsonl, or by the record where that file is not there."""
    if not lines:
        return tuple(Report(index, None, loss) for index, loss in sorted(record.reports.items()))
    return tuple(Report(line.report_index or 0, line.samples_seen, line.eval_loss) for line in lines)


def _last_line(paths: TrialPaths) -> str | None:
    try:
        text = read_bytes(paths.error).decode(errors="replace")
    except OSError:
        return None
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)
