"""The Ray cluster: joined or started, its nodes asked what they are, its storage checked."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qlora_ray.config.schema import Cluster
from qlora_ray.errors import PlacementError, RunError, first_line
from qlora_ray.hardware import NodeProfile, probe_node

PROBE_TIMEOUT_S = 120.0
OBJECT_STORE_BYTES = 256 * 1024**2


@contextmanager
def ray_cluster(cluster: Cluster) -> Iterator[None]:
    """Joins the cluster the config names, or starts a private one on this machine, for the length of the block.

    Raises:
        PlacementError: If the named cluster cannot be joined.
    """
    # Ray reports usage to the internet unless told otherwise; a user's own setting stays.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray frees the accelerators of zero-GPU workers by hiding them; executors on CPU nodes want none anyway.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        # `local` never joins a cluster that happens to run here. The data is small: tokens, once.
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=True,
            logging_level=logging.WARNING,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    else:
        try:
            ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            cause = first_line(error)
            raise PlacementError(
                f"cluster.address: no Ray cluster can be joined at {address}: {cause} "
                "Start one with `ray start --head`, or leave cluster.address null and RAY_ADDRESS unset."
            ) from None
    try:
        yield
    finally:
        ray.shutdown()


def probe_cluster() -> dict[str, NodeProfile]:
    """What every living node is, by Ray node id; this machine is asked directly, the others by a task."""
    here = ray.get_runtime_context().get_node_id()
    profiles: dict[str, NodeProfile] = {here: probe_node()}
    tasks = {
        node_id: ray.remote(probe_node).options(num_cpus=0, scheduling_strategy=_on(node_id)).remote()
        for node_id in _living_nodes()
        if node_id != here
    }
    for node_id, task in tasks.items():
        profiles[node_id] = ray.get(task, timeout=PROBE_TIMEOUT_S)
    # Ray may have been given fewer CPUs than the machine has: what it does not count, it cannot schedule.
    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes()}
    hostnames = [profile.hostname for profile in profiles.values()]
    return {
        node_id: replace(
            profile,
            num_cpus=min(profile.num_cpus, cpus[node_id]),
            # Several Ray nodes on one machine share its name; placements tell them apart by it.
            hostname=profile.hostname
            if hostnames.count(profile.hostname) == 1
            else f"{profile.hostname}#{node_id[:6]}",
        )
        for node_id, profile in profiles.items()
    }


def check_shared_storage(folder: Path) -> None:
    """Makes sure that every node sees the sweep's folder, before any trial finds out that it does not.

    Raises:
        RunError: If a node does not see the folder.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node_id for node_id in _living_nodes() if node_id != here]
    if not others:
        return
    marker = folder / f".marker-{uuid.uuid4().hex}"
    marker.touch()
    try:
        tasks = [ray.remote(_sees).options(num_cpus=0, scheduling_strategy=_on(node)).remote(marker) for node in others]
        blind = [host for host, seen in ray.get(tasks, timeout=PROBE_TIMEOUT_S) if not seen]
    finally:
        marker.unlink()
    if blind:
        raise RunError(
            f"results.dir: every node must see {folder}, but {', '.join(blind)} does not. "
            "Choose a folder on storage that all nodes share (NFS, a mounted bucket)."
        )


def _living_nodes() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def _on(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _sees(path: Path) -> tuple[str, bool]:
    import socket

    return socket.gethostname(), path.exists()
