"""What the driver asks of the pool outside the search."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from qlora_ray.errors import ModelError, NoExecutors
from qlora_ray.orchestration.executor.usage import wait_share


def wait_ready(pool: Any) -> None:
    """Waits for the first executor.

    Raises:
        ModelError: If none of them can be ready.
    """
    try:
        ray.get(pool.wait_ready.remote())
    except RayTaskError as error:
        if isinstance(error.cause, NoExecutors):
            raise ModelError(str(error.cause)) from None
        raise


def read_device_wait(pool: Any) -> float | None:
    """The share of the search in which devices waited for us, over the executors that are still there."""
    usages = []
    for handle, _ in ray.get(pool.ready_executors.remote()):
        with contextlib.suppress(RayError):
            usages.append(ray.get(handle.usage.remote()))
    return wait_share(usages)


def close_pool(pool: Any) -> None:
    """Ends all executors, and the pool."""
    ray.get(pool.close.remote())
    ray.kill(pool)
