"""A cluster in one thread: a clock of its own, calls that take their time, and all that can go wrong with them."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

from qlora_ray.orchestration.pool.events import NodeDraining, NodeGone, SeatsAdded
from qlora_ray.orchestration.pool.leases import Seat
from qlora_ray.orchestration.pool.machine import PoolMachine
from qlora_ray.orchestration.pool.terms import PoolTerms
from tests.simulation.driver import SimulatedDriver
from tests.simulation.executor import Disk, SimulatedExecutor
from tests.simulation.invariants import Invariants
from tests.simulation.pool import SimulatedPool

LEASE_TIMEOUT_S = 60.0
# A node's death is noticed by the watcher of nodes within one of these; an executor's by its callers, within this.
NODE_DEATHS_S = (1.0, 13.0)
EXECUTOR_DEATH_S = 2.0
# Of every call, unless it is a slow one.
LATENCY_S = 0.05
# Long after all faults: what has not ended by then never does.
PATIENCE_S = 6000.0
MAX_STEPS = 20_000


# Of a device, of a trial that needs no more than any of them has, and of those that are large.
MEMORIES = (4, 8, 16)
MOST_MEMORY = 16
SMALL = 1
LARGE = (3, 6, 12, 40)
LARGE_SHARE = 0.15
# Rules of a pool: how long executors may be idle.
IDLE_TIMEOUTS_S = (None, None, 20.0)


class Broken(AssertionError):
    """A promise of the system was broken."""


@dataclass(eq=False)
class Node:
    """A node with some executors.

    Attributes:
        slots: Of each of its executors.
        room: Trials that really fit one of them.
        memory: What each of them has of its device.
        is_shared: Whether they share one device; else each has one.
        is_bad: Whether none of its executors ever gets ready.
    """

    node_id: str
    num_executors: int
    slots: int
    room: int
    memory: int = MOST_MEMORY
    is_shared: bool = False
    is_up: bool = True
    is_draining: bool = False
    is_bad: bool = False

    @property
    def is_good(self) -> bool:
        """Whether a sweep can end there."""
        return self.is_up and not self.is_draining and not self.is_bad

    @property
    def device_memory(self) -> int:
        """Of one of its devices."""
        return self.memory * (self.num_executors if self.is_shared else 1)

    def make_seats(self, first_id: int) -> tuple[Seat, ...]:
        """A seat for each of its executors."""
        whole = Executors(self, slots=1, room=1, memory=self.device_memory)
        return tuple(
            Seat(
                first_id + number,
                self.node_id,
                Executors(self, slots=self.slots, room=self.room, memory=self.memory),
                device_class=f"class{self.device_memory}",
                memory_bytes=self.device_memory,
                device_id="0" if self.is_shared else str(number),
                whole_spec=whole if self.is_shared else None,
                is_whole=self.slots == 1 and not self.is_shared,
            )
            for number in range(self.num_executors)
        )


@dataclass(frozen=True)
class Executors:
    """How an executor of a node is started: as the plan has it, or one with the whole device."""

    node: Node
    slots: int
    room: int
    memory: int


class World:
    """All of it: nodes, pool, executors, driver and trials.

    Args:
        seed: Of every choice.
        num_trials: Trials of the sweep.
        large_share: How many of them need more memory than some devices have.
        machine: The pool's rules; tests give faulty ones.
        executor: The executors' rules; likewise.
    """

    def __init__(
        self,
        seed: int,
        *,
        num_trials: int = 4,
        large_share: float = LARGE_SHARE,
        machine: Callable[[PoolTerms], PoolMachine] = PoolMachine,
        executor: Callable[..., SimulatedExecutor] = SimulatedExecutor,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.num_steps = 0
        self.disk = Disk()
        self.large_share = large_share
        self.nodes: list[Node] = []
        self.make_machine = machine
        self.make_executor = executor
        # The share of trials' calls to their executors that take longer than a lease lasts.
        self.slow_calls = 0.0
        self.invariants = Invariants(self)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._node_numbers = count()
        self.driver = SimulatedDriver(self, num_trials)
        self.pool: SimulatedPool | None = None

    # Time.

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Does something later."""
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), do))

    def latency(self, *, is_slow: bool = False) -> float:
        """How long a call is on its way."""
        if is_slow and self.slow_calls and self.random.random() < self.slow_calls:
            return self.random.uniform(0.5, 3.0) * LEASE_TIMEOUT_S
        return LATENCY_S * self.random.random()

    def run(self, seconds: float) -> None:
        """Lets time pass; stops early once every trial has ended."""
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end and not self.driver.is_done:
            self.now, _, do = heapq.heappop(self._queue)
            self.num_steps += 1
            if self.num_steps > MAX_STEPS:
                raise Broken(f"it does not end: {MAX_STEPS} steps in {self.now:.0f} s")
            do()
        if not self.driver.is_done:
            self.now = end

    def finish_calls(self) -> None:
        """Lets the calls come to their end that were on their way when the last trial ended."""
        end = self.now + LEASE_TIMEOUT_S
        while self._queue and self._queue[0][0] <= end:
            self.now, _, do = heapq.heappop(self._queue)
            do()

    def settle(self) -> None:
        """No more faults: all must come to an end, and leave nothing behind."""
        self.slow_calls = 0.0
        end = self.now + PATIENCE_S
        while not self.driver.is_done and self.now < end:
            if not any(node.is_good for node in self.nodes):
                self.join_node()
            if not self.driver.is_alive:
                self.start_driver()
            self.run(100.0)
        self.invariants.check_end()

    # The sweep.

    def start_driver(self) -> None:
        """Starts the sweep, or goes on with it."""
        terms = PoolTerms(
            LEASE_TIMEOUT_S,
            heartbeat_interval_s=10.0,
            waits_for_nodes=self.random.random() < 0.5,
            idle_timeout_s=self.random.choice(IDLE_TIMEOUTS_S),
        )
        self.pool = SimulatedPool(self, self.make_machine(terms))
        for node in self.nodes:
            if node.is_up and not node.is_draining:
                self._add_seats(node)
        self.driver.start(self.pool)

    def kill_driver(self) -> None:
        """The driver is killed, and with it the pool and its executors, which are its own."""
        self.driver.die()
        if self.pool is not None:
            self.pool.die()

    # Nodes.

    def join_node(self, *, is_bad: bool = False) -> None:
        """A node joins and is used."""
        number = next(self._node_numbers)
        slots = self.random.choice((1, 1, 2, 3))
        room = self.random.randint(1, slots)
        num_executors, memory = self.random.choice((1, 1, 2)), self.random.choice(MEMORIES)
        is_shared = num_executors > 1 and slots == 1
        if is_shared:
            memory //= num_executors
        node = Node(f"node{number}", num_executors, slots, room, memory, is_shared, is_bad=is_bad)
        self.nodes.append(node)
        if self.pool is not None and self.pool.is_alive:
            self._add_seats(node)

    def kill_node(self, node: Node) -> None:
        """A node dies; it is noticed later."""
        node.is_up = False
        pool = self.pool
        if pool is None or not pool.is_alive:
            return
        for key, executor in pool.executors_of(node.node_id):
            self.crash(pool, key, executor)
        noticed_s = self.random.choice(NODE_DEATHS_S) * self.random.random()
        self.after(noticed_s, lambda: pool.handle(NodeGone(node.node_id, "it died")))

    def drain_node(self, node: Node) -> None:
        """A node will leave."""
        node.is_draining = True
        if self.pool is not None and self.pool.is_alive:
            self.pool.handle(NodeDraining(node.node_id, "maintenance", self.random.choice((5.0, 100.0))))

    def crash(self, pool: SimulatedPool, key: tuple[int, int], executor: SimulatedExecutor) -> None:
        """An executor's process dies; whoever called it hears of it within some seconds."""
        if not executor.is_dead:
            executor.die()
            pool.lose_calls(executor)
            self.after(EXECUTOR_DEATH_S * self.random.random(), lambda: pool.hear_death(key))

    def _add_seats(self, node: Node) -> None:
        assert self.pool is not None
        self.pool.handle(SeatsAdded(node.make_seats(self.pool.machine.next_seat_id)))

    def draw_size(self) -> int:
        """What a new trial takes of an executor's memory."""
        if self.random.random() < self.large_share:
            return self.random.choice(LARGE)
        return SMALL

    def living_executors(self) -> list[tuple[tuple[int, int], SimulatedExecutor]]:
        """Every executor that lives, by seat and incarnation."""
        if self.pool is None:
            return []
        return [(key, executor) for key, executor in self.pool.executors.items() if not executor.is_dead]

    def describe(self) -> dict[str, Any]:
        """Where everything stands, for a failure."""
        return {"time": self.now, "records": self.driver.records, "disk": self.disk}
