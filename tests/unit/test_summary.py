"""What a sweep says at its end."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.summary import MAX_TABLE_ROWS, print_next_steps, print_outcome, printable, write_summary
from qlora_ray.orchestration.trial_entry import TrialResult
from qlora_ray.orchestration.winner import Winner
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.files import read_json, write_json
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.scoring.comparison import compare_rows
from qlora_ray.scoring.scores import ScoredAnswer, Scores
from qlora_ray.scoring.verdict import Verdict
from qlora_ray.training.engine import UNEVALUATED, Failure, Report
from tests.unit.orchestration_fixtures import Books, make_result

BASE = Scores(
    loss=10.2041,
    num_tokens=80,
    num_rows=8,
    metrics={"numeric_match": 0.0, "absolute_error": 212.167},
    row_metrics={},
    answers=[ScoredAnswer(0, "no idea", "#### 7")],
    num_cut_prompts=0,
    num_short_answers=0,
    details={"numeric_match": {"answered": 0.375, "r_squared": -4.3231}},
)
TUNED = replace(BASE, loss=3.5938, details={"numeric_match": {"answered": 1.0, "r_squared": 0.25}})
NOTE = "52 of 100 answers of the winner were cut at 96 tokens (base: 100)"


def test_the_end_shows_what_means_leave_out_and_what_weakens_the_verdict(tmp_path: Any) -> None:
    paths = SweepPaths(tmp_path)
    entry = SimpleNamespace(
        id="0003", number=3, state="complete", intermediate={}, params={}, tokens=0, train_s=0.0, value=3.5938
    )
    ledger: Any = SimpleNamespace(
        entries={"0003": entry},
        mode="min",
        objective="eval_loss",
        first_failure=None,
        end_reason=None,
        value_of=lambda one: one.value,
        counts=lambda: {"complete": 1},
    )
    verdict = Verdict("test", compare_rows("loss", [10.0] * 8, [3.5] * 8, higher_is_better=False), [], note=NOTE)
    winner = Winner(ledger.entries["0003"], TUNED, BASE, {}, verdict)
    summary = write_summary(ledger, winner, paths=paths, interrupted=False)
    assert read_json(paths.summary)["verdict_note"] == NOTE
    text = io.StringIO()
    print_outcome(Console(text), summary, ledger=ledger, winner=winner, paths=paths, report=None)
    lines = text.getvalue().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("numeric_match"))
    assert [line.split() for line in lines[start : start + 3]] == [
        ["numeric_match", "answered", "r_squared"],
        ["base", "0.375", "-4.323"],
        ["winner", "0003", "1.000", "0.250"],
    ]
    assert f"          note: {NOTE}" in lines


@pytest.mark.parametrize(
    ("interrupted", "has_winner", "expected"),
    [
        (False, False, ["2 trials can go on: {resume}", "          0000, 0001: {cause}"]),
        (False, True, ["evaluate {evaluate}", "2 trials can go on: {resume}", "          0000, 0001: {cause}"]),
        (True, False, ["stopped. Go on with: {resume}"]),
    ],
)
def test_whatever_can_go_on_is_told_with_its_command_and_its_cause(
    tmp_path: Any, interrupted: bool, has_winner: bool, expected: list[str]
) -> None:
    paths, text = SweepPaths(tmp_path / "a b"), io.StringIO()
    paths.create()
    ledger = Ledger(SweepConfig(), paths=paths, console=Console(io.StringIO()), common=SweepFacts())
    for number in (0, 1):
        ledger.open(number, {})
        failure = Failure("unevaluated", UNEVALUATED)
        ledger.report(TrialResult(number, Report(f"{number:04d}", 0, True, {}, failure=failure)))
        ledger.close(number)
    winner: Any = SimpleNamespace(
        entry=SimpleNamespace(id="0002"), scores=BASE, verdict=SimpleNamespace(word="better", note=None)
    )
    chosen = winner if has_winner else None
    summary = write_summary(ledger, chosen, paths=paths, interrupted=interrupted)
    print_next_steps(Console(text), summary, ledger=ledger, winner=chosen, paths=paths, is_exported=True)
    root = f"'{paths.root}'"
    words = {
        "resume": f"python -m qlora_ray.sweep --resume {root}",
        "evaluate": f" python -m qlora_ray.evaluate {root} --shots 0,3",
        "cause": UNEVALUATED,
    }
    assert text.getvalue().splitlines() == [line.format(**words) for line in expected]


def test_a_spent_budget_is_told_once_with_the_command_that_goes_on(tmp_path: Any) -> None:
    paths, text = SweepPaths(tmp_path / "s"), io.StringIO()
    paths.create()
    ledger = Ledger(SweepConfig(), paths=paths, console=Console(io.StringIO()), common=SweepFacts())
    ledger.open(0, {})
    ledger.end_reason = ledger.entries[0].cut_by = "search.time_budget of 1:00 is spent"
    ledger.close(0)
    winner: Any = SimpleNamespace(
        entry=SimpleNamespace(id="0002"), scores=BASE, verdict=SimpleNamespace(word="better", note=None)
    )
    summary = write_summary(ledger, winner, paths=paths, interrupted=False)
    assert (read_json(paths.summary)["status"], summary.exit_code) == ("complete", 0)
    assert read_json(paths.summary)["end_reason"] == "search.time_budget of 1:00 is spent"
    print_next_steps(Console(text), summary, ledger=ledger, winner=winner, paths=paths, is_exported=True)
    assert text.getvalue().splitlines()[1:] == [
        f"search.time_budget of 1:00 is spent. Go on with another such budget: {paths.resume_command}",
        "          0000: search.time_budget of 1:00 is spent",
    ]


@pytest.mark.parametrize("is_exported", [False, True])
def test_how_to_export_is_told_unless_it_is_done_anyway(tmp_path: Any, is_exported: bool) -> None:
    ledger: Any = SimpleNamespace(
        resumable=lambda: [], counts=lambda: {"complete": 1}, objective="", first_failure=None, end_reason=None
    )
    winner: Any = SimpleNamespace(
        entry=SimpleNamespace(id="0002"), scores=BASE, verdict=SimpleNamespace(word="better", note=None)
    )
    paths, text = SweepPaths(tmp_path), io.StringIO()
    write_json(paths.manifest, {"config": {"model": {"trust_remote_code": True}}})
    summary = write_summary(ledger, winner, paths=paths, interrupted=False)
    print_next_steps(Console(text), summary, ledger=ledger, winner=winner, paths=paths, is_exported=is_exported)
    # With the right that the sweep's own config gave: without it the command would be refused.
    assert ("--set model.trust_remote_code=true" in text.getvalue()) is not is_exported
    assert ("export    python -m qlora_ray.export" in text.getvalue()) is not is_exported


def test_the_table_has_the_best_trials_first_and_says_how_many_it_leaves_out(tmp_path: Any) -> None:
    books = Books(tmp_path, num_trials=MAX_TABLE_ROWS + 3, scheduler="asha")
    ends: list[dict[str, Any]] = [
        *({"report_index": 4, "loss": 0.9 - index / 100, "is_final": True} for index in range(MAX_TABLE_ROWS - 3)),
        {"report_index": 1, "loss": 0.1},
        {"report_index": 2, "loss": 0.8},
        {"report_index": 1, "metrics": {}, "failure": Failure("error", "boom")},
    ]
    for number, end in enumerate(ends):
        books.ledger.open(number, {})
        if end["report_index"] == 2:
            books.ledger.report(make_result(number, 1))
        books.ledger.report(make_result(number, **end))
        books.ledger.close(number)
    for number in range(len(ends), MAX_TABLE_ROWS + 3):
        books.ledger.open(number, {})
    books.ledger.interrupt()
    text = io.StringIO()
    summary = write_summary(books.ledger, None, paths=books.paths, interrupted=True)
    print_outcome(Console(text), summary, ledger=books.ledger, winner=None, paths=books.paths, report=None)
    rows = [line.split()[:2] for line in text.getvalue().splitlines() if line[:4].isdigit()]
    complete = [[f"{number:04d}", "complete"] for number in reversed(range(MAX_TABLE_ROWS - 3))]
    # The pruned one that got further comes first, whatever its loss.
    assert rows == [*complete, ["0018", "pruned"], ["0017", "pruned"], ["0019", "failed"]]
    assert "... and 3 more in trials.csv" in text.getvalue()


@pytest.mark.parametrize(("share", "is_told"), [(None, False), (0.1, False), (0.24, True)])
def test_devices_that_waited_long_are_told(tmp_path: Any, share: float | None, is_told: bool) -> None:
    books, text = Books(tmp_path), io.StringIO()
    summary = write_summary(books.ledger, None, paths=books.paths, interrupted=False, device_wait_share=share)
    print_outcome(Console(text), summary, ledger=books.ledger, winner=None, paths=books.paths, report=None)
    assert ("in 24 % of the search" in text.getvalue()) is is_told
    assert read_json(books.paths.summary)["device_wait_share"] == share


def test_control_characters_of_a_models_answer_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\u202e") == "a\\x1b[2Jb\\x07\\u202e"
