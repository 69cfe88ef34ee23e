"""What must hold at every moment of a simulated sweep, seen from outside of the pool."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from qlora_ray.orchestration.pool.actions import PreemptTrial, Refuse
from qlora_ray.orchestration.pool.leases import Lease
from qlora_ray.orchestration.pool.terms import MAX_FAILED_STARTS, MAX_RESTARTS
from qlora_ray.runs.paths import trial_id_of
from qlora_ray.training.engine import Report
from tests.simulation.executor import FRESH, STEPS_PER_REPORT

if TYPE_CHECKING:
    from tests.simulation.executor import SimulatedExecutor
    from tests.simulation.pool import SimulatedPool
    from tests.simulation.world import World

# More leases of one trial by one pool than any schedule of faults gives rise to.
MAX_LEASES = 60
DRAIN_REASON = "node "
TRUE_REASONS = ("out of memory with", DRAIN_REASON)
DEATHS = ("its process died", "a trial found it dead")
ENDS_OF_THE_UNUSED = ("made room on", "nobody has used it", "goes back to the plan's executors")


class Invariants:
    """Told of everything that happens; raises Broken with what was promised.

    The pool's leases are followed by the events that it tells its driver.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._leases: dict[tuple[int, str], tuple[int, int]] = {}
        self._newest_leases: dict[int, int] = {}
        self._num_leases: Counter[tuple[int, str]] = Counter()
        self._samples: dict[int, int] = {}
        self._num_lost: Counter[tuple[int, int]] = Counter()
        self._given_up: set[tuple[int, int]] = set()
        self._lost_nodes: set[tuple[int, str]] = set()
        self._failed_wholes: set[tuple[int, str]] = set()
        # The step that a trial was in when it was asked to leave a draining node, until it is leased again.
        self._drained: dict[tuple[int, str], int] = {}
        # The most memory that any device had when a trial was told that none will do.
        self._most_memory: dict[str, int] = {}

    def check_event(self, pool: SimulatedPool, event: dict[str, Any]) -> None:
        """A slot has at most one living lease, and it is free only when its trial is out."""
        name, trial_id = event["event"], event.get("trial", "")
        key = (id(pool), trial_id)
        if name == "trial_leased":
            self._require(key not in self._leases, f"trial {trial_id} has one lease at a time")
            newest = self._newest_leases.get(id(pool), 0)
            self._require(event["lease"] > newest, f"lease number {event['lease']} comes after {newest}")
            self._newest_leases[id(pool)] = event["lease"]
            self._leases[key] = (event["executor"], event["lease"])
            self._drained.pop(key, None)
            self._num_leases[key] += 1
            self._require(self._num_leases[key] <= MAX_LEASES, f"trial {trial_id} is not leased slots for ever")
            node_id = pool.nodes[pool.find(event["executor"])[0]]
            self._require(node_id not in pool.draining, f"no trial is sent to draining {node_id}")
            on_seat = [
                trial
                for (owner, trial), (seat, _) in self._leases.items()
                if owner == id(pool) and seat == event["executor"]
            ]
            slots = pool.find(event["executor"])[1].engine.slots_at_first
            self._require(len(on_seat) <= slots, f"executor {event['executor']} has {slots} slots, not {on_seat}")
        elif name == "trial_preempted":
            self._require(event["reason"].startswith(TRUE_REASONS), f"'{event['reason']}' is no preemption")
            step = self._world.disk.get(trial_id, FRESH).step
            if event["reason"].startswith(DRAIN_REASON) and key in self._drained:
                drained = self._drained[key]
                self._require(step >= drained, f"trial {trial_id} left in step {drained}, and its state is of {step}")
        elif name == "trial_released":
            seat, number = self._leases.pop(key)
            if not event["reason"]:
                # Its trial left of itself, and may have ended: deaths are counted anew.
                self._num_lost[id(pool), seat] = 0
            for (other, _), executor in pool.executors.items():
                held = executor.held().get(trial_id)
                if other == seat and not executor.is_dead and held is not None:
                    self._require(held > number, f"a slot is free when its trial {trial_id} is out of executor {seat}")

        elif name == "node_lost":
            self._lost_nodes.add((id(pool), event["node"]))
        elif name == "node_drained":
            self._require((id(pool), event["node"]) not in self._lost_nodes, f"{event['node']} died, and has drained")
        elif name in ("executor_lost", "executor_failed"):
            seat = (id(pool), event["executor"])
            self._num_lost[seat] += 1
            # One that dies while its node drains is the last.
            most = (1 + MAX_RESTARTS) * (1 + MAX_FAILED_STARTS)
            self._require(self._num_lost[seat] <= most, f"executor {seat[1]} is not started for ever")
            if name == "executor_failed":
                self._given_up.add(seat)
                # No seat of the plan: it had the whole of its node's device.
                if event["executor"] not in pool.seats:
                    self._failed_wholes.add((id(pool), pool.nodes[pool.find(event["executor"])[0]]))

    def note_drain(self, pool: SimulatedPool, executor: SimulatedExecutor, trial_id: str, *, num_steps: int) -> None:
        """A trial that trains is asked to leave a draining node, so many steps after its executor set out."""
        kept = executor.engine.kept[trial_id]
        last = (kept.index + 1) * STEPS_PER_REPORT - 1
        self._drained[id(pool), trial_id] = max(kept.step, min(kept.step + num_steps, last))

    def check_left(self, executor: SimulatedExecutor, asked: PreemptTrial) -> None:
        """A trial that was asked to leave takes no step after the one that it was in."""
        admission = executor.admissions.find(asked.trial_id)
        trains = admission is not None and admission.is_running and admission.lease_number == asked.lease_number
        self._require(not trains, f"trial {asked.trial_id} was asked to leave, and trains on")

    def check_grant(self, pool: SimulatedPool, lease: Lease) -> None:
        """A lease that was given back is over, and a slot is what its trial needs."""
        needs, facts = pool.needs[lease.trial_id], lease.facts
        self._require(
            facts["memory_bytes"] >= needs.min_memory_bytes and (facts["is_whole"] or not needs.whole_device),
            f"trial {lease.trial_id} gets what it needs, {needs}, and not {facts}",
        )
        self._require(lease.number not in pool.given_back, f"lease {lease.number} was given back, and is granted again")

    def check_waiting(self, pool: SimulatedPool, waiting: list[str]) -> None:
        """Nobody waits for what can never come."""
        self._require(not (waiting and pool.machine.is_hopeless), f"{waiting} wait in vain")

    def check_start(self, pool: SimulatedPool, node_id: str) -> None:
        """Nothing is started on a node that leaves."""
        self._require(node_id not in pool.draining, f"no executor is started on draining {node_id}")

    def check_kill(self, executor: SimulatedExecutor, reason: str) -> None:
        """What is ended for others' sake, or for nobody's, has no trial, and what has died does not live."""
        self._require(executor.is_dead or reason not in DEATHS, f"an executor that lives is ended since {reason}")
        if any(words in reason for words in ENDS_OF_THE_UNUSED) and not executor.is_dead:
            self._require(not executor.running(), f"an executor is ended since {reason}, and trains")

    def check_refusal(self, pool: SimulatedPool, refusal: Refuse) -> None:
        """A trial is told that no device will do only where none will."""
        if not refusal.is_about_trial:
            return
        devices = [
            seat
            for number, seat in pool.seats.items()
            if seat.node_id not in pool.draining and (id(pool), number) not in self._given_up
        ]
        needs = pool.needs[refusal.trial_id]
        wholes = [
            seat
            for seat in devices
            if seat.is_whole or (seat.whole_spec is not None and (id(pool), seat.node_id) not in self._failed_wholes)
        ]
        fitting = [
            seat for seat in (wholes if needs.whole_device else devices) if seat.memory_bytes >= needs.min_memory_bytes
        ]
        self._require(not fitting, f"trial {refusal.trial_id} is refused {needs} where there is {fitting}")
        memories = [seat.memory_bytes if seat in wholes else seat.spec.memory for seat in devices]
        self._most_memory[refusal.trial_id] = max(memories, default=0)

    def check_admission(self, pool: SimulatedPool, lease: Lease, executor: SimulatedExecutor) -> None:
        """A trial is let in only while its lease is in force."""
        if not pool.is_alive:
            return
        living = self._leases.get((id(pool), lease.trial_id))
        self._require(
            living == (lease.seat_id, lease.number),
            f"trial {lease.trial_id} is admitted with lease {lease.number} while {living} is in force",
        )
        state = self._world.driver.records[int(lease.trial_id)]
        self._require(state == "running", f"trial {lease.trial_id} has ended as {state} and runs again")

    def check_training(self, executor: SimulatedExecutor) -> None:
        """A trial trains on at most one executor, and on none when it has ended."""
        for admission in executor.running():
            trial_id = admission.spec.trial_id
            for _, other in self._world.living_executors():
                there = other.admissions.find(trial_id)
                self._require(
                    other is executor or there is None or not there.is_running,
                    f"trial {trial_id} trains on two executors",
                )
            here, kept = executor.engine.kept[trial_id], self._world.disk.get(trial_id, FRESH)
            self._require(here >= kept, f"trial {trial_id} trains from {here} where its state is of {kept}")

    def check_report(self, number: int, report: Report) -> None:
        """Samples seen never fall, whatever number a trial goes on under."""
        origin = self._world.driver.origin[number]
        before = self._samples.get(origin, 0)
        known = self._world.driver.reports.get(number, 0)
        self._require(report.index >= min(before, known), f"trial {number} went back to report {report.index}")
        on_disk = self._world.disk.get(trial_id_of(number), FRESH).index
        self._require(report.is_final or on_disk >= report.index, f"the state of trial {number} fell behind")
        self._samples[origin] = max(before, report.index)

    def check_failure(self, number: int, report: Report) -> None:
        """A trial fails for its own fault only, and nobody is put off for ever."""
        assert report.failure is not None
        cause = report.failure.cause
        known = ("diverged", "lost", "oom")
        self._require(cause in known, f"trial {number} ended as {cause}: {report.failure.message}")
        if cause == "oom":
            trial_id = trial_id_of(number)
            size, most = self._world.driver.size_of(trial_id), self._most_memory.get(trial_id)
            self._require(
                most is not None and size > most, f"trial {number} of {size} fails for memory with devices of {most}"
            )
        if cause == "diverged":
            self._require(self._world.driver.diverges(trial_id_of(number)), f"trial {number} does not diverge")

    def check_end(self) -> None:
        """Everything has ended, the study was told what the records say, and no slot is held."""
        driver, pool = self._world.driver, self._world.pool
        self._require(driver.is_done, "everything ends")
        self._require(driver.told == driver.records, "told to Optuna equals the ended records")
        ends = Counter(driver.origin[number] for number, state in driver.records.items() if state != "interrupted")
        self._require(
            len(ends) == driver.num_trials and set(ends.values()) == {1}, f"every trial ends once, not {ends}"
        )
        assert pool is not None
        self._world.finish_calls()
        held = [trial for (owner, trial) in self._leases if owner == id(pool)]
        self._require(not held, f"no lease is left behind, not those of {held}")

    def _require(self, is_kept: bool, promise: str) -> None:
        from tests.simulation.world import Broken

        if not is_kept:
            raise Broken(f"{promise}; {self._world.describe()}")
