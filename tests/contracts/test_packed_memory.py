"""A pack that runs out of memory: smaller micro-batches, then a preemption; no step is lost or taken twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import EngineEvent, Preemption, Report
from qlora_ray.training.packed.engine import PackedEngine
from qlora_ray.training.packed.reporting import Reporter
from qlora_ray.training.packed.step import StepRunner
from tests.contracts.bench import NO_ROOM, NUM_STEPS, Bench, bench, losses, make_spec, run_trial
from tests.contracts.packs import (
    MIXED_RANKS,
    NUM_REPORTS,
    SAME_RANK_SPECS,
    SAME_RANKS,
    assert_close,
    engine,
    make_engine,
    run_pack,
)

__all__ = ["bench", "engine"]


def fail_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
    does_fail: Callable[[int, int], bool],
    *,
    once: bool = False,
    error: Exception = NO_ROOM[0][0],
) -> list[int]:
    """Lets micro-batches run out of memory by their padded tokens and trials; returns the tokens of those that did."""
    failed: list[int] = []
    run_micro_batch = StepRunner._run_micro_batch

    def run(self: StepRunner, rows: Any, trials: Any, answer_tokens: Any) -> torch.Tensor:
        tokens = len(rows) * max(row.num_tokens for row in rows)
        if does_fail(tokens, len(trials)) and not (once and failed):
            failed.append(tokens)
            raise error
        return run_micro_batch(self, rows, trials, answer_tokens)

    monkeypatch.setattr(StepRunner, "_run_micro_batch", run)
    return failed


@pytest.mark.parametrize("error", [error for error, _ in NO_ROOM])
def test_out_of_memory_halves_the_micro_batches_and_loses_nothing(
    engine: PackedEngine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    expected = run_pack(engine, SAME_RANK_SPECS)
    failed = fail_micro_batches(monkeypatch, lambda tokens, trials: tokens > 256, error=error)
    packed = run_pack(engine, SAME_RANK_SPECS)
    assert failed
    assert engine.slots == 4
    for spec in SAME_RANK_SPECS:
        assert packed[spec.trial_id][-1].facts["max_tokens_per_micro_batch"] <= 256
        assert_close(losses(packed[spec.trial_id]), losses(expected[spec.trial_id]), rel=MIXED_RANKS)


def test_the_largest_micro_batch_of_a_trials_steps_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens: list[int] = []
    run_micro_batch = StepRunner._run_micro_batch

    def run(self: StepRunner, rows: Any, trials: Any, answer_tokens: Any) -> torch.Tensor:
        tokens.append(len(rows) * max(row.num_tokens for row in rows))
        return run_micro_batch(self, rows, trials, answer_tokens)

    monkeypatch.setattr(StepRunner, "_run_micro_batch", run)
    other = make_engine(bench.base, bench.data)
    [report, *_] = run_trial(other, make_spec(), num_reports=1)
    other.evict("0000")
    assert report.facts["largest_micro_batch"] == max(tokens)


def test_the_newest_trial_is_preempted_with_its_state_and_goes_on_later(
    engine: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [make_spec("0000"), make_spec("0001", seed=3), make_spec("0002", seed=4)]
    expected = run_pack(engine, specs)
    fail_micro_batches(monkeypatch, lambda tokens, trials: trials == 3 and len(steps) > 4)
    steps: list[int] = []
    run = StepRunner.run

    def count(self: StepRunner, trials: Any, *, max_tokens: int) -> Any:
        steps.append(len(trials))
        return run(self, trials, max_tokens=max_tokens)

    monkeypatch.setattr(StepRunner, "run", count)
    out: list[TrialState | None] = []

    def keep_state(event: EngineEvent) -> None:
        if isinstance(event, Preemption):
            out.append(engine.snapshot(event.trial_id))

    packed = run_pack(engine, specs, on_event=keep_state)
    assert engine.slots == 2
    (state,) = out
    assert state is not None
    # Preempted between two reports: not a step is done twice.
    assert state.step > 3
    for trial_id in ("0000", "0001"):
        assert_close(losses(packed[trial_id]), losses(expected[trial_id]), rel=MIXED_RANKS)
    rest = run_trial(engine, specs[2], state=state)
    engine.evict("0002")
    assert_close(losses(packed["0002"] + rest), losses(expected["0002"]), rel=MIXED_RANKS)


def test_an_optimizer_without_room_preempts_its_trial_and_no_step_is_lost_or_taken_twice(
    engine: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [make_spec("0000"), make_spec("0001", seed=3)]
    expected = run_pack(engine, specs)
    step, failed = torch.optim.AdamW.step, []

    def fail_once(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        trial = engine._roster.find("0001").trial if not failed else None
        # At the step before a report, when the neighbour's step, already taken, makes it due.
        if trial is not None and self is trial.optimizer and trial.step == 2:
            failed.append(trial.step)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", fail_once)
    out: list[TrialState | None] = []
    packed = run_pack(
        engine,
        specs,
        on_event=lambda event: out.append(engine.snapshot("0001")) if isinstance(event, Preemption) else None,
    )
    assert failed == [2]
    assert_close(losses(packed["0000"]), losses(expected["0000"]), rel=SAME_RANKS)
    (state,) = out
    assert state is not None and state.step == 2
    rest = run_trial(engine, specs[1], state=state)
    engine.evict("0001")
    assert_close(losses(rest), losses(expected["0001"]), rel=SAME_RANKS)


def test_a_trial_without_room_for_its_evaluation_is_preempted_and_evaluated_later(
    engine: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [make_spec("0000"), make_spec("0001", seed=3)]
    expected = run_pack(engine, specs)
    report = Reporter._report

    def fail(self: Reporter, trial: Any) -> Report:
        if trial.spec.trial_id == "0001" and len(engine._pack) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return report(self, trial)

    monkeypatch.setattr(Reporter, "_report", fail)
    out: list[TrialState | None] = []
    packed = run_pack(
        engine,
        specs,
        on_event=lambda event: out.append(engine.snapshot("0001")) if isinstance(event, Preemption) else None,
    )
    assert engine.slots == 1
    assert packed["0001"] == []
    assert_close(losses(packed["0000"]), losses(expected["0000"]), rel=SAME_RANKS)
    (state,) = out
    assert state is not None and state.has_pending_report and state.step == NUM_STEPS // NUM_REPORTS
    rest = run_trial(engine, specs[1], state=state)
    engine.evict("0001")
    assert_close(losses(rest), losses(expected["0001"]), rel=SAME_RANKS)


def test_a_trial_that_cannot_be_evaluated_tells_what_ran_also_where_it_only_went_on(
    engine: PackedEngine, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    spec = make_spec(gradient_checkpointing=True)
    expected = run_trial(engine, spec)[0].facts
    engine.evict("0000")
    monkeypatch.setattr("qlora_ray.scoring.loss.map_batches", fail)
    (first,) = run_trial(engine, spec)
    state = engine.snapshot("0000")
    engine.evict("0000")
    # Nothing trains in this one, and its micro-batches would be others.
    other = make_engine(bench.base, bench.data, max_tokens_per_micro_batch=64)
    (again,) = run_trial(other, spec, state=state)
    other.evict("0000")
    for report in (first, again):
        assert report.failure is not None and report.failure.cause == "unevaluated"
        assert report.facts == expected
    assert expected["pack"]["mean_trials"] == 1.0 and expected["training"]["gradient_checkpointing"] is True


def test_a_trial_that_waits_holds_no_memory_of_an_earlier_pack(engine: PackedEngine) -> None:
    engine.admit(make_spec("0000"))
    assert [report.trial_id for report in engine.advance()] == ["0000"]
    engine.admit(make_spec("0001", seed=3))
    assert [report.trial_id for report in engine.advance()] == ["0001"]
    waiting = engine._roster.find("0000").trial
    assert waiting is not None and waiting.parameter.grad is not None
    for mine, stack in (
        (waiting.parameter.data, waiting.stack.weights_SP),
        (waiting.parameter.grad, waiting.stack.gradients_SP),
    ):
        assert mine.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr()
    for trial_id in ("0000", "0001"):
        engine.evict(trial_id)


def test_one_trials_error_in_its_report_is_its_own(engine: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Reporter._report

    def fail(self: Reporter, trial: Any, **kwargs: Any) -> Report:
        if trial.spec.trial_id == "0001":
            raise ValueError("no such metric")
        return report(self, trial, **kwargs)

    monkeypatch.setattr(Reporter, "_report", fail)
    packed = run_pack(engine, [make_spec("0000"), make_spec("0001", seed=3)])
    failure = packed["0001"][-1].failure
    assert failure is not None and (failure.cause, failure.message) == ("error", "ValueError: no such metric")
    assert [one.failure for one in packed["0000"]] == [None] * NUM_REPORTS


def test_a_trial_alone_that_does_not_fit_has_failed(engine: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_micro_batches(monkeypatch, lambda tokens, trials: True)
    report = run_pack(engine, [make_spec()])["0000"][-1]
    assert report.failure is not None
    assert report.failure.cause == "oom"
