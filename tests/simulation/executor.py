"""An executor without threads: the real rules of admission over an engine whose steps the simulation calls.

What `ExecutorCore` does around them is repeated here in single steps; test_executor_model.py holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from qlora_ray.orchestration.executor.admission import Admissions, ExecutorAdmission
from qlora_ray.training.admission import Phase
from qlora_ray.training.engine import Failure, Report, TrialSpec

NUM_REPORTS = 2
STEPS_PER_REPORT = 4


class Kept(NamedTuple):
    """What a trial's state says of where it is: steps done, reports made."""

    step: int
    index: int


FRESH = Kept(0, 0)


class Disk(dict[str, Kept]):
    """The states of all trials, on storage that all executors share; what is written there never falls."""

    def __setitem__(self, trial_id: str, kept: Kept) -> None:
        before = self.get(trial_id, FRESH)
        assert kept >= before, f"the state of trial {trial_id} fell from {before} to {kept}"
        super().__setitem__(trial_id, kept)


class SimulatedEngine:
    """What admissions ask of an engine.

    Attributes:
        trials: Who is here, the oldest first.
        kept: Where each of them is.
        leaving: Why those are to be put off that were asked to leave.
    """

    def __init__(self, slots: int) -> None:
        self.slots = self.slots_at_first = slots
        self.trials: list[str] = []
        self.kept: dict[str, Kept] = {}
        self.leaving: dict[str, str] = {}

    def admit(self, spec: TrialSpec, state: Any = None) -> None:
        """Takes a trial in."""
        assert len(self.trials) < self.slots, "the engine has no slot"
        self.trials.append(spec.trial_id)
        self.kept[spec.trial_id] = state or FRESH

    def proceed(self, trial_id: str) -> None:
        """Nothing: phases say who trains."""

    def evict(self, trial_id: str) -> None:
        """Forgets a trial."""
        if trial_id in self.trials:
            self.trials.remove(trial_id)
            del self.kept[trial_id]
            self.leaving.pop(trial_id, None)


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
        disk: The states.
        lease_timeout_s: A trial that nobody asks for this long is evicted.
        diverges: Whether a trial has no finite loss.
        memory: What it has of its device's memory.
        size_of: What a trial takes of it.

    Attributes:
        is_dead: Whether its process is gone.
        is_hung: Whether it does nothing any more, and answers nothing.
        stuck: What is called when it dies, for each call that it does not answer.
    """

    def __init__(
        self,
        slots: int,
        *,
        room: int,
        disk: Disk,
        lease_timeout_s: float,
        diverges: Callable[[str], bool],
        memory: int = 1,
        size_of: Callable[[str], int] = lambda trial_id: 1,
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
        # Its way to the next reports: since when, and how long it takes.
        self.began_at = self.interval_s = 0.0
        self.progress = 0
        self.slots_reason = "as planned"
        self._lease_timeout_s = lease_timeout_s
        self._diverges = diverges
        self.memory = memory
        self._size_of = size_of
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
            kept = self.disk.get(spec.trial_id, FRESH)
            admission.state = self.resume_at(kept)
            if kept.index:
                admission.report = self._report(spec.trial_id, kept.index)
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
                if trial_id in self.engine.leaving:
                    self.put_off(trial_id)
                    self.admissions.require(trial_id, lease_number, admission)
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

    def preempt(self, trial_id: str, lease_number: int, reason: str) -> bool:
        """See ExecutorCore.preempt.

        Returns:
            Whether the trial leaves at its next step boundary, with `put_off`.
        """
        admission = self.admissions.find(trial_id)
        if admission is not None and admission.lease_number == lease_number:
            if admission.is_running:
                self.engine.leaving[trial_id] = reason
                return True
            if admission.phase in (Phase.ENDED, Phase.PREEMPTED):
                return False
        self.admissions.end_lease(trial_id, lease_number, reason=reason)
        self._remove(trial_id, lease_number)
        self._wake()
        return False

    def steps_begun(self, now: float) -> int:
        """Steps that its trials have done since it set out for their next reports."""
        share = (now - self.began_at) / self.interval_s if self.interval_s else 0.0
        return min(int(share * STEPS_PER_REPORT), STEPS_PER_REPORT - 1)

    def put_off(self, trial_id: str, *, num_steps: int = 0) -> None:
        """A step boundary of a trial that was asked to leave, after so many steps of it.

        It may have left, or have made the report that it trained to: then it leaves before it takes another step.
        """
        admission = self.admissions.find(trial_id)
        if admission is not None and admission.is_running and trial_id in self.engine.leaving:
            self._leave(admission, self.engine.leaving[trial_id], num_steps=num_steps)

    def resume_at(self, kept: Kept) -> Kept:
        """Where a trial goes on that has this state."""
        return kept

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
        num_trials, running = len(self.engine.trials), self.running()
        too_large = [admission for admission in running if self._size_of(admission.spec.trial_id) > self.memory]
        if num_trials > self.room or (too_large and num_trials > 1):
            self.slots_reason = f"out of memory with {num_trials} trials"
            self.engine.slots = max(1, min(self.room, num_trials - 1))
            newest = self.engine.trials[-1] if num_trials > self.room else running[-1].spec.trial_id
            self._leave(self.admissions.find(newest), self.slots_reason)
            return True
        for admission in running:
            self._train_to_report(admission, has_room=admission not in too_large)
        self._wake()
        return False

    def _train_to_report(self, admission: ExecutorAdmission, *, has_room: bool) -> None:
        trial_id = admission.spec.trial_id
        if not has_room:
            failure = Failure("oom", f"out of memory alone in {self.memory}")
            admission.report = Report(trial_id, 0, True, {}, failure=failure)
            admission.phase = Phase.ENDED
            return
        index = self.engine.kept[trial_id].index + 1
        admission.report = report = self._report(trial_id, index)
        admission.phase = Phase.ENDED if report.is_final else Phase.REPORTED
        if report.failure is None:
            # At the end its report stays pending on disk: a driver that never hears of it has it made again.
            kept = Kept(index * STEPS_PER_REPORT, index - report.is_final)
            self.engine.kept[trial_id] = self.disk[trial_id] = kept

    def _leave(self, admission: ExecutorAdmission, reason: str, *, num_steps: int = 0) -> None:
        """Puts a trial off the device, its state on disk, after so many steps towards its next report."""
        trial_id = admission.spec.trial_id
        kept = self.engine.kept[trial_id]
        end = (kept.index + 1) * STEPS_PER_REPORT
        if kept.step < end:
            kept = Kept(min(kept.step + num_steps, end - 1), kept.index)
        self.write(trial_id, kept)
        self.engine.evict(trial_id)
        admission.phase = Phase.PREEMPTED
        self.admissions.preempt(admission, reason)
        self._wake()

    def write(self, trial_id: str, kept: Kept) -> None:
        """The state of a trial that leaves."""
        if kept != FRESH:
            self.disk[trial_id] = kept

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
