"""The plan of a cluster: the planner's, with the nodes that it was never told of."""

from __future__ import annotations

from dataclasses import replace

from qlora_ray.errors import PlacementError
from qlora_ray.hardware import Plan
from qlora_ray.orchestration.cluster.probing import ProbedCluster
from qlora_ray.preflight.checks import Preflight, plan_sweep


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
    return replace(plan, skipped=(*plan.skipped, *words))
