"""The driver's books: what a trial's end leaves on disk, and who goes on with whom."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_ray.config.schema import SweepConfig
from qlora_ray.console import Console
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.trial_entry import TrialResult
from qlora_ray.runs import SweepPaths, TrialPaths, read_events, read_json
from qlora_ray.runs.files import append_lines
from qlora_ray.runs.record_parts import SweepFacts
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import UNEVALUATED, Failure, Report

UNEVALUATED_FAILURE = Failure("unevaluated", f"{UNEVALUATED}: CUDA out of memory.", "traceback")


@pytest.fixture
def make_ledger(tmp_path: Path) -> Callable[[], Ledger]:
    """Books of one sweep; each call is another driver's."""
    paths = SweepPaths(tmp_path / "s")
    paths.create()
    return lambda: Ledger(SweepConfig(), paths=paths, console=Console(io.StringIO()), common=SweepFacts())


def enter(
    ledger: Ledger,
    number: int,
    *,
    is_final: bool = True,
    failure: Failure | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """A trial's report, or its failure."""
    metrics = {} if failure else {"eval_loss": 0.5}
    facts = dict(facts or {})
    executor = facts.pop("executor", None)
    report = Report(f"{number:04d}", 1, is_final, metrics, facts, failure)
    ledger.report(TrialResult(number, report, executor=0, executor_facts=executor))


def open_trained(ledger: Ledger, trial: TrialPaths, number: int) -> None:
    """A trial that has left its state and, before its last evaluation, its adapter."""
    ledger.open(number, {})
    TrialState(trial.root.name, 6, 3, {"a": torch.ones(1)}, {}, {}, {}).save(trial.state)
    trial.adapter.mkdir()
    (trial.adapter / "adapter.txt").touch()


@pytest.mark.parametrize(
    ("failure", "state", "left"),
    [
        (None, "complete", {"adapter"}),
        (Failure("error", "no such metric"), "failed", set()),
        (UNEVALUATED_FAILURE, "interrupted", {"state", "adapter"}),
    ],
)
def test_what_a_trial_leaves_is_what_its_end_has_use_for(
    make_ledger: Callable[[], Ledger],
    tmp_path: Path,
    failure: Failure | None,
    state: str,
    left: set[str],
) -> None:
    ledger, trial = make_ledger(), SweepPaths(tmp_path / "s").trial("0000")
    open_trained(ledger, trial, 0)
    enter(ledger, 0, failure=failure)
    ledger.close(0)
    record = read_json(trial.record)
    assert record["state"] == state
    assert {path.name for path in trial.root.iterdir() if path.is_dir()} == left
    assert (record["adapter"] is not None) is (state == "complete")


def test_what_a_killed_driver_had_only_begun_is_taken_away_by_the_next(
    make_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    paths = SweepPaths(tmp_path / "s")
    first = make_ledger()
    open_trained(first, paths.trial("0000"), 0)
    # A record and an adapter that never took their names, half of a line, and a trial that was never in the books.
    (paths.trial("0000").root / ".record.json.qlora_ray-a1b2c3d4").write_text("{")
    (paths.trial("0000").root / ".adapter.qlora_ray-a1b2c3d4").mkdir()
    (paths.trial("0000").root / ".adapter.qlora_ray-turn").touch()
    enter(first, 0)
    whole = paths.trial("0000").metrics.read_bytes()
    paths.trial("0000").metrics.write_bytes(whole + b'{"report_ind')
    (paths.trial("0001").root / "state").mkdir(parents=True)
    make_ledger().restore()
    assert [path.name for path in paths.trials.iterdir()] == ["0000"]
    assert not any(path.name.startswith(".") for path in paths.trial("0000").root.iterdir())
    assert paths.trial("0000").metrics.read_bytes() == whole


def test_a_trial_that_another_goes_on_with_keeps_neither_state_nor_adapter(
    make_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    paths = SweepPaths(tmp_path / "s")
    first = make_ledger()
    open_trained(first, paths.trial("0000"), 0)
    enter(first, 0, failure=UNEVALUATED_FAILURE)
    first.close(0)
    again = make_ledger()
    again.restore()
    assert [entry.number for entry in again.resumable()] == [0]
    again.open(1, {}, ancestors=[0])
    assert TrialState.load(paths.trial("0001").state).report_index == 3
    assert not paths.trial("0000").state.exists() and not paths.trial("0000").adapter.exists()
    assert again.resumable() == []
    enter(again, 1)
    again.close(1)
    assert (again.counts(), again.resumable()) == ({"complete": 1, "interrupted": 1}, [])


def test_a_trial_goes_on_with_a_state_that_a_killed_writer_had_moved_out_of_the_way(
    make_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    paths = SweepPaths(tmp_path / "s")
    first = make_ledger()
    open_trained(first, paths.trial("0000"), 0)
    first.interrupt()
    state = paths.trial("0000").state
    state.rename(state.parent / ".state.qlora_ray-0abc_xyz.old")
    again = make_ledger()
    again.restore()
    again.open(1, {}, ancestors=[0])
    assert TrialState.load(paths.trial("0001").state).report_index == 3


@pytest.mark.parametrize(("failure", "left"), [(None, {"adapter"}), (Failure("diverged", "loss is nan"), set())])
def test_what_a_driver_killed_after_a_trials_record_left_there_is_taken_away_by_the_next(
    make_ledger: Callable[[], Ledger],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Failure | None,
    left: set[str],
) -> None:
    trial = SweepPaths(tmp_path / "s").trial("0000")
    first = make_ledger()
    open_trained(first, trial, 0)
    enter(first, 0, failure=failure)
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *arguments, **options: None)
        first.close(0)
    assert trial.state.exists() and trial.adapter.exists()
    make_ledger().restore()
    assert {path.name for path in (trial.state, trial.adapter) if path.exists()} == left


def test_a_trial_that_starts_at_its_beginning_again_is_told_once(
    make_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    ledger, paths = make_ledger(), SweepPaths(tmp_path / "s")
    ledger.open(0, {})
    facts = {"restarted": "holds no readable trial state"}
    for index in (1, 2):
        ledger.report(TrialResult(0, Report("0000", index, index == 2, {"eval_loss": 0.5}, facts)))
    ledger.close(0)
    told = [event for event in read_events(paths.events) if event["event"] == "trial_restarted"]
    assert [(event["trial"], event["reason"]) for event in told] == [("0000", "holds no readable trial state")]
    assert read_json(paths.trial("0000").record)["ran"]["restarted"] == "holds no readable trial state"


def test_an_ended_trials_line_calls_its_settings_as_the_tables_do(tmp_path: Path) -> None:
    out = io.StringIO()
    paths = SweepPaths(tmp_path / "s")
    paths.create()
    ledger = Ledger(SweepConfig(), paths=paths, console=Console(out), common=SweepFacts())
    ledger.open(0, {"lora.r": 8, "heads.mood.weight": 0.1, "heads.topic.weight": 0.3})
    enter(ledger, 0)
    ledger.close(0)
    assert "r=8 mood.weight=0.1 topic.weight=0.3" in out.getvalue()


def test_a_failure_that_knows_nothing_of_what_ran_leaves_what_was_known(
    make_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    ledger = make_ledger()
    ledger.open(0, {})
    enter(ledger, 0, is_final=False, facts={"precision": "fp32", "executor": {"index": 0}})
    enter(ledger, 0, is_final=False, failure=Failure("error", "boom"), facts={"executor": {"index": 1}})
    ledger.close(0)
    record = read_json(SweepPaths(tmp_path / "s").trial("0000").record)
    assert (record["ran"]["precision"], record["executor"]["index"]) == ("fp32", 1)


def test_a_resume_leaves_alone_what_the_user_has_put_beside_the_trials(
    make_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    trials = tmp_path / "s" / "trials"
    (trials / "notes").mkdir()
    (trials / "notes" / "mine.txt").write_text("mine")
    (trials / ".DS_Store").touch()
    # Stopped before it was in the books.
    (trials / "0004").mkdir()
    make_ledger().restore()
    assert {path.name for path in trials.iterdir()} == {"notes", ".DS_Store"}
    assert (trials / "notes" / "mine.txt").read_text() == "mine"


def test_a_copy_of_a_sweep_without_its_empty_folders_can_be_resumed(
    make_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    (tmp_path / "s" / "trials").rmdir()
    ledger = make_ledger()
    ledger.restore()
    assert ledger.entries == {}


def test_reports_whose_lines_are_damaged_are_left_out_of_a_resume(
    make_ledger: Callable[[], Ledger], tmp_path: Path
) -> None:
    paths = SweepPaths(tmp_path / "s")
    first = make_ledger()
    open_trained(first, paths.trial("0000"), 0)
    first.interrupt()
    told = ({}, {"report_index": "x"}, {"report_index": [1]}, {"report_index": 9, "train_s": "x"})
    append_lines(paths.trial("0000").metrics, [*told, {"report_index": 9, "tokens_per_s": None}])
    again = make_ledger()
    again.restore()
    again.open(1, {}, ancestors=[0])
    assert 9 not in again.entries[1].intermediate
