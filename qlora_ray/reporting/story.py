"""What happened in a sweep, read from its folder into types. No HTML, no guesses: what no file says is None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qlora_ray.errors import RunError
from qlora_ray.reporting.axes import Axis, read_axes
from qlora_ray.reporting.examples import Example, read_examples
from qlora_ray.reporting.folder_files import FolderFiles
from qlora_ray.reporting.importance import Front, Importance, read_front, read_importance
from qlora_ray.reporting.merges import read_merges
from qlora_ray.reporting.outcome import Outcome, read_outcome
from qlora_ray.reporting.timeline import Timeline, read_timeline
from qlora_ray.reporting.trials import Trial, read_trials
from qlora_ray.runs import SweepPaths, read_events
from qlora_ray.runs.record_parts import PlacementRecord
from qlora_ray.runs.records import Manifest, TrialRecord, TrialStatus
from qlora_ray.runs.score_records import EvaluationRecord, MergeRecord
from qlora_ray.runs.typed_json import parse_record


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
    files = FolderFiles()
    manifest = files.read_record(paths.manifest, Manifest, needed=True) or Manifest()
    trials, problems = read_trials(paths)
    events = read_events(paths.events)
    if not events:
        files.problems.append(f"{paths.events.name} is missing or empty: no slots can be shown")
    outcome = read_outcome(paths, files, events)
    space = manifest.searched
    winner_record = None
    if outcome.winner:
        winner_record = files.read_record(paths.best / "record.json", TrialRecord) or files.read_record(
            paths.trial(outcome.winner).record, TrialRecord
        )
    evaluation = files.read(paths.root / "evaluation" / "evaluation.json")
    merges = read_merges(paths, files)
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
        examples=read_examples(paths, outcome.winner) if outcome.winner else (),
        problems=tuple(files.problems + problems),
    )


def _end_cut_off(trial: Trial) -> Trial:
    """A trial of a sweep that no process holds: what was running was cut off, as a resume will find."""
    if trial.state is not TrialStatus.RUNNING:
        return trial
    return replace(trial, state=TrialStatus.INTERRUPTED, cause="the sweep was stopped")


def _read_front(paths: SweepPaths, manifest: Manifest) -> Front | None:
    objectives = manifest.objectives
    return read_front(paths.study, (objectives[0], objectives[1])) if len(objectives) == 2 else None


def _planned_slots(manifest: Manifest) -> int:
    """Slots of an executor by the plan: the least of all its kinds of device, 1 if there is no plan."""
    return min(map(_executor_slots, manifest.plan.placements), default=1)


def _executor_slots(placement: PlacementRecord) -> int:
    """As `hardware.plan.Placement` counts them: slots are shared out among packs, or are one to a process."""
    if placement.engine != "packed":
        return 1
    return max(1, (placement.slots_per_device or 1) // (placement.packs_per_device or 1))
