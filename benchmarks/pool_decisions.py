"""What one decision of the pool costs: a lease ends and its slot goes to a trial that waits, at full size.

    python -m benchmarks.pool_decisions

CPU seconds of this process, without Ray: the state machine and nothing else. A cluster of that size is a hundred times
what most have; the cost is there so that it stays unnoticed.
"""

from __future__ import annotations

import statistics
import sys
import time

from qlora_ray.console import Console
from qlora_ray.orchestration.pool.actions import EvictTrial, Grant
from qlora_ray.orchestration.pool.events import Evicted, ExecutorReady, LeaseAsked, SeatsAdded, TrialEnded
from qlora_ray.orchestration.pool.leases import Seat
from qlora_ray.orchestration.pool.machine import PoolMachine
from qlora_ray.orchestration.pool.terms import PoolTerms

NUM_EXECUTORS = 512
SLOTS_PER_EXECUTOR = 4
NUM_DECISIONS = 2_000
NUM_ROUNDS = 5
EXECUTORS_PER_NODE = 8
GIB = 2**30


def measure_decision_s(
    *, num_executors: int = NUM_EXECUTORS, slots: int = SLOTS_PER_EXECUTOR, num_decisions: int = NUM_DECISIONS
) -> float:
    """CPU seconds to end one lease and grant another, with every slot held and a trial waiting.

    Args:
        num_executors: Executors that are ready.
        slots: Of each.
        num_decisions: Over how many the mean is taken.

    Returns:
        The median of several rounds' means.
    """
    return statistics.median(_measure_round(num_executors, slots, num_decisions) for _ in range(NUM_ROUNDS))


def _measure_round(num_executors: int, slots: int, num_decisions: int) -> float:
    machine = PoolMachine(PoolTerms(lease_timeout_s=60.0))
    seats = tuple(
        Seat(
            number, f"node{number // EXECUTORS_PER_NODE}", None, "T4" if number % 2 else "A100", (16 + number % 2) * GIB
        )
        for number in range(num_executors)
    )
    machine.handle(SeatsAdded(seats), now=0.0)
    facts = {"device": "fake", "precision_reason": "none", "hostname": "here", "slots": slots, "version": 0}
    for seat in seats:
        machine.handle(ExecutorReady(seat.seat_id, 1, facts), now=0.0)
    num_slots = num_executors * slots
    held: dict[str, tuple[int, int]] = {}
    # One more waits, as in a sweep.
    for number in range(num_slots + 1):
        for action in machine.handle(LeaseAsked(str(number)), now=0.0):
            if isinstance(action, Grant):
                held[action.lease.trial_id] = (action.lease.seat_id, action.lease.number)
    assert len(held) == num_slots
    started = time.process_time()
    for number in range(num_decisions):
        trial_id = str(number)
        seat_id, _ = held[trial_id]
        (evict,) = (a for a in machine.handle(TrialEnded(trial_id), now=1.0) if isinstance(a, EvictTrial))
        actions = machine.handle(Evicted(seat_id, 1, trial_id, evict.lease_number), now=1.0)
        (grant,) = (action for action in actions if isinstance(action, Grant))
        held[grant.lease.trial_id] = (grant.lease.seat_id, grant.lease.number)
        machine.handle(LeaseAsked(str(num_slots + 1 + number)), now=1.0)
    spent = time.process_time() - started
    return spent / num_decisions


def main() -> int:
    """Prints the cost at several sizes."""
    console = Console(sys.stdout)
    for num_executors in (8, 64, NUM_EXECUTORS):
        seconds = measure_decision_s(num_executors=num_executors, num_decisions=min(NUM_DECISIONS, num_executors * 4))
        words = f"{num_executors} executors, {num_executors * SLOTS_PER_EXECUTOR} slots"
        console.event(f"{words}: {seconds * 1e3:.4f} ms of CPU to end and grant one lease")
    return 0


if __name__ == "__main__":
    sys.exit(main())
