"""A cluster with Ray's own autoscaler, whose nodes are raylets of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import yaml

from tests.ray.real_nodes import free_port, ray_node

# Ray's fake provider numbers its nodes from the head's id on.
HEAD_ID = "f" * 51 + "00000"
# Beside `provider`, `available_node_types` and `head_node_type`: Ray 2.60 reads them without looking whether they are
# there, for it is `ray up` that fills them in.
NEEDED_LISTS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
NEEDED_MAPPINGS = ("file_mounts", "auth", "docker")
IDLE_TIMEOUT_MINUTES = 0.05


@contextmanager
def autoscaled_cluster(folder: Path, *, gpu_class: str, max_nodes: int) -> Iterator[str]:
    """The address of a head that trains nothing, and that brings nodes which claim a GPU each when asked for them.

    Args:
        folder: Where its files go; also its home.
        gpu_class: What the nodes claim.
        max_nodes: How many there can be.
    """
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    document = {
        "cluster_name": "autoscaled",
        "max_workers": max_nodes,
        "idle_timeout_minutes": IDLE_TIMEOUT_MINUTES,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "GPU": 1, f"accelerator_type:{gpu_class}": 1},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
        **{key: [] for key in NEEDED_LISTS},
        **{key: {} for key in NEEDED_MAPPINGS},
    }
    path = folder / "autoscaler.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    environment = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    port = address.rpartition(":")[2]
    options = ("--head", f"--port={port}", "--num-cpus=0", f"--autoscaling-config={path}")
    with ray_node(folder, *options, environment=environment):
        yield address


def list_workers(address: str) -> list[str]:
    """The ids of the nodes that are up beside the head; asked without joining the cluster."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClientOptions

    state = GlobalState()
    state._initialize_global_state(GcsClientOptions.create(address, None, True, True))
    try:
        return [node["NodeID"] for node in state.node_table() if node["Alive"] and node["NodeID"] != HEAD_ID]
    finally:
        state.disconnect()
