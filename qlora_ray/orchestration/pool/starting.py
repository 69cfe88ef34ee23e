"""Starts the pool's actor, on the driver's node and under a name that commands can find."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import ray

from qlora_ray.orchestration.actor_calls import ask_and_wait
from qlora_ray.orchestration.cluster.nodes import on_node, own_node_id
from qlora_ray.orchestration.executor.launcher import ExecutorSpec, Launcher
from qlora_ray.orchestration.pool.actor import Pool
from qlora_ray.orchestration.pool.terms import PoolTerms

POOL_NAMESPACE = "qlora_ray"
# Calls at once: one per trial that waits for a slot, and those of the driver.
MAX_CALLS = 10_000
NAME_SUFFIX_DIGITS = 8


def start_pool(launcher: Launcher, specs: Sequence[ExecutorSpec], *, terms: PoolTerms, name: str) -> Any:
    """Starts a pool and its executors; returns its handle before they are ready.

    The actor lies on this process's own node: what takes the node away takes the driver away too, so that the pool adds
    no place whose loss ends a sweep. It is in the namespace `qlora_ray` as `NAME-` and some digits, since two sweeps of
    a cluster may have one name, and a dead driver's pool keeps its own for a moment.

    Args:
        launcher: Starts and ends executors.
        specs: The executors to keep.
        terms: Its limits.
        name: The sweep's name.
    """
    actor: Any = ray.remote(Pool)
    pool = actor.options(
        num_cpus=0,
        max_concurrency=MAX_CALLS,
        **on_node(own_node_id()),
        namespace=POOL_NAMESPACE,
        name=f"{name}-{uuid.uuid4().hex[:NAME_SUFFIX_DIGITS]}",
    ).remote(launcher, list(specs), terms=terms)
    ask_and_wait(pool.start)
    return pool
