"""A trial over a port of the test's own: leases, reports, retries, preemptions, and the ends of it."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import NoExecutors, NoFittingDevice, PoolLost
from qlora_ray.hardware.trial_size import TrialSizes
from qlora_ray.orchestration.executor.admission import LeaseLost, Preempted
from qlora_ray.orchestration.leased_trial import MAX_PREEMPTIONS_PER_REPORT, POLLS_PER_LEASE, LeasedTrial, TrialTerms
from qlora_ray.orchestration.pool.leases import ANY_DEVICE, Lease, LeaseNeeds
from qlora_ray.orchestration.trial_port import CallFailed, ExecutorGone
from qlora_ray.training.engine import Failure, Report, TrialSpec
from tests.unit.hardware_fixtures import TINY, gpu, node, plan

CONFIG = SweepConfig.model_validate(
    {
        "training": {"max_samples": 8, "gradient_accumulation_steps": 1},
        "search": {"space": {"lora.r": {"choices": [4, 8]}}, "num_reports": 4},
        "cluster": {"max_trial_retries": 1, "lease_timeout_s": 40},
    }
)


def make_report(index: int, **facts: Any) -> Report:
    """A trial's report; the fourth is the last."""
    return Report("0007", index, index == 4, {"eval_loss": 1 / index}, **facts)


def fits(device: dict[str, Any], needs: LeaseNeeds) -> bool:
    """Whether a device of a test is what a trial needs."""
    return device["memory_bytes"] >= needs.min_memory_bytes and (device["is_whole"] or not needs.whole_device)


class Backstage:
    """The port of trial 7: it plays the answers to `next_report`, and takes notes of all other calls."""

    def __init__(self, *answers: Report | Exception | None, leases: int | None = None) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []
        self.specs: list[Any] = []
        self.timeouts_s: list[float] = []
        self.needs: list[LeaseNeeds] = []
        self.devices: list[dict[str, Any]] = []
        self._leases_left = leases
        self._num_leases = 0

    def trial(self, *, last_index: int = 0, sizes: TrialSizes | None = None, **params: Any) -> SteppedTrial:
        """Trial 7 of a sweep."""
        terms = TrialTerms(CONFIG, 8, sizes)
        return SteppedTrial(LeasedTrial(7, params, terms=terms, port=self, last_index=last_index))

    async def lease(self, trial_id: str, *, goes_on: bool, needs: LeaseNeeds = ANY_DEVICE) -> Lease:
        self.calls.append(("lease", trial_id, goes_on))
        self.needs.append(needs)
        if self.devices and not any(fits(device, needs) for device in self.devices):
            raise NoFittingDevice("no executor has it")
        if self._leases_left == self._num_leases:
            raise NoExecutors("no executor is left: the device fell off the bus")
        self._num_leases += 1
        device = next((device for device in self.devices if fits(device, needs)), {"device": "fake"})
        return Lease("0007", self._num_leases, 3, 1, None, device)

    async def release(self, lease: Lease, *, refused: bool = False) -> None:
        self.calls.append(("refused" if refused else "release", lease.number))

    async def end(self, trial_id: str, *, needs_more: str | None = None) -> None:
        self.calls.append(("end", trial_id))

    async def report_preempted(self, lease: Lease, reason: str) -> None:
        self.calls.append(("report_preempted", lease.number, reason))

    async def report_lost(self, lease: Lease) -> None:
        self.calls.append(("report_lost", lease.number))

    async def admit(self, lease: Lease, spec: TrialSpec) -> None:
        self.specs.append(spec)

    async def next_report(self, lease: Lease, trial_id: str, *, timeout_s: float) -> Report | None:
        self.timeouts_s.append(timeout_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class SteppedTrial:
    """A trial without an event loop: no call of its port waits, so that one step brings each coroutine to its end."""

    trial: LeasedTrial

    def next_report(self) -> Report:
        """The trial's next report."""
        report: Report = step(self.trial.next_report())
        return report

    def leave(self) -> None:
        """Ends the trial."""
        step(self.trial.leave())


def step(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that never waits."""
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    return ended.value.value


def test_a_trial_leases_once_is_admitted_and_asks_on_until_a_report_comes() -> None:
    stage = Backstage(None, make_report(1), None, None, make_report(2))
    trial = stage.trial(**{"lora.r": 4})
    assert [trial.next_report().index for _ in range(2)] == [1, 2]
    assert stage.calls == [("lease", "0007", False)]
    (spec,) = stage.specs
    assert (spec.trial_id, spec.lora.r, spec.budget.report_steps) == ("0007", 4, (2, 4, 6, 8))
    # Asked several times within a lease's time-out, so that it never runs out while somebody waits.
    assert set(stage.timeouts_s) == {40 / POLLS_PER_LEASE}


def test_reports_that_were_told_already_are_not_told_again() -> None:
    stage = Backstage(make_report(1), make_report(2), make_report(3))
    assert stage.trial(last_index=2).next_report().index == 3


def test_a_failure_is_told_whatever_its_index() -> None:
    failure = Failure("diverged", "loss is nan")
    report = Backstage(make_report(1, failure=failure)).trial(last_index=2).next_report()
    assert report.failure == failure


def test_a_preempted_trial_goes_on_in_the_next_free_slot_and_loses_no_retry() -> None:
    out = Preempted("out of memory with 3 trials")
    stage = Backstage(make_report(1), out, out, out, make_report(2))
    trial = stage.trial()
    assert [trial.next_report().index for _ in range(2)] == [1, 2]
    again = ("lease", "0007", True)
    told = [("report_preempted", lease, str(out)) for lease in (1, 2, 3)]
    assert stage.calls == [("lease", "0007", False), told[0], again, told[1], again, told[2], again]
    assert (trial.trial.num_retries, trial.trial.num_preemptions, len(stage.specs)) == (0, 3, 4)


def test_a_trial_that_is_preempted_again_and_again_without_a_report_is_left_for_a_resume() -> None:
    out = [Preempted(f"node {number} is too small") for number in range(MAX_PREEMPTIONS_PER_REPORT + 1)]
    stage = Backstage(*out[:-1], make_report(1), *out)
    trial = stage.trial()
    assert trial.next_report().index == 1
    report = trial.next_report()
    assert report.failure is not None
    assert (report.failure.cause, trial.trial.lease) == ("preempted", None)
    assert report.failure.message.endswith(str(out[-1]))
    assert trial.trial.num_preemptions == 2 * MAX_PREEMPTIONS_PER_REPORT + 1


def test_a_trial_of_a_dead_executor_says_so_and_goes_on_elsewhere() -> None:
    stage = Backstage(make_report(1), ExecutorGone("its node died"), make_report(1), make_report(2))
    trial = stage.trial()
    assert [trial.next_report().index for _ in range(2)] == [1, 2]
    assert stage.calls == [
        ("lease", "0007", False),
        ("report_lost", 1),
        ("release", 1),
        ("lease", "0007", True),
    ]
    assert trial.trial.num_retries == 1


def test_a_trial_whose_silence_was_taken_for_its_end_goes_on_elsewhere() -> None:
    stage = Backstage(LeaseLost("executor: trial 0007 is not here"), make_report(1))
    trial = stage.trial()
    assert trial.next_report().index == 1
    assert [call[0] for call in stage.calls] == ["lease", "release", "lease"]
    assert trial.trial.num_retries == 1


@pytest.mark.parametrize("error", [ExecutorGone("its node died"), LeaseLost("executor: trial 0007 is not here")])
def test_a_trial_that_has_lost_its_slot_too_often_is_lost(error: Exception) -> None:
    report = Backstage(error, error).trial().next_report()
    assert report.is_final
    assert report.failure is not None
    assert report.failure.cause == "lost"
    assert report.failure.message.startswith("its slot was lost 2 times")


def test_a_trial_that_makes_reports_may_lose_any_number_of_slots() -> None:
    reports = [make_report(index) for index in (1, 2, 3)]
    gone = ExecutorGone("its node died")
    trial = Backstage(gone, reports[0], gone, reports[1], gone, reports[2]).trial()
    assert [trial.next_report().index for _ in range(3)] == [1, 2, 3]
    assert trial.trial.num_retries == 3 > CONFIG.cluster.max_trial_retries


def test_the_pools_end_is_no_trials_failure() -> None:
    with pytest.raises(PoolLost, match="the pool is gone"):
        Backstage(PoolLost("the pool is gone: its node died")).trial().trial.next_report().send(None)


def test_what_an_executor_raises_of_itself_is_the_trials_failure() -> None:
    report = Backstage(CallFailed("KeyError: 'a'", "remote traceback")).trial().next_report()
    assert report.failure == Failure("error", "KeyError: 'a'", "remote traceback")


def test_a_trial_without_an_executor_to_wait_for_is_lost() -> None:
    trial = Backstage(leases=0).trial()
    report = trial.next_report()
    assert report.failure is not None
    assert (report.failure.cause, trial.trial.lease) == ("lost", None)
    assert report.failure.message == "no executor is left: the device fell off the bus"


def test_parameters_that_break_a_rule_are_the_trials_own_failure() -> None:
    stage = Backstage()
    report = stage.trial(**{"training.learning_rate": -1.0}).next_report()
    assert report.failure is not None
    assert report.failure.cause == "error"
    assert "training.learning_rate" in report.failure.message
    assert stage.calls == []


def test_a_trial_that_stops_gives_its_slot_back_once() -> None:
    stage = Backstage(make_report(1))
    trial = stage.trial()
    trial.leave()
    trial.next_report()
    trial.leave()
    trial.leave()
    assert stage.calls == [("lease", "0007", False), ("end", "0007")]


SHARE = {"memory_bytes": 16, "is_whole": False}
WHOLE = {"memory_bytes": 16, "is_whole": True}
LARGE = {"memory_bytes": 80, "is_whole": True}
OUT_OF_MEMORY = make_report(1, failure=Failure("oom", "out of memory at one row"))


@pytest.mark.parametrize(
    ("devices", "visited"),
    [
        ([SHARE, WHOLE, LARGE], [SHARE, WHOLE, LARGE]),
        ([WHOLE, LARGE], [WHOLE, LARGE]),
        ([SHARE, LARGE], [SHARE, LARGE]),
        ([SHARE, {**LARGE, "is_whole": False}], [SHARE, {**LARGE, "is_whole": False}]),
    ],
)
def test_a_trial_out_of_memory_takes_more_of_its_device_then_a_larger_one(
    devices: list[dict[str, Any]], visited: list[dict[str, Any]]
) -> None:
    stage = Backstage(*[OUT_OF_MEMORY] * (len(visited) - 1), make_report(1))
    stage.devices = devices
    trial = stage.trial()
    assert trial.next_report().failure is None
    assert trial.trial.lease is not None and trial.trial.lease.facts == visited[-1]
    assert stage.calls.count(("end", "0007")) == len(visited) - 1


def test_a_trial_that_is_out_of_memory_on_the_largest_device_fails_for_it() -> None:
    stage = Backstage(*[OUT_OF_MEMORY] * 3)
    stage.devices = [SHARE, WHOLE, LARGE]
    trial = stage.trial()
    report = trial.next_report()
    assert report.failure is not None and report.failure.cause == "oom"
    # Nothing is left to be tried, and no slot is held.
    assert stage.needs[-1].min_memory_bytes == 81 and trial.trial.lease is None


def test_a_trial_says_how_large_it_is_each_time_it_asks() -> None:
    sizes = TrialSizes(TINY, plan(node("a", gpu("Tesla T4")), model=TINY).placements[0])
    asked = {}
    for rank in (4, 64):
        stage = Backstage(OUT_OF_MEMORY, make_report(1))
        stage.devices = [SHARE, WHOLE]
        stage.trial(sizes=sizes, **{"lora.r": rank}).next_report()
        (asked[rank],) = {needs.size_bytes for needs in stage.needs}
        assert len(stage.needs) == 2
    assert asked[64] > asked[4] > 0
