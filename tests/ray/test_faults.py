"""Processes that die or freeze under a running sweep of the real driver: what its user reads, and what is lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray

from qlora_ray.runs import read_json
from tests.driver_forks import DriverForks
from tests.ray.forked_sweep import ForkedSweep
from tests.ray.real_nodes import cluster_secret, ray_node

HEARTBEAT_TIMEOUT_S = 5.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("ray::Pool", "the pool is gone"),
        ("gcs_server", "Ray's GCS"),
        ("raylet", "the raylet of this node"),
    ],
)
def test_the_death_of_pool_gcs_or_raylet_interrupts_a_sweep_in_one_line_and_it_resumes(
    make_sweep: Callable[..., ForkedSweep],
    forks: DriverForks,
    undisturbed: tuple[ForkedSweep, int],
    title: str,
    words: str,
) -> None:
    sweep = make_sweep(address=None)
    sweep.hold()
    sweep.start()
    sweep.wait_for_events("trial_leased", 2)
    os.kill(sweep.find_process(title), signal.SIGKILL)
    assert forks.wait().exit_code == 130
    last = sweep.text.splitlines()[-1]
    assert words in last
    assert last.endswith(f"Go on with: python -m qlora_ray.sweep --resume {sweep.paths.root}")
    assert "Traceback" not in sweep.text
    (lost,) = sweep.events("pool_lost")
    assert words in lost["reason"]
    assert read_json(sweep.paths.summary)["status"] == "interrupted"
    assert {read_json(path)["state"] for path in sweep.paths.trials.glob("*/record.json")} == {"interrupted"}
    sweep.let_go()
    sweep.drive()
    assert sweep.outcome() == undisturbed[0].outcome()


def test_a_frozen_executor_is_replaced_and_its_trials_go_on(
    make_sweep: Callable[..., ForkedSweep], forks: DriverForks, undisturbed: tuple[ForkedSweep, int]
) -> None:
    sweep = make_sweep(heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S)
    sweep.hold()
    sweep.start()
    sweep.wait_for_events("trial_leased", 2)
    frozen = psutil.Process(sweep.find_process("ray::PlannedExecutor"))
    try:
        frozen.suspend()
        sweep.wait_for_events("executor_lost")
        # The other one needs what Ray had given to this one.
        sweep.wait_for_events("executor_ready", 2)
        assert not frozen.is_running()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            frozen.kill()
    sweep.let_go()
    assert forks.wait().exit_code == 0, sweep.text
    assert sweep.events("executor_lost")[0]["reason"] == f"it has not answered for {HEARTBEAT_TIMEOUT_S:g} s"
    assert sweep.outcome() == undisturbed[0].outcome()


def test_the_death_of_another_nodes_raylet_costs_its_trials_no_more_than_a_retry(
    make_sweep: Callable[..., ForkedSweep],
    forks: DriverForks,
    undisturbed: tuple[ForkedSweep, int],
    tmp_path: Path,
) -> None:
    address = ray.get_runtime_context().gcs_address
    with ray_node(tmp_path, f"--address={address}", "--num-cpus=1", environment=cluster_secret()) as node:
        sweep = make_sweep()
        sweep.hold()
        sweep.start()
        sweep.wait_for_events("trial_leased", 4)
        (raylet,) = [one for one in psutil.Process(node.pid).children(recursive=True) if one.name() == "raylet"]
        raylet.kill()
        sweep.wait_for_events("node_lost")
        sweep.let_go()
        assert forks.wait().exit_code == 0, sweep.text
    (lost,) = sweep.events("node_lost")
    assert len(lost["executors"]) == 1
    assert sorted(record["num_retries"] for record in sweep.records()) == [0, 0, 0, 0, 1, 1]
    assert sweep.outcome() == undisturbed[0].outcome()
