"""The best trials with new seeds: which are planned, what the study knows of them, and what is left for a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.orchestration.final_seeds import SeedGroup, SeedSearcher, find_finalists, group_seeds, plan_seeds
from qlora_ray.runs.records import TrialRecord, TrialStatus, read_record
from qlora_ray.search.space import apply_values
from qlora_ray.search.study import count_finished
from tests.unit.orchestration_fixtures import Books, ask, make_result

LOSSES = {0: 0.5, 1: 0.2, 2: 0.4}


def make_books(root: Path, **search: Any) -> Books:
    books = Books(root, final_seeds=2, **search)
    books.config = books.config.model_copy(update={"evaluate": books.config.evaluate.model_copy(update={"top_k": 2})})
    return books


def run_search(books: Books) -> None:
    searcher = books.make_searcher()
    while searcher.has_more():
        number = ask(searcher).number
        searcher.enter_report(make_result(number, 4, loss=LOSSES.get(number, 0.9), is_final=True))
        searcher.close(number)
    searcher.finish()


def run_seeds(books: Books, *, stops_in: int | None = None) -> list[int]:
    planned = plan_seeds(books.ledger, books.config)
    searcher = SeedSearcher(books.study, space=books.space, ledger=books.ledger, planned=planned, num_slots=9)
    numbers = []
    while searcher.has_more():
        numbers.append(ask(searcher).number)
        if len(numbers) - 1 == stops_in:
            books.ledger.interrupt()
            break
        searcher.enter_report(make_result(numbers[-1], 4, loss=0.3, is_final=True))
        searcher.close(numbers[-1])
    searcher.finish()
    return numbers


def test_each_of_the_best_is_trained_with_new_seeds_and_nothing_else_changes(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    run_search(books)
    planned = plan_seeds(books.ledger, books.config)
    assert [one.seed_of for one in planned] == [1, 1, 2, 2]
    first = books.ledger.entries[1].params
    for one, seed in zip(planned, (8, 9), strict=False):
        assert one.params == {**first, "training.seed": seed}
        own, other = (apply_values(books.config, params) for params in (first, one.params))
        assert other.training == own.training.model_copy(update={"seed": seed}) and other.lora == own.lora
    assert run_seeds(books) == [3, 4, 5, 6]
    record = read_record(books.paths.trial("0004").record, TrialRecord)
    assert (record.seed_of, record.state, record.params["training.seed"]) == ("0001", "complete", 9)
    assert plan_seeds(books.ledger, books.config) == []
    groups = group_seeds(books.ledger, books.config)
    assert {trial: [entry.id for entry in entries] for trial, entries in groups.items()} == {
        "0001": ["0003", "0004"],
        "0002": ["0005", "0006"],
    }


def test_the_study_has_their_numbers_and_no_sampler_sees_them(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    run_search(books)
    run_seeds(books)
    assert books.states() == ["COMPLETE"] * 3 + ["FAIL"] * 4
    assert count_finished(books.study) == 3
    # More trials get numbers of their own, and seeds of better ones are no finalists themselves.
    more = make_books(tmp_path, num_trials=4)
    more.ledger.restore()
    run_search(more)
    assert [entry.number for entry in more.ledger.entries.values() if entry.seed_of is None] == [0, 1, 2, 7]
    assert [entry.id for entry in find_finalists(more.ledger, more.config)] == ["0001", "0002"]
    assert plan_seeds(more.ledger, more.config) == []


def test_a_resume_runs_the_seeds_that_are_missing_and_goes_on_with_the_interrupted_one(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    run_search(books)
    assert run_seeds(books, stops_in=1) == [3, 4]
    assert books.ledger.entries[4].state is TrialStatus.INTERRUPTED
    again = make_books(tmp_path)
    again.ledger.restore()
    planned = plan_seeds(again.ledger, again.config)
    assert [(one.seed_of, one.ancestors) for one in planned] == [(1, (4,)), (2, ()), (2, ())]
    assert run_seeds(again) == [5, 6, 7]
    assert read_record(again.paths.trial("0005").record, TrialRecord).resumed_from == "0004"


def test_the_books_know_how_many_trials_there_will_be_after_a_resume_too(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    run_search(books)
    assert books.ledger.num_planned == 3
    run_seeds(books, stops_in=1)
    assert books.ledger.num_planned == 7
    again = make_books(tmp_path)
    again.ledger.restore()
    # One of the four has ended, the interrupted one is planned anew.
    assert again.ledger.num_planned == 4
    run_seeds(again)
    assert again.ledger.num_planned == again.ledger.num_begun == 7


def test_mean_and_spread_are_those_of_the_losses() -> None:
    group = SeedGroup("0001", {"0003": 0.2, "0004": 0.4, "0005": 0.6})
    # The deviation of 0.2, 0.4, 0.6 from 0.4, over n - 1.
    assert (group.mean, group.spread) == (pytest.approx(0.4), pytest.approx(0.2))
    assert SeedGroup("0001", {"0003": 0.2}).spread is None
    assert SeedGroup("0001", {"0003": 0.2, "0004": math.nan}).spread is None
