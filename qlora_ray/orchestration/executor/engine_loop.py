"""The thread that advances an executor's engine, saves what its trials have trained, and hands out their reports."""

from __future__ import annotations

import contextlib
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qlora_ray.errors import first_line
from qlora_ray.orchestration.executor.admission import Admissions, ExecutorAdmission
from qlora_ray.orchestration.executor.progress import ProgressCounter
from qlora_ray.orchestration.executor.state_writer import StateWriter, describe_unwritable
from qlora_ray.orchestration.executor.usage import DeviceUsage
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.training.admission import Phase
from qlora_ray.training.engine import Engine, EngineEvent, Failure, Preemption, Report

if TYPE_CHECKING:
    from qlora_ray.training.checkpoint import TrialState

# An engine that finds nothing to train where the loop does is between two steps of an eviction.
EMPTY_PAUSE_S = 0.01


class EngineLoop:
    """Advances an engine while any of its trials can train.

    A trial that has trained to a report has its state, and at the end its adapter, on disk before it is evaluated or
    while it is: what kills the evaluation takes no training with it. A report that is handed out has them there for
    certain. States are written on a thread of their own, so that the other trials train on meanwhile.

    Args:
        engine: The engine.
        admissions: Its trials.
        paths: The sweep's folder, on storage that the driver sees too.
        writer: Writes states and adapters there.
        keep_state: Whether a trial's state is written at each report, so that it can go on elsewhere.
        clock: Monotonic seconds.
        progress: Counts each return of the engine and each file that is written.
    """

    def __init__(
        self,
        engine: Engine,
        admissions: Admissions,
        *,
        paths: SweepPaths,
        writer: StateWriter,
        keep_state: bool,
        clock: Callable[[], float],
        progress: ProgressCounter,
    ) -> None:
        self._progress = progress
        self._engine = engine
        self._admissions = admissions
        self._changed = admissions.changed
        self._paths = paths
        self._writer = writer
        self._keep_state = keep_state
        self._usage = DeviceUsage(clock)
        self._slots = engine.slots
        self._slots_version = 0
        self._slots_reason = "as planned"
        self._problem = ""
        engine.on_trained(self._save_trained)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def describe_slots(self) -> dict[str, Any]:
        """The engine's slots now, why, and a version that `wait_change` takes."""
        with self._changed:
            return {"slots": self._slots, "slots_reason": self._slots_reason, "version": self._slots_version}

    def wait_change(self, seen_version: int) -> bool:
        """Waits until the slots are others than in that version; False if the executor has closed.

        Raises:
            RuntimeError: The engine can train nothing any more; who waits here ends the executor and starts another.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._admissions.is_closed or self._slots_version != seen_version or bool(self._problem)
            )
            if self._problem and not self._admissions.is_closed:
                raise RuntimeError(self._problem)
            return not self._admissions.is_closed

    def busy_share(self) -> float | None:
        """See DeviceUsage."""
        with self._changed:
            return self._usage.busy_share()

    def usage(self) -> dict[str, float | None]:
        """See DeviceUsage."""
        with self._changed:
            return self._usage.to_dict()

    def join(self) -> None:
        """Returns once the thread has ended, which it does when the admissions are closed."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._advance_engine()
        except BaseException as error:
            # Nothing of a trial's own comes here. Without this thread its trials would wait for ever.
            with self._changed:
                self._problem = f"the engine broke: {type(error).__name__}: {first_line(error)}"
                self._admissions.end_advance()
                self._changed.notify_all()
            traceback.print_exc()

    def _advance_engine(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._admissions.is_closed or bool(self._running()))
                if self._admissions.is_closed:
                    return
                self._admissions.is_advancing = True
                self._usage.begin()
            try:
                events = self._engine.advance()
            except Exception as error:
                events = self._fail_all(error)
            self._progress.tick()
            self._note_slots(events)
            for event in events:
                self._settle(event)
            with self._changed:
                self._usage.end()
                self._admissions.end_advance()
                if not events:
                    self._changed.wait(EMPTY_PAUSE_S)

    def _running(self) -> list[ExecutorAdmission]:
        return [admission for admission in self._admissions.all() if admission.is_running]

    def _save_trained(self, trial_id: str, is_final: bool) -> None:
        """Puts what a trial has trained on disk before it is evaluated; on the thread that trains it."""
        with self._changed:
            admission = self._admissions.find(trial_id)
            if admission is None or not admission.is_running:
                return
            admission.phase = Phase.EVALUATING
            admission.num_writes += 1
        state: TrialState | None = None
        # What cannot be written is tried again, and told, at the report.
        with contextlib.suppress(Exception):
            if is_final:
                with contextlib.suppress(Exception):
                    # Here, not on the writer: an adapter is only the engine's to read between two steps.
                    self._writer.write_adapter(trial_id, self._engine.save_adapter)
                    admission.has_adapter = True
            state = self._engine.snapshot(trial_id) if self._keep_state else None
        if state is None:
            self._end_write(admission)
            return
        admission.trained_write = self._writer.write_state(
            trial_id,
            state,
            is_wanted=lambda: self._admissions.holds(admission),
            then=lambda error: self._end_write(admission),
        )

    def _end_write(self, admission: ExecutorAdmission) -> None:
        with self._changed:
            admission.num_writes -= 1
            self._progress.tick()
            self._changed.notify_all()

    def _settle(self, event: EngineEvent) -> None:
        """Does what an event needs of the engine; what only the disk is needed for goes to the writer."""
        trial_id = event.trial_id
        is_over = isinstance(event, Preemption) or event.is_final
        with self._changed:
            admission = self._admissions.find(trial_id)
            if admission is None or not (admission.is_running or isinstance(event, Preemption)):
                return
            admission.phase = Phase.ENDED if is_over else Phase.REPORTED
            admission.num_writes += 1
            earlier, admission.trained_write = admission.trained_write, None
        try:
            state = self._leave_files(event, admission)
        except Exception as error:
            event, state = self._fail_unwritable(event, error), None
        if state is None and earlier is None:
            self._hand_out(admission, event)
            return
        # Also where only the state given before is still being written: it would come after the trial's end.
        self._writer.write_state(
            trial_id,
            state,
            earlier=earlier,
            is_wanted=lambda: self._admissions.holds(admission),
            then=lambda error: self._hand_out(
                admission, event if error is None else self._fail_unwritable(event, error)
            ),
        )

    def _leave_files(self, event: EngineEvent, admission: ExecutorAdmission) -> TrialState | None:
        """Writes or drops the adapter as the event needs it, and returns the state to be written; None for none."""
        trial_id = event.trial_id
        if isinstance(event, Preemption):
            state = self._engine.snapshot(trial_id)
            self._engine.evict(trial_id)
            admission.phase = Phase.PREEMPTED
            return state
        if event.failure is not None and event.failure.cause == "unevaluated":
            return self._engine.snapshot(trial_id)
        if event.failure is not None:
            self._writer.drop_adapter(trial_id)
            return None
        if event.is_final:
            # On disk its report stays pending: a driver killed before it hears of it has it made again.
            if not admission.has_adapter:
                self._writer.write_adapter(trial_id, self._engine.save_adapter)
            return None
        return self._engine.snapshot(trial_id) if self._keep_state else None

    def _fail_unwritable(self, event: EngineEvent, error: Exception) -> Report:
        failure = describe_unwritable(self._paths.trial(event.trial_id).root, error)
        if isinstance(event, Preemption):
            return Report(event.trial_id, 0, True, {}, failure=failure)
        return Report(event.trial_id, event.index, True, event.metrics, event.facts, failure)

    def _hand_out(self, admission: ExecutorAdmission, event: EngineEvent) -> None:
        with self._changed:
            admission.num_writes -= 1
            self._progress.tick()
            if self._admissions.holds(admission):
                if isinstance(event, Preemption):
                    self._admissions.preempt(admission, event.reason)
                else:
                    admission.report = admission.explain(event)
                    if event.is_final and admission.is_in_engine:
                        admission.phase = Phase.ENDED
                # The wait for the driver starts now.
                admission.silent_s = 0.0
            self._changed.notify_all()

    def _fail_all(self, error: Exception) -> list[EngineEvent]:
        """Ends the trials that were training when the engine raised; the next `advance` must not meet them."""
        failure = Failure.from_error(error)
        with self._changed:
            running = sorted(admission.spec.trial_id for admission in self._running())
        for trial_id in running:
            self._engine.evict(trial_id)
        return [Report(trial_id, 0, True, {}, failure=failure) for trial_id in running]

    def _note_slots(self, events: list[EngineEvent]) -> None:
        with self._changed:
            slots = self._engine.slots
            if slots != self._slots:
                reasons = [event.reason for event in events if isinstance(event, Preemption)]
                self._slots_reason = reasons[0] if reasons else f"its measured peak memory leaves room for {slots}"
                self._slots = slots
                self._slots_version += 1
                self._changed.notify_all()
