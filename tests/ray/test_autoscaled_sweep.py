"""A sweep on a cluster without a device: Ray's autoscaler brings nodes for it, and takes them away again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qlora_ray.runs import SweepPaths, read_events
from qlora_ray.runs.records import Manifest, TrialRecord, read_record
from tests.e2e.sweeps import run_sweep, write_config
from tests.ray.autoscaled import autoscaled_cluster, list_workers

NUM_TRIALS = 10
GONE_TIMEOUT_S = 60.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_come_for_a_sweep_that_waits_and_go_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The cluster asks for no token, whatever this user's home has.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with autoscaled_cluster(tmp_path, gpu_class="T4", max_nodes=2) as address:
        assert list_workers(address) == []
        config = write_config(
            tmp_path,
            cluster={"address": address, "simulate": True, "slots_per_device": 1, "scale_up": {"GPU": 1}},
            search={"num_trials": NUM_TRIALS},
            training={"max_samples": 240},
            results={"dir": str(tmp_path / "results"), "name": "s"},
        )
        done = run_sweep("--config", config, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while list_workers(address):
            assert time.monotonic() < deadline
            time.sleep(0.5)
    paths = SweepPaths(tmp_path / "results" / "s")
    records = [read_record(path / "record.json", TrialRecord) for path in sorted(paths.trials.iterdir())]
    assert [record.state for record in records] == ["complete"] * NUM_TRIALS
    # The head trains nothing: both nodes came for the sweep, and both trained.
    nodes = {record.executor.ray_node_id for record in records}
    assert len(nodes) == 2
    assert {record.executor.device for record in records} == {"Tesla T4 (simulated)"}
    assert nodes <= {node["ray_node_id"] for node in read_record(paths.manifest, Manifest).nodes}
    events = read_events(paths.events)
    assert [event["reason"] for event in events if event["event"] == "node_left_out"] == []
    assert [event["node"] for event in events if event["event"] == "node_joined"] == [max(nodes)]
    # Twice as many at once, and never less while trials are to come.
    asked = [event["num_devices"] for event in events if event["event"] == "capacity_wanted"]
    assert asked[0] == 2 and asked == sorted(asked)
