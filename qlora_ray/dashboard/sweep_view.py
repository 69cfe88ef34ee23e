"""One sweep as the page shows it: followed file by file, told as changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from qlora_ray.dashboard.following import TailedLines, WatchedFile
from qlora_ray.dashboard.model import AxisLine, Changes, Head, ImportanceBars
from qlora_ray.dashboard.others import OtherSweeps
from qlora_ray.dashboard.requests import AnsweredRequests
from qlora_ray.dashboard.slots import SlotTimes
from qlora_ray.dashboard.trial_book import TrialBook, best_of
from qlora_ray.errors import RunError
from qlora_ray.reporting.axes import Axis, read_axes
from qlora_ray.reporting.examples import Example, read_examples
from qlora_ray.reporting.folder_files import FolderFiles
from qlora_ray.reporting.importance import MIN_TRIALS, read_importance
from qlora_ray.reporting.outcome import Outcome, read_outcome
from qlora_ray.reporting.verdicts import headline_of, verdict_sentences
from qlora_ray.reporting.writing import PAGE_NAME
from qlora_ray.runs.control import CLONE_PATHS
from qlora_ray.runs.events import is_event
from qlora_ray.runs.live import LiveFigures, LivePhase, is_running, read_live
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.runs.records import Manifest, SweepStatus, TrialStatus, read_record

# Whether the sweep is held, and how it ended.
STANDING_EVERY_S = 1.0
OTHERS_EVERY_S = 5.0
IMPORTANCE_EVERY_S = 30.0
# It is told anew when so many more trials have ended: the work grows with them.
IMPORTANCE_GROWTH = 1.1


class SweepView:
    """Follows one sweep. `poll` and `whole` are called in turn, never at once.

    Args:
        paths: The sweep's folder, which need not be there yet.
        has_control: Whether its pages may ask something of the sweep.
    """

    def __init__(self, paths: SweepPaths, *, has_control: bool = False) -> None:
        self._paths = paths
        self._has_control = has_control
        self._requests = AnsweredRequests()
        self._events = TailedLines(paths.events)
        self._trials = TrialBook(paths)
        self._slots = SlotTimes()
        self._others = OtherSweeps(paths.root.resolve().parent, paths.root.resolve().name)
        self._watched = {
            path: WatchedFile(path) for path in (paths.live, paths.manifest, paths.summary, paths.best / "scores.json")
        }
        self._manifest = Manifest()
        self._axes: tuple[Axis, ...] = ()
        self._outcome: Outcome | None = None
        self._live: LiveFigures | None = None
        self._head: Head | None = None
        self._sent_slots: dict[str, int] = {}
        self._importance = ImportanceBars()
        self._new_importance: ImportanceBars | None = None
        self._importance_at: float | None = None
        self._importance_of = 0
        self._answers: tuple[Example, ...] = ()
        # Of the sweep's own events those that say how it stands, and the last one of all.
        self._milestones: list[dict[str, Any]] = []
        self._last_event: dict[str, Any] | None = None
        self._looked_at = self._others_at = 0.0
        self._is_first = True

    def poll(self) -> Changes:
        """What is new since the last call.

        Raises:
            FileReplaced: If the sweep's folder has become another one: begin again with a new view.
        """
        changes = Changes()
        self._read_manifest(changes)
        has_events = self._read_events()
        self._trials.read_files()
        if self._is_first:
            self._trials.read_unnamed()
            self._is_first = False
        if self._watched[self._paths.live].has_changed():
            changes.live = self._live = read_live(self._paths)
        has_looked = self._look(changes)
        changes.trials = self._trials.take_changed()
        changes.spans = self._slots.take_changed()
        if self._slots.num_slots != self._sent_slots:
            changes.slots = self._sent_slots = dict(self._slots.num_slots)
        if self._new_importance is not None:
            changes.importance = self._importance = self._new_importance
            self._new_importance = None
        changes.clock_s = self._clock()
        if has_events or has_looked or changes.trials or changes.live:
            head = self._make_head()
            if head != self._head:
                changes.head = self._head = head
        return changes

    def whole(self) -> Changes:
        """Everything as of the last `poll`, for a page that has just been opened."""
        return Changes(
            is_whole=True,
            clock_s=self._clock(),
            head=self._head,
            trials=self._trials.rows(),
            spans=self._slots.spans,
            slots=dict(self._slots.num_slots),
            live=self._live,
            axes=self._axis_lines(),
            importance=self._importance,
            answers=self._answers,
            others=self._others.last(),
        )

    def needs_importance(self) -> bool:
        """Whether `read_importance` would tell more than the last time, and it was long enough ago."""
        num_ended = self._num_ended()
        last = self._importance_at
        is_due = last is None or time.monotonic() - last >= IMPORTANCE_EVERY_S
        return is_due and num_ended >= max(MIN_TRIALS, IMPORTANCE_GROWTH * self._importance_of)

    def read_importance(self) -> None:
        """Has Optuna tell the importance; takes seconds for a thousand trials. May run beside the other methods."""
        num_ended = self._num_ended()
        try:
            found = read_importance(self._paths.study)
        finally:
            # What cannot be told now is not tried at every look.
            self._importance_at = time.monotonic()
        if found.shares:
            # A journal that cannot be read for a moment, or that says nothing yet, is read again.
            self._importance_of = num_ended
        self._new_importance = ImportanceBars(shares=found.shares, note=found.describe())

    def _num_ended(self) -> int:
        return 0 if self._head is None else sum(self._head.counts.get(state, 0) for state in ("complete", "pruned"))

    def _read_events(self) -> bool:
        is_new = False
        while events := self._events.read_new():
            is_new = True
            for event in events:
                self._apply(event)
        return is_new

    def _apply(self, event: Mapping[str, Any]) -> None:
        if not is_event(event):
            return
        self._trials.apply(event)
        self._slots.apply(event)
        self._requests.apply(event)
        self._last_event = dict(event)
        if str(event.get("event", "")).startswith("sweep_"):
            self._milestones.append(self._last_event)
            self._looked_at = 0.0

    def _read_manifest(self, changes: Changes) -> None:
        """The search space; a resume may have made it wider."""
        if not self._watched[self._paths.manifest].has_changed():
            return
        try:
            self._manifest = read_record(self._paths.manifest, Manifest)
        except RunError:
            return
        self._axes = read_axes(self._manifest.searched, [])
        self._trials.place_all(self._axes)
        changes.axes = self._axis_lines()

    def _look(self, changes: Changes) -> bool:
        """Whether the sweep is held and how it ended, and how the others stand; returns whether it was time to."""
        now = time.monotonic()
        has_looked = now - self._looked_at >= STANDING_EVERY_S
        if has_looked:
            self._looked_at = now
            is_held = is_running(self._paths)
            ends = [self._watched[path] for path in (self._paths.summary, self._paths.best / "scores.json")]
            has_changed = [watched.has_changed() for watched in ends]
            last = self._last_event
            if self._outcome is None or any(has_changed) or self._outcome.is_held is not is_held or self._is_open():
                heard = self._milestones + ([last] if last and last not in self._milestones[-1:] else [])
                self._outcome = read_outcome(self._paths, FolderFiles(), heard)
            self._trials.set_running(is_held)
            if is_held and self._live is not None and not self._paths.is_of_last_run(self._paths.live):
                # A resumed sweep that starts has no figures of its own yet.
                fresh = _figures_of_a_start(self._live)
                if fresh != self._live:
                    changes.live = self._live = fresh
            answers = self._read_answers()
            if answers != self._answers:
                changes.answers = self._answers = answers
        if now - self._others_at >= OTHERS_EVERY_S:
            self._others_at = now
            changes.others = self._others.look()
        return has_looked

    def _is_open(self) -> bool:
        return self._outcome is not None and self._outcome.status is SweepStatus.UNFINISHED

    def _read_answers(self) -> tuple[Example, ...]:
        winner = self._outcome.winner if self._outcome else None
        if winner is None:
            return ()
        # They are written with the winner, and never changed.
        return self._answers or read_examples(self._paths, winner)

    def _clock(self) -> float:
        is_held = self._outcome is not None and self._outcome.is_held
        # While a resumed sweep starts, the last event is of the run before, and the clock stands.
        has_begun = is_held and self._paths.is_of_last_run(self._paths.events)
        return self._slots.clock(time.time() if has_begun else None)

    def _make_head(self) -> Head:
        outcome = self._outcome
        assert outcome is not None
        rows = self._trials.rows()
        states = [row.state for row in rows]
        best = best_of(rows)
        headline, tone = headline_of(outcome)
        if not self._has_begun():
            headline, tone = "No sweep has begun here yet", ""
        objectives = self._manifest.setting("search", "objectives")
        objective, mode = next(iter(objectives.items())) if isinstance(objectives, dict) and objectives else ("", "")
        planned = self._manifest.setting("search", "num_trials")
        may_go_on = outcome.status in (SweepStatus.UNFINISHED, SweepStatus.INTERRUPTED) and not outcome.is_held
        live_planned = self._live.num_planned if self._live else None
        return Head(
            name=self._paths.root.resolve().name,
            folder=str(self._paths.root),
            phase=self._phase(outcome),
            headline=headline,
            dashboard_command=self._paths.dashboard_command,
            tone=tone,
            lead=(*verdict_sentences(outcome), *([outcome.failure] if outcome.failure else [])),
            objective=objective or "eval_loss",
            mode=mode or "min",
            counts={state: states.count(state) for state in TrialStatus if state in states},
            num_planned=live_planned or (planned if isinstance(planned, int) else None),
            best=best.id if best else None,
            best_loss=best.loss if best else None,
            is_best_complete=best is not None and best.state is TrialStatus.COMPLETE,
            winner=outcome.winner,
            started_at=self._milestones[0].get("time") if self._milestones else None,
            last_event_at=self._last_event.get("time") if self._last_event else None,
            resume_command=self._paths.resume_command if may_go_on and self._has_begun() else None,
            has_control=self._has_control,
            clone_space={path: words for path, words in self._manifest.space.items() if path in CLONE_PATHS},
            is_paused=self._requests.is_paused,
            is_finishing=self._requests.is_finishing,
            last_request=self._requests.last,
            report=PAGE_NAME if (self._paths.root / PAGE_NAME).is_file() else None,
        )

    def _has_begun(self) -> bool:
        return bool(self._milestones) or self._paths.manifest.is_file() or self._paths.study.is_file()

    def _phase(self, outcome: Outcome) -> str:
        if not self._has_begun():
            return "starting"
        if outcome.is_held:
            return str(self._live.phase) if self._live else "search" if self._milestones else "starting"
        return "killed" if outcome.status is SweepStatus.UNFINISHED else "ended"

    def _axis_lines(self) -> tuple[AxisLine, ...]:
        return tuple(AxisLine(path=axis.path, name=axis.name, ticks=tuple(axis.ticks())) for axis in self._axes)


def _figures_of_a_start(earlier: LiveFigures) -> LiveFigures:
    """What stays true of the figures of the run before while the next one starts."""
    return LiveFigures(
        time=earlier.time,
        num_planned=earlier.num_planned,
        gpu_hours=earlier.gpu_hours,
        device_kind=earlier.device_kind,
        phase=LivePhase.STARTING,
    )
