"""An executor actor around the fake engine: Ray, pool, leases and trials are real, training is a formula."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_ray.orchestration.executor.actor import Executor, ExecutorTerms
from qlora_ray.orchestration.executor.core import ExecutorCore
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.files import read_lines
from qlora_ray.scoring.scores import Scores
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import Report, TrialSpec
from tests.fake_engine import FakeEngine

# What lets the trials of HeldExecutors go on.
GO = "go"
# What holds those of PlannedExecutors up.
HOLD = "hold"
HELD_POLL_S = 0.02
# Of the rows that a PlannedExecutor scores.
NUM_SCORED_ROWS = 8
NUM_SCORED_TOKENS = 10
BASE_LOSS = 9.0


@dataclass(frozen=True)
class FakePlacement:
    """What a pool asks of a placement, and what the engine is made with, see FakeEngine."""

    slots_per_executor: int = 2
    room: int | None = None
    gathers: int = 0
    num_cpus: float = 0.1
    num_gpus: float = 0.0
    device_class: str = "fake"
    available_bytes: int = 0
    engine: str = "packed"
    is_preferred: bool = False

    @property
    def executors_per_device(self) -> int:
        """As of a pack."""
        return 1

    @property
    def slots_per_device(self) -> int:
        """All in one executor."""
        return self.slots_per_executor


class FakeExecutor(Executor):
    """Serves one FakeEngine; only its making and its description are not the real one's."""

    def __init__(self, terms: ExecutorTerms, placement: Any, data: Any) -> None:
        self._core = ExecutorCore(
            FakeEngine(placement.slots_per_executor, room=placement.room, gathers=placement.gathers),
            paths=SweepPaths(terms.root),
            lease_timeout_s=terms.config.cluster.lease_timeout_s,
            keep_state=terms.config.cluster.keep_trial_state,
        )

    def describe(self) -> dict[str, Any]:
        """What the pool and the records need."""
        return {
            **self._core.describe_slots(),
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "device": "fake",
            "device_class": "fake",
            "precision_reason": "none",
        }


class WaitingEngine(FakeEngine):
    """Trains while no file `hold` lies beside the sweep's folder; its states have their report, as real ones do."""

    def __init__(self, slots: int, *, root: Path) -> None:
        super().__init__(slots)
        self._hold = root.parent / HOLD
        self._reported: dict[str, dict[str, float]] = {}

    def admit(self, spec: TrialSpec, state: TrialState | None = None) -> None:
        """As FakeEngine."""
        self._reported[spec.trial_id] = state.metrics if state else {}
        super().admit(spec, state)

    def train(self, trial_ids: list[str]) -> None:
        """Waits until the file is gone."""
        while trial_ids and self._hold.exists():
            time.sleep(HELD_POLL_S)

    def snapshot(self, trial_id: str) -> TrialState | None:
        """A killed driver may not have heard of the report: the next one is told it again."""
        state = super().snapshot(trial_id)
        return state and replace(state, metrics=self._reported[trial_id])

    def _report(self, spec: TrialSpec) -> Report:
        report = super()._report(spec)
        if report.failure is None:
            self._reported[spec.trial_id] = report.metrics
        return report


class PlannedExecutor(FakeExecutor):
    """Serves a real placement, for sweeps of the real driver, and scores: by the loss that a trial last reported."""

    def __init__(self, terms: ExecutorTerms, placement: Any, data: Any) -> None:
        self._core = ExecutorCore(
            WaitingEngine(placement.slots_per_executor, root=terms.root),
            paths=SweepPaths(terms.root),
            lease_timeout_s=terms.config.cluster.lease_timeout_s,
            keep_state=terms.config.cluster.keep_trial_state,
        )

    def score(self, models: Mapping[str, Path | None], split: str, *, with_answers: bool) -> dict[str, Scores]:
        """Rows of one loss; the bare base has more of it than any adapter."""
        self._core.clear()
        return {name: self._score(adapter) for name, adapter in models.items()}

    def _score(self, adapter: Path | None) -> Scores:
        lines = [] if adapter is None else read_lines(SweepPaths(adapter.parents[2]).trial(adapter.parent.name).metrics)
        loss = BASE_LOSS if adapter is None else lines[-1]["eval_loss"]
        row_nll = [loss * NUM_SCORED_TOKENS] * NUM_SCORED_ROWS
        return Scores(
            loss,
            NUM_SCORED_TOKENS * NUM_SCORED_ROWS,
            NUM_SCORED_ROWS,
            {},
            {},
            [],
            0,
            0,
            row_nll=row_nll,
            row_tokens=[NUM_SCORED_TOKENS] * NUM_SCORED_ROWS,
        )


class HeldEngine(FakeEngine):
    """Trains on once a file is there."""

    def __init__(self, slots: int, *, until: Path) -> None:
        super().__init__(slots)
        self._until = until

    def train(self, trial_ids: list[str]) -> None:
        """Waits for the file; whoever makes it is another process."""
        while trial_ids and not self._until.exists():
            time.sleep(HELD_POLL_S)


class HeldExecutor(FakeExecutor):
    """Its trials train on once the sweep's folder has the file `go`: until then a test may do to them what it likes."""

    def __init__(self, terms: ExecutorTerms, placement: Any, data: Any) -> None:
        self._core = ExecutorCore(
            HeldEngine(placement.slots_per_executor, until=terms.root / GO),
            paths=SweepPaths(terms.root),
            lease_timeout_s=terms.config.cluster.lease_timeout_s,
            keep_state=terms.config.cluster.keep_trial_state,
        )


class BrokenExecutor(FakeExecutor):
    """Never comes up."""

    def __init__(self, terms: ExecutorTerms, placement: Any, data: Any) -> None:
        from qlora_ray.errors import ModelError

        raise ModelError("model.name: no-such-base cannot be loaded: it is not there.")
