"""The pool's actor in one thread: carries out what the machine decides, with calls that take their time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from qlora_ray.errors import NoExecutors, NoFittingDevice
from qlora_ray.orchestration.pool.actions import (
    AskHeartbeat,
    EvictTrial,
    Grant,
    KillExecutor,
    PreemptTrial,
    Refuse,
    StartExecutor,
    Tell,
    WantCapacity,
)
from qlora_ray.orchestration.pool.events import (
    Event,
    Evicted,
    ExecutorDied,
    ExecutorReady,
    Heard,
    LeaseAsked,
    LeaseReleased,
    NodeDraining,
    NodeGone,
    SeatsAdded,
    SlotsChanged,
    Tick,
    TrialEnded,
    TrialPreempted,
)
from qlora_ray.orchestration.pool.leases import LeaseNeeds, Seat
from qlora_ray.orchestration.pool.machine import PoolMachine
from qlora_ray.orchestration.trial_port import ExecutorGone
from tests.simulation.executor import STEPS_PER_REPORT, SimulatedExecutor

if TYPE_CHECKING:
    from tests.simulation.world import World

START_S = 5.0
# A step between two reports takes one or the other.
SHORT_STEP_S = 0.2
LONG_STEP_S = 12.0
Answer = Callable[[Any], None]


class SimulatedPool:
    """One pool, from a driver's start to its death.

    Attributes:
        executors: Every executor there was, by seat and incarnation.
        events: What the driver was told.
        draining: Nodes that it was told will leave.
        seats: The plan's seats that it was told of, by number; those of nodes that are gone are not here.
        needs: What each trial asked for last.
        given_back: Numbers of leases that their trials gave back.
    """

    def __init__(self, world: World, machine: PoolMachine) -> None:
        self.world = world
        self.machine = machine
        self.is_alive = True
        self.executors: dict[tuple[int, int], SimulatedExecutor] = {}
        self.nodes: dict[tuple[int, int], str] = {}
        self.events: list[dict[str, Any]] = []
        self.draining: set[str] = set()
        self.given_back: set[int] = set()
        self.seats: dict[int, Seat] = {}
        self.needs: dict[str, LeaseNeeds] = {}
        self._askers: dict[str, Answer] = {}
        self._leaving: dict[str, int] = defaultdict(int)
        self._enders: dict[str, list[Callable[[], None]]] = {}
        self._timer: float | None = None
        self._carry_out: dict[type, Callable[[Any], None]] = {
            StartExecutor: self._start,
            KillExecutor: self._kill,
            Grant: self._grant,
            Refuse: self._refuse,
            EvictTrial: self._evict,
            PreemptTrial: self._preempt,
            AskHeartbeat: self._ask_heartbeat,
            Tell: self._tell,
            WantCapacity: lambda action: None,
        }

    def handle(self, event: Event) -> None:
        """Tells the machine, and does what it says."""
        if not self.is_alive:
            return
        world = self.world
        if isinstance(event, NodeDraining):
            self.draining.add(event.node_id)
        if isinstance(event, SeatsAdded):
            self.seats.update({seat.seat_id: seat for seat in event.seats})
        if isinstance(event, NodeGone):
            self.seats = {number: seat for number, seat in self.seats.items() if seat.node_id != event.node_id}
        if isinstance(event, LeaseReleased | TrialPreempted) and event.lease_number is not None:
            self.given_back.add(event.lease_number)
        for action in self.machine.handle(event, now=world.now):
            self._carry_out[type(action)](action)
        world.invariants.check_waiting(self, list(self._askers))
        due = self.machine.next_timer()
        if due is not None and (self._timer is None or due < self._timer):
            self._timer = due
            world.after(max(0.0, due - world.now), partial(self._tick, due))

    def lease(self, trial_id: str, goes_on: bool, needs: LeaseNeeds, answer: Answer) -> None:
        """See Pool.lease."""
        self._askers[trial_id] = answer
        self.needs[trial_id] = needs
        self.handle(LeaseAsked(trial_id, goes_on, needs))

    def end(self, trial_id: str, then: Callable[[], None], *, needs_more: str | None = None) -> None:
        """See Pool.end."""
        self._askers.pop(trial_id, None)
        self.handle(TrialEnded(trial_id, needs_more))
        if self._leaving[trial_id]:
            self._enders.setdefault(trial_id, []).append(then)
        else:
            then()

    def die(self) -> None:
        """Its process ends, and its executors with it."""
        self.is_alive = False
        for executor in self.executors.values():
            executor.die()

    def find(self, seat_id: int) -> tuple[tuple[int, int], SimulatedExecutor]:
        """The last executor of a seat."""
        return next(item for item in reversed(self.executors.items()) if item[0][0] == seat_id)

    def executors_of(self, node_id: str) -> list[tuple[tuple[int, int], SimulatedExecutor]]:
        """The executors of a node."""
        return [(key, executor) for key, executor in self.executors.items() if self.nodes[key] == node_id]

    def hear_death(self, key: tuple[int, int]) -> None:
        """The watcher of an executor hears of its end."""
        self.handle(ExecutorDied(*key, "its process died"))

    def lose_calls(self, executor: SimulatedExecutor) -> None:
        """Those who wait for a report of an executor that has died hear of it."""
        for poll in executor.lose_polls():
            self.world.after(self.world.latency(), partial(poll.answer, ExecutorGone("its process died")))

    def call(
        self,
        key: tuple[int, int],
        do: Callable[[SimulatedExecutor], None],
        lost: Callable[[], None],
        *,
        is_slow: bool = False,
    ) -> None:
        """A call of an executor, after its way there.

        Args:
            key: Which executor.
            do: What it does when the call has come.
            lost: What the caller does when it hears that the executor is dead.
            is_slow: Whether it may be on its way for longer than a lease lasts, where calls are slow.
        """
        executor = self.executors[key]

        def arrive() -> None:
            if executor.is_dead:
                lost()
            elif executor.is_hung:
                executor.stuck.append(lost)
            else:
                do(executor)
                self.keep_training(key)

        self.world.after(self.world.latency(is_slow=is_slow), arrive)

    def keep_training(self, key: tuple[int, int]) -> None:
        """Has an executor's next step come, if it has something to train."""
        executor = self.executors[key]
        if not executor.is_advancing and executor.running():
            executor.is_advancing = True
            longest_s = self.world.random.choice((SHORT_STEP_S, LONG_STEP_S))
            seconds = longest_s * self.world.random.random()
            executor.began_at, executor.interval_s = self.world.now, seconds
            self.world.after(seconds, partial(self._advance, key))

    def _advance(self, key: tuple[int, int]) -> None:
        executor = self.executors[key]
        executor.is_advancing = False
        if executor.is_dead or executor.is_hung:
            return
        self.world.invariants.check_training(executor)
        if executor.advance():
            self.world.after(self.world.latency(), partial(self._tell_slots, key))
        self.keep_training(key)

    def _tell_slots(self, key: tuple[int, int]) -> None:
        executor = self.executors[key]
        if not executor.is_dead:
            self.handle(SlotsChanged(*key, {**_facts(executor), "slots_reason": executor.slots_reason}))

    def _tick(self, due: float) -> None:
        if self._timer == due:
            self._timer = None
            self.handle(Tick())

    def _start(self, action: StartExecutor) -> None:
        world, spec, key = self.world, action.spec, (action.seat_id, action.incarnation)
        node = spec.node
        executor = world.make_executor(
            spec.slots,
            room=spec.room,
            disk=world.disk,
            lease_timeout_s=self.machine.terms.lease_timeout_s,
            diverges=world.driver.diverges,
            memory=spec.memory,
            size_of=world.driver.size_of,
        )
        self.world.invariants.check_start(self, node.node_id)
        executor.is_dead = not node.is_up or node.is_bad
        self.executors[key], self.nodes[key] = executor, node.node_id
        world.after(START_S * world.random.random(), partial(self._be_ready, key))

    def _be_ready(self, key: tuple[int, int]) -> None:
        executor = self.executors[key]
        if executor.is_dead:
            self.hear_death(key)
        elif not executor.is_hung:
            self.handle(ExecutorReady(*key, _facts(executor)))

    def _kill(self, action: KillExecutor) -> None:
        executor = self.executors[action.seat_id, action.incarnation]
        self.world.invariants.check_kill(executor, action.reason)
        executor.die()
        self.lose_calls(executor)

    def _grant(self, action: Grant) -> None:
        self.world.invariants.check_grant(self, action.lease)
        answer = self._askers.pop(action.lease.trial_id, None)
        if answer is not None:
            self.world.after(self.world.latency(), partial(answer, action.lease))

    def _refuse(self, action: Refuse) -> None:
        self.world.invariants.check_refusal(self, action)
        answer = self._askers.pop(action.trial_id, None)
        if answer is not None:
            error = NoFittingDevice(action.reason) if action.is_about_trial else NoExecutors(action.reason)
            self.world.after(self.world.latency(), partial(answer, error))

    def _evict(self, action: EvictTrial) -> None:
        key, trial_id = (action.seat_id, action.incarnation), action.trial_id
        self._leaving[trial_id] += 1

        def evict(executor: SimulatedExecutor) -> None:
            executor.evict(trial_id, action.lease_number)
            self.world.after(self.world.latency(), evicted)

        def evicted() -> None:
            self.handle(Evicted(*key, trial_id, action.lease_number))
            end()

        def end() -> None:
            self._leaving[trial_id] -= 1
            if not self._leaving[trial_id]:
                for then in self._enders.pop(trial_id, []):
                    then()

        self.call(key, evict, end)

    def _preempt(self, action: PreemptTrial) -> None:
        world, trial_id = self.world, action.trial_id

        def preempt(executor: SimulatedExecutor) -> None:
            if executor.preempt(trial_id, action.lease_number, action.reason):
                num_steps = executor.steps_begun(world.now)
                world.invariants.note_drain(self, executor, trial_id, num_steps=num_steps)
                # It leaves after the step that it is in.
                rest_s = executor.interval_s / STEPS_PER_REPORT * world.random.random()
                world.after(rest_s, partial(self._put_off, executor, action, num_steps + 1))

        self.call((action.seat_id, action.incarnation), preempt, lambda: None)

    def _put_off(self, executor: SimulatedExecutor, action: PreemptTrial, num_steps: int) -> None:
        if not executor.is_dead and not executor.is_hung:
            executor.put_off(action.trial_id, num_steps=num_steps)
            self.world.invariants.check_left(executor, action)

    def _ask_heartbeat(self, action: AskHeartbeat) -> None:
        world, key, asked_at = self.world, (action.seat_id, action.incarnation), self.world.now

        def listen(executor: SimulatedExecutor) -> None:
            answer = executor.heartbeat(now=world.now)
            world.after(world.latency(), lambda: self.handle(Heard(*key, asked_at, **answer)))

        self.call(key, listen, lambda: None)

    def _tell(self, action: Tell) -> None:
        event = dict(action.facts)
        self.events.append(event)
        self.world.invariants.check_event(self, event)


def _facts(executor: SimulatedExecutor) -> dict[str, Any]:
    return {"device": "fake", "precision_reason": "none", "hostname": "here", "slots": executor.slots, "version": 0}
