"""A sweep whose cluster works in another folder than its user, and the commands that look at it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from qlora_ray.runs import SweepPaths, read_events, read_json
from tests.e2e.sweeps import read_until, started_sweep, write_config
from tests.ray.real_nodes import ROOT, free_port, ray_node

EMBEDDED_BASE = ROOT / "qlora_ray" / "embedded" / "assets" / "base"


def run_cluster_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qlora_ray.cluster", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_relative_paths_are_the_users_and_the_commands_find_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree(EMBEDDED_BASE, tmp_path / "base")
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = write_config(
        tmp_path,
        model={"name": "base"},
        cluster={"address": address, "slots_per_device": 1, "drain_timeout_s": 77.0},
        search={"num_trials": 2},
        # Trial 0001 trains while three commands start, one after the other.
        training={"max_samples": 2400},
        results={"dir": "results", "name": "s"},
    )
    # The node's processes start in this test's folder, the sweep in tmp_path.
    with ray_node(tmp_path, "--head", f"--port={port}", "--num-cpus=1", environment={"RAY_AUTH_MODE": "disabled"}):
        idle = run_cluster_command("status", "--address", address)
        assert idle.returncode == 0 and "no sweep runs here" in idle.stdout, idle.stderr
        with started_sweep("--config", config, cwd=tmp_path) as process:
            read_until(process, "trial 0000")
            status = run_cluster_command("status", "--address", address)
            assert status.returncode == 0 and "sweep s-" in status.stdout, status.stderr
            (row,) = [line.split() for line in status.stdout.splitlines() if line.endswith("/ 1")]
            unknown = run_cluster_command("drain", "10.9.9.9", "--address", address)
            assert unknown.returncode == 2 and "must name one node, got 10.9.9.9, which names none" in unknown.stderr
            drained = run_cluster_command("drain", row[0], "--address", address)
            assert drained.returncode == 0 and "end within 77 s" in drained.stdout, drained.stderr
            process.wait(180)
    paths = SweepPaths(tmp_path / "results" / "s")
    assert read_json(paths.manifest)["config"]["model"]["name"] == "base"
    record = read_json(paths.trial("0000").record)
    assert (record["state"], record["base"]["name"]) == ("complete", "base")
    # Its only node left: what ran is interrupted, and a resume goes on.
    assert {"node_draining", "node_drained"} <= {event["event"] for event in read_events(paths.events)}
    assert read_json(paths.summary)["status"] == "interrupted"
    assert process.returncode == 1
