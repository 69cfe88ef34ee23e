"""What the study is asked for, and what it is told of each way in which a trial ends."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import optuna
import pytest

from qlora_ray.orchestration.searcher import StudySearcher, settle_finished
from qlora_ray.search.study import end_interrupted, interrupted_trials, requeue_interrupted
from qlora_ray.training.engine import Failure
from tests.unit.orchestration_fixtures import KNOWN_RATE, Books, ask, make_result

DIVERGED = Failure("diverged", "loss is nan at step 3")
LOST = Failure("lost", "no executor is left")
UNEVALUATED = Failure("unevaluated", "trained, not evaluated: out of memory")


def start(folder: Path, **search: Any) -> tuple[Books, StudySearcher]:
    """A sweep's books, and its searcher, which was asked for trial 0."""
    books = Books(folder, **search)
    searcher = books.make_searcher()
    ask(searcher)
    return books, searcher


def test_a_trial_is_opened_in_the_ledger_with_the_parameters_of_the_study(tmp_path: Path) -> None:
    books, _ = start(tmp_path)
    # The known good point is the first.
    assert books.ledger.entries[0].params == {"training.learning_rate": KNOWN_RATE}
    (trial,) = books.trials()
    assert (trial.state.name, trial.params) == ("RUNNING", books.ledger.entries[0].params)


def test_as_many_trials_are_asked_for_as_the_sweep_has(tmp_path: Path) -> None:
    searcher = Books(tmp_path, num_trials=2).make_searcher()
    assert [ask(searcher).number for _ in range(2)] == [0, 1]
    assert not searcher.has_more()


def test_no_trial_is_asked_for_once_the_search_is_stopping(tmp_path: Path) -> None:
    books = Books(tmp_path)
    searcher = books.make_searcher()
    books.ledger.is_stopping = True
    assert not searcher.has_more()
    assert books.states() == ["WAITING"]  # the known point is still queued for a resume


def test_a_report_is_in_the_study_as_soon_as_it_comes_and_a_failed_one_has_no_value(tmp_path: Path) -> None:
    books, searcher = start(tmp_path)
    for index, loss in ((1, 0.9), (2, 0.7)):
        searcher.enter_report(make_result(0, index, loss=loss))
        searcher.flush()
        assert books.trials()[0].intermediate_values[index] == loss
    searcher.enter_report(make_result(0, 3, metrics={}, failure=DIVERGED))
    searcher.flush()
    assert books.trials()[0].intermediate_values == {1: 0.9, 2: 0.7}
    assert books.states() == ["RUNNING"]


@pytest.mark.parametrize(
    ("last", "is_stopping", "state", "value", "cause"),
    [
        ({"is_final": True}, False, "COMPLETE", 0.5, None),
        # Stopped as it made its last report: it is complete, and no interrupted one.
        ({"is_final": True}, True, "COMPLETE", 0.5, None),
        ({}, False, "PRUNED", 0.5, "stopped by asha at report 2"),
        ({"metrics": {}, "failure": DIVERGED}, False, "FAIL", None, "diverged"),
        ({}, True, "RUNNING", None, None),
        ({"metrics": {}, "failure": LOST}, False, "RUNNING", None, None),
        ({"metrics": {}, "failure": UNEVALUATED}, False, "RUNNING", None, None),
    ],
    ids=["complete", "complete_at_stop", "pruned", "failed", "stopped", "lost", "unevaluated"],
)
def test_the_study_is_told_the_end_that_a_trial_had(
    tmp_path: Path,
    last: dict[str, Any],
    is_stopping: bool,
    state: str,
    value: float | None,
    cause: str | None,
) -> None:
    books, searcher = start(tmp_path, scheduler="asha")
    searcher.enter_report(make_result(0, 1, loss=0.9))
    searcher.enter_report(make_result(0, 2, loss=0.5, **last))
    books.ledger.is_stopping |= is_stopping
    searcher.close(0)
    searcher.flush()
    (trial,) = books.trials()
    # An interrupted trial stays RUNNING until `end_interrupted` marks all of them and ends them together. Optuna gives
    # a pruned one the value of its last report.
    assert (trial.state.name, trial.value, trial.user_attrs.get("cause")) == (state, value, cause)
    assert end_interrupted(books.study) == ([0] if state == "RUNNING" else [])


def test_what_goes_wrong_in_the_study_is_raised(tmp_path: Path) -> None:
    books, searcher = start(tmp_path)
    books.study.tell(0, 0.25)
    searcher.enter_report(make_result(0, 1, is_final=True))
    searcher.close(0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError, match="has already finished"):
        searcher.finish()


def test_two_objectives_are_told_in_the_order_of_the_config_and_reports_of_neither(tmp_path: Path) -> None:
    objectives = {"eval_loss": "min", "trainable_parameters": "min"}
    books, searcher = start(tmp_path, objectives=objectives, sampler="nsga2", scheduler="none")
    searcher.enter_report(make_result(0, 1, loss=0.25, is_final=True, facts={"trainable_parameters": 800}))
    searcher.close(0)
    searcher.flush()
    (trial,) = books.trials()
    assert trial.values == [0.25, 800]
    assert trial.intermediate_values == {}  # Optuna keeps them for one objective only


def test_the_study_says_for_optunas_dashboard_what_its_states_cannot(tmp_path: Path) -> None:
    books = Books(tmp_path)
    searcher = books.make_searcher()
    for _ in range(2):
        ask(searcher)
    result = make_result(0, 1, loss=0.5, is_final=True)
    result.report.metrics.update(tokens_per_s=900.0, peak_memory_bytes=2**30)
    searcher.enter_report(result)
    searcher.close(0)
    searcher.finish()
    books.ledger.interrupt()
    end_interrupted(books.study)
    complete, interrupted = books.trials()
    assert complete.user_attrs == {"state": "complete", "tokens_per_s": 900.0, "peak_memory_bytes": 2**30}
    assert interrupted.user_attrs["state"] == "interrupted"
    assert books.study.metric_names == ["eval_loss"]


def test_what_the_study_missed_of_a_trial_that_has_ended_it_is_told_by_the_next_driver(tmp_path: Path) -> None:
    first = Books(tmp_path)
    searcher = first.make_searcher()
    ask(searcher)
    searcher.enter_report(make_result(0, 1, loss=0.9))
    searcher.flush()
    # The driver is killed after the record, and before the study's own thread has written.
    first.ledger.report(make_result(0, 2, loss=0.7))
    first.ledger.report(make_result(0, 3, loss=0.5, is_final=True))
    first.ledger.close(0)
    again = Books(tmp_path)
    again.ledger.restore()
    settle_finished(again.study, again.ledger)
    (trial,) = again.trials()
    assert trial.intermediate_values == {1: 0.9, 2: 0.7, 3: 0.5}
    assert (trial.state.name, trial.value) == ("COMPLETE", 0.5)


def test_a_resume_asks_for_what_is_missing_and_for_interrupted_trials_again(tmp_path: Path) -> None:
    first = Books(tmp_path)
    searcher = first.make_searcher()
    for _ in range(2):
        ask(searcher)
    searcher.enter_report(make_result(0, 1, is_final=True))
    searcher.close(0)
    searcher.enter_report(make_result(1, 1, loss=0.8))
    searcher.finish()
    rate = first.ledger.entries[1].params
    first.ledger.interrupt()
    settle_finished(first.study, first.ledger)
    end_interrupted(first.study)
    (first.paths.trial("0001").state).mkdir()

    again = Books(tmp_path)
    again.ledger.restore()
    settle_finished(again.study, again.ledger)
    assert requeue_interrupted(again.study) == [1]
    searcher = again.make_searcher()
    assert searcher.num_left == 2
    # It comes first, with the same parameters, its state, and the report that it had made.
    asked = ask(searcher)
    searcher.flush()
    assert (asked.number, asked.params) == (2, rate)
    assert again.ledger.entries[2].resumed_from == 1
    assert again.trials()[2].intermediate_values == {1: 0.8}
    assert again.paths.trial("0002").state.exists()
    assert ask(searcher).number == 3
    assert not searcher.has_more()


def test_a_trial_whose_resume_was_killed_too_finds_its_first_state(tmp_path: Path) -> None:
    first = Books(tmp_path, num_trials=1)
    ask(first.make_searcher())
    first.ledger.interrupt()
    end_interrupted(first.study)
    first.paths.trial("0000").state.mkdir()
    second = Books(tmp_path, num_trials=1)
    second.ledger.restore()
    requeue_interrupted(second.study)
    trial = second.study.ask(second.space.distributions())  # killed before the ledger has opened it
    assert trial.number == 1
    third = Books(tmp_path, num_trials=1)
    third.ledger.restore()
    assert requeue_interrupted(third.study) == [1]
    ask(third.make_searcher())
    assert third.ledger.entries[2].resumed_from == 1
    assert third.paths.trial("0002").state.exists()


@pytest.mark.parametrize(
    ("last", "state"),
    [({"is_final": True}, "COMPLETE"), ({}, "PRUNED"), ({"metrics": {}, "failure": DIVERGED}, "FAIL")],
)
def test_a_driver_killed_between_record_and_study_is_made_good_by_the_next(
    tmp_path: Path, last: dict[str, Any], state: str
) -> None:
    books, searcher = start(tmp_path)
    ask(searcher)
    searcher.enter_report(make_result(0, 1, **last))
    searcher.flush()
    books.ledger.close(0)  # and the study is not told
    again = Books(tmp_path)
    again.ledger.restore()
    settle_finished(again.study, again.ledger)
    assert again.states() == [state, "RUNNING"]
    assert requeue_interrupted(again.study) == [1]
    assert interrupted_trials(again.study) == {1}


def test_a_study_that_could_not_be_told_an_end_is_asked_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, searcher = start(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(books.study, "tell", fail)
    searcher.enter_report(make_result(0, 4, is_final=True))
    searcher.close(0)
    for end in (lambda: ask(searcher), searcher.finish):
        with pytest.raises(OSError, match="No space left"):
            end()
    assert books.states() == ["RUNNING"]
