"""trials.csv while a sweep runs, at its end, and after a resume."""

from __future__ import annotations

import csv
from pathlib import Path

from qlora_ray.orchestration.standings import Standings
from qlora_ray.orchestration.trial_entry import CloneOrigin, TrialEntry
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.runs.records import TrialStatus
from qlora_ray.runs.trials_table import ORIGINS, TrialsTable
from tests.unit.orchestration_fixtures import Books, ask, make_result


def read(paths: SweepPaths) -> list[tuple[str, str]]:
    """Trial and state of each row."""
    with paths.trials_table.open() as stream:
        return [(row["trial"], row["state"]) for row in csv.DictReader(stream)]


def test_a_trial_that_has_ended_is_in_the_table_of_a_running_sweep(tmp_path: Path) -> None:
    books = Books(tmp_path)
    searcher = books.make_searcher()
    for _ in range(3):
        ask(searcher)
    searcher.enter_report(make_result(2, 4, is_final=True))
    searcher.close(2)
    first = books.paths.trials_table.read_bytes()
    searcher.enter_report(make_result(0, 4, is_final=True))
    searcher.close(0)
    searcher.finish()
    assert read(books.paths) == [("0002", "complete"), ("0000", "complete")]
    assert books.paths.trials_table.read_bytes().startswith(first)
    books.ledger.interrupt()
    assert read(books.paths) == [("0000", "complete"), ("0001", "interrupted"), ("0002", "complete")]


def test_a_resume_puts_a_torn_table_right(tmp_path: Path) -> None:
    books = Books(tmp_path)
    searcher = books.make_searcher()
    ask(searcher)
    searcher.close(0)
    searcher.finish()
    table = books.paths.trials_table
    whole = table.read_text()
    table.write_text(whole[:-9])
    again = Books(tmp_path)
    again.ledger.restore()
    assert table.read_text() == whole


def test_a_row_says_which_trial_it_goes_on_with_repeats_or_is_a_clone_of(tmp_path: Path) -> None:
    table = TrialsTable(tmp_path / "trials.csv", objectives=["eval_loss"])
    for entry in (
        TrialEntry(0, {"lora.r": 8}, 0.0),
        TrialEntry(1, {"lora.r": 8}, 0.0, resumed_from=0),
        TrialEntry(2, {"lora.r": 8}, 0.0, seed_of=1),
        TrialEntry(3, {"lora.r": 8}, 0.0, clone_of=CloneOrigin(1, 2, 40)),
    ):
        table.append(entry.to_record(adapter=tmp_path, common=SweepFacts()))
    with (tmp_path / "trials.csv").open() as stream:
        rows = [tuple(row[name] for name in ORIGINS) for row in csv.DictReader(stream)]
    assert rows == [("", "", "", ""), ("0000", "", "", ""), ("", "0001", "", ""), ("", "", "0001", "2")]


def test_the_standings_rank_count_and_list_as_trials_end() -> None:
    standings = Standings(mode="min")
    entries = [TrialEntry(number, {}, 0.0) for number in range(5)]
    for entry in entries:
        standings.open(entry)
    ends = {3: (TrialStatus.COMPLETE, 0.5), 0: (TrialStatus.COMPLETE, 0.5), 2: (TrialStatus.PRUNED, 0.1)}
    ends[4] = (TrialStatus.COMPLETE, 0.25)
    for number, (state, value) in ends.items():
        entries[number].state = state
        standings.end(entries[number], value)
    assert [entry.number for entry in standings.ranked()] == [4, 0, 3]
    assert standings.best is entries[4]
    assert standings.counts() == {"complete": 3, "pruned": 1, "running": 1}
    assert [entry.number for entry in standings.running()] == [1]
