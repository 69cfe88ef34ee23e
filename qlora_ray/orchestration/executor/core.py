"""The logic of an executor, without Ray: an engine's loop on a thread, and each trial's reports to who asks."""

from __future__ import annotations

import contextlib
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qlora_ray.orchestration.executor.admission import Evicted, LeaseLost, Life
from qlora_ray.orchestration.executor.state_writer import Keeper
from qlora_ray.orchestration.executor.usage import DeviceUsage
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.training.engine import Engine, Failure, Report, TrialSpec

if TYPE_CHECKING:
    from qlora_ray.training.checkpoint import TrialState

# How often leases are looked through for those that timed out; shorter where the time-out is.
REAP_INTERVAL_S = 1.0
REAPS_PER_LEASE = 4
# An engine that finds nothing to train where the core does is between two steps of an eviction.
EMPTY_PAUSE_S = 0.01


class ExecutorCore:
    """Runs an engine's loop on a thread, and hands each trial's reports to whoever asks for them.

    All methods may be called from any thread at any time. A trial that has trained to a report has its state, and at
    the end its adapter, on disk before it is evaluated or while it is: what kills the evaluation takes no training
    with it. A report that is handed out has them there for certain. States are written on a thread of their own, so
    that the other trials train on meanwhile.

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
        self._engine = engine
        self._paths = paths
        self._lease_timeout_s = lease_timeout_s
        self._keep_state = keep_state
        self._clock = clock
        # Guards everything below. The engine has its own lock, and calls back holding none that is asked for under
        # this one.
        self._changed = threading.Condition()
        self._lives: dict[str, Life] = {}
        self._put_out: dict[str, str] = {}
        # Evictions under way, and trials that left during the `advance` under way: it may still report them.
        self._evicting: set[str] = set()
        self._departed: set[str] = set()
        self._is_advancing = False
        self._slots = engine.slots
        self._slots_version = 0
        self._slots_reason = "as planned"
        self._closed = False
        self._reap_interval_s = min(REAP_INTERVAL_S, lease_timeout_s / REAPS_PER_LEASE)
        self._reaped_at = clock()
        self._usage = DeviceUsage(clock)
        self._keeper = Keeper(paths, origin)
        self._ended = threading.Event()
        engine.on_trained(self._keep_trained)
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("engine", self._loop), ("reaper", self._reap_leases))
        ]
        for thread in self._threads:
            thread.start()

    def admit(self, spec: TrialSpec) -> bool:
        """Takes a trial in, from the state its last report left on disk, if there is one.

        A trial that is here already is a dead driver's, and ends first. One whose state cannot be read starts at its
        beginning; its reports' facts say why, as `restarted`.

        Returns:
            Whether it went on from a state.

        Raises:
            Evicted: If there is no slot for it; the slots may have become fewer since it was leased one.
        """
        from qlora_ray.training.checkpoint import find_state

        self.evict(spec.trial_id)
        life = Life(spec)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (not self._evicting and spec.trial_id not in self._departed))
            if self._closed:
                raise LeaseLost("executor: is closing")
            if len(self._lives) >= self._engine.slots:
                raise Evicted(f"all {self._engine.slots} slots are held")
            self._lives[spec.trial_id] = life
        try:
            state, life.restarted = find_state(self._paths.trial(spec.trial_id).state)
            with self._changed:
                self._require(life)
                life.state, life.silent_s = state, 0.0
                if state is not None and state.metrics:
                    # The driver may have been killed before it heard of the report that the state was written at.
                    # Until it asks on, the trial stays out of the engine, which would train it at once.
                    life.report = Report(
                        spec.trial_id,
                        state.report_index,
                        False,
                        state.metrics,
                        state.facts,
                        # Those of a report that is owed come with it.
                        train_losses=[] if state.has_pending_report else state.train_losses,
                    )
                else:
                    self._go_on(life)
        except Exception:
            self._remove(life)
            raise
        return state is not None

    def next_report(self, trial_id: str, *, timeout_s: float) -> Report | None:
        """The trial's next report; asking again after one means go on.

        Returns:
            The report, or None if none came within `timeout_s`: ask again.

        Raises:
            Evicted: If the engine put it out for memory; its state is on disk.
            LeaseLost: If the trial is not here.
        """
        with self._changed:
            life = self._lives.get(trial_id)
            if life is None:
                raise self._explain_absence(trial_id)
            life.silent_s = 0.0
            if not (life.report or life.is_training or life.num_kept or life.has_ended):
                self._go_on(life)
            self._changed.wait_for(lambda: life.report or self._lives.get(trial_id) is not life, timeout=timeout_s)
            self._require(life)
            life.silent_s = 0.0
            report, life.report = life.report, None
            return report

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; does nothing for one that is not here.

        Nothing is written for the trial once this has returned.
        """
        with self._changed:
            self._put_out.pop(trial_id, None)
            life = self._lives.get(trial_id)
        if life is not None:
            self._remove(life)

    def trials(self) -> list[str]:
        """Ids of the admitted trials."""
        with self._changed:
            return sorted(self._lives)

    def clear(self) -> None:
        """Evicts all trials, and waits until the engine rests."""
        for trial_id in self.trials():
            self.evict(trial_id)
        with self._changed:
            self._changed.wait_for(lambda: not self._is_advancing)

    def reap(self) -> list[str]:
        """Evicts the trials that nobody has asked for in `lease_timeout_s`; returns their ids.

        Only time in which this was called counts as silence: what froze the whole process kept the askers out too.
        """
        with self._changed:
            now = self._clock()
            heard_s = min(now - self._reaped_at, 2 * self._reap_interval_s)
            self._reaped_at = now
            for life in self._lives.values():
                life.silent_s += heard_s
            lost = [life for life in self._lives.values() if life.silent_s > self._lease_timeout_s]
        for life in lost:
            self._remove(life)
        return sorted(life.spec.trial_id for life in lost)

    def describe_slots(self) -> dict[str, Any]:
        """The engine's slots now, why, and a version that `wait_change` takes."""
        with self._changed:
            return {"slots": self._slots, "slots_reason": self._slots_reason, "version": self._slots_version}

    def wait_change(self, seen_version: int) -> bool:
        """Waits until the slots are others than in that version; False if the core has closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._slots_version != seen_version)
            return not self._closed

    def usage(self) -> dict[str, float | None]:
        """See DeviceUsage."""
        with self._changed:
            return self._usage.to_dict()

    def close(self) -> None:
        """Evicts all trials and ends the loop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.clear()
        self._ended.set()
        self._keeper.close()
        for thread in self._threads:
            thread.join()

    def _explain_absence(self, trial_id: str) -> LeaseLost:
        reason = self._put_out.pop(trial_id, None)
        return LeaseLost(f"executor: trial {trial_id} is not here") if reason is None else Evicted(reason)

    def _require(self, life: Life) -> None:
        trial_id = life.spec.trial_id
        if trial_id not in self._lives:
            raise self._explain_absence(trial_id)
        if self._lives[trial_id] is not life:
            raise LeaseLost(f"executor: trial {trial_id} was admitted anew")

    def _go_on(self, life: Life) -> None:
        """Lets a trial train; called under the lock."""
        if life.in_engine:
            self._engine.proceed(life.spec.trial_id)
        else:
            if sum(other.in_engine for other in self._lives.values()) >= self._engine.slots:
                del self._lives[life.spec.trial_id]
                self._changed.notify_all()
                raise Evicted(f"all {self._engine.slots} slots are held")
            self._engine.admit(life.spec, life.state)
            life.in_engine, life.state = True, None
        life.is_training = True
        self._changed.notify_all()

    def _remove(self, life: Life) -> None:
        """Ends one life, if it has not ended yet."""
        trial_id = life.spec.trial_id
        with self._changed:
            if self._lives.get(trial_id) is not life:
                return
            del self._lives[trial_id]
            self._evicting.add(trial_id)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not life.num_kept)
        try:
            if life.in_engine:
                self._engine.evict(trial_id)
        finally:
            with self._changed:
                self._evicting.discard(trial_id)
                if self._is_advancing and life.in_engine:
                    self._departed.add(trial_id)
                self._changed.notify_all()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or any(life.is_training for life in self._lives.values()))
                if self._closed:
                    return
                self._is_advancing = True
                self._usage.begin()
            try:
                reports = self._engine.advance()
            except Exception as error:
                reports = self._fail_all(error)
            self._note_slots(reports)
            for report in reports:
                self._settle(report)
            with self._changed:
                self._is_advancing = False
                self._departed.clear()
                self._usage.end()
                self._changed.notify_all()
                if not reports:
                    self._changed.wait(EMPTY_PAUSE_S)

    def _keep_trained(self, trial_id: str, is_final: bool) -> None:
        """Puts what a trial has trained on disk before it is evaluated; on the thread that trains it."""
        with self._changed:
            life = self._lives.get(trial_id)
            if life is None or not life.is_training:
                return
            life.num_kept += 1
        try:
            if is_final:
                # What cannot be written is tried again, and told, at the report.
                with contextlib.suppress(Exception):
                    # Here, not on the writer: an adapter is only the engine's to read between two steps.
                    self._keeper.keep_adapter(trial_id, self._engine.save_adapter)
                    life.has_adapter = True
            state = self._engine.snapshot(trial_id) if self._keep_state else None
        except Exception:
            state = None
        if state is None:
            self._note_kept(life)
        else:
            life.kept = self._keeper.keep_trained(
                trial_id,
                state,
                is_wanted=lambda: self._lives.get(trial_id) is life,
                then=lambda: self._note_kept(life),
            )

    def _note_kept(self, life: Life) -> None:
        with self._changed:
            life.num_kept -= 1
            self._changed.notify_all()

    def _settle(self, report: Report) -> None:
        """Does what a report needs of the engine; what only the disk is needed for goes to the writer."""
        trial_id = report.trial_id
        is_put_out = report.failure is not None and report.failure.cause == "evicted"
        with self._changed:
            life = self._lives.get(trial_id)
            if life is None or not (life.is_training or is_put_out):
                return
            life.is_training = False
            life.has_ended = report.is_final or report.failure is not None
            life.num_kept += 1
            kept, life.kept = life.kept, None
        state: TrialState | None = None
        try:
            if is_put_out:
                state = self._engine.snapshot(trial_id)
                self._engine.evict(trial_id)
                life.in_engine = False
            elif report.is_final and not report.failure:
                # Its state goes on to owe this report: a driver killed before it hears of it has it made again.
                if not life.has_adapter:
                    self._keeper.keep_adapter(trial_id, self._engine.save_adapter)
            elif report.failure and report.failure.cause == "unevaluated":
                state = self._engine.snapshot(trial_id)
            elif report.failure:
                self._keeper.drop_adapter(trial_id)
            elif self._keep_state:
                state = self._engine.snapshot(trial_id)
        except Exception as error:
            report, state = self._keeper.fail(report, error), None
        if state is None and kept is None:
            self._hand_out(life, report)
            return
        # Also where only the state given before is still being written: it would come after the trial's end.
        self._keeper.keep_state(
            report,
            state,
            kept=kept,
            is_wanted=lambda: self._lives.get(trial_id) is life,
            then=lambda told: self._hand_out(life, told),
        )

    def _hand_out(self, life: Life, report: Report) -> None:
        with self._changed:
            life.num_kept -= 1
            if self._lives.get(report.trial_id) is life:
                if report.failure is not None and report.failure.cause == "evicted":
                    del self._lives[report.trial_id]
                    self._put_out[report.trial_id] = report.failure.message
                else:
                    life.report = life.explain(report)
                # The wait for the driver starts now.
                life.silent_s = 0.0
            self._changed.notify_all()

    def _fail_all(self, error: Exception) -> list[Report]:
        """Ends the trials that were training when the engine raised; the next `advance` must not meet them."""
        failure = Failure("error", f"{type(error).__name__}: {error}", traceback.format_exc())
        with self._changed:
            training = sorted(trial_id for trial_id, life in self._lives.items() if life.is_training)
        for trial_id in training:
            self._engine.evict(trial_id)
        return [Report(trial_id, 0, True, {}, failure=failure) for trial_id in training]

    def _note_slots(self, reports: list[Report]) -> None:
        with self._changed:
            slots = self._engine.slots
            if slots != self._slots:
                causes = [r.failure.message for r in reports if r.failure and r.failure.cause == "evicted"]
                self._slots_reason = causes[0] if causes else f"its measured peak memory leaves room for {slots}"
                self._slots = slots
                self._slots_version += 1
                self._changed.notify_all()

    def _reap_leases(self) -> None:
        while not self._ended.wait(self._reap_interval_s):
            self.reap()
