"""The trials admitted to one executor, behind one lock, and how a caller hears that a trial has left it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from qlora_ray.orchestration.executor.state_writer import PendingWrite
from qlora_ray.training.admission import Admission, Phase
from qlora_ray.training.engine import Engine, Report, TrialSpec


class LeaseLost(RuntimeError):
    """The trial is not on this executor any more: it was evicted, or its driver fell silent."""


class Preempted(LeaseLost):
    """The executor had to put the trial off its device; it goes on from its state wherever a slot is free."""


class SlotRefused(LeaseLost):
    """The executor has fewer slots than the pool thought: the trial was leased one that is not there."""


@dataclass(eq=False)
class ExecutorAdmission(Admission):
    """An admission to an executor.

    Attributes:
        lease_number: Of the lease that it was admitted with.
        num_writes: Files being written: of a report, or of a trial that is evaluated meanwhile.
        trained_write: The write of its state that was given before the evaluation under way.
        has_adapter: Whether its adapter was written before the evaluation under way.
        report: The next one to hand out.
        told: The last one that was handed out.
        num_told: How many were.
        restarted: Why it starts at its beginning although there is a state of it.
        silent_s: How long nobody has asked for it, as far as this process was awake to hear it.
    """

    lease_number: int = 0
    num_writes: int = 0
    trained_write: PendingWrite | None = None
    has_adapter: bool = False
    report: Report | None = None
    told: Report | None = None
    num_told: int = 0
    restarted: str | None = None
    silent_s: float = 0.0

    @property
    def is_in_engine(self) -> bool:
        """Whether it holds one of the engine's slots."""
        return self.phase not in (Phase.ENTERING, Phase.PREEMPTED)

    @property
    def can_go_on(self) -> bool:
        """Whether it waits for its caller to ask for the next report."""
        return self.phase in (Phase.ENTERING, Phase.REPORTED) and not self.report and not self.num_writes

    def is_ahead_of(self, num_heard: int | None) -> bool:
        """Whether a report was handed out that its caller has not heard of."""
        return num_heard is not None and num_heard < self.num_told

    def hand_out(self, num_heard: int | None) -> Report | None:
        """What its caller is to hear: the last report again if it has not come, else the next one, if there is one."""
        if not self.is_ahead_of(num_heard) and self.report is not None:
            self.told, self.report = self.report, None
            self.num_told += 1
            return self.told
        return self.told if self.is_ahead_of(num_heard) else None

    def explain(self, report: Report) -> Report:
        """The report with why the trial has started at its beginning again, where it has."""
        return replace(report, facts={**report.facts, "restarted": self.restarted}) if self.restarted else report


class Admissions:
    """The trials of one executor. `changed` guards them: methods that say so are called while it is held.

    The engine has its own lock, and calls back holding none that is asked for under this one.

    Args:
        engine: The engine that they train in.
    """

    def __init__(self, engine: Engine) -> None:
        self.changed = threading.Condition()
        self.is_closed = False
        self._engine = engine
        self._admissions: dict[str, ExecutorAdmission] = {}
        # Lease number and reason of trials that were preempted, until they end or come with a newer lease.
        self._preempted: dict[str, tuple[int, str]] = {}
        # Per trial, the newest lease number that was seen, and the newest one that is over.
        self._newest_leases: dict[str, int] = {}
        self._ended_leases: dict[str, int] = {}
        # Evictions under way, and trials that left during the `advance` under way: it may still report them.
        self._evicting: set[str] = set()
        self._departed: set[str] = set()
        self.is_advancing = False

    def begin(self, trial_id: str, lease_number: int) -> None:
        """Takes note of a lease before its trial is admitted.

        Raises:
            LeaseLost: If the lease is over, or older than one that was seen here.
            Preempted: If the trial was put off before it came.
        """
        with self.changed:
            self._check_lease(trial_id, lease_number)
            self._newest_leases[trial_id] = lease_number

    def end_lease(self, trial_id: str, lease_number: int, *, reason: str | None = None) -> None:
        """Refuses a lease and all older ones of its trial from now on; under the lock.

        Args:
            trial_id: The trial.
            lease_number: The newest lease that is over.
            reason: Why the trial was put off, which its caller hears as Preempted; None for any other end.
        """
        self._ended_leases[trial_id] = max(lease_number, self._ended_leases.get(trial_id, lease_number))
        if reason is not None:
            self._preempted[trial_id] = (lease_number, reason)

    def add(self, spec: TrialSpec, lease_number: int) -> ExecutorAdmission:
        """Admits a trial; the engine takes it in with `go_on`.

        Raises:
            LeaseLost: If the executor is closing, or the lease was ended meanwhile.
            Preempted: If the trial was put off meanwhile.
            SlotRefused: If there is no slot for it.
        """
        admission = ExecutorAdmission(spec, lease_number=lease_number)
        with self.changed:
            self.changed.wait_for(
                lambda: self.is_closed or (not self._evicting and spec.trial_id not in self._departed)
            )
            if self.is_closed:
                raise LeaseLost("executor: is closing")
            self._check_lease(spec.trial_id, lease_number)
            if len(self._admissions) >= self._engine.slots:
                raise self._no_slot()
            self._admissions[spec.trial_id] = admission
        return admission

    def remove(self, admission: ExecutorAdmission) -> None:
        """Ends one admission, if it has not ended yet. Nothing is written for it once this has returned."""
        trial_id = admission.spec.trial_id
        with self.changed:
            if not self.holds(admission):
                return
            del self._admissions[trial_id]
            self._evicting.add(trial_id)
            self.changed.notify_all()
            self.changed.wait_for(lambda: not admission.num_writes)
        try:
            if admission.is_in_engine:
                self._engine.evict(trial_id)
        finally:
            with self.changed:
                self._evicting.discard(trial_id)
                if self.is_advancing and admission.is_in_engine:
                    self._departed.add(trial_id)
                self.changed.notify_all()

    def all(self) -> list[ExecutorAdmission]:
        """All of them; under the lock."""
        return list(self._admissions.values())

    def find(self, trial_id: str) -> ExecutorAdmission | None:
        """A trial's admission, if it is here; under the lock."""
        return self._admissions.get(trial_id)

    def holds(self, admission: ExecutorAdmission) -> bool:
        """Whether this very admission is still in force."""
        return self._admissions.get(admission.spec.trial_id) is admission

    def require(
        self, trial_id: str, lease_number: int, admission: ExecutorAdmission | None = None
    ) -> ExecutorAdmission:
        """A trial's admission; under the lock.

        Args:
            trial_id: The id of the trial that a caller asks for.
            lease_number: The lease that the caller has.
            admission: The one that it must still be.

        Raises:
            Preempted: If the trial was preempted.
            LeaseLost: If it is not here, or was admitted anew.
        """
        found = self._admissions.get(trial_id)
        if found is None or found.lease_number != lease_number:
            self._raise_preemption(trial_id, lease_number)
            raise LeaseLost(f"executor: trial {trial_id} is not here with lease {lease_number}")
        if admission is not None and found is not admission:
            raise LeaseLost(f"executor: trial {trial_id} was admitted anew")
        return found

    def go_on(self, admission: ExecutorAdmission) -> None:
        """Lets a trial train; under the lock. Raises SlotRefused if the engine has no slot for it any more."""
        if admission.is_in_engine:
            self._engine.proceed(admission.spec.trial_id)
        else:
            if sum(other.is_in_engine for other in self._admissions.values()) >= self._engine.slots:
                del self._admissions[admission.spec.trial_id]
                self.changed.notify_all()
                raise self._no_slot()
            self._engine.admit(admission.spec, admission.state)
            admission.state = None
        admission.phase = Phase.TRAINING
        self.changed.notify_all()

    def preempt(self, admission: ExecutorAdmission, reason: str) -> None:
        """Ends the admission of a trial that has left the engine; its caller hears why. Under the lock."""
        del self._admissions[admission.spec.trial_id]
        self.end_lease(admission.spec.trial_id, admission.lease_number, reason=reason)

    def forget_preemption(self, trial_id: str, lease_number: int | None) -> None:
        """Nobody will ask for the trial with this lease, or any, any more; under the lock."""
        found = self._preempted.get(trial_id)
        if found is not None and (lease_number is None or found[0] <= lease_number):
            del self._preempted[trial_id]

    def end_advance(self) -> None:
        """The engine rests: what it can still report is told. Under the lock."""
        self.is_advancing = False
        self._departed.clear()
        self.changed.notify_all()

    def _check_lease(self, trial_id: str, lease_number: int) -> None:
        if lease_number < self._newest_leases.get(trial_id, lease_number):
            raise LeaseLost(f"executor: trial {trial_id} has a newer lease than {lease_number} here")
        if lease_number <= self._ended_leases.get(trial_id, lease_number - 1):
            self._raise_preemption(trial_id, lease_number)
            raise LeaseLost(f"executor: lease {lease_number} of trial {trial_id} ended before it was admitted")

    def _raise_preemption(self, trial_id: str, lease_number: int) -> None:
        """Tells the caller why its trial was preempted, if it was; each time, since an answer can be lost."""
        found = self._preempted.get(trial_id)
        if found is not None and found[0] == lease_number:
            raise Preempted(found[1])

    def _no_slot(self) -> SlotRefused:
        return SlotRefused(f"executor: all {self._engine.slots} slots are held")
