"""Nodes that drain and leave, devices that are made room on, and executors that nobody uses."""

from __future__ import annotations

from qlora_ray.orchestration.pool.actions import (
    CapacityWanted,
    KillExecutor,
    PreemptTrial,
    Refuse,
    StartExecutor,
    WantCapacity,
)
from qlora_ray.orchestration.pool.events import (
    Evicted,
    NodeDraining,
    NodeGone,
    ScoringBegun,
    SeatsAdded,
    TrialEnded,
    TrialPreempted,
)
from qlora_ray.orchestration.pool.leases import ANY_DEVICE, LeaseNeeds, Seat
from tests.pool_stage import NODE, Stage

GIB = 2**30
LARGE = LeaseNeeds(min_memory_bytes=40 * GIB)
WHOLE = LeaseNeeds(whole_device=True)


def killed(stage: Stage) -> list[int]:
    """The seats whose executors were ended, in order."""
    return [kill.seat_id for kill in stage.of(KillExecutor)]


def shared_device() -> Stage:
    """Two executors that share one device."""
    stage = Stage()
    stage.slots = {0: 1, 1: 1, 2: 1}
    seats = [Seat(number, NODE, "share", "T4", 16 * GIB, device_id="here:0", whole_spec="whole") for number in (0, 1)]
    stage.tell(SeatsAdded(tuple(seats)))
    return stage


def test_trials_of_a_draining_node_are_put_off_and_its_executors_end_when_they_have_left() -> None:
    stage = Stage(1)
    lease = stage.ask("0000")
    assert lease is not None
    stage.tell(NodeDraining(NODE, "maintenance", 100.0))
    (preempt,) = stage.of(PreemptTrial)
    assert (preempt.trial_id, preempt.lease_number) == ("0000", lease.number)
    assert preempt.reason == "node node is draining: maintenance"
    assert stage.ask("0001") is None
    assert killed(stage) == []
    # The search goes on until the last one that trains has its state of now on disk.
    assert stage.events("node_draining")[0]["num_left"] == 1
    stage.tell(TrialPreempted("0000", lease.number, preempt.reason))
    assert killed(stage) == [0]
    assert stage.events("node_drained")[0]["num_left"] == 0


def test_a_node_without_executors_has_nothing_to_drain_and_a_drained_one_nothing_more() -> None:
    stage = Stage(1)
    stage.tell(NodeDraining("unknown", "maintenance", 100.0))
    assert stage.events("node_drained") == []
    for _ in range(2):
        stage.tell(NodeDraining(NODE, "maintenance", 100.0))
    assert [event["node"] for event in stage.events("node_drained")] == [NODE]


def test_a_draining_node_without_trials_ends_at_once_and_one_whose_time_is_over_whatever_it_does() -> None:
    stage = Stage(1, 1)
    stage.ask("0000")
    stage.tell(NodeDraining(NODE, "maintenance", 12.0))
    assert killed(stage) == [1]
    stage.pass_time(11.0)
    assert killed(stage) == [1]
    stage.pass_time(2.0)
    assert killed(stage) == [1, 0]
    assert [event["trial"] for event in stage.events("trial_released")] == ["0000"]


def test_an_executor_that_dies_while_its_node_drains_is_not_started_again() -> None:
    stage = Stage(1)
    stage.ask("0000")
    stage.tell(NodeDraining(NODE, "maintenance", 100.0))
    stage.die(0)
    assert len(stage.of(StartExecutor)) == 1


def test_a_node_that_is_gone_takes_its_seats_with_one_event() -> None:
    stage = Stage(1, 1)
    stage.add(Seat(2, "other", "spec"), slots=1)
    for number in range(3):
        stage.ask(f"{number:04d}")
    stage.tell(NodeGone(NODE, "its raylet died"))
    (lost,) = stage.events("node_lost")
    assert (lost["node"], lost["executors"], lost["trials"], lost["num_left"]) == (NODE, [0, 1], ["0000", "0001"], 1)
    assert killed(stage) == [0, 1]
    # Told twice, it is gone once.
    stage.tell(NodeGone(NODE, "its raylet died"))
    assert len(stage.events("node_lost")) == 1


def test_executors_of_a_device_make_room_for_one_with_the_whole_of_it_and_come_back() -> None:
    stage = shared_device()
    first, second = stage.ask("0000"), stage.ask("0001")
    assert first is not None and second is not None
    assert stage.ask("0009", goes_on=True, needs=WHOLE) is None
    # It waits for both to leave; nobody new comes there meanwhile.
    stage.release("0000")
    assert stage.ask("0002") is None
    assert killed(stage) == []
    stage.release("0001")
    assert killed(stage) == [0, 1]
    whole = stage.lease_of("0009")
    assert whole is not None and (stage.of(StartExecutor)[-1].spec, whole.seat_id) == ("whole", 2)
    assert stage.lease_of("0002") is None
    stage.tell(TrialEnded("0009"))
    assert killed(stage) == [0, 1, 2]
    assert [start.seat_id for start in stage.of(StartExecutor)][-2:] == [0, 1]
    assert stage.lease_of("0002") is not None


def test_a_device_is_left_to_its_executors_when_the_trial_that_wanted_all_of_it_is_gone() -> None:
    stage = shared_device()
    stage.ask("0000")
    stage.ask("0009", needs=WHOLE)
    stage.release("0009")
    assert stage.ask("0001") is not None
    assert killed(stage) == []


def test_a_trial_hears_that_no_executor_can_have_a_whole_device() -> None:
    stage = Stage(2)
    stage.ask("0009", needs=WHOLE)
    (refusal,) = stage.of(Refuse)
    assert (refusal.reason, refusal.is_about_trial) == ("no executor has a whole device", True)


def test_a_whole_device_whose_executor_cannot_start_goes_back_and_the_trial_hears_why() -> None:
    stage = shared_device()
    stage._is_ready = False
    stage.ask("0009", needs=WHOLE)
    for _ in range(2):
        stage.die(2, "CUDA is gone")
    (refusal,) = stage.of(Refuse)
    assert refusal.trial_id == "0009" and "CUDA is gone" in refusal.reason
    assert [start.seat_id for start in stage.of(StartExecutor)][-2:] == [0, 1]


def test_a_trial_that_needs_a_whole_device_goes_to_another_one_where_the_first_cannot_be_had() -> None:
    stage = shared_device()
    other = [Seat(number, "b", "share", "T4", 16 * GIB, device_id="b:0", whole_spec="whole") for number in (2, 3)]
    stage.add(*other, slots=1)
    stage._is_ready = False
    stage.ask("0009", needs=WHOLE)
    assert stage.of(StartExecutor)[-1].seat_id == 4
    for _ in range(2):
        stage.die(4, "CUDA is gone")
    assert stage.of(Refuse) == []
    stage.be_ready(5)
    whole = stage.lease_of("0009")
    assert whole is not None and whole.seat_id == 5
    # What has failed once is not tried again: one that comes later waits for the device that works.
    stage.ask("0010", needs=WHOLE)
    assert stage.of(Refuse) == [] and stage.of(StartExecutor)[-1].seat_id == 5


def test_a_trial_with_a_whole_device_leaves_a_draining_node_in_its_own_time() -> None:
    stage = shared_device()
    stage.add(Seat(2, "b", "s"), slots=1)
    stage.ask("0009", needs=WHOLE)
    whole = stage.lease_of("0009")
    assert whole is not None
    stage.tell(NodeDraining(NODE, "maintenance", 100.0))
    (preempt,) = stage.of(PreemptTrial)
    assert (preempt.trial_id, whole.seat_id in killed(stage)) == ("0009", False)
    stage.tell(TrialPreempted("0009", whole.number, preempt.reason))
    assert killed(stage)[-1] == whole.seat_id
    assert len(stage.events("node_drained")) == 1


def test_executors_that_nobody_uses_are_ended_but_for_the_largest_and_started_again_when_they_are_needed() -> None:
    stage = Stage(idle_timeout_s=60.0, heartbeat_timeout_s=1e9)
    stage.slots = {0: 1, 1: 1}
    stage.tell(SeatsAdded((Seat(0, "a", "s", "A100", 80 * GIB), Seat(1, "b", "s", "T4", 16 * GIB))))
    stage.pass_time(50.0)
    assert killed(stage) == []
    stage.pass_time(20.0)
    assert killed(stage) == [1]
    assert stage.events("executor_released")[0]["executor"] == 1
    stage.ask("0000")
    stage.ask("0001")
    stage.pass_time(6.0)
    assert stage.lease_of("0001") is not None


def test_executors_without_trials_are_kept_while_the_best_trials_are_scored_on_them() -> None:
    stage = Stage(2, idle_timeout_s=60.0, heartbeat_timeout_s=1e9)
    stage.tell(ScoringBegun())
    stage.pass_time(600.0)
    assert killed(stage) == []


def test_an_idle_executor_or_a_new_node_takes_the_place_of_the_last_one_that_scored() -> None:
    stage = Stage(idle_timeout_s=60.0, waits_for_nodes=True, heartbeat_timeout_s=1e9)
    stage.add(Seat(0, "small", "spec", memory_bytes=8 * GIB), Seat(1, "large", "spec", memory_bytes=80 * GIB))
    stage.pass_time(70.0)
    assert killed(stage) == [0]
    stage.tell(ScoringBegun())
    stage.tell(NodeGone("large", "the machine is gone"))
    stage.pass_time(10.0)
    assert [seat_id for seat_id, _, _ in stage.machine.ready_executors()] == [0]
    assert stage.of(WantCapacity) == []
    stage.tell(NodeGone("small", "the machine is gone"))
    stage.pass_time(10.0)
    # Nobody waits for a slot, and the sweep does not end before a node has come.
    assert not stage.machine.is_hopeless
    assert stage.of(WantCapacity)[-1].wanted == (CapacityWanted(1, ANY_DEVICE),)
    stage.add(Seat(2, "new", "spec"), slots=1)
    stage.pass_time(10.0)
    assert stage.of(WantCapacity)[-1].wanted == ()


def test_what_waits_is_wanted_of_other_nodes_and_taken_back_when_nobody_waits() -> None:
    stage = Stage(1, waits_for_nodes=True, heartbeat_timeout_s=1e9)
    for number in range(3):
        stage.ask(f"{number:04d}")
    stage.pass_time(6.0)
    (wanted,) = stage.of(WantCapacity)[-1].wanted
    assert (wanted.num_trials, wanted.needs) == (2, LeaseNeeds())
    stage.release("0001")
    stage.release("0002")
    assert stage.of(WantCapacity)[-1].wanted == ()


def test_a_stranger_keeps_a_draining_executor_until_it_is_put_out() -> None:
    stage = Stage(1, evicts=False)
    stage.hear(0, {"0007": 5})
    stage.tell(NodeDraining(NODE, "maintenance", 100.0))
    assert killed(stage) == []
    stage.tell(Evicted(0, 1, "0007", 5))
    assert killed(stage) == [0]
