"""The livelock that was known before: a trial admitted after its lease was taken back, and the next one sent there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import qlora_ray.orchestration.leased_trial as leased_trial
import tests.simulation.pool as simulated_pool
from tests.simulation.faulty_rules import OldExecutor, OldReconciler
from tests.simulation.invariants import Invariants
from tests.simulation.world import Broken, Node, World

MANY = 1_000
NUM_SCHEDULES = 100


class Onlooker(Invariants):
    """Counts preemptions and objects to nothing."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.preemptions: Counter[str] = Counter()

    def check_event(self, pool: Any, event: dict[str, Any]) -> None:
        """Counts."""
        self.preemptions[event.get("trial", "")] += event["event"] == "trial_preempted"

    def _require(self, is_kept: bool, promise: str) -> None:
        pass


def count_preemptions(seed: int, **rules: Any) -> int:
    """How often the trial that was put out most was put out: one slot, several trials, and calls that come late."""
    world = World(seed, large_share=0.0, **rules)
    world.invariants = onlooker = Onlooker(world)
    world.nodes.append(Node("node", num_executors=1, slots=1, room=1))
    world.start_driver()
    world.slow_calls = 0.2
    try:
        world.run(600)
        world.settle()
    except Broken as error:
        assert "it does not end" in str(error)
    return max(onlooker.preemptions.values(), default=0)


def test_the_old_rules_put_a_trial_out_thousands_of_times_and_the_new_ones_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A trial did not count how often it was put out. Some reports take long, as on a large base.
    monkeypatch.setattr(leased_trial, "MAX_PREEMPTIONS_PER_REPORT", 10 * MANY)
    monkeypatch.setattr(simulated_pool, "LONG_STEP_S", 1500.0)
    old = {seed: count_preemptions(seed, machine=OldReconciler, executor=OldExecutor) for seed in range(NUM_SCHEDULES)}
    worst = max(old, key=lambda seed: old[seed])
    assert old[worst] > MANY
    assert count_preemptions(worst) == 0
