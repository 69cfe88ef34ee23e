"""The simulated executor answers as the real one does: the same calls, one after the other, on both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from qlora_ray.config.schema import Lora, Training
from qlora_ray.orchestration.executor.core import ExecutorCore
from qlora_ray.runs import SweepPaths
from qlora_ray.training.budget import make_budget
from qlora_ray.training.checkpoint import find_state
from qlora_ray.training.engine import Report, TrialSpec
from tests.fake_engine import WAIT_S, FakeEngine
from tests.simulation.executor import FRESH, NUM_REPORTS, Disk, Kept, SimulatedExecutor

TRIALS = ("0000", "0001", "0002")


class Executor(Protocol):
    """What both can do."""

    def admit(self, trial_id: str, lease_number: int) -> None: ...
    def next_report(self, trial_id: str, lease_number: int) -> Report | None: ...
    def evict(self, trial_id: str, lease_number: int | None = None) -> None: ...
    def preempt(self, trial_id: str, lease_number: int) -> None: ...
    def hold(self) -> None: ...
    def let_go(self) -> None: ...
    def held(self) -> dict[str, int]: ...
    def kept(self) -> dict[str, Kept]: ...


def make_spec(trial_id: str) -> TrialSpec:
    """A trial of as many reports as those of the simulation."""
    config = Training(max_samples=8, gradient_accumulation_steps=1)
    return TrialSpec(trial_id, Lora(), config, make_budget(config, num_train_rows=8, num_reports=NUM_REPORTS))


class HoldingEngine(FakeEngine):
    """Stands still in the middle of its training while the test says so."""

    def __init__(self, slots: int, *, room: int) -> None:
        super().__init__(slots, room=room)
        self.may_train, self.is_training = threading.Event(), threading.Event()
        self.may_train.set()

    def train(self, trial_ids: list[str]) -> None:
        if trial_ids:
            self.is_training.set()
            assert self.may_train.wait(WAIT_S)


class Real:
    """ExecutorCore over the fake engine."""

    def __init__(self, root: Path, slots: int, room: int) -> None:
        self.paths = SweepPaths(root)
        for trial_id in TRIALS:
            self.paths.trial(trial_id).root.mkdir(parents=True)
        self.engine = HoldingEngine(slots, room=room)
        self.core = ExecutorCore(self.engine, paths=self.paths, lease_timeout_s=600, keep_state=True)

    def admit(self, trial_id: str, lease_number: int) -> None:
        self.core.admit(make_spec(trial_id), lease_number)

    def next_report(self, trial_id: str, lease_number: int) -> Report | None:
        return self.core.next_report(trial_id, lease_number, timeout_s=WAIT_S)

    def evict(self, trial_id: str, lease_number: int | None = None) -> None:
        self.core.evict(trial_id, lease_number)

    def preempt(self, trial_id: str, lease_number: int) -> None:
        assert self.engine.may_train.is_set() or self.engine.is_training.wait(WAIT_S)
        self.core.preempt(trial_id, lease_number, "node is draining")

    def hold(self) -> None:
        """The trial that is admitted next is in the middle of its training when it is preempted."""
        self.engine.may_train.clear()
        self.engine.is_training.clear()

    def let_go(self) -> None:
        self.engine.may_train.set()

    def held(self) -> dict[str, int]:
        held: dict[str, int] = self.core.heartbeat()["held"]
        return held

    def kept(self) -> dict[str, Kept]:
        states = {trial_id: find_state(self.paths.trial(trial_id).state)[0] for trial_id in TRIALS}
        kept = {trial_id: Kept(state.step, state.report_index) for trial_id, state in states.items() if state}
        return {trial_id: where for trial_id, where in kept.items() if where != FRESH}


class Simulated:
    """The simulation's, trained whenever somebody asks."""

    def __init__(self, slots: int, room: int) -> None:
        self.executor = SimulatedExecutor(
            slots, room=room, disk=Disk(), lease_timeout_s=600, diverges=lambda trial_id: False
        )
        self._leaving: list[str] = []

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
        if self.executor.preempt(trial_id, lease_number, "node is draining"):
            self._leaving.append(trial_id)

    def hold(self) -> None:
        """It trains when it is told to."""

    def let_go(self) -> None:
        """The fake engine does one step before a trial leaves."""
        for trial_id in self._leaving:
            self.executor.put_off(trial_id, num_steps=1)

    def held(self) -> dict[str, int]:
        return self.executor.held()

    def kept(self) -> dict[str, Kept]:
        return dict(self.executor.disk)


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
    "preempted while it trains": (
        1,
        1,
        [
            ("hold",),
            ("admit", "0000", 1),
            ("preempt", "0000", 1),
            ("let_go",),
            *[("next_report", "0000", 1)] * 2,
            ("admit", "0000", 1),
            ("admit", "0000", 2),
            ("next_report", "0000", 2),
        ],
    ),
    "preempted at its end": (
        1,
        1,
        [("admit", "0000", 1), *[("next_report", "0000", 1)] * NUM_REPORTS, ("preempt", "0000", 1)],
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
            # Those who leave do so on a thread of their own, until they are asked for.
            heard.append((call, told, None if call == "let_go" else executor.held()))
        answers.append([*heard, executor.kept()])
    real, simulated = answers
    assert simulated == real
