"""Executors, their slots and leases: who trains where, and what happens when there is no room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from qlora_ray.orchestration.executor.actor import ExecutorTerms
from qlora_ray.runs import read_events, read_json
from tests.fake_engine import fake_loss
from tests.fake_executor import FakePlacement
from tests.fake_sweep import NUM_TRIALS, Sweep


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
    assert f"trial {preempted['trial']} preempted on executor 0 for memory; it goes on in the next free slot" in text
    assert "executor 0 has 2 slots from now on: out of memory with 3 trials" in text
    record = read_json(sweep.paths.trial(preempted["trial"]).record)
    assert (record["state"], record["num_retries"]) == ("complete", 0)


def test_leases_are_spread_evenly_over_the_executors(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    sweep = Sweep(tmp_path, make_pool)
    terms = ExecutorTerms(sweep.config, sweep.paths.root.resolve())
    pool = make_pool(terms, num_executors=2, placement=FakePlacement(3))
    while len(ray.get(pool.ready_executors.remote())) < 2:
        ray.get(pool.next_events.remote(1, 1.0))
    leases = [ray.get(pool.lease.remote(f"{number:04d}")) for number in range(5)]
    assert [lease.executor_index for lease in leases] == [0, 1, 0, 1, 0]
