"""The logic of an executor, without Ray: an engine's loop on a thread, and each trial's reports to who asks."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from qlora_ray.runs.files import whole_folder
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.training.engine import Engine, Failure, Report, TrialSpec

# How often the training loop wakes to look for leases that timed out, when nothing else wakes it.
REAP_INTERVAL_S = 1.0


class LeaseLost(RuntimeError):
    """The trial is not on this executor any more: it was evicted, or its driver stopped asking."""


class ExecutorCore:
    """Runs an engine's loop on a thread, and hands each trial's reports to whoever asks for them.

    Args:
        engine: The engine.
        paths: The sweep's folder, on storage that the driver sees too.
        lease_timeout_s: A trial nobody asks for this long is evicted, and its slot is free.
        keep_state: Whether a trial's state is written at each report, so that it can go on elsewhere.
        clock: Monotonic seconds; tests give their own.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        paths: SweepPaths,
        lease_timeout_s: float,
        keep_state: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._paths = paths
        self._lease_timeout_s = lease_timeout_s
        self._keep_state = keep_state
        self._clock = clock
        self._changed = threading.Condition()
        self._asked_at: dict[str, float] = {}
        self._reports: dict[str, Report] = {}
        self._runnable: set[str] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def admit(self, spec: TrialSpec, *, resume: bool) -> bool:
        """Takes a trial in.

        Args:
            spec: The trial.
            resume: Whether to go on from the state its last report left on disk, if there is one.

        Returns:
            Whether it went on from a state.
        """
        from qlora_ray.training.checkpoint import TrialState

        folder = self._paths.trial(spec.trial_id).state
        state = TrialState.load(folder) if resume and folder.exists() else None
        with self._changed:
            self._engine.admit(spec, state)
            self._asked_at[spec.trial_id] = self._clock()
            if state is not None and state.metrics:
                # The driver may have been killed before it heard of the report that the state was written at.
                self._reports[spec.trial_id] = Report(
                    spec.trial_id, state.report_index, False, state.metrics, state.facts
                )
            else:
                self._runnable.add(spec.trial_id)
            self._changed.notify_all()
        return state is not None

    def next_report(self, trial_id: str, *, timeout_s: float) -> Report | None:
        """The trial's next report; asking again after one means go on.

        Returns:
            The report, or None if none came within `timeout_s`: ask again.

        Raises:
            LeaseLost: If the trial is not here.
        """
        with self._changed:
            self._touch(trial_id)
            if trial_id not in self._runnable and trial_id not in self._reports:
                self._runnable.add(trial_id)
                self._engine.proceed(trial_id)
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: trial_id in self._reports or trial_id not in self._asked_at, timeout=timeout_s
            )
            self._touch(trial_id)
            return self._reports.pop(trial_id, None)

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; does nothing for one that is not here."""
        with self._changed:
            known = self._asked_at.pop(trial_id, None) is not None
            self._runnable.discard(trial_id)
            self._reports.pop(trial_id, None)
            self._changed.notify_all()
        if known:
            self._engine.evict(trial_id)

    def trials(self) -> list[str]:
        """Ids of the admitted trials."""
        with self._changed:
            return sorted(self._asked_at)

    def reap(self) -> list[str]:
        """Evicts the trials that nobody has asked for in `lease_timeout_s`; returns their ids."""
        now = self._clock()
        with self._changed:
            lost = [trial for trial, asked in self._asked_at.items() if now - asked > self._lease_timeout_s]
        for trial_id in lost:
            self.evict(trial_id)
        return lost

    def close(self) -> None:
        """Evicts all trials and ends the loop."""
        for trial_id in self.trials():
            self.evict(trial_id)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _touch(self, trial_id: str) -> None:
        if trial_id not in self._asked_at:
            raise LeaseLost(f"executor: trial {trial_id} is not here")
        self._asked_at[trial_id] = self._clock()

    def _loop(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._runnable or self._closed, timeout=REAP_INTERVAL_S)
            self.reap()
            if not self._runnable:
                continue
            try:
                reports = self._engine.advance()
            except Exception as error:
                reports = self._fail_all(error)
            for report in reports:
                kept = self._keep(report)
                with self._changed:
                    if report.trial_id in self._asked_at:
                        self._runnable.discard(report.trial_id)
                        self._reports[report.trial_id] = kept
                        # Nobody could ask while the engine trained, so the wait for the driver starts now.
                        self._asked_at[report.trial_id] = self._clock()
                        self._changed.notify_all()

    def _keep(self, report: Report) -> Report:
        """Writes what a report leaves on disk; a trial whose adapter cannot be written has failed."""
        if report.failure:
            return report
        trial = self._paths.trial(report.trial_id)
        try:
            if report.is_final:
                with whole_folder(trial.adapter) as folder:
                    self._engine.save_adapter(report.trial_id, folder)
            elif self._keep_state:
                state = self._engine.snapshot(report.trial_id)
                if state is not None:
                    state.save(trial.state)
        except Exception as error:
            if "No space left" in str(error):
                # The next trial would meet the same: the search ends, and a resume goes on.
                message = f"{trial.root}: the disk is full. Free some, then go on with --resume."
                failure = Failure("lost", message, traceback.format_exc())
            else:
                message = f"{trial.root}: cannot be written: {error}"
                failure = Failure("error", message, traceback.format_exc())
            return Report(report.trial_id, report.index, True, report.metrics, report.facts, failure)
        return report

    def _fail_all(self, error: Exception) -> list[Report]:
        failure = Failure("error", f"{type(error).__name__}: {error}", traceback.format_exc())
        with self._changed:
            return [Report(trial_id, 0, True, {}, failure=failure) for trial_id in sorted(self._runnable)]
