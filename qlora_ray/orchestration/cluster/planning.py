"""The plan of a cluster: the planner's, with the nodes that it was never told of; where need be, of nodes to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_ray.errors import PlacementError
from qlora_ray.hardware import NodeProfile, Plan
from qlora_ray.hardware.probe import PACKAGES
from qlora_ray.orchestration.cluster.nodes import list_nodes
from qlora_ray.orchestration.cluster.probing import ProbedCluster, probe_cluster
from qlora_ray.orchestration.cluster.scaling import CapacityRequest
from qlora_ray.preflight.checks import Preflight, plan_sweep

# A cloud takes minutes to start a machine, and may have none for a while.
FIRST_NODE_TIMEOUT_S = 1800.0
LOOK_INTERVAL_S = 2.0


@dataclass(frozen=True)
class PlannedCluster:
    """The nodes of a cluster, and what runs where."""

    nodes: ProbedCluster
    plan: Plan


def plan_nodes(
    preflight: Preflight,
    folder: Path,
    *,
    request: CapacityRequest | None = None,
    timeout_s: float = FIRST_NODE_TIMEOUT_S,
    tell: Callable[[str], None] = lambda words: None,
) -> PlannedCluster:
    """Probes and plans the nodes there are; with an autoscaler, waits for the first one that can be used.

    Args:
        preflight: What is planned for.
        folder: What every node must see.
        request: What asks the autoscaler; None to use what is there.
        timeout_s: How long the first usable node is waited for.
        tell: Is told what is waited for.

    Raises:
        PlacementError: No node has room for one trial.
    """
    nodes = probe_cluster(folder)
    try:
        return PlannedCluster(nodes, plan_cluster(preflight, nodes))
    except PlacementError as error:
        if request is None:
            raise
        problem = error
    request.ask(1)
    tell("waiting for the autoscaler to bring a node")
    seen, deadline = set(list_nodes()), time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        time.sleep(LOOK_INTERVAL_S)
        present = set(list_nodes())
        if present == seen:
            continue
        seen = present
        nodes = probe_cluster(folder)
        try:
            return PlannedCluster(nodes, plan_cluster(preflight, nodes))
        except PlacementError as error:
            problem = error
    raise problem


def plan_cluster(preflight: Preflight, cluster: ProbedCluster) -> Plan:
    """The placements on all nodes that answered; those that are left out stand among the skipped, with the reason.

    Raises:
        PlacementError: No device has room for one trial; the message names the nodes that are left out too.
    """
    words = tuple(map(str, cluster.left_out))
    try:
        plan = plan_sweep(preflight, list(cluster.profiles.values()))
    except PlacementError as error:
        if not words:
            raise
        raise PlacementError("\n".join([str(error), *(f"left out: {word}" for word in words)])) from None
    notes = note_versions(list(cluster.profiles.values()))
    return replace(plan, skipped=(*plan.skipped, *words), notes=(*plan.notes, *notes))


def note_versions(nodes: Sequence[NodeProfile]) -> list[str]:
    """A sentence per package whose version is not the same on all nodes: the same trial may have other figures there.

    Args:
        nodes: The nodes that a sweep uses.
    """
    notes = []
    for package in PACKAGES:
        hosts: dict[str, list[str]] = {}
        for node in nodes:
            hosts.setdefault(node.packages.get(package) or "none", []).append(node.hostname)
        if len(hosts) > 1:
            found = ", ".join(f"{version} on {' and '.join(names)}" for version, names in hosts.items())
            notes.append(f"{package} is not the same on all nodes, so that their figures may differ: {found}")
    return notes
