"""Searches on real raylets, over trials whose losses are a formula: who trains where, and what the study is told.

One file, so that one process of the test run has them all, and one cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from qlora_ray.orchestration.searcher import settle_finished
from qlora_ray.runs import read_events, read_json
from qlora_ray.search.study import end_interrupted, requeue_interrupted
from tests.fake_engine import DIVERGING_DECAY, UNEVALUATED_DECAY, fake_loss
from tests.fake_executor import FakePlacement
from tests.fake_sweep import NUM_REPORTS, NUM_TRIALS, Sweep

# Of so many ASHA stops some.
NUM_ASHA_TRIALS = 8


def test_no_more_trials_run_than_there_are_slots(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    sweep = Sweep(tmp_path, make_pool, scheduler="none")
    sweep.run(num_executors=2, max_slots=1)
    leased = [event for event in read_events(sweep.paths.events) if event["event"] == "trial_leased"]
    held: set[str] = set()
    for event in read_events(sweep.paths.events):
        if event["event"] == "trial_leased":
            held.add(event["trial"])
            assert len(held) <= 1
        if event["event"] == "trial_released":
            held.remove(event["trial"])
    assert sweep.states() == ["COMPLETE"] * NUM_TRIALS
    assert sorted(event["trial"] for event in leased) == [f"{number:04d}" for number in range(NUM_TRIALS)]
    assert {event["executor"] for event in leased} <= {0, 1}


def test_a_pool_whose_executors_never_come_up_says_why(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    from tests.fake_executor import BrokenExecutor

    sweep = Sweep(tmp_path, make_pool, num_trials=2)
    sweep.run(executor_class=BrokenExecutor)
    assert "COMPLETE" not in sweep.states()
    assert "no-such-base cannot be loaded" in sweep.text.getvalue()


def test_six_trials_share_one_executor_of_four_slots(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    sweep = Sweep(tmp_path, make_pool, scheduler="none", num_trials=6)
    sweep.num_slots = 4
    sweep.run(placement=FakePlacement(4, gathers=4))
    assert sweep.states() == ["COMPLETE"] * 6
    for trial in sweep.study.get_trials():
        rate = trial.params["training.learning_rate"]
        assert trial.intermediate_values == pytest.approx({i: fake_loss(rate, 2 * i) for i in range(1, 5)})
        assert trial.value == trial.intermediate_values[4]
        assert (sweep.paths.trial(f"{trial.number:04d}").adapter / "adapter.txt").exists()
    ((_, facts),) = ray.get(sweep.pool.ready_executors.remote())
    assert facts["slots"] == 4


def test_a_trial_preempted_for_memory_goes_on_and_the_slots_become_fewer(
    tmp_path: Path, make_pool: Callable[..., Any]
) -> None:
    sweep = Sweep(tmp_path, make_pool, scheduler="none", num_trials=4)
    sweep.config.cluster.max_trial_retries = 0
    sweep.num_slots = 3
    sweep.run(placement=FakePlacement(3, room=2, gathers=3))
    assert sweep.states() == ["COMPLETE"] * 4
    events = read_events(sweep.paths.events)
    (preempted,) = [event for event in events if event["event"] == "trial_preempted"]
    (changed,) = [event for event in events if event["event"] == "slots_changed"]
    assert (changed["slots"], changed["ready_slots"]) == (2, 2)
    assert changed["reason"] == preempted["reason"] == "out of memory with 3 trials"
    text = sweep.text.getvalue()
    line = f"trial {preempted['trial']} preempted on executor 0: out of memory with 3 trials; it goes on"
    assert line in text
    assert "executor 0 has 2 slots from now on: out of memory with 3 trials" in text
    record = read_json(sweep.paths.trial(preempted["trial"]).record)
    assert (record["state"], record["num_retries"]) == ("complete", 0)


@pytest.mark.parametrize(("scheduler", "num_trials"), [("asha", NUM_ASHA_TRIALS), ("hyperband", NUM_TRIALS)])
def test_each_scheduler_ends_every_trial_as_what_it_was(
    tmp_path: Path, make_pool: Callable[..., Any], scheduler: str, num_trials: int
) -> None:
    sweep = Sweep(tmp_path, make_pool, scheduler=scheduler, num_trials=num_trials)
    sweep.run()
    trials = sweep.study.get_trials()
    assert len(trials) == num_trials
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    for trial in trials:
        rate = trial.params["training.learning_rate"]
        expected = {index: fake_loss(rate, 2 * index) for index in range(1, len(trial.intermediate_values) + 1)}
        assert trial.intermediate_values == pytest.approx(expected)
        if trial.state.name == "COMPLETE":
            assert trial.value == pytest.approx(fake_loss(rate, 8))
            assert len(trial.intermediate_values) == NUM_REPORTS
        else:
            assert len(trial.intermediate_values) < NUM_REPORTS
    if scheduler == "asha":
        assert "PRUNED" in sweep.states()
    # The known good point ran first, and is the best there can be.
    assert trials[0].params["training.learning_rate"] == 1e-3
    assert sweep.ledger.ranked()[0].number == 0


def test_each_trial_fails_for_itself_and_a_resume_goes_on_with_the_one_that_was_trained(
    tmp_path: Path, make_pool: Callable[..., Any]
) -> None:
    choices = {
        "scheduler": "none",
        "sampler": "grid",
        "num_trials": 3,
        "space": {"training.weight_decay": {"choices": [0.0, DIVERGING_DECAY, UNEVALUATED_DECAY]}},
    }
    sweep = Sweep(tmp_path, make_pool, **choices)
    sweep.run()
    settle_finished(sweep.study, sweep.ledger)
    (unevaluated,) = end_interrupted(sweep.study)
    assert sorted(sweep.states()) == ["COMPLETE", "FAIL", "FAIL"]
    diverged = next(trial.number for trial in sweep.study.get_trials() if "cause" in trial.user_attrs)
    assert sweep.study.get_trials()[diverged].user_attrs["cause"] == "diverged"
    record = read_json(sweep.paths.trial(f"{diverged:04d}").record)
    assert (record["state"], record["cause"]) == ("failed", "diverged")
    assert "loss is nan" in sweep.paths.trial(f"{diverged:04d}").error.read_text()
    assert "diverged: loss is nan" in sweep.text.getvalue()

    trial = sweep.paths.trial(f"{unevaluated:04d}")
    record = read_json(trial.record)
    assert record["state"] == "interrupted"
    assert record["cause"].startswith("trained, not evaluated: out of memory in evaluation at one row")
    assert (trial.state / "state.safetensors").exists()
    assert (trial.adapter / "adapter.txt").exists()
    assert "unevaluated: trained, not evaluated" in sweep.text.getvalue()
    assert list(record["reports"]) == ["1", "2", "3"]
    again = Sweep(tmp_path, make_pool, **choices)
    again.ledger.restore()
    settle_finished(again.study, again.ledger)
    assert requeue_interrupted(again.study) == [unevaluated]
    again.run()
    (resumed,) = [entry for entry in again.ledger.entries.values() if entry.resumed_from == unevaluated]
    assert (resumed.state, sorted(resumed.intermediate)) == ("complete", [1, 2, 3, 4])
    assert (again.paths.trial(resumed.id).adapter / "adapter.txt").read_text() == resumed.id
