"""A sweep whose time is spent before its trials have run: it has a winner, and a resume runs the rest."""

from __future__ import annotations

from pathlib import Path

from qlora_ray.runs import SweepPaths, read_events
from qlora_ray.runs.records import Summary, SweepStatus, TrialRecord, TrialStatus, read_record
from tests.e2e.sweeps import run_sweep, write_config


def records_of(paths: SweepPaths) -> list[TrialRecord]:
    return [read_record(path, TrialRecord) for path in sorted(paths.trials.glob("*/record.json"))]


def test_a_spent_budget_ends_in_a_winner_and_a_resume_has_a_budget_of_its_own(tmp_path: Path) -> None:
    paths = SweepPaths(tmp_path / "results" / "short")
    config = write_config(tmp_path, search={"num_trials": 5, "time_budget": 0.2}, results={"name": "short"})
    done = run_sweep("--config", config, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first = read_record(paths.summary, Summary)
    assert (first.status, first.end_reason) == (SweepStatus.COMPLETE, "search.time_budget of 0:00 is spent")
    assert first.counts[TrialStatus.COMPLETE] >= 1 and first.counts[TrialStatus.INTERRUPTED] >= 1
    assert [event["event"] for event in read_events(paths.events)].count("budget_spent") == 1
    assert done.stdout.count(paths.resume_command.rpartition("/")[2]) >= 1 and first.end_reason in done.stdout

    resumed = run_sweep("--resume", paths.root, "--set", "search.time_budget=1d", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    second = read_record(paths.summary, Summary)
    assert (second.status, second.end_reason) == (SweepStatus.COMPLETE, None)
    records = records_of(paths)
    assert sum(record.state is TrialStatus.COMPLETE for record in records) == 5
    # Those that were cut at a report went on from its state.
    assert {record.resumed_from for record in records if record.resumed_from} >= {
        record.trial for record in records if record.state is TrialStatus.INTERRUPTED
    }
