"""Which cluster is joined or started, what its nodes are, and whether all of them see the sweep's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_ray.config.schema import Cluster
from qlora_ray.errors import PlacementError, RunError
from qlora_ray.orchestration import nodes
from qlora_ray.orchestration.nodes import check_shared_storage, probe_cluster, ray_cluster
from tests.unit.hardware_fixtures import cpu_node

# Ray takes 56 hexadecimal digits.
HERE, OTHER, THIRD, DEAD = (digit * 56 for digit in "abcd")


class FakeRay:
    """Ray's nodes, with tasks that `run(node_id, function, *args)` answers at once.

    Attributes:
        started: What `init` was called with; None before.
        is_up: Whether it was called and not shut down since.
    """

    def __init__(self, run: Callable[..., Any], *, cpus: dict[str, int]) -> None:
        self._run = run
        self._cpus = cpus
        self.started: dict[str, Any] | None = None
        self.is_up = False

    def init(self, **options: Any) -> None:
        self.started, self.is_up = options, True

    def shutdown(self) -> None:
        self.is_up = False

    def nodes(self) -> list[dict[str, Any]]:
        living = [{"NodeID": one, "Alive": True, "Resources": {"CPU": float(n)}} for one, n in self._cpus.items()]
        return [*living, {"NodeID": DEAD, "Alive": False, "Resources": {}}]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: HERE)

    def remote(self, function: Callable[..., Any]) -> Any:
        def options(*, num_cpus: float, scheduling_strategy: Any) -> Any:
            assert num_cpus == 0 and not scheduling_strategy.soft  # runs there, however busy the node is
            return SimpleNamespace(remote=lambda *args: self._run(scheduling_strategy.node_id, function, *args))

        return SimpleNamespace(options=options)

    def get(self, value: Any, timeout: float) -> Any:
        return value


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    """Puts a FakeRay in Ray's place."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def put(run: Callable[..., Any] = lambda *args: None, *, cpus: dict[str, int] | None = None) -> FakeRay:
        ray = FakeRay(run, cpus=cpus or {HERE: 4})
        monkeypatch.setattr(nodes, "ray", ray)
        return ray

    return put


@pytest.mark.parametrize(
    ("configured", "environment", "joined"),
    [
        (None, None, "local"),  # a private one, whatever runs on this machine
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),
    ],
)
def test_the_config_names_the_cluster_before_the_environment_does(
    fake_ray: Callable[..., FakeRay],
    monkeypatch: pytest.MonkeyPatch,
    configured: str | None,
    environment: str | None,
    joined: str,
) -> None:
    ray = fake_ray()
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    with ray_cluster(Cluster(address=configured)):
        assert ray.started is not None and ray.started["address"] == joined
    assert not ray.is_up


def test_the_cluster_is_left_when_the_sweep_breaks(fake_ray: Callable[..., FakeRay]) -> None:
    ray = fake_ray()
    with pytest.raises(OSError, match="disk"), ray_cluster(Cluster()):
        assert ray.is_up
        raise OSError("disk")
    assert not ray.is_up


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, RuntimeError])
def test_a_cluster_that_cannot_be_joined_is_refused_in_one_line(
    fake_ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def refuse(**options: Any) -> None:
        raise kind("no GCS at this port.\nat gcs_utils.py:12")

    monkeypatch.setattr(fake_ray(), "init", refuse)
    with (
        pytest.raises(
            PlacementError, match=r"^cluster\.address: .* 10\.0\.0\.9:1: no GCS at this port\. Start"
        ) as caught,
        ray_cluster(Cluster(address="10.0.0.9:1")),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_every_living_node_is_probed_and_counts_the_cpus_that_ray_may_use(
    fake_ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = cpu_node("head", num_cpus=16), cpu_node("worker", num_cpus=8)
    monkeypatch.setattr(nodes, "probe_node", lambda: here)
    fake_ray(lambda node_id, function: {OTHER: there}[node_id], cpus={HERE: 2, OTHER: 64})
    found = probe_cluster()
    assert list(found) == [HERE, OTHER]
    assert found[HERE] == replace(here, num_cpus=2)
    assert found[OTHER] == there


def test_several_nodes_on_one_machine_are_told_apart_by_name(
    fake_ray: Callable[..., FakeRay], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "probe_node", lambda: cpu_node("box"))
    fake_ray(lambda node_id, function: function(), cpus={HERE: 1, OTHER: 1})
    # A placement is sent to its node by this name.
    assert {key: profile.hostname for key, profile in probe_cluster().items()} == {
        HERE: "box#aaaaaa",
        OTHER: "box#bbbbbb",
    }


def test_one_node_has_nothing_to_share(fake_ray: Callable[..., FakeRay], tmp_path: Path) -> None:
    fake_ray()
    check_shared_storage(tmp_path / "not-even-there")


def test_a_node_that_does_not_see_the_folder_is_named_and_no_marker_is_left(
    fake_ray: Callable[..., FakeRay], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"

    def run(node_id: str, function: Callable[..., Any], marker: Path) -> tuple[str, bool]:
        assert marker.exists()
        # What the other node has at this path is a folder of its own.
        _, is_seen = function(marker if node_id == THIRD else elsewhere / marker.name)
        return f"host-{node_id[0]}", is_seen

    fake_ray(run, cpus={HERE: 1, OTHER: 1, THIRD: 1})
    with pytest.raises(RunError, match=r"results\.dir: .* host-b does not") as caught:
        check_shared_storage(tmp_path)
    assert "host-c" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nodes_that_all_see_the_folder_pass(fake_ray: Callable[..., FakeRay], tmp_path: Path) -> None:
    fake_ray(lambda node_id, function, marker: function(marker), cpus={HERE: 1, OTHER: 1})
    check_shared_storage(tmp_path)
    assert list(tmp_path.iterdir()) == []
