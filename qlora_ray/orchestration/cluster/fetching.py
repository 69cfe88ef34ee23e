"""The base's weights fetched by one task per node, before executors start there.

Its executors then find them in the node's cache: a node with eight does not download them eight times, and a download
that takes an hour is no executor that makes no progress. The rows need no such step: they are one object of Ray's,
which every node is sent once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from qlora_ray.config.schema import Model
from qlora_ray.formats import plural
from qlora_ray.modeling.fetching import fetch_weights, is_on_hub
from qlora_ray.orchestration.cluster.nodes import SHORT_ID, on_node
from qlora_ray.orchestration.ray_errors import describe_death

LOOK_INTERVAL_S = 1.0
# When the first node has the base, the others have once more as long, and this. A node with a network that hangs must
# not keep the others; its executors wait for the download there.
GRACE_S = 60.0


def fetch_on_nodes(
    model: Model,
    node_ids: Sequence[str],
    *,
    tell: Callable[[str], None],
    check: Callable[[], None],
    start: Callable[[Model, str], Any] | None = None,
) -> None:
    """Has each node fetch a hub's base; does nothing for a folder or the embedded one.

    What fails is only noted: the executors there will try again, and say what is wrong.

    Args:
        model: Pinned to its commit.
        node_ids: The nodes that get executors.
        tell: Is told how far it is.
        check: Is called every second; raises where the sweep is to stop.
        start: Starts the task on a node; tests give their own.
    """
    if not is_on_hub(model):
        return
    start = start or _start_task
    tasks = {start(model, node_id): node_id for node_id in node_ids}
    pending, began_at = list(tasks), time.monotonic()
    try:
        deadline = None
        while pending and (deadline is None or time.monotonic() < deadline):
            tell(f"fetching the base: {len(tasks) - len(pending)} of {plural(len(tasks), 'node')} have it")
            check()
            done, pending = ray.wait(pending, num_returns=len(pending), timeout=LOOK_INTERVAL_S)
            if done and deadline is None:
                deadline = time.monotonic() + (time.monotonic() - began_at) + GRACE_S
    except BaseException:
        for task in pending:
            ray.cancel(task, force=True)
        raise
    for task, node_id in tasks.items():
        if task not in pending:
            _note_failure(task, node_id)


def _start_task(model: Model, node_id: str) -> Any:
    task = ray.remote(fetch_weights).options(num_cpus=0, max_retries=0, **on_node(node_id))
    return task.remote(model)


def _note_failure(task: Any, node_id: str) -> None:
    try:
        ray.get(task)
    except RayError as error:
        words = "the base could not be fetched on node %s: %s"
        logging.getLogger(__name__).warning(words, node_id[:SHORT_ID], describe_death(error))
