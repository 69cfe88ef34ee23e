"""An engine without a model: its losses are a formula, so that orchestration is tested in seconds."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from qlora_ray.scoring.progress import RowProgress
from qlora_ray.scoring.scores import Scores
from qlora_ray.scoring.split import EvaluationSplit
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import (
    UNEVALUATED,
    EngineEvent,
    Failure,
    Preemption,
    Report,
    TrainedListener,
    TrialProgress,
    TrialSpec,
)

# A trial with this weight decay diverges at its second report.
DIVERGING_DECAY = 0.5
# One with this has no memory for the evaluation of its last report in the engine that trained it there.
UNEVALUATED_DECAY = 0.25
OPTIMUM_LOG10_LR = -3.0
# How long a test waits for what must come.
WAIT_S = 20.0


def fake_loss(learning_rate: float, step: int) -> float:
    """Lowest at 1e-3, falling with every step."""
    return abs(math.log10(learning_rate) - OPTIMUM_LOG10_LR) + 1 / step


class FakeEngine:
    """Meets the Engine contract; each `advance` brings every runnable trial to its next report.

    One that is asked to leave meanwhile has done one step of those to the report.

    Args:
        slots: Trials at once.
        room: Trials that fit the memory at once; where more are to train, the newest is preempted and the slots shrink.
        gathers: Trials that its first `advance` waits for.
    """

    def __init__(self, slots: int = 2, *, room: int | None = None, gathers: int = 0) -> None:
        self._slots = slots
        self._gathers = gathers
        self._room = slots if room is None else room
        self._specs: dict[str, TrialSpec] = {}
        self._indices: dict[str, int] = {}
        self._runnable: set[str] = set()
        # Those that have trained to a report and not made it.
        self._pending: set[str] = set()
        self._came_pending: set[str] = set()
        # Steps done, and why those that were asked to leave are to do so.
        self._steps: dict[str, int] = {}
        self._leave_reasons: dict[str, str] = {}
        self._lock = threading.Condition()
        self._on_trained: TrainedListener = lambda trial_id, is_final: None
        self.log: list[tuple[str, str]] = []

    @property
    def slots(self) -> int:
        """As constructed, or as many as were found to fit."""
        return self._slots

    def admit(self, spec: TrialSpec, state: TrialState | None = None) -> None:
        """Takes a trial in at its state's report."""
        with self._lock:
            if len(self._specs) >= self._slots:
                raise RuntimeError(f"fake engine: has {self._slots} slots")
            self._specs[spec.trial_id] = spec
            if state is not None and state.has_pending_report:
                self._pending.add(spec.trial_id)
                self._came_pending.add(spec.trial_id)
            self._indices[spec.trial_id] = state.report_index if state else 0
            self._steps[spec.trial_id] = state.step if state else 0
            self._leave_reasons.pop(spec.trial_id, None)
            self._runnable.add(spec.trial_id)
            self.log.append(("admit", spec.trial_id))
            self._lock.notify_all()

    def proceed(self, trial_id: str) -> None:
        """Makes a waiting trial runnable."""
        with self._lock:
            if trial_id in self._specs:
                self._runnable.add(trial_id)
                self.log.append(("proceed", trial_id))

    def request_preemption(self, trial_id: str, reason: str) -> None:
        """Notes it for the `advance` under way, or the next one."""
        with self._lock:
            if trial_id in self._specs:
                self._leave_reasons[trial_id] = reason

    def advance(self) -> list[EngineEvent]:
        """One report of every runnable trial, or the preemption of the one that had to make room."""
        with self._lock:
            self._lock.wait_for(lambda: len(self._specs) >= self._gathers or not self._specs)
            self._gathers = 0
            if len(self._specs) > self._room:
                self._slots = self._room
                newest = list(self._specs)[-1]
                self._runnable.discard(newest)
                return [Preemption(newest, f"out of memory with {self._room + 1} trials")]
            leaving = self._put_off(self._runnable, num_steps=0)
            training = {trial_id: self._specs[trial_id] for trial_id in sorted(self._runnable)}
            self._runnable.clear()
        if leaving:
            self._runnable.update(training)
            return leaving
        self.train(sorted(training.keys() - self._pending))
        with self._lock:
            leaving = self._put_off(training.keys() - self._pending, num_steps=1)
        for event in leaving:
            del training[event.trial_id]
        for spec in training.values():
            self._pending.add(spec.trial_id)
            self._on_trained(spec.trial_id, self._indices[spec.trial_id] + 1 == len(spec.budget.report_steps))
        self.evaluate(sorted(training))
        with self._lock:
            return [*leaving, *(self._report(spec) for spec in training.values())]

    def progress(self) -> list[TrialProgress]:
        """Steps at the last report, with its loss."""
        with self._lock:
            return [self._progress_of(spec) for spec in self._specs.values()]

    def on_trained(self, listener: TrainedListener) -> None:
        """Told of each trial before its report is made."""
        self._on_trained = listener

    def evaluate(self, trial_ids: list[str]) -> None:
        """What takes time and memory after training; nothing here. Called without the lock."""

    def train(self, trial_ids: list[str]) -> None:
        """What takes time; nothing here. Called without the lock: trials may come and go meanwhile."""

    def snapshot(self, trial_id: str) -> TrialState | None:
        """Report index and steps, in a state of the real form; before a report is made, with it pending."""
        index = self._indices[trial_id]
        is_pending = trial_id in self._pending
        steps = (0, *self._specs[trial_id].budget.report_steps)
        step = steps[index + 1] if is_pending else max(steps[index], self._steps[trial_id])
        pending_metrics = {"step": float(step)} if is_pending else {}
        return TrialState(trial_id, step, index, {"a": torch.ones(1)}, {}, {}, {}, pending_metrics=pending_metrics)

    def save_adapter(self, trial_id: str, folder: Path) -> None:
        """One file."""
        (folder / "adapter.txt").write_text(trial_id, encoding="utf-8")

    def evict(self, trial_id: str) -> None:
        """Forgets a trial."""
        with self._lock:
            self._specs.pop(trial_id, None)
            self._pending.discard(trial_id)
            self._runnable.discard(trial_id)
            self._leave_reasons.pop(trial_id, None)
            self.log.append(("evict", trial_id))
            self._lock.notify_all()

    def score(
        self,
        models: Mapping[str, Path | None],
        split: EvaluationSplit,
        *,
        with_answers: bool = True,
        progress: RowProgress | None = None,
    ) -> dict[str, Scores]:
        """Not needed here."""
        raise NotImplementedError

    def _progress_of(self, spec: TrialSpec) -> TrialProgress:
        step = (0, *spec.budget.report_steps)[self._indices[spec.trial_id]]
        loss = fake_loss(spec.training.learning_rate, step) if step else None
        return TrialProgress(spec.trial_id, step, loss, loss, tokens_per_s=10.0 if step else None)

    def _put_off(self, trial_ids: Collection[str], *, num_steps: int) -> list[EngineEvent]:
        """The preemptions of those of these trials that were asked to leave, after so many steps of their own."""
        leaving = sorted(trial_id for trial_id in trial_ids if trial_id in self._leave_reasons)
        for trial_id in leaving:
            self._runnable.discard(trial_id)
            steps = (0, *self._specs[trial_id].budget.report_steps)
            index = self._indices[trial_id]
            step = max(steps[index], self._steps[trial_id]) + num_steps
            self._steps[trial_id] = min(step, steps[index + 1] - 1)
        return [Preemption(trial_id, self._leave_reasons[trial_id]) for trial_id in leaving]

    def _report(self, spec: TrialSpec) -> Report:
        trial_id = spec.trial_id
        self._indices[trial_id] += 1
        index = self._indices[trial_id]
        step = spec.budget.report_steps[index - 1]
        if spec.training.weight_decay == DIVERGING_DECAY and index == 2:
            return self._failure(trial_id, Failure("diverged", f"loss is nan at step {step}"))
        is_last = index == len(spec.budget.report_steps)
        if spec.training.weight_decay == UNEVALUATED_DECAY and is_last and trial_id not in self._came_pending:
            self._indices[trial_id] -= 1
            return self._failure(trial_id, Failure("unevaluated", f"{UNEVALUATED}: CUDA out of memory."))
        self._pending.discard(trial_id)
        loss = fake_loss(spec.training.learning_rate, step)
        metrics = {"eval_loss": loss, "train_loss": loss, "step": float(step), "train_s": 1.0, "tokens_per_s": 10.0}
        facts = {"trainable_parameters": spec.lora.r * 100}
        return Report(trial_id, index, index == len(spec.budget.report_steps), metrics, facts)

    def _failure(self, trial_id: str, failure: Failure) -> Report:
        return Report(trial_id, self._indices[trial_id], True, {}, failure=failure)


class GatedEngine(FakeEngine):
    """A fake engine whose `advance` stands still in the middle until the test lets it end."""

    def __init__(self, slots: int = 2) -> None:
        super().__init__(slots)
        self._gate = threading.Condition()
        self._num_entered = self._num_allowed = 0

    def train(self, trial_ids: list[str]) -> None:
        """Waits for `allow`."""
        with self._gate:
            self._num_entered += 1
            turn = self._num_entered
            self._gate.notify_all()
            assert self._gate.wait_for(lambda: self._num_allowed >= turn, timeout=WAIT_S)

    def wait_entered(self, count: int) -> None:
        """Returns when `advance` is in the middle of its `count`-th run."""
        with self._gate:
            assert self._gate.wait_for(lambda: self._num_entered >= count, timeout=WAIT_S)

    def allow(self, count: int = 1) -> None:
        """Lets `count` more runs end."""
        with self._gate:
            self._num_allowed += count
            self._gate.notify_all()
