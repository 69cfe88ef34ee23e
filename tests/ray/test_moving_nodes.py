"""Nodes that join, leave and drain while a sweep runs, on real raylets started as users start them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray

from qlora_ray.hardware import Plan
from qlora_ray.orchestration import node_changes
from qlora_ray.orchestration.cluster.nodes import list_nodes
from qlora_ray.orchestration.cluster.probing import ProbedCluster, describe_node, probe_cluster
from qlora_ray.orchestration.cluster.repeating import RepeatingThread
from qlora_ray.orchestration.cluster.watcher import NodeDoor, NodeWatcher
from qlora_ray.orchestration.node_changes import SweepNodes
from qlora_ray.orchestration.pool_directory import drain_node, find_status, render_status
from qlora_ray.runs import read_events, read_json
from tests.fake_executor import GO, FakePlacement, HeldExecutor
from tests.fake_sweep import Sweep
from tests.ray.real_nodes import cluster_secret, ray_node

WAIT_S = 120.0
LOOK_INTERVAL_S = 0.5


@dataclass(frozen=True)
class NodePlacement(FakePlacement):
    """A placement of one node's CPU, for the fake executor."""

    devices: tuple[str, ...] = ()
    device_kind: str = "cpu"
    device_name: str = "fake CPU"
    num_devices: int = 1


def plan_fake(preflight: Any, profiles: Any) -> Plan:
    """The planner: two slots of the fake engine on each node."""
    placements: Any = tuple(NodePlacement(devices=(f"{profile.hostname}:0",)) for profile in profiles)
    return Plan(placements, (), (), 2 * len(profiles))


@pytest.fixture
def join_node(cluster: None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts further nodes of the tests' cluster; all are ended at the end of the test."""
    with ExitStack() as nodes:

        def join(**environment: str) -> Any:
            address = ray.get_runtime_context().gcs_address
            return nodes.enter_context(
                ray_node(
                    tmp_path,
                    f"--address={address}",
                    "--num-cpus=1",
                    environment={**cluster_secret(), **environment},
                )
            )

        yield join


@contextmanager
def watched(pool: Any, config: Any, folder: Path) -> Iterator[None]:
    """Keeps a pool's seats to the nodes that are up, as the driver does."""
    start = ProbedCluster({node_id: describe_node(node, probe_own()) for node_id, node in list_nodes().items()})
    preflight: Any = FakePreflight(config)
    changes = SweepNodes(preflight, pool, plan=Plan((), (), (), 0), profiles={})
    watcher = NodeWatcher(start, changes=changes, door=NodeDoor(list_nodes), folder=folder, drain_timeout_s=60.0)
    thread = RepeatingThread(watcher.look, interval_s=LOOK_INTERVAL_S, name="nodes")
    thread.start()
    try:
        yield
    finally:
        thread.close()
        watcher.close()


def probe_own() -> Any:
    from qlora_ray.hardware import probe_node

    return probe_node()


@dataclass(frozen=True)
class FakePreflight:
    """What SweepNodes asks of one."""

    config: Any


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ask_ray_to_drain(node_id: str) -> None:
    """As `ray drain-node` does, and as clouds do before they take a spot machine away."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, why_not = gcs.drain_node(node_id, reason, "the test wants it back", 0)
    assert is_accepted, why_not


def others() -> list[str]:
    here = ray.get_runtime_context().get_node_id()
    return [node_id for node_id in list_nodes() if node_id != here]


class User:
    """Does something to the cluster while a sweep runs: `act` on a thread, then the sweep's trials go on.

    Attributes:
        problem: What went wrong in `act`.
    """

    def __init__(self, sweep: Sweep, act: Callable[[], None]) -> None:
        self._sweep = sweep
        self._act = act
        self.problem: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._act()
        except BaseException as problem:
            self.problem = problem
        finally:
            (self._sweep.paths.root / GO).touch()


def run_with_user(sweep: Sweep, act: Callable[[], None]) -> None:
    """Runs a sweep of HeldExecutors under the watch of its nodes, and what a user does meanwhile."""
    user = User(sweep, act)
    make_pool = sweep.make_pool
    with ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> Any:
            sweep.pool = make_pool(*arguments, **options)
            stack.enter_context(watched(sweep.pool, sweep.config, sweep.paths.root))
            user.thread.start()
            return sweep.pool

        sweep.make_pool = make
        sweep.run(executor_class=HeldExecutor)
    user.thread.join()
    if user.problem is not None:
        raise user.problem


def events_of(sweep: Sweep, name: str) -> list[dict[str, Any]]:
    return [event for event in read_events(sweep.paths.events) if event["event"] == name]


def is_on_second(sweep: Sweep) -> bool:
    """Whether a trial holds a slot of the executor that came with the second node."""
    return any(event["executor"] == 1 for event in events_of(sweep, "trial_leased"))


@pytest.mark.slow
def test_a_node_that_joins_in_mid_sweep_trains_and_its_death_loses_nothing(
    tmp_path: Path, make_pool: Callable[..., Any], join_node: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_changes, "plan_sweep", plan_fake)
    sweep = Sweep(tmp_path, make_pool, scheduler="none", num_trials=5)

    def act() -> None:
        wait_for(lambda: len(events_of(sweep, "trial_leased")) == 2)
        node = join_node()
        wait_for(lambda: is_on_second(sweep))
        os.killpg(node.pid, signal.SIGKILL)
        wait_for(lambda: bool(events_of(sweep, "node_lost")))

    run_with_user(sweep, act)
    assert sweep.states() == ["COMPLETE"] * 5
    (joined,), (lost,) = events_of(sweep, "node_joined"), events_of(sweep, "node_lost")
    assert joined["node"] == lost["node"]
    assert len(events_of(sweep, "node_lost")) == 1
    # Ray tells of the dead executor before it tells of the dead node.
    moved = {event["trial"] for event in events_of(sweep, "trial_leased") if event["executor"] == 1}
    assert moved
    for trial in moved:
        assert read_json(sweep.paths.trial(trial).record)["num_retries"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["of Ray", "of the sweep"])
def test_the_trials_of_a_node_that_drains_go_on_elsewhere(
    tmp_path: Path,
    make_pool: Callable[..., Any],
    join_node: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
) -> None:
    monkeypatch.setattr(node_changes, "plan_sweep", plan_fake)
    sweep = Sweep(tmp_path, make_pool, scheduler="none", num_trials=5)

    def act() -> None:
        wait_for(lambda: len(events_of(sweep, "trial_leased")) == 2)
        join_node()
        wait_for(lambda: is_on_second(sweep))
        (node,) = others()
        if asked == "of Ray":
            ask_ray_to_drain(node)
        else:
            rows = [line.split() for line in render_status(find_status()).splitlines() if line.startswith(node[:8])]
            # Both trials may have come here meanwhile.
            assert [row[-3:] for row in rows[1:]] in ([["1", "/", "2"]], [["2", "/", "2"]])
            drained = drain_node(node[:8], reason="a test", deadline_s=60.0)
            assert (drained["node"], len(drained["sweeps"])) == (node, 1)
        wait_for(lambda: bool(events_of(sweep, "node_draining")))
        # The trials write their states at the end of the step that they are in.
        (sweep.paths.root / GO).touch()
        wait_for(lambda: bool(events_of(sweep, "node_drained")))

    run_with_user(sweep, act)
    assert sweep.states() == ["COMPLETE"] * 5
    assert events_of(sweep, "node_drained")
    draining, drained = events_of(sweep, "node_draining")[0], events_of(sweep, "node_drained")[0]
    later = [event for event in events_of(sweep, "trial_leased") if event["time"] > draining["time"]]
    assert {event["executor"] for event in later} == {0}
    assert drained["node"] == draining["node"]


@pytest.mark.slow
def test_a_node_without_the_package_is_named_and_left_out(
    tmp_path: Path, cluster: None, join_node: Callable[..., Any]
) -> None:
    shim = tmp_path / "shim"
    shim.mkdir()
    # The driver's sys.path reaches every worker of one machine; another machine has nothing there.
    (shim / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'qlora_ray':\n"
        "            raise ModuleNotFoundError(f\"No module named '{name}'\")\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    join_node(PYTHONPATH=str(shim))
    wait_for(lambda: len(others()) == 1)
    probed = probe_cluster(tmp_path)
    assert list(probed.profiles) == [ray.get_runtime_context().get_node_id()]
    (left_out,) = probed.left_out
    assert "No module named 'qlora_ray'" in left_out.reason
    assert left_out.node.node_id == others()[0]
