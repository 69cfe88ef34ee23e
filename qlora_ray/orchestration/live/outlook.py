"""The time left of a whole sweep: search, scoring and report, from what has been measured so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qlora_ray.config.schema import Search
from qlora_ray.orchestration.live.eta import Load, estimate_search_s
from qlora_ray.orchestration.live.scoring_meter import ScoringMeter, ScoringWork
from qlora_ray.orchestration.live.speed import Speed, SpeedMeter, TrialPlace
from qlora_ray.orchestration.live.survival import Survival, estimate_survival, expect_stops
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs.live import LiveExecutor, LivePhase, LiveTrial
from qlora_ray.runs.records import TrialStatus

# Writing best/, the summary and the report; measured on the quickstart.
REPORT_S = 3.0
# A training step goes forward once and backward twice as long; a loss goes forward only.
PASSES_OF_TRAINING = 3.0
# Draws of where trials are stopped, where there are so few slots that the last trials count for much.
NUM_DRAWS, MAX_DRAWN_SLOTS = 5, 32
# States of an executor that trains.
TRAINING = ("ready", "draining")
# Ends before the end of a trial's budget.
STOPPED = (TrialStatus.PRUNED, TrialStatus.FAILED)
ENDED_WITHOUT_LOSS = (*STOPPED, TrialStatus.INTERRUPTED)


@dataclass(frozen=True)
class RowCounts:
    """Rows that training and scoring go through.

    Attributes:
        trained: Samples of a whole trial.
        verdict: Those that winner and base are compared on.
        answered: Those of them that are answered.
    """

    trained: int
    validation: int
    verdict: int
    answered: int


@dataclass(frozen=True)
class TimeLeft:
    """Seconds; None where nothing can be said yet."""

    search_s: float | None
    scoring_s: float | None
    total_s: float | None


@dataclass(frozen=True)
class Scene:
    """What a sweep is at at one moment.

    Attributes:
        now: Monotonic seconds.
        entries: The ledger's trials, by number.
        trials: Those that have not ended, by id.
        scoring: What each executor scores right now, see ScoringProgress.to_dict.
        is_finishing: Whether no more trials begin, nor any with new seeds.
    """

    now: float
    phase: LivePhase
    num_planned: int
    entries: Mapping[int, TrialEntry]
    trials: Mapping[str, LiveTrial]
    executors: Sequence[LiveExecutor]
    scoring: Mapping[int, Mapping[str, object]]
    is_finishing: bool = False


class Outlook:
    """Estimates the time left, look by look.

    Args:
        search: Has the scheduler and its reports.
        top_k: Trials that are scored again.
        rows: What they are scored on.
        budget_left: Returns the seconds until the search's budget is spent; None where it has none.
    """

    def __init__(
        self,
        search: Search,
        *,
        top_k: int,
        rows: RowCounts,
        budget_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._budget_left = budget_left
        self._search = search
        self._top_k = top_k
        self._rows = rows
        self._prior = expect_stops(search)
        # Where the best have new seeds, only the trials with these are scored.
        self._num_finalists = min(top_k, search.num_trials) * (search.final_seeds or 1)
        self._speeds = SpeedMeter()
        self.scoring = ScoringMeter()

    @property
    def work(self) -> ScoringWork:
        """The rows of the whole scoring."""
        return ScoringWork.count(
            num_finalists=self._num_finalists,
            num_validation=self._rows.validation,
            num_verdict=self._rows.verdict,
            num_answered=self._rows.answered,
        )

    def look(self, scene: Scene) -> TimeLeft:
        """The time left at this moment; called every few seconds, since speeds are measured in between."""
        entries = list(scene.entries.values())
        self._measure(scene, entries)
        search_s = self._search_s(scene, entries) if scene.phase in (LivePhase.STARTING, LivePhase.SEARCH) else 0.0
        if scene.phase is LivePhase.SCORING:
            # A scheduler may leave fewer complete trials than are to be scored.
            self._count_finalists([entry for entry in entries if entry.state is TrialStatus.COMPLETE])
        elif scene.is_finishing:
            self._count_finalists([entry for entry in entries if entry.state not in ENDED_WITHOUT_LOSS])
        scoring_s: float | None = 0.0
        if scene.phase in (LivePhase.STARTING, LivePhase.SEARCH, LivePhase.SCORING):
            ready = sum(executor.state == "ready" for executor in scene.executors)
            scoring_s = self.scoring.estimate_s(
                self.work, loss_rows_per_s=self._loss_rows_per_s(entries), num_executors=ready
            )
        if search_s is None or scoring_s is None:
            return TimeLeft(search_s, scoring_s, None)
        report_s = 0.0 if scene.phase is LivePhase.ENDED else REPORT_S
        return TimeLeft(search_s, scoring_s, search_s + scoring_s + report_s)

    def _count_finalists(self, entries: Sequence[TrialEntry]) -> None:
        """Notes how many of these are scored, where no others will come to their ends."""
        num_seeds = sum(entry.seed_of is not None for entry in entries)
        self._num_finalists = num_seeds or min(self._top_k, len(entries))

    def _measure(self, scene: Scene, entries: Sequence[TrialEntry]) -> None:
        resumed = {entry.id for entry in entries if entry.resumed_from is not None or entry.clone_of is not None}
        places = {
            trial_id: TrialPlace(trial.executor, _share_of(trial), is_fresh=trial_id not in resumed)
            for trial_id, trial in scene.trials.items()
            if trial.executor is not None and trial.num_steps
        }
        ended = {entry.id: self._reported_share(entry) for entry in entries if entry.closed_at is not None}
        self._speeds.look(places, ended=ended, now=scene.now, is_queued=_num_to_come(scene) > 0)
        self.scoring.look(scene.scoring, now=scene.now)

    def _search_s(self, scene: Scene, entries: Sequence[TrialEntry]) -> float | None:
        """The mean over a few draws of where trials are stopped: the last ones to end decide, and are few."""
        speeds = {executor.executor: self._speeds.speed_of(executor.executor) for executor in scene.executors}
        num_slots = sum(executor.slots for executor in scene.executors)
        num_draws = NUM_DRAWS if num_slots <= MAX_DRAWN_SLOTS else 1
        survival = self._survival(entries)
        drawn = [self._draw_s(scene, survival, speeds, shift=at / num_draws) for at in range(num_draws)]
        known = [seconds for seconds in drawn if seconds is not None]
        left_s = self._budget_left()
        if not known or left_s is None:
            return sum(known) / len(known) if known else None
        return min(sum(known) / len(known), left_s + self._last_s(entries, speeds))

    def _last_s(self, entries: Sequence[TrialEntry], speeds: Mapping[int, Speed | None]) -> float:
        """How long trials still run, at most, when the budget is spent: to their next report, or one to its end."""
        is_any_complete = any(entry.state is TrialStatus.COMPLETE for entry in entries)
        share = 1 / self._search.num_reports if is_any_complete else 1.0
        paces = [speed.trials_per_s / speed.trials_at_once for speed in speeds.values() if speed is not None]
        return share / min(paces) if paces else 0.0

    def _draw_s(
        self, scene: Scene, survival: Survival, speeds: Mapping[int, Speed | None], *, shift: float
    ) -> float | None:
        are_seeds = any(entry.seed_of is not None for entry in scene.entries.values())
        by_id = {entry.id: entry for entry in scene.entries.values()}
        left: dict[int | None, list[float]] = {}
        for trial_id, trial in scene.trials.items():
            share = self._share_left(by_id[trial_id], trial, survival, shift=shift)
            left.setdefault(trial.executor, []).append(share)
        loads = []
        for executor in scene.executors:
            speed = speeds[executor.executor]
            if executor.state in TRAINING and executor.slots:
                if speed is None:
                    return None
                loads.append(Load(speed, executor.slots, tuple(left.pop(executor.executor, ()))))
        next_number = max(scene.entries, default=-1) + 1
        coming = [
            1.0 if are_seeds else survival.final_share(next_number + at, shift=shift)
            for at in range(_num_to_come(scene))
        ]
        search_s = estimate_search_s(loads, [*(share for shares in left.values() for share in shares), *coming])
        if search_s is None or are_seeds or scene.is_finishing or not self._search.final_seeds:
            return search_s
        # They begin when the last trial of the search has ended.
        num_seeds = self._search.final_seeds * min(self._top_k, self._search.num_trials)
        empty = [Load(load.speed, load.slots) for load in loads]
        return search_s + (estimate_search_s(empty, [1.0] * num_seeds) or 0.0)

    def _loss_rows_per_s(self, entries: Sequence[TrialEntry]) -> float | None:
        """Rows per second whose loss one executor measures, as at the reports; before the first, by its training."""
        times = [seconds for entry in entries if (seconds := entry.metrics.get("eval_s"))]
        if times:
            return self._rows.validation * len(times) / sum(times)
        speed = self._speeds.mean_speed()
        return None if speed is None else PASSES_OF_TRAINING * speed.trials_per_s * self._rows.trained

    def _survival(self, entries: Sequence[TrialEntry]) -> Survival:
        searched = [entry for entry in entries if entry.seed_of is None and entry.state is not TrialStatus.INTERRUPTED]
        return estimate_survival(
            [(_num_reports(entry), entry.state in STOPPED) for entry in searched if entry.closed_at is not None],
            [_num_reports(entry) for entry in searched if entry.closed_at is None],
            prior_stops=self._prior,
        )

    def _share_left(self, entry: TrialEntry, trial: LiveTrial, survival: Survival, *, shift: float) -> float:
        share = _share_of(trial) if trial.num_steps else self._reported_share(entry)
        if entry.seed_of is not None:
            return max(0.0, 1.0 - share)
        return max(0.0, survival.final_share(entry.number, num_made=_num_reports(entry), shift=shift) - share)

    def _reported_share(self, entry: TrialEntry) -> float:
        return _num_reports(entry) / self._search.num_reports


def _share_of(trial: LiveTrial) -> float:
    return trial.step / trial.num_steps


def _num_reports(entry: TrialEntry) -> int:
    return max(entry.intermediate.copy(), default=0)


def _num_to_come(scene: Scene) -> int:
    num_begun = sum(entry.state is not TrialStatus.INTERRUPTED for entry in scene.entries.values())
    return max(0, scene.num_planned - num_begun)
