"""Tune, pool, leases and study together, on real raylets, over trials whose losses are a formula."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from fake_engine import DIVERGING_DECAY, UNEVALUATED_DECAY, fake_loss
from fake_executor import FakePlacement

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.executor import ExecutorTerms
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.searcher import StudySearcher, settle_finished
from qlora_ray.orchestration.trial import TrialTerms
from qlora_ray.orchestration.tuning import EventPump, Gate, run_trials
from qlora_ray.runs import SweepPaths, read_events, read_json
from qlora_ray.search.parsing import load_space
from qlora_ray.search.study import end_interrupted, enqueue_known_points, open_study, requeue_interrupted

SPACE = {
    "training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "points_to_evaluate": [{"training.learning_rate": 1e-3}],
}
NUM_REPORTS = 4
# Each trial is an actor of Tune's, which takes two seconds to start: no more of them than a test needs.
NUM_TRIALS = 4
# Of so many ASHA stops some.
NUM_ASHA_TRIALS = 8


class Sweep:
    """A sweep over fake executors, up to the end of its search."""

    num_slots = 2

    def __init__(self, root: Path, make_pool: Callable[..., Any], **search: Any) -> None:
        self.paths = SweepPaths(root / "sweep")
        if not self.paths.root.exists():
            self.paths.create()
        self.config = SweepConfig.model_validate(
            {
                "training": {"max_samples": 8, "gradient_accumulation_steps": 1},
                "search": {"space": SPACE, "num_trials": NUM_TRIALS, "num_reports": NUM_REPORTS, **search},
            }
        )
        self.text = io.StringIO()
        self.ledger = Ledger(self.config, paths=self.paths, console=Console(self.text), common={})
        self.space = load_space(self.config)
        self.study = open_study(self.paths.study, name="sweep", search=self.config.search, space=self.space)
        self.make_pool = make_pool

    def run(self, **pool_options: Any) -> None:
        """Runs the search to its end."""
        terms = ExecutorTerms(self.config, self.paths.root.resolve())
        pool = self.pool = self.make_pool(terms, **pool_options)
        enqueue_known_points(self.study, search=self.config.search, space=self.space)
        searcher = StudySearcher(
            self.study,
            space=self.space,
            ledger=self.ledger,
            num_trials=self.config.search.num_trials,
            num_slots=self.num_slots,
        )
        gate = Gate(searcher, self.ledger, pool)
        pump = EventPump(
            pool,
            ledger=self.ledger,
            searcher=searcher,
            gate=gate,
            num_seats=pool_options.get("num_executors", 1),
        )
        try:
            run_trials(
                TrialTerms(self.config, 8, pool),
                searcher=searcher,
                gate=gate,
                search=self.config.search,
                logs=self.paths.logs,
            )
        finally:
            pump.end()

    def states(self) -> list[str]:
        """Every trial's state in the study."""
        return [trial.state.name for trial in self.study.get_trials()]


@pytest.mark.parametrize("scheduler", ["none", "asha", "hyperband", "median"])
def test_each_scheduler_ends_every_trial_as_what_it_was(
    tmp_path: Path, make_pool: Callable[..., Any], scheduler: str
) -> None:
    num_trials = NUM_ASHA_TRIALS if scheduler == "asha" else NUM_TRIALS
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
    if scheduler == "none":
        assert sweep.states() == ["COMPLETE"] * NUM_TRIALS
    if scheduler == "asha":
        assert "PRUNED" in sweep.states()
    # The known good point ran first, and is the best there can be.
    assert trials[0].params["training.learning_rate"] == 1e-3
    assert sweep.ledger.ranked()[0].number == 0


def test_a_diverged_trial_is_told_as_failed_and_the_others_go_on(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    space = {"training.weight_decay": {"choices": [0.0, DIVERGING_DECAY]}}
    sweep = Sweep(tmp_path, make_pool, scheduler="none", sampler="grid", num_trials=2, space=space)
    sweep.run()
    assert sorted(sweep.states()) == ["COMPLETE", "FAIL"]
    failed = next(trial for trial in sweep.study.get_trials() if trial.state.name == "FAIL")
    assert failed.user_attrs["cause"] == "diverged"
    record = read_json(sweep.paths.trial(f"{failed.number:04d}").record)
    assert (record["state"], record["cause"]) == ("failed", "diverged")
    assert "loss is nan" in sweep.paths.trial(f"{failed.number:04d}").error.read_text()
    assert "diverged: loss is nan" in sweep.text.getvalue()


def test_a_trial_that_cannot_be_evaluated_is_interrupted_and_a_resume_evaluates_it(
    tmp_path: Path, make_pool: Callable[..., Any]
) -> None:
    choices = {
        "scheduler": "none",
        "sampler": "grid",
        "num_trials": 2,
        "space": {"training.weight_decay": {"choices": [0.0, UNEVALUATED_DECAY]}},
    }
    sweep = Sweep(tmp_path, make_pool, **choices)
    sweep.run()
    settle_finished(sweep.study, sweep.ledger)
    (number,) = end_interrupted(sweep.study)
    trial = sweep.paths.trial(f"{number:04d}")
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
    assert requeue_interrupted(again.study) == [number]
    again.run()
    (resumed,) = [entry for entry in again.ledger.entries.values() if entry.resumed_from == number]
    assert (resumed.state, sorted(resumed.intermediate)) == ("complete", [1, 2, 3, 4])
    assert (again.paths.trial(resumed.id).adapter / "adapter.txt").read_text() == resumed.id


def test_two_objectives_are_both_told(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    sweep = Sweep(
        tmp_path,
        make_pool,
        sampler="nsga2",
        scheduler="none",
        space={**SPACE, "lora.r": {"choices": [4, 8, 16]}, "points_to_evaluate": []},
        objectives={"eval_loss": "min", "trainable_parameters": "min"},
    )
    sweep.run()
    trials = sweep.study.get_trials()
    assert sweep.states() == ["COMPLETE"] * NUM_TRIALS
    for trial in trials:
        assert trial.values == pytest.approx(
            [fake_loss(trial.params["training.learning_rate"], 8), trial.params["lora.r"] * 100]
        )
    assert sweep.study.best_trials


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


def test_a_second_search_asks_only_for_what_is_missing(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    Sweep(tmp_path, make_pool, scheduler="none", num_trials=2).run()
    again = Sweep(tmp_path, make_pool, scheduler="none", num_trials=3)
    again.ledger.restore()
    again.run()
    assert again.states() == ["COMPLETE"] * 3
    assert len(again.ledger.entries) == 3


def test_a_pool_whose_executors_never_come_up_says_why(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    from fake_executor import BrokenExecutor

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


def test_a_trial_put_out_for_memory_goes_on_and_the_slots_become_fewer(
    tmp_path: Path, make_pool: Callable[..., Any]
) -> None:
    sweep = Sweep(tmp_path, make_pool, scheduler="none", num_trials=4)
    sweep.config.cluster.max_trial_retries = 0
    sweep.num_slots = 3
    sweep.run(placement=FakePlacement(3, room=2, gathers=3))
    assert sweep.states() == ["COMPLETE"] * 4
    events = read_events(sweep.paths.events)
    (put_out,) = [event for event in events if event["event"] == "trial_put_out"]
    (changed,) = [event for event in events if event["event"] == "slots_changed"]
    assert (changed["slots"], changed["ready_slots"]) == (2, 2)
    assert changed["reason"] == put_out["reason"] == "out of memory with 3 trials"
    text = sweep.text.getvalue()
    assert f"trial {put_out['trial']} put out of executor 0 for memory; it goes on in the next free slot" in text
    assert "executor 0 has 2 slots from now on: out of memory with 3 trials" in text
    record = read_json(sweep.paths.trial(put_out["trial"]).record)
    assert (record["state"], record["num_retries"]) == ("complete", 0)


def test_leases_are_spread_evenly_over_the_executors(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    sweep = Sweep(tmp_path, make_pool)
    terms = ExecutorTerms(sweep.config, sweep.paths.root.resolve())
    pool = make_pool(terms, num_executors=2, placement=FakePlacement(3))
    while len(ray.get(pool.ready_executors.remote())) < 2:
        ray.get(pool.next_events.remote(1, 1.0))
    leases = [ray.get(pool.lease.remote(f"{number:04d}")) for number in range(5)]
    assert [lease.executor_index for lease in leases] == [0, 1, 0, 1, 0]
