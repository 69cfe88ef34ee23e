"""How a sweep stands: its end as summary.json and best/ have it, and what its events say since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qlora_ray.reporting.folder_files import FolderFiles
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.derived import find_summary, was_resumed_since
from qlora_ray.runs.live import is_running
from qlora_ray.runs.records import Summary, SweepStatus
from qlora_ray.runs.score_records import BestScores
from qlora_ray.runs.typed_json import parse_number, parse_record
from qlora_ray.scoring.comparison import UNREADABLE
from qlora_ray.scoring.verdict import Verdict


@dataclass(frozen=True)
class Outcome:
    """How the sweep stands.

    Attributes:
        status: complete, no_winner, interrupted, or unfinished: it still runs, or was killed.
        is_held: Whether a process holds the sweep now.
        winner: The winning trial's id: of best/scores.json, if the last run chose a winner.
        earlier_winner: The winner that best/ holds from the run before, if the last one has not ended or was
            interrupted.
        verdict: Winner against base; None for sweeps from before there was a test, or without a winner.
        scores: best/scores.json; empty without a winner.
        failure: What the sweep broke on, in its own words, if that was the last that was heard of it.
        last_event_at: Seconds since 1970.
        end_reason: Which budget ended the search before all its trials; None if none did.
        device_wait_share: Of the devices' time from first step to last, how much they waited for a trial.
    """

    status: SweepStatus
    winner: str | None
    earlier_winner: str | None
    verdict: Verdict | None
    scores: BestScores
    first_failure: str | None
    failure: str | None
    last_event_at: float | None
    device_wait_share: float | None
    is_held: bool = False
    end_reason: str | None = None


def read_outcome(paths: SweepPaths, files: FolderFiles, events: list[dict[str, Any]]) -> Outcome:
    """How a sweep stands, by its summary and the scores of its best trials.

    Args:
        paths: The sweep's folder.
        files: Reads its JSON files; what cannot be read is noted there.
        events: The sweep's events, oldest first.
    """
    summary = _read_summary(paths, files, events)
    has_winner = summary.winner is not None
    has_no_end = summary.status in (SweepStatus.UNFINISHED, SweepStatus.INTERRUPTED)
    written = files.read(paths.best / "scores.json", needed=summary.status is SweepStatus.COMPLETE)
    held = parse_record(BestScores, written)
    # Of an earlier run: its figures do not belong to the trials of this one.
    scores = held if has_winner else BestScores()
    verdict = None
    if scores.verdict:
        try:
            verdict = Verdict.from_dict(dict(scores.verdict))
        except UNREADABLE as error:
            files.problems.append(f"best/scores.json: its verdict cannot be read: {type(error).__name__}: {error}")
    return Outcome(
        status=summary.status,
        winner=(held.trial or summary.winner) if has_winner else None,
        earlier_winner=held.trial if not has_winner and has_no_end else None,
        verdict=verdict,
        scores=scores,
        first_failure=summary.first_failure,
        failure=_read_failure(events[-1]) if events else None,
        last_event_at=max((time for event in events if (time := parse_number(event.get("time")))), default=None),
        device_wait_share=summary.device_wait_share,
        is_held=is_running(paths),
        end_reason=summary.end_reason,
    )


def _read_failure(last_event: Mapping[str, Any]) -> str | None:
    is_failure = last_event.get("event") == "sweep_failed" and last_event.get("reason")
    return str(last_event["reason"]) if is_failure else None


def _read_summary(paths: SweepPaths, files: FolderFiles, events: list[dict[str, Any]]) -> Summary:
    """How the last run ended, by its file, or by its event where the file says something else; empty if it has not."""
    found, logged = files.read_record(paths.summary, Summary), find_summary(events)
    if logged is not None and found != logged:
        files.problems.append(
            f"{paths.summary.name} is not what {paths.events.name} says of the sweep's end. "
            f"Have it written again: {paths.rebuild_command}"
        )
        found = logged
    # Where there is one, it is of the run before.
    return Summary() if found is None or was_resumed_since(events) else found
