"""Executors without Ray, and trials for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.config.schema import Lora, Training
from qlora_ray.orchestration.executor.core import ExecutorCore
from qlora_ray.runs import SweepPaths
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import TrialSpec
from tests.fake_engine import WAIT_S, FakeEngine, GatedEngine

MakeCore = Callable[..., ExecutorCore]


@pytest.fixture
def make_core(tmp_path: Path) -> Iterator[MakeCore]:
    """Makes cores on one folder; all are closed at the end of the test."""
    cores: list[tuple[ExecutorCore, FakeEngine]] = []
    for number in range(4):
        SweepPaths(tmp_path).trial(f"{number:04d}").root.mkdir(parents=True)

    def make(engine: FakeEngine, **options: Any) -> ExecutorCore:
        core = ExecutorCore(
            engine, **{"paths": SweepPaths(tmp_path), "lease_timeout_s": 600, "keep_state": True, **options}
        )
        cores.append((core, engine))
        return core

    yield make
    for core, engine in cores:
        if isinstance(engine, GatedEngine):
            engine.allow(99)
        core.close()


@pytest.fixture
def ask() -> Iterator[Callable[..., Future[Any]]]:
    """Calls a function on another thread."""
    with ThreadPoolExecutor(8) as threads:
        yield threads.submit


def make_spec(trial_id: str, **training: float) -> TrialSpec:
    """Eight steps, four reports."""
    config = Training(max_samples=8, gradient_accumulation_steps=1, **training)
    return TrialSpec(trial_id, Lora(), config, make_budget(config, num_train_rows=8, num_reports=4))


def index_of(core: ExecutorCore, trial_id: str, lease_number: int = 1) -> int:
    """The index of the trial's next report."""
    report = core.next_report(trial_id, lease_number, timeout_s=WAIT_S)
    assert report is not None
    return report.index
