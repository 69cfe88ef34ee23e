"""Who is in the engine: what other threads ask for, and what the training thread then does about it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from qlora_ray.training.admission import Admission, Phase
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import Failure, Preemption, Report, TrialProgress, TrialSpec
from qlora_ray.training.packed.trial import PackedTrial


@dataclass(eq=False)
class PackedAdmission(Admission):
    """An admission to the packed engine.

    Attributes:
        trial: There once the training thread has taken the trial in.
        leave_reason: Why it was asked to be put off; None where it was not.
    """

    trial: PackedTrial | None = None
    leave_reason: str | None = None

    @property
    def packed(self) -> PackedTrial:
        """The trial, of an admission that has been taken in."""
        assert self.trial is not None, f"trial {self.spec.trial_id} is not in the pack"
        return self.trial

    @property
    def report_index(self) -> int:
        """Reports made so far."""
        if self.trial is not None:
            return self.trial.report_index
        return self.state.report_index if self.state is not None else 0


@dataclass
class Roster:
    """The admissions, behind one lock."""

    num_slots: int
    _admissions: dict[str, PackedAdmission] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, spec: TrialSpec, state: TrialState | None) -> None:
        """Gives a trial a slot; raises RuntimeError if none is free."""
        with self._lock:
            if len(self._admissions) >= self.num_slots:
                raise RuntimeError(
                    f"packed engine: all {self.num_slots} slots are held, by trials {', '.join(self._admissions)}, "
                    f"got {spec.trial_id}"
                )
            self._admissions[spec.trial_id] = PackedAdmission(spec, state)

    def proceed(self, trial_id: str) -> None:
        """Lets a trial that waits at a report train on."""
        with self._lock:
            admission = self._admissions.get(trial_id)
            if admission is not None and admission.phase is Phase.REPORTED:
                admission.phase = Phase.TRAINING

    def request_preemption(self, trial_id: str, reason: str) -> None:
        """Notes that a trial is to be put off at its next step boundary."""
        with self._lock:
            admission = self._admissions.get(trial_id)
            if admission is not None:
                admission.leave_reason = reason

    def evict(self, trial_id: str) -> None:
        """Ends a trial's admission."""
        with self._lock:
            self._admissions.pop(trial_id, None)

    def find(self, trial_id: str) -> PackedAdmission:
        """A trial's admission; raises RuntimeError if it has none."""
        with self._lock:
            if trial_id not in self._admissions:
                raise RuntimeError(f"packed engine: trial {trial_id} is not here")
            return self._admissions[trial_id]

    def holds(self, admission: PackedAdmission) -> bool:
        """Whether this very admission is still in force."""
        with self._lock:
            return self._admissions.get(admission.spec.trial_id) is admission

    def progress(self) -> list[TrialProgress]:
        """How far each of them is; one that is not taken in yet is where its state left it."""
        with self._lock:
            admissions = list(self._admissions.values())
        return [
            TrialProgress(admission.spec.trial_id, admission.state.step if admission.state is not None else 0)
            if admission.trial is None
            else admission.trial.progress()
            for admission in admissions
        ]

    def in_phase(self, *phases: Phase) -> list[PackedAdmission]:
        """The admissions in one of these phases, oldest first."""
        with self._lock:
            return [admission for admission in self._admissions.values() if admission.phase in phases]

    def move(self, admission: PackedAdmission, phase: Phase) -> None:
        """A trial is in another phase from now on."""
        with self._lock:
            admission.phase = phase

    def end(self, admission: PackedAdmission, failure: Failure, *, facts: dict[str, Any] | None = None) -> Report:
        """The last report of a trial that has failed.

        Args:
            admission: The trial's; it trains no further.
            failure: What ended it.
            facts: What really ran, where it came as far as training.
        """
        self.move(admission, Phase.ENDED)
        return Report(admission.spec.trial_id, admission.report_index, True, {}, facts or {}, failure)

    def preempt(self, admission: PackedAdmission, reason: str) -> Preemption:
        """A trial is off the device from now on, and waits to be evicted."""
        self.move(admission, Phase.PREEMPTED)
        return Preemption(admission.spec.trial_id, reason)
