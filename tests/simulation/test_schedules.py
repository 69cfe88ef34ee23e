"""Ten thousand sweeps with everything going wrong that can, each from its seed, in a minute at most.

    python -m pytest tests/simulation --simulation-seed 4711

runs one of them again: it does the same each time.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from qlora_ray.search.study import RESUMED_FROM_ATTRIBUTE, end_interrupted, interrupted_trials
from tests.simulation import faults
from tests.simulation.faults import REAL_STUDY_EVERY, run_schedule
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


def _requeue_all(study: Any) -> list[int]:
    """Queues what was interrupted once, each time anew."""
    end_interrupted(study)
    queued = sorted(interrupted_trials(study))
    for number in queued:
        params = study.get_trials(deepcopy=False)[number].params
        study.enqueue_trial(params, user_attrs={RESUMED_FROM_ATTRIBUTE: number})
    return queued


@pytest.mark.parametrize(
    ("rule", "faulty"),
    [
        ("tests.simulation.study.settle_finished", lambda study, books: None),
        ("qlora_ray.search.study.requeue_interrupted", _requeue_all),
        (
            "qlora_ray.orchestration.searcher.count_finished",
            lambda study: sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)),
        ),
        ("qlora_ray.orchestration.searcher.tell_outcome", lambda study, number, outcome: None),
    ],
    ids=["ends that were not told", "queued again", "interrupted ones count", "no end is told"],
)
def test_a_faulty_rule_of_the_real_study_is_found(rule: str, faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "REAL_STUDY_EVERY", 1)
    monkeypatch.setattr(rule, faulty)
    with pytest.raises(AssertionError, match="--simulation-seed"):
        for seed in range(NUM_SCHEDULES_TO_FIND):
            run_schedule(seed)


def test_a_schedule_is_the_same_each_time() -> None:
    # One with the plain study, and one with the real one.
    for seed in (5, REAL_STUDY_EVERY):
        runs = [run_schedule(seed) for _ in range(2)]
        assert runs[0].num_steps == runs[1].num_steps
        events = [world.pool.events for world in runs if world.pool]
        assert events == events[:1] * 2


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
