"""Trials in one pack: each trains as if it were alone. The bounds are those of the table "How right is right"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ray.data import PreparedData
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import EngineEvent, Preemption, Report, TrainingData, TrialSpec
from qlora_ray.training.packed.engine import PackedEngine
from qlora_ray.training.packed.reporting import Reporter
from qlora_ray.training.packed.step import StepRunner
from qlora_ray.training.single.engine import SingleEngine
from tests.contracts.engine_contract import (
    BATCH,
    NO_ROOM,
    NUM_STEPS,
    Bench,
    bench,
    hash_weights,
    load_nf4,
    losses,
    make_spec,
    run_trial,
)

__all__ = ["bench"]

NUM_REPORTS = 3
# The contract's bounds, relative.
SAME_RANKS = 1e-6
MIXED_RANKS = 1e-4
OTHER_ENGINE = 1e-4
# 8-bit moments are quantized in other blocks by the other engine; without any moments losses differ by over 5e-3.
OTHER_BLOCKS = 3e-3


def make_engine(base: LoadedBase, data: PreparedData, **options: Any) -> PackedEngine:
    """An engine of four slots on a base."""
    return PackedEngine(
        base,
        TrainingData(data.train, data.validation),
        **{"slots": 4, "max_tokens_per_micro_batch": 2048, **options},
    )


@pytest.fixture
def engine(bench: Bench) -> PackedEngine:
    """An engine on the shared base."""
    return make_engine(bench.base, bench.data)


def run_pack(
    engine: PackedEngine, specs: list[TrialSpec], *, on_event: Callable[[EngineEvent], None] = lambda event: None
) -> dict[str, list[Report]]:
    """Trains trials together to their ends or preemptions; they are gone afterwards."""
    for spec in specs:
        engine.admit(spec)
    seen: dict[str, list[Report]] = {spec.trial_id: [] for spec in specs}
    while events := engine.advance():
        for event in events:
            on_event(event)
            if isinstance(event, Report):
                seen[event.trial_id].append(event)
            if isinstance(event, Preemption) or event.is_final:
                engine.evict(event.trial_id)
            else:
                engine.proceed(event.trial_id)
    return seen


def alone(engine: PackedEngine, spec: TrialSpec) -> list[tuple[float, float]]:
    """A trial's losses without neighbours."""
    reports = run_trial(engine, spec)
    engine.evict(spec.trial_id)
    return losses(reports)


def assert_close(one: list[tuple[float, float]], other: list[tuple[float, float]], *, rel: float) -> None:
    assert len(one) == len(other) == NUM_REPORTS
    for first, second in zip(one, other, strict=True):
        assert first == pytest.approx(second, rel=rel)


SAME_RANK_SPECS = [
    make_spec("0000", learning_rate=2e-3),
    make_spec("0001", lora={"lora_dropout": 0.0}, learning_rate=5e-4, lr_scheduler_type="cosine", data_seed=3),
    make_spec("0002", lora={"lora_dropout": 0.3}, per_device_train_batch_size=2, max_samples=18, seed=11),
    make_spec(
        "0003", lora={"alpha_ratio": 0.5}, per_device_train_batch_size=1, gradient_accumulation_steps=3, max_samples=27
    ),
]
MIXED_SPECS = [
    make_spec("0000", lora={"r": 4}),
    make_spec("0001", lora={"r": 12, "target_modules": "attention-qv"}, learning_rate=1e-3),
    make_spec("0002", lora={"r": 32, "target_modules": "attention", "lora_dropout": 0.0}, weight_decay=0.01),
    make_spec("0003", lora={"r": 8, "target_modules": ["down_proj"], "use_rslora": True}, seed=5),
]


def test_equal_ranks_train_as_if_alone_whatever_their_rates_dropouts_and_batch_sizes(engine: PackedEngine) -> None:
    packed = run_pack(engine, SAME_RANK_SPECS)
    for spec in SAME_RANK_SPECS:
        assert_close(losses(packed[spec.trial_id]), alone(engine, spec), rel=SAME_RANKS)


def test_mixed_ranks_and_target_modules_train_as_if_alone(engine: PackedEngine) -> None:
    packed = run_pack(engine, MIXED_SPECS)
    for spec in MIXED_SPECS:
        assert_close(losses(packed[spec.trial_id]), alone(engine, spec), rel=MIXED_RANKS)


def test_padding_stays_exactly_zero(engine: PackedEngine) -> None:
    for spec in MIXED_SPECS:
        engine.admit(spec)
    engine.advance()
    for spec in MIXED_SPECS:
        trial = engine._roster.find(spec.trial_id).trial
        for layer in trial.blueprint.layers:
            a_RD, b_OR = trial.stack.cut(trial.parameter.detach(), layer.number)
            assert torch.count_nonzero(a_RD[spec.lora.r :]) == 0
            assert torch.count_nonzero(b_OR[:, spec.lora.r :]) == 0
            assert torch.count_nonzero(b_OR[:, : spec.lora.r]) > 0
        engine.evict(spec.trial_id)


def test_a_pack_trains_as_sfttrainer_does(engine: PackedEngine, bench: Bench) -> None:
    every_step = {"max_samples": 20 * BATCH, "warmup_ratio": 0.2}
    specs = [
        make_spec(
            f"{number:04d}",
            lora={"r": r, "lora_dropout": 0.0},
            learning_rate=rate,
            lr_scheduler_type=schedule,
            num_reports=20,
            **every_step,
        )
        for number, (r, rate, schedule) in enumerate([(8, 2e-3, "cosine"), (16, 5e-4, "constant")])
    ]
    packed = run_pack(engine, specs)
    single = SingleEngine(bench.base, TrainingData(bench.data.train, bench.data.validation), max_micro_batch=8)
    for spec in specs:
        expected = run_trial(single, spec, num_reports=20)
        single.evict(spec.trial_id)
        got = packed[spec.trial_id]
        assert len(got) == len(expected) == 20
        for one, other in zip(losses(got), losses(expected), strict=True):
            assert one == pytest.approx(other, rel=OTHER_ENGINE)
        # TRL reports the rate of the next step as well.
        assert got[7].metrics["learning_rate"] == pytest.approx(expected[7].metrics["learning_rate"])


def test_a_neighbour_that_diverges_changes_nothing(engine: PackedEngine) -> None:
    healthy = make_spec("0001")
    diverging = make_spec("0000", learning_rate=1e30, warmup_ratio=0.0, max_grad_norm=0.0)
    packed = run_pack(engine, [diverging, healthy])
    failure = packed["0000"][-1].failure
    assert failure is not None and failure.cause == "diverged"
    # What ran is told, though it never reported.
    assert packed["0000"][-1].facts["training"]["learning_rate"] == 1e30
    assert losses(packed["0001"]) == losses(run_pack(engine, [healthy])["0001"])


def test_a_neighbours_nan_weights_change_nothing(engine: PackedEngine) -> None:
    specs = [make_spec("0000"), make_spec("0001", seed=3)]
    clean = run_pack(engine, specs)

    def poison(report: EngineEvent) -> None:
        if report.trial_id == "0001" and report.index == 1:
            trial = engine._roster.find("0001").trial
            trial.bind()
            trial.parameter.data.fill_(float("nan"))

    poisoned = run_pack(engine, specs, on_event=poison)
    failure = poisoned["0001"][-1].failure
    assert failure is not None and failure.cause == "diverged"
    assert_close(losses(poisoned["0000"]), losses(clean["0000"]), rel=SAME_RANKS)


def test_neighbours_that_come_and_go_change_nothing(engine: PackedEngine) -> None:
    spec = make_spec("0000")
    expected = alone(engine, spec)

    def come_and_go(report: Report) -> None:
        if report.trial_id != "0000":
            return
        if report.index == 1:
            engine.admit(make_spec("0001", seed=9, lora={"r": 16}))
            engine.evict("0002")

    engine.admit(make_spec("0002", data_seed=4))
    engine.admit(spec)
    mine: list[Report] = []
    while len(mine) < NUM_REPORTS:
        for report in engine.advance():
            if report.trial_id == "0000":
                mine.append(report)
                come_and_go(report)
            if not report.is_final:
                engine.proceed(report.trial_id)
    for trial_id in ("0000", "0001", "0002"):
        engine.evict(trial_id)
    assert_close(losses(mine), expected, rel=SAME_RANKS)


def test_a_trial_goes_on_in_another_slot_of_another_pack(engine: PackedEngine, bench: Bench, tmp_path: Path) -> None:
    spec = make_spec("0000")
    whole = alone(engine, spec)
    engine.admit(make_spec("0001", seed=2))
    engine.admit(spec)
    first = engine.advance()
    assert {report.trial_id for report in first} == {"0000", "0001"}
    state = engine.snapshot("0000")
    assert state is not None
    state.save(tmp_path / "state")
    other = make_engine(load_nf4(), bench.data)
    for number in (2, 3):
        other.admit(make_spec(f"{number:04d}", seed=number, lora={"r": 4 * number}))
    other.admit(spec, TrialState.load(tmp_path / "state"))
    rest: list[Report] = []
    while len(rest) < NUM_REPORTS - 1:
        for report in other.advance():
            if report.trial_id == "0000":
                rest.append(report)
            other.proceed(report.trial_id)
    mine = [report for report in first if report.trial_id == "0000"]
    for one in (engine, other):
        for number in range(4):
            one.evict(f"{number:04d}")
    assert_close(losses(mine + rest), whole, rel=SAME_RANKS)


@pytest.mark.parametrize(("optim", "rel"), [("adamw_torch", OTHER_ENGINE), ("adamw_8bit", OTHER_BLOCKS)])
def test_a_trial_moves_between_the_engines(
    engine: PackedEngine, bench: Bench, tmp_path: Path, optim: str, rel: float
) -> None:
    # Rank 12: the pack pads it to 16, which must not show in a state.
    spec = make_spec(lora={"r": 12, "lora_dropout": 0.0}, optim=optim)
    single = SingleEngine(bench.base, TrainingData(bench.data.train, bench.data.validation), max_micro_batch=8)
    for start, goal in ((single, engine), (engine, single)):
        whole = run_trial(goal, spec)
        goal.evict("0000")
        run_trial(start, spec, num_reports=1)
        state = start.snapshot("0000")
        assert state is not None
        state.save(tmp_path / "state")
        start.evict("0000")
        rest = run_trial(goal, spec, state=TrialState.load(tmp_path / "state"))
        goal.evict("0000")
        for one, other in zip(losses(rest), losses(whole)[1:], strict=True):
            assert one == pytest.approx(other, rel=rel)


@pytest.mark.parametrize("max_tokens", [64, 300])
def test_how_the_step_is_cut_changes_no_result(bench: Bench, engine: PackedEngine, max_tokens: int) -> None:
    spec = make_spec("0000")
    cut = make_engine(bench.base, bench.data, max_tokens_per_micro_batch=max_tokens)
    assert_close(alone(cut, spec), alone(engine, spec), rel=MIXED_RANKS)


def test_a_base_held_dequantized_gives_the_same_numbers(bench: Bench, engine: PackedEngine) -> None:
    before = hash_weights(bench.base)
    held = make_engine(bench.base, bench.data, hold_dequantized=True)
    packed = run_pack(held, SAME_RANK_SPECS)
    for spec in SAME_RANK_SPECS[:2]:
        assert_close(losses(packed[spec.trial_id]), alone(engine, spec), rel=MIXED_RANKS)
    assert hash_weights(bench.base) == before


def test_checkpointing_changes_no_gradient_of_a_pack_with_dropout(engine: PackedEngine) -> None:
    plain = run_pack(engine, SAME_RANK_SPECS)
    specs = [
        TrialSpec(
            spec.trial_id, spec.lora, spec.training.model_copy(update={"gradient_checkpointing": True}), spec.budget
        )
        for spec in SAME_RANK_SPECS
    ]
    checkpointed = run_pack(engine, specs)
    for spec in specs:
        assert_close(losses(checkpointed[spec.trial_id]), losses(plain[spec.trial_id]), rel=SAME_RANKS)


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


@pytest.mark.parametrize(
    "lora", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}]
)
def test_what_cannot_be_packed_is_refused_by_name(engine: PackedEngine, lora: dict[str, Any]) -> None:
    packed = run_pack(engine, [make_spec("0000", lora=lora), make_spec("0001")])
    failure = packed["0000"][-1].failure
    assert failure is not None and failure.cause == "error"
    assert next(iter(lora)) in failure.message
    assert packed["0001"][-1].failure is None
