"""What the pool decides: who gets a slot, what a lost executor costs, and what the driver is told."""

from __future__ import annotations

import pytest

from qlora_ray.orchestration.pool.actions import AskHeartbeat, EvictTrial, Grant, KillExecutor, Refuse, StartExecutor
from qlora_ray.orchestration.pool.events import (
    Evicted,
    ExecutorDied,
    ExecutorReady,
    NodeGone,
    SeatsAdded,
    SlotsChanged,
    TrialEnded,
    TrialPreempted,
)
from qlora_ray.orchestration.pool.leases import LeaseNeeds, Seat
from qlora_ray.orchestration.pool.terms import MAX_RESTARTS
from tests.pool_stage import LEASE_TIMEOUT_S, NODE, Stage, make_facts

GIB = 2**30


def trials_of(stage: Stage, event: str) -> list[str]:
    """The trials of all events of a name."""
    return [told["trial"] for told in stage.events(event)]


def test_slots_go_first_come_first_served_and_to_those_that_go_on_before_all_others() -> None:
    stage = Stage(1)
    for trial_id in ("0000", "0001", "0002"):
        stage.ask(trial_id)
    stage.ask("0003", goes_on=True)
    for trial_id in ("0000", "0003", "0001"):
        stage.release(trial_id)
    assert trials_of(stage, "trial_leased") == ["0000", "0003", "0001", "0002"]


def test_nobody_gets_a_slot_of_an_executor_that_is_not_ready() -> None:
    stage = Stage(1, ready=False)
    assert stage.ask("0000") is None
    assert stage.events() == []
    stage.be_ready(0)
    assert stage.lease_of("0000") is not None


def test_leases_are_spread_by_the_share_of_slots_that_is_held() -> None:
    stage = Stage(2, 4)
    leases = [stage.ask(f"{number:04d}") for number in range(6)]
    assert [lease.seat_id for lease in leases if lease] == [0, 1, 1, 0, 1, 1]


def test_no_more_leases_are_out_than_max_slots() -> None:
    stage = Stage(2, 2, max_slots=3)
    for number in range(4):
        stage.ask(f"{number:04d}")
    assert stage.lease_of("0003") is None
    assert stage.events("executor_ready")[-1]["ready_slots"] == 3
    stage.release("0001")
    assert stage.lease_of("0003") is not None


def test_a_trial_that_asks_twice_has_one_lease() -> None:
    stage = Stage(2)
    assert stage.ask("0000") == stage.ask("0000")
    assert trials_of(stage, "trial_leased") == ["0000"]


def test_lease_numbers_grow_and_never_repeat() -> None:
    stage = Stage(1)
    numbers = []
    for _ in range(3):
        lease = stage.ask("0000")
        assert lease is not None
        numbers.append(lease.number)
        stage.release("0000", lease_number=lease.number)
    assert numbers == [1, 2, 3]
    # One that is over already takes nothing.
    stage.ask("0000")
    stage.release("0000", lease_number=2)
    assert len(trials_of(stage, "trial_released")) == 3


def test_a_trial_that_leaves_the_queue_takes_no_slot() -> None:
    stage = Stage(1)
    for trial_id in ("0000", "0001", "0002"):
        stage.ask(trial_id)
    stage.release("0001")
    stage.release("0000")
    assert trials_of(stage, "trial_leased") == ["0000", "0002"]


def test_a_lost_executor_is_killed_and_replaced_and_its_trials_lose_their_slots() -> None:
    stage = Stage(1, 1)
    first = stage.ask("0000")
    stage.ask("0001")
    stage.die(0)
    assert [(kill.seat_id, kill.incarnation) for kill in stage.of(KillExecutor)] == [(0, 1)]
    assert trials_of(stage, "trial_released") == ["0000"]
    assert stage.events("executor_lost")[0]["ready_slots"] == 1
    again = stage.ask("0000", goes_on=True)
    assert first is not None and again is not None
    assert (again.seat_id, again.incarnation) == (0, first.incarnation + 1)


def test_a_death_is_told_once_whoever_saw_it() -> None:
    stage = Stage(1)
    stage.die(0)
    stage.tell(ExecutorReady(0, 1, make_facts(1)))
    stage.actions.clear()
    # The old executor's watcher comes late.
    stage.tell(ExecutorDied(0, 1, "it died"))
    assert stage.of(StartExecutor) == [] and stage.events() == []


def test_an_executor_that_dies_too_often_is_given_up_and_all_who_wait_are_told() -> None:
    stage = Stage(1)
    for _ in range(MAX_RESTARTS):
        stage.die(0)
    stage.ask("0000")
    stage.ask("0001")
    stage.die(0, "the device fell off the bus")
    assert len(stage.of(StartExecutor)) == 1 + MAX_RESTARTS
    (refusal,) = stage.of(Refuse)
    assert (refusal.trial_id, refusal.is_about_trial) == ("0001", False)
    assert refusal.reason == "no executor is left: the device fell off the bus"
    failed = stage.events("executor_failed")[0]
    assert (failed["num_failed"], failed["num_left"]) == (1, 0)
    assert stage.machine.is_hopeless


def test_deaths_in_a_long_sweep_do_not_add_up_where_trials_end_in_between() -> None:
    stage = Stage(1)
    for number in range(2 * MAX_RESTARTS):
        stage.die(0)
        assert stage.ask(f"{number:04}") is not None
        stage.tell(TrialEnded(f"{number:04}"))
    for _ in range(MAX_RESTARTS):
        assert not stage.machine.is_hopeless
        stage.die(0)
    # One that goes on where there is more memory has not ended.
    assert stage.ask("0099") is not None
    stage.tell(TrialEnded("0099", "out of memory"))
    stage.die(0)
    assert stage.machine.is_hopeless


def test_a_start_that_dies_gets_one_more_try_also_after_a_death() -> None:
    stage = Stage(1, ready=False)
    stage.be_ready(0)
    for _ in range(MAX_RESTARTS):
        stage.die(0)
        stage.die(0)
        assert not stage.machine.is_hopeless
        stage.be_ready(0, stage.incarnation(0))
    stage.die(0)
    assert stage.machine.is_hopeless


def test_a_start_that_dies_gets_one_more_try() -> None:
    stage = Stage(1, ready=False)
    stage.die(0)
    stage.die(0)
    assert len(stage.of(StartExecutor)) == 2
    assert stage.machine.is_hopeless


def test_an_error_of_ours_would_come_again_and_gets_no_other_try() -> None:
    stage = Stage(1, ready=False)
    stage.die(0, "no-such-base cannot be loaded", is_final=True)
    assert len(stage.of(StartExecutor)) == 1
    assert (stage.machine.is_hopeless, stage.machine.cause) == (True, "no-such-base cannot be loaded")


def test_the_others_go_on_where_one_executor_is_given_up() -> None:
    stage = Stage(1, 1)
    stage.die(0, "another device", is_final=True)
    assert stage.events("executor_failed")[0]["ready_slots"] == 1
    lease = stage.ask("0000")
    assert lease is not None and lease.seat_id == 1
    assert [seat_id for seat_id, _, _ in stage.machine.ready_executors()] == [1]


def test_trials_wait_for_nodes_that_may_come() -> None:
    stage = Stage(waits_for_nodes=True)
    assert stage.ask("0000") is None
    assert stage.of(Refuse) == []
    stage.add(Seat(0, NODE, "spec"), slots=1)
    assert stage.lease_of("0000") is not None
    stage.tell(NodeGone(NODE, "its raylet died"))
    stage.ask("0000", goes_on=True)
    assert stage.of(Refuse) == []
    # What broke there for good would break on the next node too.
    stage.add(Seat(1, "other", "spec"), slots=1)
    stage.die(1, "no-such-base cannot be loaded", is_final=True)
    assert stage.ask("0001") is None
    assert stage.of(Refuse)[0].reason == "no executor is left: no-such-base cannot be loaded"


def test_fewer_slots_are_told_and_no_more_trials_come_than_there_are() -> None:
    stage = Stage(2)
    stage.ask("0000")
    stage.tell(SlotsChanged(0, 1, make_facts(1, slots_reason="out of memory")))
    changed = stage.events("slots_changed")[0]
    assert (changed["slots"], changed["ready_slots"], changed["reason"]) == (1, 1, "out of memory")
    assert stage.ask("0001") is None
    stage.tell(SlotsChanged(0, 1, make_facts(2, slots_reason="more room")))
    assert stage.lease_of("0001") is not None


def test_a_preempted_trial_gives_its_slot_back_and_the_driver_is_told_why() -> None:
    stage = Stage(1)
    lease = stage.ask("0000")
    stage.ask("0001")
    assert lease is not None
    stage.tell(TrialPreempted("0000", lease.number, "out of memory with 3 trials"))
    names = [event["event"] for event in stage.events()]
    assert names == ["executor_ready", "trial_leased", "trial_preempted", "trial_released", "trial_leased"]
    preempted = stage.events("trial_preempted")[0]
    assert (preempted["trial"], preempted["executor"]) == ("0000", 0)
    assert preempted["reason"] == "out of memory with 3 trials"


def test_a_slot_is_free_only_when_the_executor_has_put_its_trial_out() -> None:
    stage = Stage(1, evicts=False)
    lease = stage.ask("0000")
    stage.ask("0001")
    stage.tell(TrialEnded("0000"))
    assert [(evict.trial_id, evict.lease_number) for evict in stage.of(EvictTrial)] == [("0000", 1)]
    assert stage.lease_of("0001") is None
    # Asked again meanwhile, by another driver's coroutine say: it waits for its old slot to be free.
    stage.ask("0000")
    assert stage.lease_of("0000") == lease
    stage.tell(Evicted(0, 1, "0000", 1))
    assert stage.lease_of("0001") is not None
    stage.release("0001")
    again = stage.lease_of("0000")
    assert again is not None and again.number == 3


def test_a_trial_that_never_came_loses_its_lease_and_the_executor_is_told_first() -> None:
    stage = Stage(3, evicts=False)
    for trial_id in ("0000", "0001"):
        stage.ask(trial_id)
    stage.now = LEASE_TIMEOUT_S
    stage.ask("0002")
    stage.hear(0, {"0001": 2})
    # Trial 0001 is there, and trial 0002 may still come.
    assert [evict.trial_id for evict in stage.of(EvictTrial)] == ["0000"]
    assert trials_of(stage, "trial_released") == []
    stage.tell(Evicted(0, 1, "0000", 1))
    assert trials_of(stage, "trial_released") == ["0000"]


def test_an_answer_from_before_a_lease_says_nothing_about_it() -> None:
    stage = Stage(1)
    stage.now = 2 * LEASE_TIMEOUT_S
    stage.ask("0000")
    stage.hear(0, {}, asked_at=1.0)
    assert stage.of(EvictTrial) == []


def test_a_trial_that_the_executor_holds_without_a_lease_takes_its_slot_until_it_is_put_out() -> None:
    stage = Stage(1, evicts=False)
    stage.hear(0, {"0007": 5})
    assert stage.ask("0000") is None
    assert [(evict.trial_id, evict.lease_number) for evict in stage.of(EvictTrial)] == [("0007", 5)]
    # It is asked once, however often it is heard.
    stage.hear(0, {"0007": 5})
    assert len(stage.of(EvictTrial)) == 1
    stage.tell(Evicted(0, 1, "0007", 5))
    assert stage.lease_of("0000") is not None


def test_nobody_is_sent_to_an_executor_that_refused_a_trial_until_it_was_heard() -> None:
    stage = Stage(2, evicts=False)
    lease = stage.ask("0000")
    assert lease is not None
    stage.now = 1.0
    stage.release("0000", lease_number=lease.number, refused=True)
    assert stage.of(AskHeartbeat)[-1].seat_id == 0
    assert stage.ask("0000", goes_on=True) == lease
    # An answer to what was asked before the refusal does not count.
    stage.hear(0, {}, asked_at=0.5)
    assert len(stage.of(Grant)) == 1
    stage.hear(0, {"0009": 9}, slots=1)
    assert len(stage.of(Grant)) == 1
    stage.hear(0, {}, slots=1)
    assert len(stage.of(Grant)) == 2


@pytest.mark.parametrize("is_heard_in_time", [True, False])
def test_an_executor_that_does_not_answer_is_killed_and_replaced(is_heard_in_time: bool) -> None:
    stage = Stage(1, heartbeat_timeout_s=20.0)
    stage.ask("0000")
    for _ in range(10):
        stage.pass_time(5.0)
        if is_heard_in_time:
            stage.hear(0, {"0000": 1})
    reasons = [event["reason"] for event in stage.events("executor_lost")]
    assert reasons[:1] == ([] if is_heard_in_time else ["it has not answered for 20 s"])


def test_time_in_which_the_pool_itself_stood_still_is_nobodys_silence() -> None:
    stage = Stage(1, heartbeat_timeout_s=20.0)
    stage.pass_time(5.0)
    stage.now += 10_000
    stage.pass_time(5.0)
    assert stage.events("executor_lost") == []


@pytest.mark.parametrize(
    ("is_training", "moves", "is_lost"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_an_executor_that_trains_without_progress_is_killed_and_replaced(
    is_training: bool, moves: bool, is_lost: bool
) -> None:
    stage = Stage(1, progress_timeout_s=100.0)
    stage.ask("0000")
    for number in range(30):
        stage.pass_time(5.0)
        if not stage.events("executor_lost"):
            stage.hear(0, {"0000": 1}, is_training=is_training, progress=number if moves else 0)
    assert bool(stage.events("executor_lost")) is is_lost


def test_an_executor_that_is_never_ready_is_started_once_more_and_given_up() -> None:
    stage = Stage(1, ready=False, progress_timeout_s=100.0)
    stage.pass_time(300.0)
    assert len(stage.of(StartExecutor)) == 2
    assert stage.events("executor_failed")[0]["reason"] == "it was not ready 100 s after its start"


def test_the_largest_trials_go_to_the_largest_devices() -> None:
    stage = Stage(waits_for_nodes=True)
    for number, size in enumerate((2, 9, 5, 1)):
        stage.ask(f"{number:04d}", needs=LeaseNeeds(size_bytes=size))
    small, large = Seat(0, "a", "s", "T4", 16 * GIB), Seat(1, "b", "s", "A100", 80 * GIB)
    stage.slots = {0: 2, 1: 2}
    stage.tell(SeatsAdded((small, large)))
    seats = {trial: stage.lease_of(trial).seat_id for trial in ("0000", "0001", "0002", "0003")}  # type: ignore[union-attr]
    assert seats == {"0001": 1, "0002": 1, "0003": 0, "0000": 0}


def test_preferred_devices_are_taken_before_larger_ones() -> None:
    stage = Stage()
    stage.slots = {0: 1, 1: 1, 2: 1}
    preferred = Seat(2, "c", "s", "T4", 16 * GIB, is_preferred=True)
    stage.tell(SeatsAdded((Seat(0, "a", "s", "T4", 16 * GIB), Seat(1, "b", "s", "A100", 80 * GIB), preferred)))
    assert [stage.ask(f"{number:04d}").seat_id for number in range(3)] == [2, 1, 0]  # type: ignore[union-attr]


def test_a_trial_waits_for_a_device_that_fits_and_hears_if_there_is_none() -> None:
    stage = Stage(waits_for_nodes=False)
    stage.slots = {0: 1, 1: 1}
    stage.tell(SeatsAdded((Seat(0, "a", "s", "T4", 16 * GIB), Seat(1, "b", "s", "A100", 80 * GIB))))
    assert stage.ask("0000", needs=LeaseNeeds(min_memory_bytes=16 * GIB + 1)).seat_id == 1  # type: ignore[union-attr]
    assert stage.ask("0001", needs=LeaseNeeds(device_class="A100")) is None
    assert stage.of(Refuse) == []
    stage.release("0000")
    assert stage.lease_of("0001").seat_id == 1  # type: ignore[union-attr]
    assert stage.ask("0002", needs=LeaseNeeds(min_memory_bytes=80 * GIB + 1)) is None
    (refusal,) = stage.of(Refuse)
    assert (refusal.trial_id, refusal.is_about_trial) == ("0002", True)
    assert refusal.reason == "no executor has a device with at least 80.0 GiB"


def test_the_trial_that_needs_a_large_device_gets_it_before_one_that_can_take_any() -> None:
    stage = Stage(waits_for_nodes=True)
    stage.ask("0000")
    stage.ask("0001", needs=LeaseNeeds(min_memory_bytes=GIB))
    stage.add(Seat(0, "a", "s", "A100", 80 * GIB), slots=1)
    assert trials_of(stage, "trial_leased") == ["0001"]


def test_a_trial_that_asked_while_it_was_put_out_waits_like_others_when_the_executor_dies_meanwhile() -> None:
    stage = Stage(1, evicts=False)
    stage.ask("0000")
    stage.tell(TrialEnded("0000"))
    stage.ask("0000")
    stage.tell(NodeGone(NODE, "its raylet died"))
    assert [refusal.trial_id for refusal in stage.of(Refuse)] == ["0000"]
