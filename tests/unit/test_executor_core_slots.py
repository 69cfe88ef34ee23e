"""ExecutorCore with several slots: trials come and go while others train. No test sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.orchestration.executor.admission import LeaseLost, SlotRefused
from qlora_ray.runs import SweepPaths
from qlora_ray.training.checkpoint import TrialState
from tests.fake_engine import WAIT_S, FakeEngine, GatedEngine
from tests.unit.executor_fixtures import MakeCore, ask, index_of, make_core, make_spec

__all__ = ["ask", "make_core"]


def test_trials_that_report_at_the_same_moment_each_get_their_own(make_core: MakeCore) -> None:
    engine = GatedEngine(4)
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    engine.wait_entered(1)
    for number in range(1, 4):
        core.admit(make_spec(f"{number:04d}", learning_rate=10.0**-number), 1)
    engine.allow(2)
    losses = {}
    for number in range(4):
        report = core.next_report(f"{number:04d}", 1, timeout_s=WAIT_S)
        assert report is not None
        assert (report.trial_id, report.index) == (f"{number:04d}", 1)
        losses[number] = report.metrics["eval_loss"]
    assert losses[3] < losses[2] < losses[1]


def test_a_report_that_one_of_two_waiting_calls_took_goes_to_the_other_too(
    make_core: MakeCore, ask: Callable[..., Future[Any]]
) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    calls = [ask(core.next_report, "0000", 1, timeout_s=WAIT_S, num_heard=0) for _ in range(2)]
    engine.allow()
    assert [call.result(WAIT_S).index for call in calls] == [1, 1]


def test_a_trial_admitted_while_others_train_does_not_wait_for_them(make_core: MakeCore) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    engine.wait_entered(1)
    core.admit(make_spec("0001"), 1)
    assert ("admit", "0001") in engine.log
    assert core.trials() == ["0000", "0001"]


def test_a_trial_told_on_while_others_train_is_told_at_once(
    make_core: MakeCore, ask: Callable[..., Future[Any]]
) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    engine.allow()
    assert index_of(core, "0000") == 1
    core.admit(make_spec("0001"), 1)
    engine.wait_entered(2)
    assert core.next_report("0000", 1, timeout_s=0) is None
    assert engine.log[-1] == ("proceed", "0000")
    engine.allow(2)
    assert index_of(core, "0000") == 2
    assert index_of(core, "0001") == 1


def test_a_report_of_a_trial_that_has_left_is_dropped(make_core: MakeCore, tmp_path: Path) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    engine.wait_entered(1)
    core.evict("0000")
    engine.allow()
    core.clear()
    with pytest.raises(LeaseLost, match="trial 0000 is not here"):
        core.next_report("0000", 1, timeout_s=0)
    assert not SweepPaths(tmp_path).trial("0000").state.exists()


def test_a_trial_that_comes_again_never_gets_the_report_of_its_earlier_admission(
    make_core: MakeCore, ask: Callable[..., Future[Any]]
) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000", learning_rate=1e-1), 1)
    engine.wait_entered(1)
    core.evict("0000")
    again = ask(core.admit, make_spec("0000", learning_rate=1e-3), 1)
    # The engine is still on the step of the first admission, and will report it.
    engine.allow()
    assert again.result(WAIT_S) is False
    engine.allow()
    report = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert report is not None
    assert report.metrics["eval_loss"] == pytest.approx(1 / 2)


def test_a_caller_of_an_earlier_admission_is_told_that_it_is_over(
    make_core: MakeCore, ask: Callable[..., Future[Any]]
) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    engine.wait_entered(1)
    first = ask(core.next_report, "0000", 1, timeout_s=WAIT_S)
    again = ask(core.admit, make_spec("0000"), 1)
    with pytest.raises(LeaseLost, match="trial 0000"):
        first.result(WAIT_S)
    engine.allow(2)
    again.result(WAIT_S)
    assert index_of(core, "0000") == 1


def test_closing_while_trials_train_wakes_all_who_wait(make_core: MakeCore, ask: Callable[..., Future[Any]]) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    engine.wait_entered(1)
    waiting = ask(core.next_report, "0000", 1, timeout_s=WAIT_S)
    changing = ask(core.wait_change, 0)
    closing = ask(core.close)
    with pytest.raises(LeaseLost, match="trial 0000 is not here"):
        waiting.result(WAIT_S)
    engine.allow()
    closing.result(WAIT_S)
    assert changing.result(WAIT_S) is False
    with pytest.raises(LeaseLost, match="is closing"):
        core.admit(make_spec("0001"), 1)


class SlowState(TrialState):
    """A state whose writing takes until the test says so."""

    may_end = threading.Event()
    has_begun = threading.Event()

    def save(self, folder: Path) -> None:
        """Waits, then writes."""
        self.has_begun.set()
        assert self.may_end.wait(WAIT_S)
        super().save(folder)


@pytest.fixture
def slow_states(monkeypatch: pytest.MonkeyPatch) -> type[SlowState]:
    """All states of trial 0000 are slow ones."""
    SlowState.may_end.clear()
    SlowState.has_begun.clear()
    plain = FakeEngine.snapshot

    def snapshot(engine: FakeEngine, trial_id: str) -> TrialState | None:
        state = plain(engine, trial_id)
        return SlowState(**vars(state)) if trial_id == "0000" else state

    monkeypatch.setattr(FakeEngine, "snapshot", snapshot)
    return SlowState


def test_a_state_being_written_holds_back_its_own_report_and_nobodys_training(
    make_core: MakeCore, slow_states: type[SlowState], tmp_path: Path
) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    engine.allow()
    assert slow_states.has_begun.wait(WAIT_S)
    assert core.next_report("0000", 1, timeout_s=0) is None
    core.admit(make_spec("0001"), 1)
    # The engine trains trial 0001 while trial 0000 is written.
    engine.wait_entered(2)
    slow_states.may_end.set()
    assert index_of(core, "0000") == 1
    assert (SweepPaths(tmp_path).trial("0000").state / "state.safetensors").exists()
    assert ("proceed", "0000") not in engine.log


def test_an_eviction_waits_for_the_state_being_written(
    make_core: MakeCore, slow_states: type[SlowState], ask: Callable[..., Future[Any]], tmp_path: Path
) -> None:
    core = make_core(FakeEngine())
    core.admit(make_spec("0000"), 1)
    assert slow_states.has_begun.wait(WAIT_S)
    leaving = ask(core.evict, "0000")
    with pytest.raises(LeaseLost, match="trial 0000 is not here"):
        core.next_report("0000", 1, timeout_s=WAIT_S)
    assert not leaving.done()
    slow_states.may_end.set()
    leaving.result(WAIT_S)
    # Whoever takes the trial now finds a state that nobody replaces behind its back.
    assert TrialState.load(SweepPaths(tmp_path).trial("0000").state).step == 2


def test_a_trial_whose_state_cannot_be_written_fails_alone(make_core: MakeCore, tmp_path: Path) -> None:
    core = make_core(FakeEngine())
    SweepPaths(tmp_path).trial("0000").root.rmdir()
    SweepPaths(tmp_path).trial("0000").root.write_text("in the way", encoding="utf-8")
    core.admit(make_spec("0000"), 1)
    core.admit(make_spec("0001"), 1)
    report = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert report is not None
    assert report.failure is not None
    assert "cannot be written" in report.failure.message
    assert [index_of(core, "0001") for _ in range(4)] == [1, 2, 3, 4]


def test_fewer_slots_are_told_to_who_waits_for_a_change(make_core: MakeCore, ask: Callable[..., Future[Any]]) -> None:
    core = make_core(FakeEngine(2, room=1))
    before = core.describe_slots()
    change = ask(core.wait_change, before["version"])
    core.admit(make_spec("0000"), 1)
    assert index_of(core, "0000") == 1
    core.admit(make_spec("0001"), 1)
    assert change.result(WAIT_S) is True
    after = core.describe_slots()
    assert (before["slots"], after["slots"]) == (2, 1)
    assert after["slots_reason"] == "out of memory with 2 trials"
    # That is no preemption: the trial was never in.
    with pytest.raises(SlotRefused, match="all 1 slots are held"):
        core.admit(make_spec("0002"), 1)


def test_a_restored_trial_stays_out_of_the_engine_until_it_is_told_on(make_core: MakeCore, tmp_path: Path) -> None:
    first = make_core(FakeEngine())
    first.admit(make_spec("0000"), 1)
    told = first.next_report("0000", 1, timeout_s=WAIT_S)
    assert told is not None
    first.evict("0000")
    state = TrialState.load(SweepPaths(tmp_path).trial("0000").state)
    state.metrics = told.metrics
    state.save(SweepPaths(tmp_path).trial("0000").state)
    engine = FakeEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    # A neighbour's steps must not train it on.
    core.admit(make_spec("0001"), 1)
    assert index_of(core, "0001") == 1
    assert index_of(core, "0000") == 1
    assert ("admit", "0000") not in engine.log
    assert index_of(core, "0000") == 2


def test_trials_that_were_training_when_the_engine_raised_are_not_met_again(make_core: MakeCore) -> None:
    engine = GatedEngine()
    core = make_core(engine)
    core.admit(make_spec("0000"), 1)
    engine.wait_entered(1)

    def broken(trial_ids: list[str]) -> None:
        raise RuntimeError("kernel launch failed")

    engine.allow()
    assert index_of(core, "0000") == 1
    engine.train = broken  # type: ignore[method-assign]
    report = core.next_report("0000", 1, timeout_s=WAIT_S)
    assert report is not None
    assert report.failure is not None
    engine.train = lambda trial_ids: None  # type: ignore[method-assign]
    core.admit(make_spec("0001"), 1)
    assert index_of(core, "0001") == 1
    assert ("evict", "0000") in engine.log


def test_the_device_waits_between_the_last_report_and_the_next_step(make_core: MakeCore) -> None:
    now = [0.0]
    engine = GatedEngine()
    core = make_core(engine, clock=lambda: now[0])
    now[0] = 100.0
    core.admit(make_spec("0000"), 1)
    engine.wait_entered(1)
    now[0] = 108.0
    engine.allow()
    assert index_of(core, "0000") == 1
    core.clear()
    now[0] = 110.0
    core.admit(make_spec("0001"), 1)
    engine.wait_entered(2)
    now[0] = 140.0
    engine.allow()
    assert index_of(core, "0001") == 1
    core.clear()
    now[0] = 500.0
    usage = core.usage()
    assert (usage["training_s"], usage["idle_s"]) == (38.0, 2.0)
