"""A private Ray cluster for the tests of this folder, and a pool of fake executors on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from tests.fake_executor import FakeExecutor, FakePlacement

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local cluster whose workers can import the fakes of `tests`."""
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def make_pool(cluster: None) -> Iterator[Callable[..., Any]]:
    """Starts pools of fake executors; all are closed at the end of the test."""
    from qlora_ray.orchestration.executor.launcher import ExecutorSpec, RayLauncher
    from qlora_ray.orchestration.pool.starting import start_pool
    from qlora_ray.orchestration.pool.terms import PoolTerms

    pools: list[Any] = []

    def make(
        terms: Any,
        *,
        num_executors: int = 1,
        executor_class: type = FakeExecutor,
        placement: FakePlacement | None = None,
        max_slots: int = 99,
    ) -> Any:
        node_id = ray.get_runtime_context().get_node_id()
        specs: list[Any] = [ExecutorSpec(placement or FakePlacement(), node_id) for _ in range(num_executors)]
        cluster = terms.config.cluster
        pool = start_pool(
            RayLauncher(terms, ray.put(None), executor_class),
            specs,
            terms=PoolTerms(cluster.lease_timeout_s, max_slots=max_slots),
            name="fake",
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        ray.get(pool.close.remote())
        ray.kill(pool)
