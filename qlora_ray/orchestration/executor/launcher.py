"""How executors are started and ended, and what Ray says of one that died."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray

from qlora_ray.hardware import NodeProfile, Placement, Plan
from qlora_ray.orchestration.cluster.nodes import on_node
from qlora_ray.orchestration.executor.actor import Executor, ExecutorTerms
from qlora_ray.orchestration.executor.shared_data import SharedData

# Calls an executor serves at once beside one long poll per slot: describe, wait_change, heartbeat, and a few at a time
# of admit, evict and preempt.
SPARE_CALLS = 8


@dataclass(frozen=True)
class ExecutorSpec:
    """One executor the plan wants.

    Attributes:
        placement: What the plan has for its device.
        node_id: The Ray node it belongs on.
        device: Which of the placement's devices, `host:index`. Ray chooses among those of a node, so that this tells
            devices apart and does not name one.
        plan: The plan of a node that joined after the sweep's own was made; None for the sweep's own.
    """

    placement: Placement
    node_id: str
    device: str = ""
    plan: Plan | None = None


def plan_executors(plan: Plan, profiles: Mapping[str, NodeProfile], *, is_late: bool = False) -> list[ExecutorSpec]:
    """Every executor of a plan.

    Args:
        plan: The plan.
        profiles: The nodes it was made for, by Ray node id.
        is_late: Whether it is of nodes that joined a running sweep, which has a plan of its own.
    """
    nodes = {profile.hostname: node_id for node_id, profile in profiles.items()}
    return [
        ExecutorSpec(placement, nodes[device.rsplit(":", 1)[0]], device, plan if is_late else None)
        for placement in plan.placements
        for device in placement.devices
        for _ in range(placement.executors_per_device)
    ]


class Launcher(Protocol):
    """Starts and ends executors. An executor's methods are called as `executor.method.remote(...)` and awaited."""

    def start(self, spec: ExecutorSpec) -> Any:
        """Starts an executor; returns before it is ready."""

    def kill(self, executor: Any) -> None:
        """Ends an executor at once; one that is dead stays dead."""


@dataclass(frozen=True)
class RayLauncher:
    """Executors as Ray actors.

    Attributes:
        terms: What every executor is told.
        data: Where executors have the prepared data from; None for executors of tests, which need none.
        executor_class: What each executor is; tests give one without a model.
    """

    terms: ExecutorTerms
    data: SharedData | None
    executor_class: type = Executor

    def start(self, spec: ExecutorSpec) -> Any:
        """See Launcher."""
        placement = spec.placement
        terms = self.terms if spec.plan is None else replace(self.terms, plan=spec.plan)
        # A placement is the plan for this node's device, not for whichever node has room.
        return (
            ray.remote(self.executor_class)
            .options(
                num_cpus=placement.num_cpus,
                num_gpus=placement.num_gpus,
                max_concurrency=SPARE_CALLS + _most_slots(placement, terms.plan),
                **on_node(spec.node_id),
            )
            .remote(terms, placement, self.data)
        )

    def kill(self, executor: Any) -> None:
        """See Launcher."""
        ray.kill(executor)


def _most_slots(planned: Placement, plan: Plan | None) -> int:
    """Slots the executor can have: on a node of mixed GPUs, Ray chooses which it gets."""
    placements = [planned, *(plan.placements if plan is not None else ())]
    return max(placement.slots_per_executor for placement in placements)
