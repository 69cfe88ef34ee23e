"""The watches over a sweep's cluster while it runs: over Ray itself, and over nodes that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from qlora_ray.config.schema import Cluster
from qlora_ray.errors import QloraRayError, SweepInterrupted
from qlora_ray.orchestration.cluster.joining import find_address
from qlora_ray.orchestration.cluster.nodes import list_nodes
from qlora_ray.orchestration.cluster.planning import PlannedCluster
from qlora_ray.orchestration.cluster.repeating import RepeatingThread
from qlora_ray.orchestration.cluster.scaling import CapacityRequest
from qlora_ray.orchestration.cluster.watchdog import Watchdog, find_parts
from qlora_ray.orchestration.cluster.watcher import NodeDoor, NodeWatcher
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.node_changes import SweepNodes
from qlora_ray.orchestration.stopping import StopSignals
from qlora_ray.preflight.checks import Preflight
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.ownership import sign
from qlora_ray.runs.records import Manifest, read_record, write_record

LOOK_INTERVAL_S = 2.0


@contextmanager
def watched_ray(cluster: Cluster, stops: StopSignals) -> Iterator[None]:
    """Ends the sweep, as a signal does, when the GCS or this node's raylet has died.

    Raises:
        SweepInterrupted: If that happens before a search has begun.
    """
    watchdog = Watchdog(find_parts(is_private=find_address(cluster) is None), on_death=stops.end_with_ray)
    watchdog.start()
    try:
        yield
    except QloraRayError:
        # A search that had begun sees to its end itself.
        raise
    except (Exception, KeyboardInterrupt):
        # Interrupted, or told by Ray in its own words, whichever came first.
        if stops.ray_death is None:
            raise
        stops.ignore()
        raise SweepInterrupted(
            f"cluster: {stops.ray_death} No trial was running: give the same command again."
        ) from None
    finally:
        watchdog.close()


@contextmanager
def watched_nodes(
    preflight: Preflight,
    pool: Any,
    *,
    planned: PlannedCluster,
    ledger: Ledger,
    paths: SweepPaths,
    request: CapacityRequest | None,
) -> Iterator[None]:
    """Keeps the pool's seats to the nodes that are up, for the length of the block: search and scoring.

    A private Ray is one node, whose end is Ray's own.

    Args:
        preflight: What nodes are planned for.
        pool: The pool's actor.
        planned: The nodes at the start, and their plan.
        ledger: Says how many trials are to come.
        paths: The sweep's folder.
        request: What asks the autoscaler; None where nothing is asked.
    """
    if find_address(preflight.config.cluster) is None:
        yield
        return
    nodes = SweepNodes(
        preflight,
        pool,
        plan=planned.plan,
        profiles=planned.nodes.profiles,
        on_joined=lambda profile: _add_to_manifest(paths, profile),
    )
    watcher = NodeWatcher(
        planned.nodes,
        changes=nodes,
        door=NodeDoor(list_nodes),
        folder=paths.root,
        drain_timeout_s=preflight.config.cluster.drain_timeout_s,
    )

    def look() -> None:
        watcher.look()
        if request is not None:
            nodes.ask_for_capacity(request, num_to_come=max(0, ledger.num_planned - ledger.num_begun))

    thread = RepeatingThread(look, interval_s=LOOK_INTERVAL_S, name="node-watcher")
    thread.start()
    try:
        yield
    finally:
        thread.close()
        watcher.close()


def _add_to_manifest(paths: SweepPaths, profile: dict[str, Any]) -> None:
    manifest = read_record(paths.manifest, Manifest)
    write_record(paths.manifest, sign(replace(manifest, nodes=(*manifest.nodes, profile))))
