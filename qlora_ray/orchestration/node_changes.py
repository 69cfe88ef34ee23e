"""What a running sweep does about nodes that come and go: seats in the pool, events, the manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qlora_ray.errors import PlacementError, first_line
from qlora_ray.formats import plural
from qlora_ray.hardware import NodeProfile, Plan
from qlora_ray.hardware.simulation import as_if
from qlora_ray.orchestration.actor_calls import ask_and_wait
from qlora_ray.orchestration.cluster.nodes import RayNode
from qlora_ray.orchestration.cluster.probing import LeftOut
from qlora_ray.orchestration.cluster.scaling import CapacityRequest, count_devices_wanted
from qlora_ray.orchestration.executor.launcher import plan_executors
from qlora_ray.preflight.checks import Preflight, plan_sweep

# The pool answers at once; one that does not is dead, which others find out.
CALL_TIMEOUT_S = 30.0


class SweepNodes:
    """Keeps the pool's seats to the nodes that are up. See watcher.NodeChanges.

    Args:
        preflight: What a node is planned for.
        pool: The pool's actor.
        plan: The plan at the start.
        profiles: The nodes at the start, by Ray node id.
        on_joined: Is given the profile of a node that is used from now on, for the manifest.
    """

    def __init__(
        self,
        preflight: Preflight,
        pool: Any,
        *,
        plan: Plan,
        profiles: Mapping[str, NodeProfile],
        on_joined: Callable[[dict[str, Any]], None] = lambda profile: None,
    ) -> None:
        self._preflight = preflight
        self._pool = pool
        self._on_joined = on_joined
        self._has_gpus = _has_gpus(plan)
        # Devices by node: of those there can be a most.
        self._devices = _count_devices(plan, profiles)
        self._slots_per_device = max((placement.slots_per_device for placement in plan.placements), default=1)

    @property
    def num_devices(self) -> int:
        """Devices that the sweep has executors on."""
        return sum(self._devices.values())

    def use(self, node: RayNode, profile: NodeProfile) -> None:
        """Plans a node that has joined, and gives the pool its seats."""
        try:
            plan = self._plan(profile)
        except PlacementError as error:
            self.leave_out(LeftOut(node, first_line(error)))
            return
        specs = plan_executors(plan, {node.node_id: profile}, is_late=True)
        self._call("add_seats", specs)
        self._devices[node.node_id] = sum(placement.num_devices for placement in plan.placements)
        self._has_gpus = self._has_gpus or _has_gpus(plan)
        devices = ", ".join(dict.fromkeys(placement.device_name for placement in plan.placements))
        self._call(
            "note_node",
            "node_joined",
            node.node_id,
            f"{node.name}: {devices}, {plural(plan.total_slots, 'slot')}",
            {"hostname": profile.hostname, "address": node.address, "slots": plan.total_slots},
        )
        self._on_joined({**profile.to_dict(), "joined_at": round(time.time(), 3)})

    def leave_out(self, left_out: LeftOut) -> None:
        """Notes a node that has joined and cannot be used."""
        node = left_out.node
        facts = {"hostname": node.hostname, "address": node.address}
        self._call("note_node", "node_left_out", node.node_id, str(left_out), facts)

    def lose(self, node: RayNode, reason: str) -> None:
        """Takes the seats of a node that is gone."""
        self._devices.pop(node.node_id, None)
        self._call("lose_node", node.node_id, f"{node.name}: {reason}")

    def drain(self, node: RayNode, reason: str, deadline_s: float) -> None:
        """Has the trials of a node go on elsewhere."""
        self._devices.pop(node.node_id, None)
        self._call("drain_node", node.node_id, reason, deadline_s)

    def ask_for_capacity(self, request: CapacityRequest, *, num_to_come: int = 0) -> None:
        """Asks the autoscaler for what the trials that wait need, and for nothing once none does.

        Args:
            request: What asks it.
            num_to_come: Trials that the study has not been asked for yet: they would use more devices too.
        """
        wanted = self._call("wanted_capacity")
        num_devices = count_devices_wanted(
            sum(item.num_trials for item in wanted),
            num_to_come=num_to_come,
            slots_per_device=self._slots_per_device,
            num_devices=self.num_devices,
            max_devices=self._preflight.config.cluster.max_gpus,
        )
        if request.ask(num_devices):
            reason = "trials wait for a slot" if request.num_asked else "no trial waits"
            self._call("note_node", "capacity_wanted", "", reason, {"num_devices": request.num_asked})

    def _plan(self, profile: NodeProfile) -> Plan:
        config = self._preflight.config
        cluster = config.cluster
        has_gpu = (as_if(profile, profile.claims) if cluster.simulate else profile).has_gpu
        if self._has_gpus and not has_gpu:
            raise PlacementError("no GPU, so no trials there")
        if cluster.max_gpus is not None and has_gpu:
            # Its own count only where it is told of again.
            left = cluster.max_gpus - self.num_devices + self._devices.get(profile.ray_node_id or "", 0)
            if left < 1:
                raise PlacementError(f"cluster.max_gpus is reached: {plural(cluster.max_gpus, 'GPU')}")
            cluster = cluster.model_copy(update={"max_gpus": left})
        preflight = replace(self._preflight, config=config.model_copy(update={"cluster": cluster}))
        return plan_sweep(preflight, [profile])

    def _call(self, method: str, *arguments: Any) -> Any:
        return ask_and_wait(getattr(self._pool, method), *arguments, timeout_s=CALL_TIMEOUT_S)


def _has_gpus(plan: Plan) -> bool:
    return any(placement.device_kind == "cuda" for placement in plan.placements)


def _count_devices(plan: Plan, profiles: Mapping[str, NodeProfile]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for spec in {(spec.node_id, spec.device) for spec in plan_executors(plan, profiles)}:
        counts[spec[0]] = counts.get(spec[0], 0) + 1
    return counts
