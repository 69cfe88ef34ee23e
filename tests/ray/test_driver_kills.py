"""A driver that is killed at any moment, again and again, loses nothing: real drivers on real raylets."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from qlora_ray.config.schema import SweepConfig
from qlora_ray.runs import read_events, read_json
from qlora_ray.search.parsing import load_space
from qlora_ray.search.study import interrupted_trials, open_study
from tests.ray.forked_sweep import NUM_TRIALS, ForkedSweep

SEED = 11

# A tenth of it where nothing else runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Ended:
    """The trials of a sweep that have ended: none of them may change again."""

    def __init__(self, sweep: ForkedSweep) -> None:
        self._trials = sweep.paths.trials
        self._records: dict[str, str] = {}

    def check(self) -> None:
        """Looks at what there was, and takes in what is new."""
        records = {path.parent.name: path.read_text() for path in self._trials.glob("*/record.json")}
        for trial, text in self._records.items():
            assert records[trial] == text
        ended = [path for path in self._trials.glob("*/record.json") if read_json(path)["state"] != "running"]
        self._records = {path.parent.name: path.read_text() for path in ended}


def check_promises(sweep: ForkedSweep) -> None:
    """What holds of a sweep that has ended, however often it was killed."""
    records = sweep.records()
    assert len(records) == NUM_TRIALS
    assert {record["state"] for record in records} <= {"complete", "pruned"}
    assert sweep.is_complete
    for name in ("trial_opened", "trial_complete", "trial_pruned"):
        trials = [event["trial"] for event in read_events(sweep.paths.events) if event["event"] == name]
        assert len(trials) == len(set(trials))
    config = SweepConfig.model_validate(read_json(sweep.paths.manifest)["config"])
    study = open_study(sweep.paths.study, name="s", search=config.search, space=load_space(config))
    told = study.get_trials()
    interrupted = interrupted_trials(study)
    states = {f"{trial.number:04d}": trial.state.name.lower() for trial in told if trial.number not in interrupted}
    assert states == {record["trial"]: record["state"] for record in records}
    for record in records:
        trial = sweep.paths.trial(record["trial"])
        reports = {int(index): value for index, value in record["reports"].items()}
        assert told[int(record["trial"])].intermediate_values == pytest.approx(reports)
        assert (trial.adapter / "adapter.txt").exists() == (record["state"] == "complete")
        assert not trial.state.exists()


def kill_drivers(make_sweep: Callable[[], ForkedSweep], *, num_kills: int, num_operations: int) -> list[Any]:
    """Runs sweeps whose drivers are killed at random operations, until so many were; returns the outcomes."""
    moments = random.Random(SEED)
    outcomes, left = [], num_kills
    while left:
        sweep = make_sweep()
        ended = Ended(sweep)
        # A sweep that was killed has fewer operations left; its last ones are among the first of a late resume.
        while left and sweep.drive(kill_at=moments.randint(1, num_operations // 2)).was_killed:
            ended.check()
            left -= 1
        if not sweep.is_complete:
            sweep.drive()
        ended.check()
        check_promises(sweep)
        outcomes.append(sweep.outcome())
    return outcomes


def test_twenty_drivers_killed_at_random_moments_lose_nothing_and_change_nothing(
    make_sweep: Callable[..., ForkedSweep], undisturbed: tuple[ForkedSweep, int]
) -> None:
    reference, num_operations = undisturbed
    check_promises(reference)
    outcomes = kill_drivers(make_sweep, num_kills=20, num_operations=num_operations)
    assert outcomes == [reference.outcome()] * len(outcomes)


def test_drivers_killed_under_asha_lose_nothing(
    make_sweep: Callable[..., ForkedSweep], undisturbed: tuple[ForkedSweep, int]
) -> None:
    kill_drivers(lambda: make_sweep(scheduler="asha"), num_kills=3, num_operations=undisturbed[1])
