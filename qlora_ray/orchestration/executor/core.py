"""The logic of an executor, without Ray: trials are admitted, asked for their reports, and evicted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from qlora_ray.orchestration.executor.admission import Admissions
from qlora_ray.orchestration.executor.engine_loop import EngineLoop
from qlora_ray.orchestration.executor.state_writer import StateWriter
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.training.engine import Engine, Report, TrialSpec

# How often leases are looked through for those that timed out; shorter where the time-out is.
REAP_INTERVAL_S = 1.0
REAPS_PER_LEASE = 4


class ExecutorCore:
    """Hands each trial's reports to whoever asks for them, from an engine that runs on a thread of its own.

    All methods may be called from any thread at any time. For what is on disk when, see EngineLoop.

    Args:
        engine: The engine.
        paths: The sweep's folder, on storage that the driver sees too.
        lease_timeout_s: A trial nobody asks for this long is evicted, and its slot is free.
        keep_state: Whether a trial's state is written at each report, so that it can go on elsewhere.
        clock: Monotonic seconds; tests give their own.
        origin: How its adapters are trained, which goes into their folders.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        paths: SweepPaths,
        lease_timeout_s: float,
        keep_state: bool,
        clock: Callable[[], float] = time.monotonic,
        origin: dict[str, Any] | None = None,
    ) -> None:
        self._paths = paths
        self._lease_timeout_s = lease_timeout_s
        self._clock = clock
        self._admissions = Admissions(engine)
        self._changed = self._admissions.changed
        self._writer = StateWriter(paths, origin)
        self._loop = EngineLoop(
            engine, self._admissions, paths=paths, writer=self._writer, keep_state=keep_state, clock=clock
        )
        self._reap_interval_s = min(REAP_INTERVAL_S, lease_timeout_s / REAPS_PER_LEASE)
        self._reaped_at = clock()
        self._ended = threading.Event()
        self._reaper = threading.Thread(target=self._reap_leases, name="reaper", daemon=True)
        self._reaper.start()

    def admit(self, spec: TrialSpec) -> bool:
        """Takes a trial in, from the state its last report left on disk, if there is one.

        A trial that is here already is a dead driver's, and ends first. One whose state cannot be read starts at its
        beginning; its reports' facts say why, as `restarted`.

        Returns:
            Whether it went on from a state.

        Raises:
            Preempted: If there is no slot for it; the slots may have become fewer since it was leased one.
        """
        from qlora_ray.training.checkpoint import find_state

        self.evict(spec.trial_id)
        admission = self._admissions.add(spec)
        try:
            state, admission.restarted = find_state(self._paths.trial(spec.trial_id).state)
            with self._changed:
                self._admissions.require(spec.trial_id, admission)
                admission.state, admission.silent_s = state, 0.0
                if state is not None and state.metrics:
                    # The driver may have been killed before it heard of the report that the state was written at.
                    # Until it asks on, the trial stays out of the engine, which would train it at once.
                    admission.report = Report(
                        spec.trial_id,
                        state.report_index,
                        False,
                        state.metrics,
                        state.facts,
                        # Those of a pending report come with it.
                        train_losses=[] if state.has_pending_report else state.train_losses,
                    )
                else:
                    self._admissions.go_on(admission)
        except Exception:
            self._admissions.remove(admission)
            raise
        return state is not None

    def next_report(self, trial_id: str, *, timeout_s: float) -> Report | None:
        """The trial's next report; asking again after one means go on.

        Returns:
            The report, or None if none came within `timeout_s`: ask again.

        Raises:
            Preempted: If the trial was put off the device for memory; its state is on disk.
            LeaseLost: If the trial is not here.
        """
        with self._changed:
            admission = self._admissions.require(trial_id)
            admission.silent_s = 0.0
            if admission.can_go_on:
                self._admissions.go_on(admission)
            self._changed.wait_for(lambda: admission.report or not self._admissions.holds(admission), timeout=timeout_s)
            self._admissions.require(trial_id, admission)
            admission.silent_s = 0.0
            report, admission.report = admission.report, None
            return report

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; does nothing for one that is not here.

        Nothing is written for the trial once this has returned.
        """
        with self._changed:
            self._admissions.forget_preemption(trial_id)
            admission = self._admissions.find(trial_id)
        if admission is not None:
            self._admissions.remove(admission)

    def trials(self) -> list[str]:
        """Ids of the admitted trials."""
        with self._changed:
            return sorted(admission.spec.trial_id for admission in self._admissions.all())

    def clear(self) -> None:
        """Evicts all trials, and waits until the engine rests."""
        for trial_id in self.trials():
            self.evict(trial_id)
        with self._changed:
            self._changed.wait_for(lambda: not self._admissions.is_advancing)

    def reap(self) -> list[str]:
        """Evicts the trials that nobody has asked for in `lease_timeout_s`; returns their ids.

        Only time in which this was called counts as silence: what froze the whole process kept the callers out too.
        """
        with self._changed:
            now = self._clock()
            heard_s = min(now - self._reaped_at, 2 * self._reap_interval_s)
            self._reaped_at = now
            for admission in self._admissions.all():
                admission.silent_s += heard_s
            lost = [admission for admission in self._admissions.all() if admission.silent_s > self._lease_timeout_s]
        for admission in lost:
            self._admissions.remove(admission)
        return sorted(admission.spec.trial_id for admission in lost)

    def describe_slots(self) -> dict[str, Any]:
        """See EngineLoop.describe_slots."""
        return self._loop.describe_slots()

    def wait_change(self, seen_version: int) -> bool:
        """See EngineLoop.wait_change."""
        return self._loop.wait_change(seen_version)

    def usage(self) -> dict[str, float | None]:
        """See DeviceUsage."""
        return self._loop.usage()

    def close(self) -> None:
        """Evicts all trials and ends the loop."""
        with self._changed:
            self._admissions.is_closed = True
            self._changed.notify_all()
        self.clear()
        self._ended.set()
        self._writer.close()
        self._loop.join()
        self._reaper.join()

    def _reap_leases(self) -> None:
        while not self._ended.wait(self._reap_interval_s):
            self.reap()
