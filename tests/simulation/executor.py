"""An executor without threads: the real rules of admission over an engine whose steps the simulation calls.

What `ExecutorCore` does around them is repeated here in single steps; test_executor_model.py holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qlora_ray.orchestration.executor.admission import Admissions, ExecutorAdmission
from qlora_ray.training.admission import Phase
from qlora_ray.training.engine import Failure, Report, TrialSpec

NUM_REPORTS = 2


class SimulatedEngine:
    """What admissions ask of an engine."""

    def __init__(self, slots: int) -> None:
        self.slots = self.slots_at_first = slots
        self.trials: list[str] = []

    def admit(self, spec: TrialSpec, state: Any = None) -> None:
        """Takes a trial in."""
        assert len(self.trials) < self.slots, "the engine has no slot"
        self.trials.append(spec.trial_id)

    def proceed(self, trial_id: str) -> None:
        """Nothing: phases say who trains."""

    def evict(self, trial_id: str) -> None:
        """Forgets a trial."""
        if trial_id in self.trials:
            self.trials.remove(trial_id)


@dataclass(eq=False)
class Poll:
    """A call of `next_report` that waits."""

    trial_id: str
    lease_number: int
    admission: ExecutorAdmission
    answer: Callable[[Report | Exception | None], None]


class SimulatedExecutor:
    """One executor.

    Args:
        slots: Trials at once.
        room: Trials that really fit; the newest of more is preempted, and the slots become fewer.
        disk: The last report of each trial's state, on storage that all executors share.
        lease_timeout_s: A trial that nobody asks for this long is evicted.
        diverges: Whether a trial has no finite loss.

    Attributes:
        is_dead: Whether its process is gone.
        is_hung: Whether it does nothing any more, and answers nothing.
        stuck: What is called when it dies, for each call that it does not answer.
    """

    def __init__(
        self, slots: int, *, room: int, disk: dict[str, int], lease_timeout_s: float, diverges: Callable[[str], bool]
    ) -> None:
        self.engine = SimulatedEngine(slots)
        self.admissions: Any = Admissions(self.engine)  # type: ignore[arg-type]
        # For good: there is one thread.
        self.admissions.changed.acquire()
        self.room = room
        self.disk = disk
        self.is_dead = False
        self.is_hung = False
        self.is_advancing = False
        self.stuck: list[Callable[[], None]] = []
        self.progress = 0
        self.slots_reason = "as planned"
        self._lease_timeout_s = lease_timeout_s
        self._diverges = diverges
        self._polls: list[Poll] = []
        self._heard: dict[str, float] = {}

    @property
    def slots(self) -> int:
        """Trials at once."""
        return self.engine.slots

    def held(self) -> dict[str, int]:
        """Lease numbers by trial."""
        return {admission.spec.trial_id: admission.lease_number for admission in self.admissions.all()}

    def running(self) -> list[ExecutorAdmission]:
        """Those that train."""
        return [admission for admission in self.admissions.all() if admission.is_running]

    def admit(self, spec: TrialSpec, lease_number: int, *, now: float) -> None:
        """See ExecutorCore.admit."""
        self.admissions.begin(spec.trial_id, lease_number)
        self._remove(spec.trial_id)
        admission = self.admissions.add(spec, lease_number)
        self._heard[spec.trial_id] = now
        try:
            index = self.disk.get(spec.trial_id, 0)
            if index:
                admission.report = self._report(spec.trial_id, index)
            else:
                self.admissions.go_on(admission)
        except Exception:
            self._remove(spec.trial_id)
            raise
        self._wake()

    def next_report(
        self, trial_id: str, lease_number: int, *, now: float, answer: Callable[[Report | Exception | None], None]
    ) -> Poll | None:
        """See ExecutorCore.next_report: `answer` is called now, or when something has come; then a poll is returned."""
        try:
            admission = self.admissions.require(trial_id, lease_number)
            self._heard[trial_id] = now
            if admission.can_go_on:
                self.admissions.go_on(admission)
        except Exception as error:
            answer(error)
            self._wake()
            return None
        poll = Poll(trial_id, lease_number, admission, answer)
        self._polls.append(poll)
        self._wake()
        return poll if poll in self._polls else None

    def end_poll(self, poll: Poll, *, now: float) -> None:
        """Nothing has come in time."""
        if poll in self._polls:
            self._polls.remove(poll)
            self._heard[poll.trial_id] = now
            poll.answer(None)

    def evict(self, trial_id: str, lease_number: int | None = None) -> None:
        """See ExecutorCore.evict."""
        self.admissions.forget_preemption(trial_id, lease_number)
        if lease_number is not None:
            self.admissions.end_lease(trial_id, lease_number)
        self._remove(trial_id, lease_number)
        self._wake()

    def preempt(self, trial_id: str, lease_number: int, reason: str) -> None:
        """See ExecutorCore.preempt."""
        self.admissions.end_lease(trial_id, lease_number, reason=reason)
        self._remove(trial_id, lease_number)
        self._wake()

    def heartbeat(self, *, now: float) -> dict[str, Any]:
        """See ExecutorCore.heartbeat; also looks for trials that nobody asks for, as its reaper does."""
        for admission in self.admissions.all():
            if now - self._heard[admission.spec.trial_id] > self._lease_timeout_s:
                self.admissions.remove(admission)
        self._wake()
        return {
            "held": self.held(),
            "progress": self.progress,
            "is_training": bool(self.running()),
            "slots": self.slots,
        }

    def advance(self) -> bool:
        """Trains every running trial to its next report; where memory is too short one is preempted instead.

        Returns:
            Whether the slots have become fewer.
        """
        self.progress += 1
        if len(self.engine.trials) > self.room:
            self.slots_reason = f"out of memory with {len(self.engine.trials)} trials"
            self.engine.slots = self.room
            newest = self.admissions.find(self.engine.trials[-1])
            self.engine.evict(newest.spec.trial_id)
            newest.phase = Phase.PREEMPTED
            self.admissions.preempt(newest, self.slots_reason)
            self._wake()
            return True
        for admission in self.running():
            trial_id = admission.spec.trial_id
            index = self.disk.get(trial_id, 0) + 1
            admission.report = self._report(trial_id, index)
            is_over = admission.report.is_final
            admission.phase = Phase.ENDED if is_over else Phase.REPORTED
            if not is_over:
                # At the end it stays pending on disk: a driver that never hears of it has it made again.
                self.disk[trial_id] = index
        self._wake()
        return False

    def die(self) -> None:
        """Its process ends, whatever it did."""
        self.is_dead = True
        stuck, self.stuck = self.stuck, []
        for call in stuck:
            call()

    def lose_polls(self) -> list[Poll]:
        """The polls that its death leaves without an answer."""
        polls, self._polls = self._polls, []
        return polls

    def _report(self, trial_id: str, index: int) -> Report:
        if self._diverges(trial_id):
            return Report(trial_id, index, True, {}, failure=Failure("diverged", "loss is nan"))
        return Report(trial_id, index, index == NUM_REPORTS, {"eval_loss": 1 / index})

    def _remove(self, trial_id: str, lease_number: int | None = None) -> None:
        admission = self.admissions.find(trial_id)
        if admission is not None and (lease_number is None or admission.lease_number <= lease_number):
            self.admissions.remove(admission)

    def _wake(self) -> None:
        """Answers the polls that have something to hear."""
        for poll in list(self._polls):
            admission = poll.admission
            if self.admissions.holds(admission) and admission.report is None:
                continue
            if poll not in self._polls:
                continue
            self._polls.remove(poll)
            try:
                self.admissions.require(poll.trial_id, poll.lease_number, admission)
            except Exception as error:
                poll.answer(error)
            else:
                report, admission.report = admission.report, None
                poll.answer(report)
