"""Ray's nodes, as a sweep sees them, and how work is placed on one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

# The label that every Ray node has: its id.
NODE_ID_LABEL = "ray.io/node-id"
# How much of a node's id tells it apart in words.
SHORT_ID = 8


@dataclass(frozen=True)
class RayNode:
    """A node that is up.

    Attributes:
        node_id: Ray's id, 56 hexadecimal digits.
        address: The IP address that Ray knows it by.
        hostname: The machine's name.
        num_cpus: CPUs that Ray may use there; what it does not count, it cannot schedule.
        resources: Everything that Ray counts there.
        labels: Ray's labels, such as `ray.io/accelerator-type`.
        drain_deadline_ms: Unix time at which it will be gone, 0 if that is open; None if it is not draining.
    """

    node_id: str
    address: str = ""
    hostname: str = ""
    num_cpus: int = 0
    resources: Mapping[str, float] | None = None
    labels: Mapping[str, str] | None = None
    drain_deadline_ms: int | None = None

    @property
    def name(self) -> str:
        """`host (10.0.0.4, node 1a2b3c4d)`: for people."""
        return f"{self.hostname or 'node'} ({self.address}, node {self.node_id[:SHORT_ID]})"


def own_node_id() -> str:
    """The node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def list_nodes() -> dict[str, RayNode]:
    """Every node that is up, by its id."""
    draining = _find_draining()
    return {
        node["NodeID"]: RayNode(
            node_id=node["NodeID"],
            address=node.get("NodeManagerAddress", ""),
            hostname=node.get("NodeManagerHostname", ""),
            num_cpus=int(node["Resources"].get("CPU", 0)),
            resources=node["Resources"],
            labels=node.get("Labels") or {},
            drain_deadline_ms=draining.get(node["NodeID"]),
        )
        for node in ray.nodes()
        if node["Alive"]
    }


def describe_own_node() -> dict[str, str]:
    """How Ray names the node of this process, for records; nothing outside Ray."""
    if not ray.is_initialized():
        return {}
    return {"ray_node_id": own_node_id(), "address": ray.util.get_node_ip_address()}


def own_gpu_ids() -> list[int]:
    """Indices, on its node, of the GPUs that Ray gave this process; none outside Ray.

    Where CUDA_VISIBLE_DEVICES names them by UUID, as parts of a GPU (MIG) are, Ray does too: those have no index.
    """
    if not ray.is_initialized():
        return []
    return [int(number) for number in ray.get_gpu_ids() if str(number).isdecimal()]


def on_node(node_id: str) -> dict[str, Any]:
    """Options of a task or actor that may run on this node only, however busy it is.

    A label, as Ray's documents advise, and not a NodeAffinitySchedulingStrategy: autoscaler v2 honours labels.
    """
    return {"label_selector": {NODE_ID_LABEL: node_id}}


def _find_draining() -> Mapping[str, int]:
    """Nodes that Ray was told will leave (`ray drain-node`, a spot notice, the autoscaler), with their deadlines.

    Ray 2.60 has no public way to ask; Ray Train's own watch for preempted nodes asks the same way.
    """
    try:
        from ray._private.state import state

        return dict(state.get_draining_nodes())
    except (ImportError, AttributeError):
        return {}
