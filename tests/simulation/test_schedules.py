"""Ten thousand sweeps with everything going wrong that can, each from its seed, in a minute at most.

    python -m pytest tests/simulation --simulation-seed 4711

runs one of them again: it does the same each time.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.faults import run_schedule
from tests.simulation.faulty_rules import FAULTY_RULES

NUM_SCHEDULES = 10_000
NUM_PARTS = 10
# Each faulty rule is found among so many schedules; most of them within a few.
NUM_SCHEDULES_TO_FIND = 1_000


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_schedule_keeps_every_promise(part: int, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--simulation-seed")
    if seed is not None:
        seeds = range(seed, seed + (part == 0))
    else:
        size = NUM_SCHEDULES // NUM_PARTS
        seeds = range(part * size, (part + 1) * size)
    for seed in seeds:
        run_schedule(seed)


@pytest.mark.parametrize("name", FAULTY_RULES)
def test_a_faulty_rule_is_found_and_its_seed_is_in_the_message(name: str) -> None:
    for seed in range(NUM_SCHEDULES_TO_FIND):
        try:
            run_schedule(seed, make=FAULTY_RULES[name])
        except AssertionError as error:
            assert f"--simulation-seed {seed}" in str(error)
            return
    pytest.fail(f"{name} breaks no promise in {NUM_SCHEDULES_TO_FIND} schedules")


def test_a_schedule_is_the_same_each_time() -> None:
    runs = [run_schedule(seed) for seed in (5, 5)]
    assert runs[0].num_steps == runs[1].num_steps
    assert [world.pool.events for world in runs if world.pool] == [runs[0].pool.events] * 2  # type: ignore[union-attr]


def test_schedules_meet_every_kind_of_event() -> None:
    """A simulation in which nothing happens keeps every promise too."""
    events: Counter[str] = Counter()
    states: Counter[str] = Counter()
    for seed in range(300):
        world = run_schedule(seed)
        states.update(world.driver.told.values())
        if world.pool is not None:
            events.update(event["event"] for event in world.pool.events)
    assert {
        "executor_ready",
        "executor_lost",
        "executor_failed",
        "trial_leased",
        "trial_released",
        "trial_preempted",
        "slots_changed",
        "node_lost",
        "node_draining",
        "node_drained",
        "trial_needs_more_memory",
        "device_cleared",
        "executor_released",
    } <= set(events)
    assert set(states) == {"complete", "pruned", "failed", "interrupted"}
