"""Ray dies under a running sweep: one line with the command that resumes it, nothing failed, and it resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from qlora_ray.runs import SweepPaths, read_json
from tests.e2e.sweeps import read_until, run_sweep, started_sweep, write_config

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

OPTIONS = ("--set", "results.name=s")
# The second one is long enough to be under way, whatever else the machine does.
LONG_TRIALS = {
    "cluster": {"max_slots": 1},
    "training": {"max_samples": 1200},
    "search": {"num_trials": 2, "num_reports": 12},
}
# Ray ends the driver's process itself 60 s after the death of the GCS.
RAYS_OWN_END_S = 60.0
REPORT_TIMEOUT_S = 240.0


def find_child(process: subprocess.Popen[str], name: str) -> int:
    """A process of this sweep's own Ray."""
    (found,) = [one.pid for one in psutil.Process(process.pid).children(recursive=True) if one.name() == name]
    return found


def wait_for_report(paths: SweepPaths, trial_id: str) -> None:
    """Until a trial has reported once."""
    deadline = time.monotonic() + REPORT_TIMEOUT_S
    while not paths.trial(trial_id).metrics.exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_the_death_of_ray_interrupts_a_sweep_in_one_line_and_it_resumes(tmp_path: Path, name: str) -> None:
    config = write_config(tmp_path, **LONG_TRIALS)
    paths = SweepPaths(tmp_path / "results" / "s")
    with started_sweep("--config", config, *OPTIONS, cwd=tmp_path) as process:
        wait_for_report(paths, "0000")
        killed_at = time.monotonic()
        os.kill(find_child(process, name), signal.SIGKILL)
        line = read_until(process, "Go on with: python -m qlora_ray.sweep --resume results/s")
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert process.wait() == 130
        # Else it was Ray who ended it.
        assert time.monotonic() - killed_at < RAYS_OWN_END_S
    assert {"gcs_server": "Ray's GCS", "raylet": "the raylet of this node"}[name] in line
    assert read_json(paths.summary)["status"] == "interrupted"
    states = {read_json(path)["state"] for path in paths.trials.glob("*/record.json")}
    assert states == {"interrupted"}
    resumed = run_sweep("--resume", paths.root, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert read_json(paths.summary)["counts"]["complete"] == 2
