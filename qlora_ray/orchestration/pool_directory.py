"""The pools of all sweeps of a cluster, found by their names: what they have on which node, and how to drain one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from qlora_ray.errors import PlacementError
from qlora_ray.formats import format_table, plural
from qlora_ray.orchestration.cluster.nodes import SHORT_ID, RayNode, list_nodes
from qlora_ray.orchestration.pool.starting import POOL_NAMESPACE

CALL_TIMEOUT_S = 10.0


def find_node(text: str, nodes: Mapping[str, RayNode]) -> RayNode:
    """The one node that a text names: its id or the beginning of it, its address, or its host name.

    Raises:
        PlacementError: If it names none, or several.
    """
    found = [
        node
        for node in nodes.values()
        if text in (node.address, node.hostname) or (text and node.node_id.startswith(text))
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(node.name for node in (found or nodes.values()))
    raise PlacementError(
        f"NODE: must name one node, got {text}, which names {len(found) or 'none'}. Give the beginning of an id "
        f"that only one has. {'These' if found else 'The nodes'}: {known}."
    )


def drain_node(text: str, *, reason: str, deadline_s: float | None = None) -> dict[str, Any]:
    """Has the trials that every sweep has on a node go on elsewhere.

    Args:
        text: Names the node, see find_node.
        reason: Why, for people.
        deadline_s: Seconds until its executors end; None: each sweep's own limit.

    Returns:
        `node`, its whole id; `name`, as people read it; `sweeps`: each sweep's `name` and `within_s`, the seconds until
        its executors end.

    Raises:
        PlacementError: If there is no such node, or a sweep that has executors there does not answer.
    """
    node = find_node(text, list_nodes())
    sweeps: list[dict[str, Any]] = []
    silent = []
    for name, pool in sorted(find_pools().items()):
        seats = _call(pool, "describe_seats")
        if seats is None:
            silent.append(name)
        elif any(seat["node_id"] == node.node_id for seat in seats):
            within_s = _call(pool, "drain_node", node.node_id, reason, deadline_s)
            if within_s is None:
                silent.append(name)
            else:
                sweeps.append({"name": name, "within_s": within_s})
    if silent:
        raise PlacementError(
            f"{node.name}: every sweep must answer within {CALL_TIMEOUT_S:g} s, got no answer of {', '.join(silent)}. "
            "Ask again; one whose driver has died goes by itself."
        )
    return {"node": node.node_id, "name": node.name, "sweeps": sweeps}


def render_drained(facts: Mapping[str, Any]) -> str:
    """What `drain_node` asked of whom, a line each."""
    sweeps = facts["sweeps"]
    lines = [
        f"sweep {sweep['name']}: its trials leave, and its executors end within {sweep['within_s']:g} s"
        for sweep in sweeps
    ]
    told = f"{plural(len(sweeps), 'sweep')} told to drain it" if sweeps else "no sweep has executors there"
    return "\n".join([f"{facts['name']}: {told}", *lines])


def find_status() -> dict[str, Any]:
    """The nodes, and each sweep's seats on them: `nodes`, and `sweeps` with `name` and `seats`.

    `seats` is None for a sweep that does not answer.
    """
    nodes = [
        {
            "node": node.node_id,
            "address": node.address,
            "hostname": node.hostname,
            "num_cpus": node.num_cpus,
            "num_gpus": (node.resources or {}).get("GPU", 0.0),
            "is_draining": node.drain_deadline_ms is not None,
        }
        for node in list_nodes().values()
    ]
    sweeps = [{"name": name, "seats": _call(pool, "describe_seats")} for name, pool in sorted(find_pools().items())]
    return {"nodes": nodes, "sweeps": sweeps}


def render_status(facts: Mapping[str, Any]) -> str:
    """A table of the nodes, and one of each sweep's executors, slots and leases on them."""
    rows = [["node", "address", "host", "CPUs", "GPUs", ""]]
    for node in facts["nodes"]:
        state = "draining" if node["is_draining"] else ""
        gpus = f"{node['num_gpus']:g}"
        rows.append([node["node"][:SHORT_ID], node["address"], node["hostname"], str(node["num_cpus"]), gpus, state])
    tables = [format_table(rows)]
    for sweep in facts["sweeps"]:
        tables.append(f"sweep {sweep['name']}\n{_render_seats(sweep['seats'])}")
    if len(tables) == 1:
        tables.append("no sweep runs here")
    return "\n\n".join(tables)


def find_pools() -> dict[str, Any]:
    """The pool of each sweep that runs on the cluster, by the pool's name."""
    names = [
        item["name"] for item in ray.util.list_named_actors(all_namespaces=True) if item["namespace"] == POOL_NAMESPACE
    ]
    pools = {}
    for name in names:
        try:
            pools[name] = ray.get_actor(name, namespace=POOL_NAMESPACE)
        except ValueError:
            # It ended since.
            continue
    return pools


def _render_seats(seats: list[dict[str, Any]] | None) -> str:
    if seats is None:
        return "does not answer"
    counts = Counter((seat["node_id"][:SHORT_ID], seat["device"], seat["state"]) for seat in seats)
    rows = [["node", "device", "executors", "state", "trials / slots"]]
    for (node_id, device, state), number in counts.items():
        same = [s for s in seats if (s["node_id"][:SHORT_ID], s["device"], s["state"]) == (node_id, device, state)]
        used, slots = sum(seat["used"] for seat in same), sum(seat["slots"] for seat in same)
        rows.append([node_id, device or "-", str(number), state, f"{used} / {slots}"])
    return format_table(rows)


def _call(pool: Any, method: str, *arguments: Any) -> Any:
    """A pool's answer; None from one that is ending."""
    try:
        return ray.get(getattr(pool, method).remote(*arguments), timeout=CALL_TIMEOUT_S)
    except RayError:
        return None
