"""Clusters of a few small raylets on this machine, which ask for no token, whatever the home of this user has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from qlora_ray.orchestration.cluster.tokens import read_auth_settings

OBJECT_STORE_BYTES = 120 * 1024**2


def claim_gpu(gpu_class: str) -> dict[str, Any]:
    """The arguments of a node that claims a GPU of a class."""
    return {"num_cpus": 1, "num_gpus": 1, "resources": {f"accelerator_type:{gpu_class}": 1}}


@contextmanager
def small_cluster(*nodes: dict[str, Any], **environment: str) -> Iterator[Cluster]:
    """A cluster with a raylet for each set of arguments; the first is the head.

    Args:
        *nodes: Arguments of `Cluster.add_node`.
        **environment: Variables that all of them are started with, and that stay set meanwhile.
    """
    patch = pytest.MonkeyPatch()
    for name, value in {"RAY_AUTH_MODE": "disabled", **environment}.items():
        patch.setenv(name, value)
    # This process has read them before, for another cluster.
    read_auth_settings()
    head, *others = ({**node, "object_store_memory": OBJECT_STORE_BYTES} for node in nodes)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for node in others:
            cluster.add_node(**node)
        yield cluster
    finally:
        cluster.shutdown()
        patch.undo()
        read_auth_settings()
