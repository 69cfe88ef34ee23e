"""Sweeps that are stopped, or lose an executor, give the numbers of an undisturbed one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from qlora_ray.runs import SweepPaths, read_events, read_json
from qlora_ray.runs.files import read_lines
from tests.e2e.sweeps import read_until, run_sweep, started_sweep, write_config

# A test may have to wait for three sweeps, one after another, on a machine that runs other tests.
pytestmark = pytest.mark.timeout(600)

OPTIONS = ("--set", "results.name=s")
TWO_LONG_TRIALS = {"cluster": {"max_slots": 1}, "search": {"num_trials": 2, "num_reports": 12}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SweepPaths:
    """The sweep that others are disturbed versions of: two trials of twelve reports, one at a time."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = run_sweep("--config", write_config(folder, **TWO_LONG_TRIALS), *OPTIONS, cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return SweepPaths(folder / "results" / "s")


def eval_losses(paths: SweepPaths, trial_id: str) -> list[float]:
    """The reported validation losses of one trial."""
    return [line["eval_loss"] for line in read_lines(paths.trial(trial_id).metrics)]


def stop_sweep(folder: Path, signum: signal.Signals) -> SweepPaths:
    """Stops a sweep in its second trial, and checks what it leaves."""
    paths = SweepPaths(folder / "results" / "s")
    with started_sweep("--config", write_config(folder, **TWO_LONG_TRIALS), *OPTIONS, cwd=folder) as process:
        read_until(process, "trial 0000  complete")
        process.send_signal(signum)
        read_until(process, "Go on with: python -m qlora_ray.sweep --resume results/s")
        assert process.wait() == 130
    assert read_json(paths.summary)["status"] == "interrupted"
    for name in ("report.html", "report.md"):
        assert "python -m qlora_ray.sweep --resume results/s" in (paths.root / name).read_text()
    assert "running" not in {read_json(path)["state"] for path in paths.trials.glob("*/record.json")}
    return paths


@pytest.mark.slow
def test_a_terminated_sweep_stops_as_an_interrupted_one(tmp_path: Path) -> None:
    stop_sweep(tmp_path, signal.SIGTERM)


def test_a_stopped_sweep_goes_on_to_the_same_numbers(tmp_path: Path, undisturbed: SweepPaths) -> None:
    paths = stop_sweep(tmp_path, signal.SIGINT)
    resumed = run_sweep("--resume", paths.root, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    complete = [
        record for record in map(read_json, paths.trials.glob("*/record.json")) if record["state"] == "complete"
    ]
    assert len(complete) == 2
    for number in (0, 1):
        expected = read_json(undisturbed.trial(f"{number:04d}").record)
        again = next(record for record in complete if record["params"] == expected["params"])
        assert again["reports"] == expected["reports"]


def test_a_killed_executor_is_replaced_and_its_trial_goes_on_with_the_same_numbers(
    tmp_path: Path, undisturbed: SweepPaths
) -> None:
    config = write_config(tmp_path, **TWO_LONG_TRIALS)
    paths = SweepPaths(tmp_path / "results" / "s")
    with started_sweep("--config", config, *OPTIONS, cwd=tmp_path) as process:
        read_until(process, "trial 0000  complete")
        os.kill(read_json(paths.trial("0000").record)["executor"]["pid"], signal.SIGKILL)
        read_until(process, "trial 0001  complete")
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait() == 0
    assert "executor_lost" in {event["event"] for event in read_events(paths.events)}
    for trial_id in ("0000", "0001"):
        assert eval_losses(paths, trial_id) == eval_losses(undisturbed, trial_id)
