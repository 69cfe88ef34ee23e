"""ExecutorCore puts trials off: for memory, or because it was asked to. No test sleeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_ray.orchestration.executor.admission import Preempted
from qlora_ray.runs import SweepPaths
from qlora_ray.training.checkpoint import TrialState
from tests.fake_engine import WAIT_S, FakeEngine, GatedEngine
from tests.unit.executor_fixtures import MakeCore, ask, index_of, make_core, make_spec

__all__ = ["ask", "make_core"]


@pytest.mark.parametrize("keep_state", [True, False])
def test_a_trial_preempted_for_memory_leaves_its_state_and_frees_its_slot(
    make_core: MakeCore, tmp_path: Path, keep_state: bool
) -> None:
    core = make_core(FakeEngine(3, room=2), keep_state=keep_state)
    for number in range(2):
        core.admit(make_spec(f"{number:04d}"), 1)
        assert index_of(core, f"{number:04d}") == 1
    core.admit(make_spec("0002"), 1)
    with pytest.raises(Preempted, match="out of memory with 3 trials"):
        core.next_report("0002", 1, timeout_s=WAIT_S)
    assert core.trials() == ["0000", "0001"]
    assert TrialState.load(SweepPaths(tmp_path).trial("0002").state).trial_id == "0002"
    assert index_of(core, "0000") == 2
    core.evict("0000")
    assert core.admit(make_spec("0002"), 2) is True
    assert index_of(core, "0002", 2) == 1


@pytest.mark.parametrize("keep_state", [True, False])
def test_a_trial_put_off_while_it_trains_leaves_after_its_step_and_goes_on_from_there(
    make_core: MakeCore, tmp_path: Path, keep_state: bool
) -> None:
    engine = GatedEngine()
    core = make_core(engine, keep_state=keep_state)
    core.admit(make_spec("0000"), 1)
    engine.allow()
    assert index_of(core, "0000") == 1
    # On its way from step 2 to its second report, at step 4.
    assert core.next_report("0000", 1, timeout_s=0) is None
    engine.wait_entered(2)
    core.preempt("0000", 1, "node n is draining")
    assert core.heartbeat()["held"] == {"0000": 1}
    engine.allow(99)
    with pytest.raises(Preempted, match="node n is draining"):
        core.next_report("0000", 1, timeout_s=WAIT_S)
    state = TrialState.load(SweepPaths(tmp_path).trial("0000").state)
    assert (state.step, state.report_index) == (3, 1)
    assert core.heartbeat()["held"] == {}
    # The answer may have been lost on its way: who asks again with that lease hears the same.
    with pytest.raises(Preempted, match="node n is draining"):
        core.next_report("0000", 1, timeout_s=WAIT_S)
    with pytest.raises(Preempted, match="node n is draining"):
        core.admit(make_spec("0000"), 1)
    assert core.admit(make_spec("0000"), 2) is True
    assert [index_of(core, "0000", 2) for _ in range(2)] == [2, 3]


def test_a_trial_put_off_while_it_waits_at_a_report_is_out_at_once(make_core: MakeCore) -> None:
    core = make_core(FakeEngine())
    core.admit(make_spec("0000"), 1)
    assert index_of(core, "0000") == 1
    core.preempt("0000", 1, "node n is draining")
    assert core.trials() == []
    with pytest.raises(Preempted, match="node n is draining"):
        core.next_report("0000", 1, timeout_s=WAIT_S)


def test_without_states_at_reports_a_trial_put_off_at_one_has_it_written_when_it_is_asked_on(
    make_core: MakeCore, tmp_path: Path
) -> None:
    core = make_core(FakeEngine(), keep_state=False)
    core.admit(make_spec("0000"), 1)
    assert index_of(core, "0000") == 1
    core.preempt("0000", 1, "node n is draining")
    with pytest.raises(Preempted, match="node n is draining"):
        core.next_report("0000", 1, timeout_s=WAIT_S)
    assert TrialState.load(SweepPaths(tmp_path).trial("0000").state).report_index == 1


def test_a_trial_that_has_ended_is_not_put_off(make_core: MakeCore) -> None:
    core = make_core(FakeEngine())
    core.admit(make_spec("0000"), 1)
    assert [index_of(core, "0000") for _ in range(4)] == [1, 2, 3, 4]
    core.preempt("0000", 1, "node n is draining")
    assert core.trials() == ["0000"]
    assert core.next_report("0000", 1, timeout_s=0) is None


def test_a_preempted_trial_whose_state_cannot_be_written_fails_and_holds_no_slot(
    make_core: MakeCore, tmp_path: Path
) -> None:
    paths = SweepPaths(tmp_path)
    TrialState("0002", 2, 1, {}, {}, {}, {}, metrics={"eval_loss": 1.0}).save(paths.trial("0002").state)
    core = make_core(FakeEngine(3, room=1))
    core.admit(make_spec("0000"), 1)
    assert index_of(core, "0000") == 1
    # Its report is told first: it is not in the engine yet.
    assert core.admit(make_spec("0002"), 1) is True
    paths.trial("0001").root.rmdir()
    paths.trial("0001").root.write_text("in the way", encoding="utf-8")
    core.admit(make_spec("0001"), 1)
    report = core.next_report("0001", 1, timeout_s=WAIT_S)
    assert report is not None and report.failure is not None
    assert report.failure.cause == "error"
    assert core.next_report("0001", 1, timeout_s=0) is None
    core.evict("0000")
    # The engine has one slot by now, and nobody in it.
    assert [index_of(core, "0002") for _ in range(2)] == [1, 2]
