"""What a search begins with: the pool with its executors on their way, and the study with what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.reuse import with_absolute_paths
from qlora_ray.hardware import NodeProfile, Plan
from qlora_ray.orchestration.cluster.joining import find_address
from qlora_ray.orchestration.ledger import Ledger
from qlora_ray.orchestration.searcher import settle_finished
from qlora_ray.preflight.checks import Preflight
from qlora_ray.runs import SweepPaths
from qlora_ray.runs.derived import RESUMED
from qlora_ray.runs.record_parts import BaseRecord
from qlora_ray.runs.typed_json import to_json
from qlora_ray.search.study import enqueue_known_points, open_study, requeue_interrupted

if TYPE_CHECKING:
    import optuna


def list_executor_nodes(plan: Plan, profiles: Mapping[str, NodeProfile]) -> list[str]:
    """The Ray nodes that the plan has executors on."""
    from qlora_ray.orchestration.executor.launcher import plan_executors

    return sorted({spec.node_id for spec in plan_executors(plan, profiles)})


def start_sweep_pool(
    preflight: Preflight, plan: Plan, profiles: Mapping[str, NodeProfile], paths: SweepPaths, *, base: BaseRecord
) -> Any:
    """Starts the pool and its executors; returns the pool's actor before they are ready.

    Args:
        preflight: Has the config and the data.
        plan: The executors to keep.
        profiles: The nodes of the plan, by Ray node id.
        paths: The sweep's folder.
        base: The base as the records have it.
    """
    from qlora_ray.orchestration.executor.actor import ExecutorTerms
    from qlora_ray.orchestration.executor.launcher import RayLauncher, plan_executors
    from qlora_ray.orchestration.executor.shared_data import SharedData
    from qlora_ray.orchestration.pool.starting import start_pool
    from qlora_ray.orchestration.pool.terms import PoolTerms

    cluster = preflight.config.cluster
    config = preflight.config
    if find_address(cluster) is not None:
        # Workers of another node start in another folder; those of a private Ray in this one.
        config = with_absolute_paths(config, Path.cwd())
    terms = ExecutorTerms(config, paths.root.resolve(), plan, to_json(base))
    return start_pool(
        RayLauncher(terms, SharedData.of(preflight.data)),
        plan_executors(plan, profiles),
        terms=PoolTerms(
            lease_timeout_s=cluster.lease_timeout_s,
            heartbeat_timeout_s=cluster.heartbeat_timeout_s,
            progress_timeout_s=cluster.progress_timeout_s,
            max_slots=cluster.max_slots,
            idle_timeout_s=cluster.idle_timeout_s if cluster.scale_up else None,
            drain_timeout_s=cluster.drain_timeout_s,
            waits_for_nodes=cluster.scale_up is not None,
        ),
        name=paths.name,
    )


def open_sweep_study(
    preflight: Preflight, ledger: Ledger, *, paths: SweepPaths, is_resume: bool, num_slots: int
) -> optuna.Study:
    """Opens the study, new or as an earlier driver left it, and has the ledger say so.

    Args:
        preflight: Has the config and the space.
        ledger: Takes over what is in the folder of a sweep that goes on.
        paths: The sweep's folder.
        is_resume: Whether to go on with the study that is there.
        num_slots: Of the plan.
    """
    search = preflight.config.search
    study = open_study(paths.study, name=paths.name, search=search, space=preflight.space)
    # Also on a resume: the first driver may have been killed before it did; points that are there stay single.
    enqueue_known_points(study, search=search, space=preflight.space)
    if is_resume:
        ledger.restore()
        settle_finished(study, ledger)
        requeued = requeue_interrupted(study)
        ledger.note(RESUMED, reason=f"{len(requeued)} interrupted trials are queued again")
    else:
        ledger.note("sweep_started", reason=f"{search.num_trials} trials, {num_slots} slots")
    return study
