"""The simulated executor answers as the real one does: the same calls, one after the other, on both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from qlora_ray.config.schema import Lora, Training
from qlora_ray.orchestration.executor.core import ExecutorCore
from qlora_ray.runs import SweepPaths
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import Report, TrialSpec
from tests.fake_engine import WAIT_S, FakeEngine
from tests.simulation.executor import NUM_REPORTS, SimulatedExecutor

TRIALS = ("0000", "0001", "0002")


class Executor(Protocol):
    """What both can do."""

    def admit(self, trial_id: str, lease_number: int) -> None: ...
    def next_report(self, trial_id: str, lease_number: int) -> Report | None: ...
    def evict(self, trial_id: str, lease_number: int | None = None) -> None: ...
    def preempt(self, trial_id: str, lease_number: int) -> None: ...
    def held(self) -> dict[str, int]: ...


def make_spec(trial_id: str) -> TrialSpec:
    """A trial of as many reports as those of the simulation."""
    config = Training(max_samples=8, gradient_accumulation_steps=1)
    return TrialSpec(trial_id, Lora(), config, make_budget(config, num_train_rows=8, num_reports=NUM_REPORTS))


class Real:
    """ExecutorCore over the fake engine."""

    def __init__(self, root: Path, slots: int, room: int) -> None:
        for trial_id in TRIALS:
            SweepPaths(root).trial(trial_id).root.mkdir(parents=True)
        self.core = ExecutorCore(
            FakeEngine(slots, room=room), paths=SweepPaths(root), lease_timeout_s=600, keep_state=True
        )

    def admit(self, trial_id: str, lease_number: int) -> None:
        self.core.admit(make_spec(trial_id), lease_number)

    def next_report(self, trial_id: str, lease_number: int) -> Report | None:
        return self.core.next_report(trial_id, lease_number, timeout_s=WAIT_S)

    def evict(self, trial_id: str, lease_number: int | None = None) -> None:
        self.core.evict(trial_id, lease_number)

    def preempt(self, trial_id: str, lease_number: int) -> None:
        self.core.preempt(trial_id, lease_number, "node is draining")

    def held(self) -> dict[str, int]:
        held: dict[str, int] = self.core.heartbeat()["held"]
        return held


class Simulated:
    """The simulation's, trained whenever somebody asks."""

    def __init__(self, slots: int, room: int) -> None:
        self.executor = SimulatedExecutor(
            slots, room=room, disk={}, lease_timeout_s=600, diverges=lambda trial_id: False
        )

    def admit(self, trial_id: str, lease_number: int) -> None:
        self.executor.admit(make_spec(trial_id), lease_number, now=0.0)

    def next_report(self, trial_id: str, lease_number: int) -> Report | None:
        answers: list[Any] = []
        self.executor.next_report(trial_id, lease_number, now=0.0, answer=answers.append)
        while not answers:
            self.executor.advance()
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def evict(self, trial_id: str, lease_number: int | None = None) -> None:
        self.executor.evict(trial_id, lease_number)

    def preempt(self, trial_id: str, lease_number: int) -> None:
        self.executor.preempt(trial_id, lease_number, "node is draining")

    def held(self) -> dict[str, int]:
        return self.executor.held()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Any]:
    """Makes the two of them with so many slots, and room for so many trials."""
    reals: list[Real] = []

    def make(slots: int, room: int) -> tuple[Executor, Executor]:
        reals.append(Real(tmp_path, slots, room))
        return reals[-1], Simulated(slots, room)

    yield make
    for real in reals:
        real.core.close()


SCRIPTS: dict[str, tuple[int, int, list[tuple[Any, ...]]]] = {
    "reports to the end": (1, 1, [("admit", "0000", 1), *[("next_report", "0000", 1)] * NUM_REPORTS]),
    "no slot": (1, 1, [("admit", "0000", 1), ("admit", "0001", 2)]),
    "put out, and late": (1, 1, [("evict", "0000", 1), ("admit", "0000", 1), ("admit", "0000", 2)]),
    "older than another": (2, 2, [("admit", "0000", 3), ("admit", "0000", 2), ("next_report", "0000", 2)]),
    "anew with a newer one": (2, 2, [("admit", "0000", 1), ("admit", "0000", 2), ("next_report", "0000", 1)]),
    "an old eviction": (1, 1, [("admit", "0000", 2), ("evict", "0000", 1), ("next_report", "0000", 2)]),
    "preempted": (
        1,
        1,
        [("admit", "0000", 1), ("next_report", "0000", 1), ("preempt", "0000", 1), *[("next_report", "0000", 1)] * 2],
    ),
    "preempted before it came": (1, 1, [("preempt", "0000", 1), ("admit", "0000", 1), ("admit", "0000", 1)]),
    "goes on from its state": (
        1,
        1,
        [("admit", "0000", 1), ("next_report", "0000", 1), ("evict", "0000", 1), ("admit", "0000", 2)],
    ),
    "out of memory": (
        2,
        1,
        [
            ("admit", "0000", 1),
            ("next_report", "0000", 1),
            ("admit", "0001", 2),
            ("next_report", "0001", 2),
            ("admit", "0001", 3),
        ],
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_both_answer_alike(name: str, both: Any) -> None:
    slots, room, script = SCRIPTS[name]
    answers: list[list[Any]] = []
    for executor in both(slots, room):
        heard: list[Any] = []
        for call, *arguments in script:
            try:
                answer = getattr(executor, call)(*arguments)
                told: Any = (answer.index, answer.is_final) if isinstance(answer, Report) else None
            except Exception as error:
                told = (type(error).__name__, str(error))
            heard.append((call, told, executor.held()))
        answers.append(heard)
    real, simulated = answers
    assert simulated == real
