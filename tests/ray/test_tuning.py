"""Schedulers, the study and what it is told, over trials whose losses are a formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.orchestration.searcher import settle_finished
from qlora_ray.runs import read_json
from qlora_ray.search.study import end_interrupted, requeue_interrupted
from tests.fake_engine import DIVERGING_DECAY, UNEVALUATED_DECAY, fake_loss
from tests.fake_sweep import NUM_REPORTS, NUM_TRIALS, SPACE, Sweep

# Of so many ASHA stops some.
NUM_ASHA_TRIALS = 8


@pytest.mark.parametrize("scheduler", ["none", "asha", "hyperband", pytest.param("median", marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_a_second_search_asks_only_for_what_is_missing(tmp_path: Path, make_pool: Callable[..., Any]) -> None:
    Sweep(tmp_path, make_pool, scheduler="none", num_trials=2).run()
    again = Sweep(tmp_path, make_pool, scheduler="none", num_trials=3)
    again.ledger.restore()
    again.run()
    assert again.states() == ["COMPLETE"] * 3
    assert len(again.ledger.entries) == 3
