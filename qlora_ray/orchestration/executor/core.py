"""The logic of an executor, without Ray: trials are admitted, asked for their reports, and evicted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qlora_ray.orchestration.executor.admission import Admissions
from qlora_ray.orchestration.executor.engine_loop import EngineLoop
from qlora_ray.orchestration.executor.progress import ProgressCounter
from qlora_ray.orchestration.executor.scoring_progress import ScoringProgress
from qlora_ray.orchestration.executor.state_writer import StateWriter
from qlora_ray.runs.live import LiveTrialState
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.training.admission import Phase
from qlora_ray.training.engine import Engine, Report, TrialProgress, TrialSpec

# How often leases are looked through for those that timed out; shorter where the time-out is.
REAP_INTERVAL_S = 1.0
REAPS_PER_LEASE = 4
# What is told of a trial in each phase.
LIVE_STATES = {
    Phase.ENTERING: LiveTrialState.WAITING,
    Phase.TRAINING: LiveTrialState.TRAINING,
    Phase.EVALUATING: LiveTrialState.EVALUATING,
    Phase.REPORTED: LiveTrialState.REPORTED,
    Phase.PREEMPTED: LiveTrialState.WAITING,
    Phase.ENDED: LiveTrialState.REPORTED,
}


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
        progress: Counts the work that is done; None for a counter that only the engine's own returns move.
        read_memory: Says what this process has of its device's memory, in bytes; None if that is unknown.
        total_memory_bytes: Of the device.

    Attributes:
        scoring_progress: How far it is with the rows that it scores.
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
        progress: ProgressCounter | None = None,
        read_memory: Callable[[], int | None] = lambda: None,
        total_memory_bytes: int | None = None,
    ) -> None:
        self._read_memory = read_memory
        self._total_memory_bytes = total_memory_bytes
        self._progress = progress or ProgressCounter()
        self._paths = paths
        self._lease_timeout_s = lease_timeout_s
        self._clock = clock
        self._engine = engine
        self._keep_state = keep_state
        self._admissions = Admissions(engine)
        self._changed = self._admissions.changed
        self._writer = StateWriter(paths, origin)
        self._loop = EngineLoop(
            engine,
            self._admissions,
            paths=paths,
            writer=self._writer,
            keep_state=keep_state,
            clock=clock,
            progress=self._progress,
        )
        self._reap_interval_s = min(REAP_INTERVAL_S, lease_timeout_s / REAPS_PER_LEASE)
        self._reaped_at = clock()
        self._is_scoring = False
        self.scoring_progress = ScoringProgress()
        self._ended = threading.Event()
        self._reaper = threading.Thread(target=self._reap_leases, name="reaper", daemon=True)
        self._reaper.start()

    def admit(self, spec: TrialSpec, lease_number: int) -> bool:
        """Takes a trial in, from the state its last report left on disk, if there is one.

        A trial that is here already, with this lease or an older one, ends first. One whose state cannot be read starts
        at its beginning; its reports' facts say why, as `restarted`.

        Args:
            spec: The trial.
            lease_number: Of the lease that it comes with.

        Returns:
            Whether it went on from a state.

        Raises:
            LeaseLost: If that lease is over, or older than another that came here.
            Preempted: If the trial was put off before it came.
            SlotRefused: If there is no slot for it; the slots may have become fewer since it was leased one.
        """
        from qlora_ray.training.checkpoint import find_state

        self._admissions.begin(spec.trial_id, lease_number)
        self._remove(spec.trial_id)
        admission = self._admissions.add(spec, lease_number)
        try:
            state, admission.restarted = find_state(self._paths.trial(spec.trial_id).state)
            with self._changed:
                self._admissions.require(spec.trial_id, lease_number, admission)
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

    def next_report(
        self, trial_id: str, lease_number: int, *, timeout_s: float, num_heard: int | None = None
    ) -> Report | None:
        """The trial's next report; asking again after one means go on.

        Args:
            trial_id: The trial.
            lease_number: Of the lease that it was admitted with.
            timeout_s: How long to wait.
            num_heard: How many reports have come by this lease; None for all that were handed out. One whose answer
                was lost on its way is handed out again, and the trial does not go on over it.

        Returns:
            The report, or None if none came within `timeout_s`: ask again.

        Raises:
            Preempted: If the trial was put off the device; its state is on disk.
            SlotRefused: If it waited to enter the engine, which has no slot for it any more.
            LeaseLost: If the trial is not here with this lease.
        """
        with self._changed:
            admission = self._admissions.require(trial_id, lease_number)
            admission.silent_s = 0.0
            if admission.can_go_on and not admission.is_ahead_of(num_heard):
                self._admissions.go_on(admission)
            self._changed.wait_for(
                lambda: admission.report or admission.is_ahead_of(num_heard) or not self._admissions.holds(admission),
                timeout=timeout_s,
            )
            self._admissions.require(trial_id, lease_number, admission)
            admission.silent_s = 0.0
            return admission.hand_out(num_heard)

    def evict(self, trial_id: str, lease_number: int | None = None) -> None:
        """Ends a trial and frees its slot; does nothing for one that is not here.

        Nothing is written for the trial once this has returned, and it is not taken in again with that lease.

        Args:
            trial_id: The trial.
            lease_number: The newest of its leases that is over; None for whichever it has here.
        """
        with self._changed:
            self._admissions.forget_preemption(trial_id, lease_number)
            if lease_number is not None:
                self._admissions.end_lease(trial_id, lease_number)
        self._remove(trial_id, lease_number)

    def preempt(self, trial_id: str, lease_number: int, reason: str) -> None:
        """Puts a trial off, to go on elsewhere; its caller hears why, also if it is still to come.

        One that trains leaves after the step that it is in, once its state is written, and makes the report first that
        it has trained to. One that waits at a report has its state on disk: its slot is free when this returns. One
        that has ended waits for its caller, and one that leaves for memory leaves.
        """
        with self._changed:
            admission = self._admissions.find(trial_id)
            if admission is not None and admission.lease_number == lease_number:
                if admission.is_running or (admission.phase is Phase.REPORTED and not self._keep_state):
                    self._engine.request_preemption(trial_id, reason)
                    return
                if admission.phase in (Phase.ENDED, Phase.PREEMPTED):
                    return
            self._admissions.end_lease(trial_id, lease_number, reason=reason)
        self._remove(trial_id, lease_number)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """No trial trains in the block; its work must move the counter as a trial's does."""
        self.clear()
        self._is_scoring = True
        try:
            yield
        finally:
            self._is_scoring = False
            self.scoring_progress.end()

    def heartbeat(self) -> dict[str, Any]:
        """That this process lives, what it holds, and whether it gets anywhere: see the pool's `Heard`."""
        with self._changed:
            admissions = self._admissions.all()
            return {
                "held": {admission.spec.trial_id: admission.lease_number for admission in admissions},
                "progress": self._progress.count,
                "is_training": self._is_scoring
                or any(admission.is_running or admission.num_writes for admission in admissions),
                "slots": self._loop.describe_slots()["slots"],
            }

    def live(self) -> dict[str, Any]:
        """What happens here right now, for people: trials by id, memory, and how the device was used so far.

        It costs no step anything: the numbers are those that the process has anyway.
        """
        progress = {item.trial_id: item for item in self._engine.progress()}
        with self._changed:
            admissions = self._admissions.all()
        trials = {}
        for admission in admissions:
            spec = admission.spec
            known = progress.get(spec.trial_id) or TrialProgress(
                spec.trial_id, admission.state.step if admission.state is not None else 0
            )
            trials[spec.trial_id] = {
                "state": LIVE_STATES[admission.phase],
                "num_steps": spec.budget.num_steps,
                "step": known.step,
                "train_loss": known.train_loss,
                "eval_loss": known.eval_loss,
                "tokens_per_s": known.tokens_per_s,
            }
        return {
            "trials": trials,
            "memory_bytes": self._read_memory(),
            "total_memory_bytes": self._total_memory_bytes,
            "busy_share": self._loop.busy_share(),
            "scoring": self.scoring_progress.to_dict(),
        }

    def trials(self) -> list[str]:
        """Ids of the admitted trials."""
        with self._changed:
            return sorted(admission.spec.trial_id for admission in self._admissions.all())

    def clear(self) -> None:
        """Evicts all trials, and waits until the engine rests."""
        for trial_id in self.trials():
            self._remove(trial_id)
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

    def _remove(self, trial_id: str, lease_number: int | None = None) -> None:
        """Ends the admission of a trial, if it has one with this lease or an older one, or with any."""
        with self._changed:
            admission = self._admissions.find(trial_id)
        if admission is not None and (lease_number is None or admission.lease_number <= lease_number):
            self._admissions.remove(admission)

    def _reap_leases(self) -> None:
        while not self._ended.wait(self._reap_interval_s):
            self.reap()
