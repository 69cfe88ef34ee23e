"""The time left of a search, against schedules that are known: by hand, and simulated with stops and noise."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from qlora_ray.config.schema import Search
from qlora_ray.orchestration.live.eta import Load, estimate_search_s
from qlora_ray.orchestration.live.outlook import Outlook, RowCounts, Scene
from qlora_ray.orchestration.live.speed import SHARING_POWER, Speed, SpeedMeter, TrialPlace
from qlora_ray.orchestration.live.survival import PRIOR_TRIALS, Survival, estimate_survival, expect_stops
from qlora_ray.orchestration.trial_entry import TrialEntry
from qlora_ray.runs.live import LiveExecutor, LivePhase, LiveTrial
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.runs.records import TrialStatus

LOOK_S = 2.0
NUM_SCHEDULES = 8
ALONE = Speed(trials_per_s=0.1, trials_at_once=1)


def test_one_trial_after_the_other_takes_the_sum_of_what_is_left() -> None:
    assert estimate_search_s([Load(ALONE, 1, (0.5,))], [1.0, 1.0]) == pytest.approx(25.0)


def test_trials_on_two_executors_take_as_long_as_the_longer_queue() -> None:
    assert estimate_search_s([Load(ALONE, 1), Load(ALONE, 1)], [1.0, 1.0, 1.0]) == pytest.approx(20.0)


def test_trials_that_share_an_executor_are_faster_once_some_have_ended() -> None:
    speed = Speed(trials_per_s=0.2, trials_at_once=2)
    together_s = estimate_search_s([Load(speed, 2, (1.0, 0.5))], [])
    # Both take 0.5 of a trial at 0.1 each, then one alone is left with 0.5.
    assert together_s == pytest.approx(5.0 + 0.5 / (0.2 * 0.5**SHARING_POWER))


def test_without_a_slot_nothing_can_be_said_unless_nothing_is_left() -> None:
    assert estimate_search_s([], [1.0]) is None
    assert estimate_search_s([], []) == 0.0


def test_a_long_queue_costs_its_sum() -> None:
    loads = [Load(ALONE, 1) for _ in range(10)]
    assert estimate_search_s(loads, [1.0] * 5000) == pytest.approx(5000.0, rel=0.01)


def test_running_trials_count_for_the_reports_that_they_have_passed() -> None:
    # Four came to the first report, and one of them was stopped there; none was stopped by the scheduler's own rule.
    survival = estimate_survival([(1, True), (4, False)], [1, 2], prior_stops=[0.0, 0.0, 0.0])
    assert survival.goes_on == pytest.approx((1 - 1 / (4 + PRIOR_TRIALS), 1.0, 1.0))


def test_ends_are_spread_as_the_chances_say_and_never_before_a_report_that_was_passed() -> None:
    survival = Survival((0.5, 1.0, 0.5))
    ends = [survival.final_share(number) for number in range(400)]
    assert {end: ends.count(end) / 400 for end in sorted(set(ends))} == {
        0.25: pytest.approx(0.5, abs=0.02),
        0.75: pytest.approx(0.25, abs=0.02),
        1.0: pytest.approx(0.25, abs=0.02),
    }
    assert {survival.final_share(number, num_made=3) for number in range(50)} == {1.0}


@pytest.mark.parametrize(
    ("scheduler", "stops_at"), [("none", []), ("asha", [1, 2, 4]), ("median", [1, 2, 3, 4, 5, 6, 7])]
)
def test_stops_are_expected_where_the_scheduler_makes_them(scheduler: str, stops_at: list[int]) -> None:
    search = Search(scheduler=scheduler, num_reports=8, reduction_factor=2, grace_reports=1)
    chances = expect_stops(search)
    assert len(chances) == 7
    assert [index for index, chance in enumerate(chances, start=1) if chance] == stops_at


def test_the_meter_counts_what_a_trial_did_between_looks_and_after_the_last_one() -> None:
    meter = SpeedMeter()
    meter.look({}, ended={}, now=0.0, is_queued=True)
    meter.look({"0000": TrialPlace(0, 0.1)}, ended={}, now=1.0, is_queued=True)
    meter.look({"0000": TrialPlace(0, 0.3)}, ended={}, now=3.0, is_queued=True)
    # It ended at its report, and the next one has begun since.
    meter.look({"0001": TrialPlace(0, 0.05)}, ended={"0000": 0.4}, now=5.0, is_queued=True)
    speed = meter.speed_of(0)
    assert speed is not None
    assert speed.trials_per_s == pytest.approx(0.45 / 4.0, rel=0.01)
    assert speed.trials_at_once == pytest.approx(1.0)
    # One that has trained nothing yet is taken to be like the others.
    assert meter.speed_of(7) == speed


def test_a_device_that_becomes_slower_is_noticed_within_a_trial() -> None:
    meter = SpeedMeter()
    share, now = 0.0, 0.0
    for pace in (*[0.01] * 100, *[0.002] * 400):
        now, share = now + 1.0, share + pace
        meter.look({"0000": TrialPlace(0, share)}, ended={}, now=now, is_queued=True)
    speed = meter.speed_of(0)
    assert speed is not None and speed.trials_per_s < 0.0035


def test_a_resumed_trial_counts_from_where_it_went_on() -> None:
    meter = SpeedMeter()
    meter.look({"0000": TrialPlace(0, 0.5, is_fresh=False)}, ended={}, now=0.0, is_queued=False)
    assert meter.speed_of(0) is None
    meter.look({"0000": TrialPlace(0, 0.6, is_fresh=False)}, ended={}, now=1.0, is_queued=False)
    speed = meter.speed_of(0)
    assert speed is not None and speed.trials_per_s == pytest.approx(0.1, rel=0.01)


@dataclass
class _Trial:
    entry: TrialEntry
    end: float
    executor: int | None = None
    share: float = 0.0


@dataclass
class Schedule:
    """A search as it might run: packed executors of different speeds, stops at reports, noise in every step.

    Attributes:
        rates: Whole trials per second of each executor with one trial.
        power: Twice as many trials at once get this power of 2 times as much done.
    """

    seed: int
    num_trials: int = 32
    slots: int = 4
    rates: tuple[float, ...] = (0.03, 0.02)
    power: float = 0.3
    num_reports: int = 4
    num_steps: int = 300
    now: float = 0.0
    trials: list[_Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self.search = Search(
            num_trials=self.num_trials, num_reports=self.num_reports, scheduler="asha", reduction_factor=2
        )

    def scene(self) -> Scene:
        """What the driver knows of it now."""
        running = [trial for trial in self.trials if trial.entry.closed_at is None]
        return Scene(
            now=self.now,
            phase=LivePhase.SEARCH,
            num_planned=self.num_trials,
            entries={trial.entry.number: trial.entry for trial in self.trials},
            trials={
                trial.entry.id: LiveTrial(
                    step=int(trial.share * self.num_steps), num_steps=self.num_steps, executor=trial.executor
                )
                for trial in running
            },
            executors=[
                LiveExecutor(executor=number, state="ready", slots=self.slots) for number in range(len(self.rates))
            ],
            scoring={},
        )

    def advance(self) -> bool:
        """Two seconds more; whether anything is left."""
        self.now += LOOK_S
        running = [trial for trial in self.trials if trial.entry.closed_at is None]
        for number, rate in enumerate(self.rates):
            here = [trial for trial in running if trial.executor == number]
            while len(here) < self.slots and len(self.trials) < self.num_trials:
                entry = TrialEntry(len(self.trials), {}, self.now)
                trial = _Trial(entry, self._draw_end(), number)
                self.trials.append(trial)
                here.append(trial)
            for trial in here:
                pace = rate * len(here) ** self.power / len(here)
                self._train(trial, pace * LOOK_S * self._random.uniform(0.7, 1.3))
        return any(trial.entry.closed_at is None for trial in self.trials) or len(self.trials) < self.num_trials

    def _draw_end(self) -> float:
        for index in (1, 2):
            if self._random.random() < 0.4:
                return index / self.num_reports
        return 1.0

    def _train(self, trial: _Trial, share: float) -> None:
        trial.share = min(trial.end, trial.share + share)
        entry = trial.entry
        for index in range(1, int(trial.share * self.num_reports + 1e-9) + 1):
            entry.intermediate.setdefault(index, 1.0)
        entry.metrics = {"eval_s": 1.0} if entry.intermediate else {}
        if trial.share >= trial.end:
            entry.closed_at = self.now
            entry.state = TrialStatus.COMPLETE if trial.end == 1.0 else TrialStatus.PRUNED


def watch(schedule: Schedule) -> list[tuple[float, float | None]]:
    """When, and what was then said to be left of the search, to its end."""
    outlook = Outlook(schedule.search, top_k=3, rows=RowCounts(trained=600, validation=10, verdict=10, answered=0))
    said = []
    while schedule.advance():
        said.append((schedule.now, outlook.look(schedule.scene()).search_s))
    return said


@pytest.mark.parametrize("power", [0.1, 0.3, 0.6])
def test_from_a_third_of_the_search_on_the_time_it_takes_is_foretold_within_a_quarter(power: float) -> None:
    num_right, errors = 0, []
    for seed in range(NUM_SCHEDULES):
        schedule = Schedule(seed, power=power)
        said = [(now, left_s) for now, left_s in watch(schedule) if now >= schedule.now / 3]
        # The whole time that was foretold, against the one that it took.
        here = [abs(now + left_s - schedule.now) / schedule.now for now, left_s in said if left_s is not None]
        assert len(here) == len(said)
        num_right += max(here) < 0.25
        errors += here
    # At every look of it. Which trials are stopped last nobody knows, so that some schedules end sooner than any rule
    # could say.
    assert num_right >= 0.75 * NUM_SCHEDULES
    assert sum(errors) / len(errors) < 0.12


def test_before_a_step_is_taken_nothing_is_said() -> None:
    outlook = Outlook(Search(), top_k=3, rows=RowCounts(trained=600, validation=10, verdict=10, answered=10))
    executors = [LiveExecutor(executor=0, state="ready", slots=1)]
    entry = TrialEntry(0, {}, 0.0)
    scene = Scene(0.0, LivePhase.SEARCH, 4, {0: entry}, {trial_id_of(0): LiveTrial(executor=0)}, executors, {})
    left = outlook.look(scene)
    assert (left.search_s, left.scoring_s, left.total_s) == (None, None, None)


def test_before_the_first_report_scoring_is_foretold_from_the_training() -> None:
    outlook = Outlook(Search(), top_k=3, rows=RowCounts(trained=600, validation=10, verdict=10, answered=0))
    executors = [LiveExecutor(executor=0, state="ready", slots=1)]
    entries = {0: TrialEntry(0, {}, 0.0)}
    for now, step in ((0.0, 0), (10.0, 100)):
        trials = {trial_id_of(0): LiveTrial(step=step, num_steps=200, executor=0)}
        left = outlook.look(Scene(now, LivePhase.SEARCH, 4, entries, trials, executors, {}))
    # 600 samples in 20 s, and a forward pass is a third of a step: 3 x 10 rows, and 2 x 10 of the verdict.
    assert left.scoring_s == pytest.approx(50 / (3 * 600 / 20), rel=0.01)
    assert left.search_s is not None and left.total_s is not None


@pytest.mark.parametrize(
    ("budget_s", "has_complete", "search_s"), [(5.0, False, 25.0), (5.0, True, 10.0), (9e9, True, None)]
)
def test_a_search_with_a_budget_ends_with_it_and_the_reports_that_are_under_way(
    budget_s: float, has_complete: bool, search_s: float | None
) -> None:
    rows = RowCounts(trained=600, validation=10, verdict=10, answered=0)
    outlooks = [
        Outlook(Search(scheduler="none"), top_k=3, rows=rows, **limit)
        for limit in ({}, {"budget_left": lambda: budget_s})
    ]
    executors = [LiveExecutor(executor=0, state="ready", slots=1)]
    entries = {1: TrialEntry(1, {}, 0.0)}
    if has_complete:
        entries[0] = TrialEntry(0, {}, 0.0, closed_at=0.0, state=TrialStatus.COMPLETE, intermediate={4: 1.0})
    for now, step in ((0.0, 0), (10.0, 100)):
        trials = {trial_id_of(1): LiveTrial(step=step, num_steps=200, executor=0)}
        scene = Scene(now, LivePhase.SEARCH, 9, entries, trials, executors, {})
        free, limited = (outlook.look(scene).search_s for outlook in outlooks)
    # A trial takes 20 s, and a report comes every 5 s: one more of them, or a whole trial where none is complete.
    assert limited == pytest.approx(free if search_s is None else search_s, rel=0.01)


@pytest.mark.parametrize(
    ("final_seeds", "seed_of", "planned", "known"),
    # Three are planned; one came to its end, or had two seeds.
    [(0, [None], 3, 1), (2, [None, None, 0, 0], 6, 2)],
)
def test_the_rows_to_score_are_those_of_the_trials_that_are_scored(
    final_seeds: int, seed_of: list[int | None], planned: int, known: int
) -> None:
    search = Search(final_seeds=final_seeds)
    outlook = Outlook(search, top_k=3, rows=RowCounts(trained=600, validation=10, verdict=7, answered=0))
    entries = {
        number: TrialEntry(number, {}, 0.0, closed_at=1.0, state=TrialStatus.COMPLETE, seed_of=seed)
        for number, seed in enumerate(seed_of)
    }
    entries[9] = TrialEntry(9, {}, 0.0, closed_at=1.0, state=TrialStatus.PRUNED)
    for phase, num_scored in ((LivePhase.SEARCH, planned), (LivePhase.SCORING, known)):
        outlook.look(Scene(0.0, phase, 4, entries, {}, [], {}))
        assert outlook.work.rows["loss"] == 10 * num_scored + 2 * 7


def test_a_search_that_is_to_finish_counts_no_trials_with_new_seeds() -> None:
    left, rows = [], []
    for final_seeds, is_finishing in ((0, False), (2, True), (2, False)):
        search = Search(final_seeds=final_seeds, scheduler="none", num_trials=2)
        outlook = Outlook(search, top_k=2, rows=RowCounts(trained=600, validation=10, verdict=7, answered=0))
        executors = [LiveExecutor(executor=0, state="ready", slots=1)]
        entries = {0: TrialEntry(0, {}, 0.0), 1: TrialEntry(1, {}, 0.0)}
        for now, step in ((0.0, 0), (10.0, 100)):
            trials = {trial_id_of(0): LiveTrial(step=step, num_steps=200, executor=0), trial_id_of(1): LiveTrial()}
            scene = Scene(now, LivePhase.SEARCH, 2, entries, trials, executors, {}, is_finishing=is_finishing)
            search_s = outlook.look(scene).search_s
        left.append(search_s)
        rows.append(outlook.work.rows["loss"])
    # Half of one trial and a whole one at 20 s each; then two seeds of both.
    assert left == [pytest.approx(30.0), pytest.approx(30.0), pytest.approx(110.0)]
    assert rows == [10 * 2 + 2 * 7, 10 * 2 + 2 * 7, 10 * 4 + 2 * 7]


def test_once_the_sweep_has_ended_nothing_is_left() -> None:
    outlook = Outlook(Search(), top_k=3, rows=RowCounts(trained=600, validation=10, verdict=10, answered=10))
    left = outlook.look(Scene(0.0, LivePhase.ENDED, 4, {}, {}, [], {}))
    assert (left.search_s, left.scoring_s, left.total_s) == (0.0, 0.0, 0.0)
