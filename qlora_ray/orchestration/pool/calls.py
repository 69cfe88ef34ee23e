"""What the driver asks of the pool outside the search."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from qlora_ray.errors import ModelError, NoExecutors, PoolLost, SweepInterrupted
from qlora_ray.orchestration.actor_calls import ask_and_wait
from qlora_ray.orchestration.executor.usage import wait_share
from qlora_ray.orchestration.ray_errors import pool_lost


def ask_pool(pool: Any, method: str) -> Any:
    """The pool's answer to a call of one of its methods.

    Raises:
        PoolLost: If the pool is gone.
        RayTaskError: What the method raised.
    """
    try:
        return ask_and_wait(getattr(pool, method))
    except RayTaskError:
        raise
    except RayError as error:
        raise pool_lost(error) from None


def wait_ready(pool: Any) -> None:
    """Waits for the first executor.

    Raises:
        ModelError: If none of them can be ready.
        SweepInterrupted: If the pool is gone before a trial had begun.
    """
    try:
        ask_pool(pool, "wait_ready")
    except PoolLost as error:
        raise SweepInterrupted(f"cluster: {error} No trial was running: give the same command again.") from None
    except RayTaskError as error:
        if isinstance(error.cause, NoExecutors):
            raise ModelError(str(error.cause)) from None
        raise


def read_device_wait(pool: Any) -> float | None:
    """The share of the search in which devices waited for us, over the executors that are still there."""
    usages = []
    for handle, _ in ask_pool(pool, "ready_executors"):
        with contextlib.suppress(RayError):
            usages.append(ask_and_wait(handle.usage))
    return wait_share(usages)


def close_pool(pool: Any) -> None:
    """Ends all executors, and the pool."""
    # One that has died by now took its executors with it; all that the sweep found is written.
    try:
        ray.get(pool.close.remote())
    except RayTaskError:
        raise
    except RayError:
        pass
    ray.kill(pool)
