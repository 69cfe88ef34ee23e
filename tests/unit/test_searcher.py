"""What the study is asked for, and what it is told of each way in which a trial ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from qlora_ray.orchestration.searcher import settle_finished
from qlora_ray.search.study import end_interrupted, interrupted_trials, requeue_interrupted
from qlora_ray.training.engine import Failure
from tests.unit.orchestration_fixtures import KNOWN_RATE, Books, make_result

DIVERGED = Failure("diverged", "loss is nan at step 3")
LOST = Failure("lost", "no executor is left")
UNEVALUATED = Failure("unevaluated", "trained, not evaluated: out of memory")


def start(folder: Path, **search: Any) -> tuple[Books, Any]:
    """A sweep's books, and its searcher, which was asked for trial t0."""
    books = Books(folder, **search)
    searcher = books.make_searcher()
    searcher.suggest("t0")
    return books, searcher


def test_as_many_trials_are_asked_for_as_there_are_slots_and_one_that_waits(tmp_path: Path) -> None:
    searcher = Books(tmp_path, num_trials=5).make_searcher(num_slots=2)
    asked = [searcher.suggest(f"t{index}") for index in range(4)]
    assert [trial and trial["number"] for trial in asked] == [0, 1, 2, None]
    searcher.num_live = 2  # Tune's loop has seen one of them end
    assert searcher.suggest("t3")["number"] == 3
    assert searcher.suggest("t4") is None
    searcher.num_slots = 3
    assert searcher.suggest("t4")["number"] == 4
    assert searcher.suggest("t5") == Searcher.FINISHED


def test_a_trial_is_opened_in_the_ledger_with_the_parameters_of_the_study(tmp_path: Path) -> None:
    books = Books(tmp_path)
    asked = books.make_searcher().suggest("t0")
    # The known good point is the first.
    assert asked == {"number": 0, "params": {"training.learning_rate": KNOWN_RATE}}
    assert books.ledger.entries[0].params == asked["params"]
    (trial,) = books.trials()
    assert (trial.state.name, trial.params) == ("RUNNING", asked["params"])


def test_no_trial_is_asked_for_once_the_search_is_stopping(tmp_path: Path) -> None:
    books = Books(tmp_path)
    searcher = books.make_searcher()
    books.ledger.is_stopping = True
    assert searcher.suggest("t0") == Searcher.FINISHED
    assert books.states() == ["WAITING"]  # the known point is still queued for a resume


def test_a_report_is_in_the_study_as_soon_as_it_comes_and_a_failed_one_has_no_value(tmp_path: Path) -> None:
    books, searcher = start(tmp_path)
    for index, loss in ((1, 0.9), (2, 0.7)):
        searcher.enter_report("t0", make_result(0, index, loss=loss))
        assert books.trials()[0].intermediate_values[index] == loss
    searcher.enter_report("t0", make_result(0, 3, metrics={}, failure=DIVERGED))
    assert books.trials()[0].intermediate_values == {1: 0.9, 2: 0.7}
    assert books.states() == ["RUNNING"]


@pytest.mark.parametrize(
    ("last", "is_error", "is_stopping", "state", "value", "cause"),
    [
        ({"is_final": True}, False, False, "COMPLETE", 0.5, None),
        # Stopped as it made its last report: it is complete, and no interrupted one.
        ({"is_final": True}, False, True, "COMPLETE", 0.5, None),
        ({}, False, False, "PRUNED", 0.5, "stopped by asha at report 2"),
        ({"metrics": {}, "failure": DIVERGED}, False, False, "FAIL", None, "diverged"),
        ({}, True, False, "FAIL", None, "error"),
        ({}, False, True, "RUNNING", None, None),
        ({"metrics": {}, "failure": LOST}, False, False, "RUNNING", None, None),
        ({"metrics": {}, "failure": UNEVALUATED}, False, False, "RUNNING", None, None),
    ],
    ids=["complete", "complete_at_stop", "pruned", "failed", "crashed", "stopped", "lost", "unevaluated"],
)
def test_the_study_is_told_the_end_that_a_trial_had(
    tmp_path: Path,
    last: dict[str, Any],
    is_error: bool,
    is_stopping: bool,
    state: str,
    value: float | None,
    cause: str | None,
) -> None:
    books, searcher = start(tmp_path, scheduler="asha")
    searcher.enter_report("t0", make_result(0, 1, loss=0.9))
    searcher.enter_report("t0", make_result(0, 2, loss=0.5, **last))
    books.ledger.is_stopping |= is_stopping
    searcher.on_trial_complete("t0", error=is_error)
    (trial,) = books.trials()
    # An interrupted trial stays RUNNING until `end_interrupted` marks all of them and ends them together. Optuna gives
    # a pruned one the value of its last report.
    assert (trial.state.name, trial.value, trial.user_attrs.get("cause")) == (state, value, cause)
    assert end_interrupted(books.study) == ([0] if state == "RUNNING" else [])


def test_a_trial_is_told_once_however_often_tune_says_that_it_ended(tmp_path: Path) -> None:
    books, searcher = start(tmp_path)
    searcher.enter_report("t0", make_result(0, 1, is_final=True))
    searcher.on_trial_complete("t0")
    # Optuna raises on a second tell, and a second close would write the end's line twice.
    searcher.on_trial_complete("t0", error=True)
    searcher.on_trial_complete("never-asked-for")
    assert books.states() == ["COMPLETE"]
    assert books.text.getvalue().count("trial 0000") == 1


def test_two_objectives_are_told_in_the_order_of_the_config_and_reports_of_neither(tmp_path: Path) -> None:
    objectives = {"eval_loss": "min", "trainable_parameters": "min"}
    books, searcher = start(tmp_path, objectives=objectives, sampler="nsga2", scheduler="none")
    searcher.enter_report("t0", make_result(0, 1, loss=0.25, is_final=True, facts={"trainable_parameters": 800}))
    searcher.on_trial_complete("t0")
    (trial,) = books.trials()
    assert trial.values == [0.25, 800]
    assert trial.intermediate_values == {}  # Optuna keeps them for one objective only


def test_a_resume_asks_for_what_is_missing_and_for_interrupted_trials_again(tmp_path: Path) -> None:
    first = Books(tmp_path)
    searcher = first.make_searcher()
    for name in ("t0", "t1"):
        searcher.suggest(name)
    searcher.enter_report("t0", make_result(0, 1, is_final=True))
    searcher.on_trial_complete("t0")
    searcher.enter_report("t1", make_result(1, 1, loss=0.8))
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
    assert searcher.suggest("t0") == {"number": 2, "params": rate}
    assert again.ledger.entries[2].resumed_from == 1
    assert again.trials()[2].intermediate_values == {1: 0.8}
    assert again.paths.trial("0002").state.exists()
    assert searcher.suggest("t1")["number"] == 3
    assert searcher.suggest("t2") == Searcher.FINISHED


def test_a_trial_whose_resume_was_killed_too_finds_its_first_state(tmp_path: Path) -> None:
    first = Books(tmp_path, num_trials=1)
    first.make_searcher().suggest("t0")
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
    third.make_searcher().suggest("t0")
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
    searcher.suggest("t1")
    searcher.enter_report("t0", make_result(0, 1, **last))
    books.ledger.close(0, crashed=False)  # and the study is not told
    again = Books(tmp_path)
    again.ledger.restore()
    settle_finished(again.study, again.ledger)
    assert again.states() == [state, "RUNNING"]
    assert requeue_interrupted(again.study) == [1]
    assert interrupted_trials(again.study) == {1}
