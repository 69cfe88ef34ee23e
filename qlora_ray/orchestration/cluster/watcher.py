"""Nodes that come and go while a sweep runs: looked at every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qlora_ray.hardware import NodeProfile
from qlora_ray.orchestration.cluster.nodes import RayNode
from qlora_ray.orchestration.cluster.probing import (
    PROBE_TIMEOUT_S,
    LeftOut,
    Probe,
    ProbedCluster,
    ask_node,
    name_apart,
    read_answer,
    shared_marker,
)

GONE = "the node is gone"
LEAVING = "Ray was told that the node will leave"


class NodeChanges(Protocol):
    """What is done about nodes that come and go. Called from the watcher's thread."""

    def use(self, node: RayNode, profile: NodeProfile) -> None:
        """A node has joined and can be used."""

    def leave_out(self, left_out: LeftOut) -> None:
        """A node has joined and cannot be used."""

    def lose(self, node: RayNode, reason: str) -> None:
        """A node that was used is gone."""

    def drain(self, node: RayNode, reason: str, deadline_s: float) -> None:
        """A node that is used will be gone after so many seconds."""


@dataclass(frozen=True)
class NodeDoor:
    """How nodes are seen and asked; tests give their own.

    Attributes:
        list_nodes: Every node that is up, by its id.
        ask: Sends a node the question of what it is.
        read: The answer, see probing.read_answer.
        clock: Monotonic seconds.
        wall_clock: Unix time, as Ray gives deadlines in.
    """

    list_nodes: Callable[[], Mapping[str, RayNode]]
    ask: Callable[..., Probe] = ask_node
    read: Callable[..., NodeProfile | LeftOut | None] = read_answer
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time


@dataclass
class _Asked:
    """A node that was asked, and the marker that it is to see."""

    probe: Probe
    marker: ExitStack


class NodeWatcher:
    """Finds what has changed since the last look. A slow or silent node delays nobody.

    Args:
        cluster: The nodes at the start. A node that was left out is not asked again while it stays up.
        changes: Is told what is new.
        door: How nodes are seen.
        folder: What every node must see.
        probe_timeout_s: How long a node may take to answer.
        drain_timeout_s: What a node is given to drain when Ray names no time at which it will be gone.
    """

    def __init__(
        self,
        cluster: ProbedCluster,
        *,
        changes: NodeChanges,
        door: NodeDoor,
        folder: Path | None = None,
        probe_timeout_s: float = PROBE_TIMEOUT_S,
        drain_timeout_s: float,
    ) -> None:
        self._changes = changes
        self._door = door
        self._folder = folder
        self._probe_timeout_s = probe_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._names = {node_id: profile.hostname for node_id, profile in cluster.profiles.items()}
        self._used = {
            node_id: RayNode(node_id, profile.address or "", profile.hostname)
            for node_id, profile in cluster.profiles.items()
        }
        self._known = {*self._used, *(item.node.node_id for item in cluster.left_out)}
        self._asked: dict[str, _Asked] = {}
        self._draining: set[str] = set()

    def look(self) -> None:
        """Looks once, and tells what is new."""
        nodes = self._door.list_nodes()
        for node_id in [node_id for node_id in self._known if node_id not in nodes]:
            self._forget(node_id)
        for node_id, node in nodes.items():
            if node.drain_deadline_ms is not None:
                self._drain(node, node.drain_deadline_ms)
            elif node_id not in self._known:
                self._ask(node)
        for node_id in list(self._asked):
            self._read(node_id)

    def close(self) -> None:
        """Leaves no marker behind."""
        for asked in self._asked.values():
            asked.marker.close()
        self._asked.clear()

    def _ask(self, node: RayNode) -> None:
        marker = ExitStack()
        path = marker.enter_context(shared_marker(self._folder))
        self._known.add(node.node_id)
        self._asked[node.node_id] = _Asked(self._door.ask(node, marker=path), marker)

    def _read(self, node_id: str) -> None:
        probe = self._asked[node_id].probe
        is_late = self._door.clock() - probe.asked_at > self._probe_timeout_s
        answer = self._door.read(probe, is_late=is_late, timeout_s=self._probe_timeout_s)
        if answer is None:
            return
        self._asked.pop(node_id).marker.close()
        # Until it is told: if that fails, the node is asked again.
        self._known.discard(node_id)
        if isinstance(answer, LeftOut):
            self._changes.leave_out(answer)
        else:
            profile = name_apart({node_id: answer}, taken=self._names.values())[node_id]
            self._changes.use(probe.node, profile)
            self._names[node_id] = profile.hostname
            self._used[node_id] = probe.node
        self._known.add(node_id)

    def _forget(self, node_id: str) -> None:
        # First told, then forgotten: if telling fails, the next look does it again.
        node = self._used.get(node_id)
        if node is not None:
            self._changes.lose(node, GONE)
            del self._used[node_id]
        asked = self._asked.pop(node_id, None)
        if asked is not None:
            asked.marker.close()
        self._known.discard(node_id)
        self._draining.discard(node_id)
        self._names.pop(node_id, None)

    def _drain(self, node: RayNode, deadline_ms: int) -> None:
        # One that joins only to leave is never used; it is asked if it stays after all.
        if node.node_id in self._draining or node.node_id not in self._used:
            return
        left_s = deadline_ms / 1000 - self._door.wall_clock() if deadline_ms else self._drain_timeout_s
        self._changes.drain(node, LEAVING, max(0.0, left_s))
        self._draining.add(node.node_id)
