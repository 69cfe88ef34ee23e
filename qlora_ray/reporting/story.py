"""What happened in a sweep, read from its folder into types. No HTML, no guesses: what no file says is None."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from qlora_ray.errors import RunError
from qlora_ray.reporting.axes import Axis, read_axes
from qlora_ray.reporting.importance import Front, Importance, read_front, read_importance
from qlora_ray.reporting.score_records import BestScores, EvaluationRecord, MergeRecord
from qlora_ray.reporting.timeline import Timeline, read_timeline
from qlora_ray.reporting.trials import Trial, read_trials
from qlora_ray.runs import SweepPaths, read_events, read_json
from qlora_ray.runs.files import read_lines
from qlora_ray.runs.paths import MERGE_REPORT
from qlora_ray.runs.record_parts import PlacementRecord
from qlora_ray.runs.records import AnyRecord, Manifest, Summary, SweepStatus, TrialRecord, TrialStatus, read_record
from qlora_ray.runs.typed_json import parse_number, parse_record
from qlora_ray.scoring.verdict import Verdict

Found = TypeVar("Found")

POINTS_KEY = "points_to_evaluate"
# Where a bundle has its merged model.
MERGED = "merged"
# What best/answers.jsonl calls the base.
BASE = "base"
NUM_EXAMPLES = 8
# Where export puts merged models in the sweep's own folder: beside its other files, or in a bundle one level below.
MERGE_REPORTS = (MERGE_REPORT, f"*/{MERGE_REPORT}", f"*/*/{MERGE_REPORT}")


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


@dataclass(frozen=True)
class Example:
    """One row's answers: what was expected, and what base and winner said."""

    row: int
    expected: str
    base: str
    winner: str


@dataclass(frozen=True)
class Story:
    """A sweep, ready to be told.

    Attributes:
        outcome: How it ended, or that it has not.
        front: The Pareto front, where two objectives were searched for.
        manifest: Config, plan, data, versions; an empty one where manifest.json cannot be read.
        winner_record: best/record.json, or the winner's own.
        evaluation: evaluation/evaluation.json; None if the winner was not evaluated.
        merges: merge_report.json by its folder, also of bundles elsewhere as far as exports.jsonl knows them.
        examples: The first rows that base and winner answered.
        problems: Files that are missing or cannot be read, in words.
    """

    name: str
    root: Path
    outcome: Outcome
    trials: tuple[Trial, ...]
    axes: tuple[Axis, ...]
    timeline: Timeline | None
    importance: Importance
    manifest: Manifest
    front: Front | None = None
    winner_record: TrialRecord | None = None
    evaluation: EvaluationRecord | None = None
    merges: Mapping[str, MergeRecord] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def winner(self) -> Trial | None:
        """The winning trial."""
        return next((trial for trial in self.trials if trial.id == self.outcome.winner), None)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state, as far as there are any."""
        states = [trial.state for trial in self.trials]
        return {state: states.count(state) for state in TrialStatus if state in states}

    @property
    def resumable(self) -> tuple[Trial, ...]:
        """Interrupted trials that no later one goes on with."""
        taken_up = {trial.resumed_from for trial in self.trials}
        return tuple(
            trial for trial in self.trials if trial.state is TrialStatus.INTERRUPTED and trial.id not in taken_up
        )


def read_story(paths: SweepPaths) -> Story:
    """Reads a sweep's folder, finished or not.

    Raises:
        RunError: If it is no sweep's folder.
    """
    if not paths.root.is_dir():
        raise RunError(f"{paths.root}: no such folder. Name a sweep's folder, e.g. results/quickstart.")
    if not paths.manifest.exists() and not paths.study.exists():
        raise RunError(f"{paths.root}: a sweep's folder has manifest.json, got none. Name a folder that a sweep wrote.")
    files = _Files()
    manifest = files.read_record(paths.manifest, Manifest, needed=True) or Manifest()
    trials, problems = read_trials(paths)
    events = [event for event in read_events(paths.events) if isinstance(event, dict)]
    if not events:
        files.problems.append(f"{paths.events.name} is missing or empty: no slots can be shown")
    outcome = _read_outcome(paths, files, events)
    space = {path: words for path, words in manifest.space.items() if path != POINTS_KEY}
    winner_record = None
    if outcome.winner:
        winner_record = files.read_record(paths.best / "record.json", TrialRecord) or files.read_record(
            paths.trial(outcome.winner).record, TrialRecord
        )
    evaluation = files.read(paths.root / "evaluation" / "evaluation.json")
    merges = {
        str(path.parent.relative_to(paths.root)): report
        for pattern in MERGE_REPORTS
        for path in sorted(paths.root.glob(pattern))
        # A bundle that is being written, or was left by a killed export, is hidden.
        if not any(part.startswith(".") for part in path.relative_to(paths.root).parts)
        # A copy in NF4 has its merged model's report.
        and (report := files.read(path))
        and path.parent.name != report.get("nf4_copy")
    } | read_merges(paths)
    return Story(
        name=paths.root.resolve().name,
        root=paths.root,
        outcome=outcome,
        trials=tuple(trials if outcome.is_held else map(_end_cut_off, trials)),
        axes=read_axes(space, [trial.params for trial in trials]),
        timeline=read_timeline(events, trials, num_slots=_planned_slots(manifest)),
        importance=read_importance(paths.study),
        front=_read_front(paths, manifest),
        manifest=manifest,
        winner_record=winner_record,
        evaluation=parse_record(EvaluationRecord, evaluation) if evaluation else None,
        merges={name: parse_record(MergeRecord, merge) for name, merge in merges.items()},
        examples=_read_examples(paths, outcome.winner) if outcome.winner else (),
        problems=tuple(files.problems + problems),
    )


@dataclass(frozen=True)
class _Export:
    """A line of exports.jsonl, as far as a report needs it."""

    to: str | None = None
    trial: str | None = None
    time: str | None = None
    merge: Mapping[str, Any] = field(default_factory=dict)


class _Files:
    """Reads JSON objects, and keeps in words what could not be read."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, path: Path, *, needed: bool = False) -> Mapping[str, Any]:
        """The object in a file; an empty one if it is missing or broken."""
        found = self._try(lambda: read_json(path), path, needed=needed)
        if found is None:
            return {}
        if not isinstance(found, dict):
            self.problems.append(f"{path}: must be a JSON object, got {type(found).__name__}.")
            return {}
        return found

    def read_record(self, path: Path, kind: type[AnyRecord], *, needed: bool = False) -> AnyRecord | None:
        """The record in a file; None if it is missing or broken."""
        return self._try(lambda: read_record(path, kind), path, needed=needed)

    def _try(self, read: Callable[[], Found], path: Path, *, needed: bool) -> Found | None:
        if not path.exists():
            if needed:
                self.problems.append(f"{path.name} is missing")
            return None
        try:
            return read()
        except RunError as error:
            self.problems.append(str(error))
            return None


def _read_outcome(paths: SweepPaths, files: _Files, events: list[dict[str, Any]]) -> Outcome:
    summary = files.read_record(paths.summary, Summary)
    if summary is None or _was_resumed_since(paths.summary, events):
        # Where there is one, it is of the run before.
        summary = Summary()
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
        except (KeyError, TypeError, ValueError) as error:
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
        is_held=paths.is_held(),
    )


def _read_failure(last_event: Mapping[str, Any]) -> str | None:
    is_failure = last_event.get("event") == "sweep_failed" and last_event.get("reason")
    return str(last_event["reason"]) if is_failure else None


def _end_cut_off(trial: Trial) -> Trial:
    """A trial of a sweep that no process holds: what was running was cut off, as a resume will find."""
    if trial.state is not TrialStatus.RUNNING:
        return trial
    return replace(trial, state=TrialStatus.INTERRUPTED, cause="the sweep was stopped")


def _read_front(paths: SweepPaths, manifest: Manifest) -> Front | None:
    objectives = list(manifest.setting("search", "objectives") or ())
    return read_front(paths.study, (str(objectives[0]), str(objectives[1]))) if len(objectives) == 2 else None


def _planned_slots(manifest: Manifest) -> int:
    """Slots of an executor by the plan: the least of all its kinds of device, 1 if there is no plan."""
    return min(map(_executor_slots, manifest.plan.placements), default=1)


def _executor_slots(placement: PlacementRecord) -> int:
    """As `hardware.plan.Placement` counts them: slots are shared out among packs, or are one to a process."""
    if placement.engine != "packed":
        return 1
    return max(1, (placement.slots_per_device or 1) // (placement.packs_per_device or 1))


def _read_examples(paths: SweepPaths, winner: str) -> tuple[Example, ...]:
    """Pairs the base's and the winner's answers by row."""
    answers: dict[str, dict[int, Mapping[str, Any]]] = {BASE: {}, winner: {}}
    for line in read_lines(paths.best / "answers.jsonl"):
        if isinstance(line, dict) and line.get("model") in answers and isinstance(line.get("row"), int):
            answers[line["model"]][line["row"]] = line
    both = sorted(answers[BASE].keys() & answers[winner].keys())[:NUM_EXAMPLES]
    return tuple(
        Example(
            row,
            str(answers[winner][row].get("reference") or ""),
            str(answers[BASE][row].get("answer") or ""),
            str(answers[winner][row].get("answer") or ""),
        )
        for row in both
    )


def _was_resumed_since(summary: Path, events: list[dict[str, Any]]) -> bool:
    """Whether the sweep was resumed after its summary was written, and has not ended again."""
    names = [event.get("event") for event in events]
    if "sweep_resumed" not in names or not summary.exists():
        return False
    last = len(names) - 1 - names[::-1].index("sweep_resumed")
    return "sweep_ended" not in names[last:] and summary.stat().st_mtime < (
        parse_number(events[last].get("time")) or 0.0
    )


def read_merges(paths: SweepPaths) -> dict[str, Mapping[str, Any]]:
    """The merge reports of bundles that are not right in the sweep's folder, of each the last, by what to call them.

    They are as they were when the bundle was made: it may have been moved since. Its path stays out, because reports
    are given to others.
    """
    latest: dict[str, _Export] = {}
    for line in read_lines(paths.exports):
        export = parse_record(_Export, line) if isinstance(line, dict) else _Export()
        if export.to is not None:
            # Taken out first, so that the order is that of the last exports.
            latest.pop(export.to, None)
            latest[export.to] = export
    merges: dict[str, Mapping[str, Any]] = {}
    root = paths.root.resolve()
    for to, export in latest.items():
        # One right in the sweep's folder is found by its own files.
        is_here = Path(to).resolve().parent == root or _has_moved_along(Path(to), root, export.merge)
        if not export.merge or is_here:
            continue
        name = f"{Path(to).name}/{MERGED}, of trial {export.trial or 'unknown'}"
        merges[name if name not in merges else f"{name}, {export.time or to}"] = export.merge
    return merges


def _has_moved_along(to: Path, root: Path, report: Mapping[str, Any]) -> bool:
    """Whether the bundle is right in the sweep's folder after all, which was moved or copied with it."""
    try:
        return bool(read_json(root / to.name / MERGED / MERGE_REPORT) == report)
    except RunError:
        return False
