"""The pool's actor: what trials and driver call, told to the state machine; and what it decides, carried out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qlora_ray.errors import NoExecutors, NoFittingDevice
from qlora_ray.orchestration.executor.launcher import ExecutorSpec, Launcher
from qlora_ray.orchestration.pool.actions import (
    Action,
    AskHeartbeat,
    CapacityWanted,
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
    ExecutorDied,
    LeaseAsked,
    LeaseReleased,
    NodeDraining,
    NodeGone,
    NodeNoted,
    ScoringBegun,
    SeatsAdded,
    Tick,
    TrialEnded,
    TrialPreempted,
)
from qlora_ray.orchestration.pool.executor_calls import ExecutorCalls
from qlora_ray.orchestration.pool.feed import EventFeed
from qlora_ray.orchestration.pool.leases import ANY_DEVICE, Lease, LeaseNeeds
from qlora_ray.orchestration.pool.live_answers import LiveAnswers
from qlora_ray.orchestration.pool.machine import PoolMachine
from qlora_ray.orchestration.pool.planned_seats import make_seats
from qlora_ray.orchestration.pool.terms import PoolTerms

# The timer of an idle machine.
LONGEST_SLEEP_S = 60.0


class Pool:
    """The actor. Its methods are coroutines of one event loop, so that its state needs no locks.

    Args:
        launcher: Starts and ends executors.
        specs: The executors to keep.
        terms: Its limits.
        clock: Monotonic seconds; tests give their own.
    """

    def __init__(
        self,
        launcher: Launcher,
        specs: Sequence[ExecutorSpec],
        *,
        terms: PoolTerms,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._specs = list(specs)
        self._clock = clock
        self._drain_timeout_s = terms.drain_timeout_s
        self._machine = PoolMachine(terms)
        self._feed = EventFeed()
        self._live = LiveAnswers(clock)
        self._executors = ExecutorCalls(launcher, tell=self._handle, clock=clock)
        self._askers: dict[str, asyncio.Future[Lease]] = {}
        self._wanted: tuple[CapacityWanted, ...] = ()
        self._timer: asyncio.Task[None] | None = None
        self._carry_out: dict[type, Callable[[Any], None]] = {
            StartExecutor: self._executors.start,
            KillExecutor: self._executors.kill,
            Grant: self._grant,
            Refuse: self._refuse,
            EvictTrial: self._executors.evict,
            PreemptTrial: self._executors.preempt,
            AskHeartbeat: self._executors.ask_heartbeat,
            Tell: lambda action: self._feed.append(dict(action.facts)),
            WantCapacity: self._want,
        }

    async def start(self) -> None:
        """Starts every executor; returns before they are ready. A second call does nothing."""
        if self._timer is not None:
            return
        self._add(self._specs)
        self._timer = asyncio.create_task(self._tick())

    async def wait_ready(self) -> None:
        """Waits for the first executor to be ready.

        Raises:
            NoExecutors: If none of them can be; the message is the last one's cause.
        """
        while not self._machine.ready_executors() and not self._machine.is_hopeless:
            await self._feed.wait_growth()
        if self._machine.is_hopeless:
            raise NoExecutors(self._machine.cause)

    async def lease(self, trial_id: str, *, goes_on: bool = False, needs: LeaseNeeds = ANY_DEVICE) -> Lease:
        """Waits for a free slot.

        Args:
            trial_id: Who asks.
            goes_on: Whether it has trained before; such trials come before new ones.
            needs: What it needs of a device.

        Raises:
            NoExecutors: If no executor is left to wait for.
            NoFittingDevice: If there are executors, and none has what the trial needs.
        """
        future = self._askers.get(trial_id)
        if future is None:
            future = self._askers[trial_id] = asyncio.get_running_loop().create_future()
        self._handle(LeaseAsked(trial_id, goes_on, needs))
        # Shielded: one of two callers that goes away takes the lease from neither.
        return await asyncio.shield(future)

    async def release(self, trial_id: str, lease_number: int | None = None, *, refused: bool = False) -> None:
        """Gives a slot back that the trial does not hold on its executor any more, or leaves the queue.

        Args:
            trial_id: Whose it is.
            lease_number: Which of its leases; None for any, and for its place in the queue.
            refused: Whether the executor had no slot for the trial.
        """
        if lease_number is None:
            self._send_away(trial_id)
        self._handle(LeaseReleased(trial_id, lease_number, refused))

    async def end(self, trial_id: str, *, needs_more: str | None = None) -> None:
        """Ends a trial wherever it is; returns when it has left there.

        Args:
            trial_id: The trial.
            needs_more: Why it will ask for a slot with more memory next; None if it will not.
        """
        self._send_away(trial_id)
        self._handle(TrialEnded(trial_id, needs_more))
        await self._executors.wait_evicted(trial_id)

    async def report_preempted(self, trial_id: str, lease_number: int, reason: str) -> None:
        """A trial was put off its device: its slot is given back, and the driver told."""
        self._handle(TrialPreempted(trial_id, lease_number, reason))

    async def report_lost(self, seat_id: int, incarnation: int, reason: str = "it died") -> None:
        """A trial found its executor dead; the watcher will have seen it too, whichever comes first acts."""
        self._handle(ExecutorDied(seat_id, incarnation, reason))

    async def add_seats(self, specs: Sequence[ExecutorSpec]) -> list[int]:
        """Takes the executors of a node that has joined into the plan; returns their numbers.

        Those of a node that has seats are left out: a driver that did not hear the answer asks again.
        """
        return self._add([spec for spec in specs if not self._machine.has_seats(spec.node_id)])

    async def note_node(self, event: str, node_id: str, reason: str, facts: Mapping[str, Any]) -> None:
        """Has the driver's events say what it found of a node."""
        self._handle(NodeNoted(event, node_id, reason, facts))

    async def lose_node(self, node_id: str, reason: str) -> None:
        """A node has left, and its executors with it."""
        self._handle(NodeGone(node_id, reason))

    async def drain_node(self, node_id: str, reason: str, deadline_s: float | None = None) -> float:
        """A node will leave: its trials write their states and go on elsewhere, then its executors end.

        Args:
            node_id: The Ray node.
            reason: Why, for people.
            deadline_s: Seconds after which its executors end, whatever they do; None for this pool's own limit.

        Returns:
            The deadline, in seconds from now.
        """
        within_s = self._drain_timeout_s if deadline_s is None else deadline_s
        self._handle(NodeDraining(node_id, reason, within_s))
        return within_s

    async def begin_scoring(self) -> None:
        """The search is over: executors that hold no trial are kept, to score on."""
        self._handle(ScoringBegun())

    async def wanted_capacity(self) -> tuple[CapacityWanted, ...]:
        """What the trials that wait need beyond the executors there are; empty when nothing is missing."""
        return self._wanted

    async def next_events(self, seen: int, timeout_s: float) -> list[dict[str, Any]]:
        """Events after the first `seen`; waits up to `timeout_s` for one.

        Raises what has ended the timer, if anything has: without it the pool would stand still, and say nothing.
        """
        if self._timer is not None and self._timer.done():
            self._timer.result()
        return await self._feed.after(seen, timeout_s=timeout_s)

    async def ready_executors(self) -> list[tuple[Any, dict[str, Any]]]:
        """Handles and facts of the executors that are ready."""
        return [
            (self._executors.handle_of(seat_id, incarnation), facts)
            for seat_id, incarnation, facts in self._machine.ready_executors()
        ]

    async def describe_seats(self) -> list[dict[str, Any]]:
        """Where every seat is, and how many of its slots are held."""
        return self._machine.describe_seats()

    async def live(self) -> dict[str, Any]:
        """What happens right now: the seats, each with its executor's own figures under `live`, and who waits.

        Executors are asked together, at most every 2 s, and none that hangs holds this up: see LiveAnswers.
        """
        answers = await self._live.ask(
            {
                (seat_id, incarnation): self._executors.handle_of(seat_id, incarnation)
                for seat_id, incarnation, _ in self._machine.ready_executors()
            }
        )
        seats = self._machine.describe_seats()
        return {
            "seats": [{**seat, "live": answers.get((seat["executor"], seat["incarnation"]))} for seat in seats],
            "waiting": self._machine.waiting_trials,
        }

    async def close(self) -> None:
        """Ends all executors."""
        self._live.close()
        if self._timer is not None:
            self._timer.cancel()
        self._executors.close()

    def _add(self, specs: Sequence[ExecutorSpec]) -> list[int]:
        seats = make_seats(specs, first_id=self._machine.next_seat_id)
        self._handle(SeatsAdded(seats))
        return [seat.seat_id for seat in seats]

    def _handle(self, event: Event) -> None:
        for action in self._machine.handle(event, now=self._clock()):
            self._do(action)

    def _do(self, action: Action) -> None:
        self._carry_out[type(action)](action)

    async def _tick(self) -> None:
        while True:
            due = self._machine.next_timer()
            await asyncio.sleep(LONGEST_SLEEP_S if due is None else max(0.0, due - self._clock()))
            self._handle(Tick())

    def _send_away(self, trial_id: str) -> None:
        """Cancels the call of a trial that waits for a slot."""
        future = self._askers.pop(trial_id, None)
        if future is not None:
            future.cancel()

    def _grant(self, action: Grant) -> None:
        lease = action.lease
        future = self._askers.pop(lease.trial_id, None)
        if future is not None and not future.done():
            future.set_result(replace(lease, executor=self._executors.handle_of(lease.seat_id, lease.incarnation)))

    def _refuse(self, action: Refuse) -> None:
        future = self._askers.pop(action.trial_id, None)
        if future is not None and not future.done():
            future.set_exception((NoFittingDevice if action.is_about_trial else NoExecutors)(action.reason))

    def _want(self, action: WantCapacity) -> None:
        self._wanted = action.wanted
