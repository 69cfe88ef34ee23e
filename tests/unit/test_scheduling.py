"""The schedulers' clock, and what a scheduler decides about trials in whose turn."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, TrialScheduler

from qlora_ray.config.schema import Search
from qlora_ray.orchestration.schedulers import make_scheduler
from qlora_ray.orchestration.scheduling import ScheduledTrial, Scheduling


def make_result(index: int, objective: float, *, done: bool = False) -> dict[str, Any]:
    """What the loop tells a scheduler; Tune's own iterations begin again at 1 where a trial has gone on elsewhere."""
    times = {"report_index": index, "training_iteration": 1, "time_total_s": 1.0}
    return {**times, "objective": objective, "done": done}


def start(scheduling: Scheduling, count: int) -> list[ScheduledTrial]:
    """So many running trials."""
    trials = [ScheduledTrial(number) for number in range(count)]
    for trial in trials:
        scheduling.add(trial)
        assert scheduling.choose() is trial
    return trials


@pytest.mark.parametrize(
    ("search", "losses"),
    [
        ({"scheduler": "asha", "reduction_factor": 2}, [0.1, 0.9]),
        ({"scheduler": "median"}, [0.1, 0.2, 0.3, 0.9]),
    ],
)
def test_a_weak_trial_is_stopped_by_the_number_of_its_report_and_not_of_tunes_iterations(
    search: dict[str, Any], losses: list[float]
) -> None:
    settings = Search.model_validate({"num_reports": 8, "grace_reports": 2, **search})
    statuses = {}
    for report_index in (1, 2):
        scheduling = Scheduling(make_scheduler(settings), mode="min")
        for trial, loss in zip(start(scheduling, len(losses)), losses, strict=True):
            scheduling.judge(trial, make_result(report_index, loss))
            statuses[report_index] = trial.status
    assert statuses == {1: Trial.RUNNING, 2: Trial.TERMINATED}
    assert scheduling.num_live == len(losses) - 1


@pytest.mark.parametrize(("name", "kind"), [("none", FIFOScheduler), ("hyperband", HyperBandScheduler)])
def test_the_scheduler_is_the_one_that_the_config_names(name: str, kind: type) -> None:
    assert type(make_scheduler(Search.model_validate({"scheduler": name}))) is kind


def test_hyperband_pauses_a_bracket_and_goes_on_with_its_best() -> None:
    changed: list[ScheduledTrial] = []
    scheduler = HyperBandScheduler(time_attr="report_index", max_t=9, reduction_factor=3)
    scheduling = Scheduling(scheduler, mode="min", on_changed=changed.append)
    # The first bracket holds three trials for nine reports each; the second six, halved after three.
    first, second = (trials := start(scheduling, 8))[:3], trials[3:]
    for trial in second[:-1]:
        scheduling.judge(trial, make_result(3, 1.0 + trial.number))
        assert trial.status == Trial.PAUSED
    assert scheduling.num_live == 4 and changed == [] and scheduling.choose() is None
    scheduling.judge(second[-1], make_result(3, 9.0))
    ended = [trial for trial in second if trial.status == Trial.TERMINATED]
    assert second[-1] in ended and second[0] not in ended
    # Those of earlier turns have to be woken; the last one is told by its own turn.
    assert set(changed) == {trial for trial in ended if trial is not second[-1]}
    going_on = [chosen for _ in second if (chosen := scheduling.choose())]
    assert going_on == [trial for trial in second if trial not in ended]
    assert {trial.status for trial in going_on} == {Trial.RUNNING}
    assert scheduling.num_live == len(first) + len(going_on)


def test_a_trial_that_ended_of_itself_is_not_judged_and_its_end_is_told() -> None:
    told: list[tuple[str, int]] = []

    class Noting(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            told.append(("result", trial.number))
            return str(TrialScheduler.CONTINUE)

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            told.append(("complete", trial.number))

        def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
            told.append(("remove", trial.number))

    scheduling = Scheduling(Noting(), mode="min")
    one, other = start(scheduling, 2)
    scheduling.judge(one, make_result(1, 0.5))
    scheduling.judge(one, make_result(2, 0.5, done=True))
    scheduling.pause_trial(other)
    scheduling.stop_trial(other)
    scheduling.stop_trial(other)
    assert told == [("result", 0), ("complete", 0), ("remove", 1)]
    assert (scheduling.num_live, scheduling.get_trials()) == (0, [])
