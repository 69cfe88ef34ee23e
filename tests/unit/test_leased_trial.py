"""The trial actor's loop, without Ray: leases, reports, retries, preemptions, and the ends of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import NoExecutors
from qlora_ray.orchestration.executor.admission import LeaseLost, Preempted
from qlora_ray.orchestration.leased_trial import POLLS_PER_LEASE, LeasedTrial, TrialTerms
from qlora_ray.orchestration.pool import Lease
from qlora_ray.training.engine import Failure, Report

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


class Backstage:
    """Pool and executors in one: it plays the answers to `next_report`, and takes notes of all other calls."""

    def __init__(self, *answers: Report | Exception | None, leases: int | None = None) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[Any, ...]] = []
        self.specs: list[Any] = []
        self.timeouts_s: list[float] = []
        self._leases_left = leases
        self._generation = 0
        for name in ("lease", "release", "end", "report_preempted", "report_lost"):
            setattr(self, name, SimpleNamespace(remote=self._call(name)))
        self.executor = SimpleNamespace(
            admit=SimpleNamespace(remote=lambda spec: lambda: self.specs.append(spec)),
            next_report=SimpleNamespace(remote=lambda trial_id, *, timeout_s: lambda: self._answer(timeout_s)),
        )

    def trial(self, *, last_index: int = 0, **params: Any) -> LeasedTrial:
        """Trial 7 of a sweep."""
        terms = TrialTerms(CONFIG, 8, self)
        return LeasedTrial(7, params, terms=terms, last_index=last_index, get=lambda call: call())

    def _call(self, name: str) -> Callable[..., Callable[[], Any]]:
        def remote(*args: Any, **kwargs: Any) -> Callable[[], Any]:
            def run() -> Any:
                self.calls.append((name, *args, *kwargs.values()))
                return self._grant() if name == "lease" else None

            return run

        return remote

    def _grant(self) -> Lease:
        if self._leases_left == self._generation:
            raise NoExecutors("no executor is left: the device fell off the bus")
        self._generation += 1
        return Lease("0007", 3, self._generation, self.executor, {"device": "fake"})

    def _answer(self, timeout_s: float) -> Report | None:
        self.timeouts_s.append(timeout_s)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


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
    preempted, again = ("report_preempted", "0007", str(out)), ("lease", "0007", True)
    assert stage.calls == [("lease", "0007", False), *[preempted, again] * 3]
    assert (trial.num_retries, len(stage.specs)) == (0, 4)


def test_a_trial_of_a_dead_executor_says_so_and_goes_on_elsewhere() -> None:
    stage = Backstage(make_report(1), RayActorError(), make_report(1), make_report(2))
    trial = stage.trial()
    assert [trial.next_report().index for _ in range(2)] == [1, 2]
    assert stage.calls == [
        ("lease", "0007", False),
        ("report_lost", 3, 1),
        ("release", "0007"),
        ("lease", "0007", True),
    ]
    assert trial.num_retries == 1


def test_a_trial_whose_silence_was_taken_for_its_end_goes_on_elsewhere() -> None:
    stage = Backstage(LeaseLost("executor: trial 0007 is not here"), make_report(1))
    trial = stage.trial()
    assert trial.next_report().index == 1
    assert [call[0] for call in stage.calls] == ["lease", "release", "lease"]
    assert trial.num_retries == 1


@pytest.mark.parametrize("error", [RayActorError(), LeaseLost("executor: trial 0007 is not here")])
def test_a_trial_that_has_lost_its_slot_too_often_is_lost(error: Exception) -> None:
    report = Backstage(error, error).trial().next_report()
    assert report.is_final
    assert report.failure is not None
    assert report.failure.cause == "lost"
    assert report.failure.message.startswith("its slot was lost 2 times")


def test_a_trial_without_an_executor_to_wait_for_is_lost() -> None:
    trial = Backstage(leases=0).trial()
    report = trial.next_report()
    assert report.failure is not None
    assert (report.failure.cause, trial.lease) == ("lost", None)
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
