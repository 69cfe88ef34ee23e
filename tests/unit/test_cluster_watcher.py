"""Nodes that come and go: who is asked, used, lost and drained, each of it once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlora_ray.hardware import NodeProfile
from qlora_ray.orchestration.cluster.nodes import RayNode
from qlora_ray.orchestration.cluster.probing import LeftOut, Probe, ProbedCluster
from qlora_ray.orchestration.cluster.watcher import NodeDoor, NodeWatcher
from tests.unit.hardware_fixtures import cpu_node

HEAD, A, B = "head", "a" * 56, "b" * 56
PROBE_TIMEOUT_S = 30.0
DRAIN_TIMEOUT_S = 600.0


class Cluster:
    """Nodes that a test has come and go; it is also what the watcher tells of them.

    Attributes:
        up: The nodes that are up.
        answers: What each node says when it is asked; one that is not there has not answered yet.
        markers: The marker that each node was asked to see.
        told: What the watcher told, in order.
        now: The time.
        fails: How many of the next calls fail.
    """

    def __init__(self, folder: Path) -> None:
        self.up = {HEAD: RayNode(HEAD)}
        self.answers: dict[str, NodeProfile | str] = {}
        self.markers: dict[str, Path] = {}
        self.told: list[tuple[Any, ...]] = []
        self.now = 0.0
        self.fails = 0
        self.watcher = NodeWatcher(
            ProbedCluster({HEAD: cpu_node("head")}),
            changes=self,
            door=NodeDoor(lambda: dict(self.up), self._ask, self._read, lambda: self.now, lambda: 1000.0 + self.now),
            folder=folder,
            probe_timeout_s=PROBE_TIMEOUT_S,
            drain_timeout_s=DRAIN_TIMEOUT_S,
        )

    def look(self) -> list[tuple[Any, ...]]:
        """Looks once; what is told then."""
        before = len(self.told)
        self.watcher.look()
        return self.told[before:]

    def _ask(self, node: RayNode, *, marker: Path) -> Probe:
        assert node.node_id not in self.markers or not self.markers[node.node_id].exists()
        self.markers[node.node_id] = marker
        return Probe(node, None, self.now)

    def _read(self, probe: Probe, *, is_late: bool, timeout_s: float) -> NodeProfile | LeftOut | None:
        answer = self.answers.get(probe.node.node_id)
        if isinstance(answer, NodeProfile):
            return answer
        return LeftOut(probe.node, answer or "silent") if answer or is_late else None

    def _fail_once(self) -> None:
        if self.fails:
            self.fails -= 1
            raise TimeoutError("the pool is busy")

    def use(self, node: RayNode, profile: NodeProfile) -> None:
        self._fail_once()
        self.told.append(("use", node.node_id, profile.hostname))

    def leave_out(self, left_out: LeftOut) -> None:
        self.told.append(("leave out", left_out.node.node_id, left_out.reason))

    def lose(self, node: RayNode, reason: str) -> None:
        self._fail_once()
        self.told.append(("lose", node.node_id))

    def drain(self, node: RayNode, reason: str, deadline_s: float) -> None:
        self.told.append(("drain", node.node_id, deadline_s))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def join(cluster: Cluster, node_id: str, *, hostname: str = "worker") -> None:
    cluster.up[node_id] = RayNode(node_id)
    cluster.answers[node_id] = cpu_node(hostname)
    assert cluster.look() == [("use", node_id, hostname)]


def test_a_node_that_joins_is_asked_once_and_used_when_it_has_answered(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.look() == []
    cluster.up[A] = RayNode(A)
    assert cluster.look() == cluster.look() == []
    assert cluster.markers[A].exists() and cluster.markers[A].parent == tmp_path
    cluster.answers[A] = cpu_node("worker")
    assert cluster.look() == [("use", A, "worker")]
    assert cluster.look() == []
    assert list(tmp_path.iterdir()) == []


def test_a_silent_node_delays_no_other_and_is_given_up_in_time(cluster: Cluster, tmp_path: Path) -> None:
    cluster.up[A] = RayNode(A)
    cluster.look()
    join(cluster, B)
    cluster.now = PROBE_TIMEOUT_S + 1
    assert cluster.look() == [("leave out", A, "silent")]
    assert cluster.look() == []
    assert list(tmp_path.iterdir()) == []


def test_a_second_node_of_a_machine_has_a_name_of_its_own(cluster: Cluster) -> None:
    cluster.up[A] = RayNode(A)
    cluster.answers[A] = cpu_node("head")
    assert cluster.look() == [("use", A, "head#aaaaaa")]


def test_a_node_that_is_gone_is_lost_once_and_its_name_is_free_again(cluster: Cluster) -> None:
    join(cluster, A)
    del cluster.up[A]
    assert cluster.look() == [("lose", A)]
    assert cluster.look() == []
    join(cluster, B, hostname="worker")


def test_a_node_that_goes_before_it_has_answered_is_nobodys_loss(cluster: Cluster, tmp_path: Path) -> None:
    cluster.up[A] = RayNode(A)
    cluster.look()
    del cluster.up[A]
    assert cluster.look() == []
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_cannot_be_used_is_told_once_and_is_no_loss(cluster: Cluster) -> None:
    cluster.up[A] = RayNode(A)
    cluster.answers[A] = "no package"
    assert cluster.look() == [("leave out", A, "no package")]
    del cluster.up[A]
    assert cluster.look() == []


@pytest.mark.parametrize(("deadline_ms", "left_s"), [(1_060_000, 60.0), (0, DRAIN_TIMEOUT_S), (1, 0.0)])
def test_a_drain_notice_is_passed_on_once_with_the_time_that_is_left(
    cluster: Cluster, deadline_ms: int, left_s: float
) -> None:
    join(cluster, A)
    cluster.up[A] = replace(cluster.up[A], drain_deadline_ms=deadline_ms)
    assert cluster.look() == [("drain", A, left_s)]
    assert cluster.look() == []
    del cluster.up[A]
    assert cluster.look() == [("lose", A)]


def test_a_node_that_joins_to_leave_is_not_asked(cluster: Cluster) -> None:
    cluster.up[A] = RayNode(A, drain_deadline_ms=0)
    assert cluster.look() == []
    assert not cluster.markers


def test_no_marker_stays_when_the_watch_ends(cluster: Cluster, tmp_path: Path) -> None:
    cluster.up[A] = RayNode(A)
    cluster.look()
    cluster.watcher.close()
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_told_is_told_at_a_later_look(cluster: Cluster) -> None:
    cluster.up[A] = RayNode(A)
    cluster.answers[A] = cpu_node("worker")
    cluster.fails = 1
    with pytest.raises(TimeoutError):
        cluster.look()
    assert cluster.look() == [("use", A, "worker")]
    del cluster.up[A]
    cluster.fails = 1
    with pytest.raises(TimeoutError):
        cluster.look()
    assert cluster.look() == [("lose", A)]
    assert cluster.look() == []
