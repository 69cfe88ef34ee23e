"""A private Ray cluster for the tests of this folder, and a pool of fake executors on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from qlora_ray.orchestration.cluster.tokens import read_auth_settings
from tests.driver_forks import DriverForks, driver_forks
from tests.fake_executor import FakeExecutor, FakePlacement
from tests.ray.forked_sweep import ForkedSweep
from tests.ray.real_nodes import cluster_secret

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local cluster whose workers can import the fakes of `tests`."""
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    # An earlier test of this process may have joined a cluster without a token.
    read_auth_settings()
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
            RayLauncher(terms, None, executor_class),
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


@pytest.fixture(scope="session")
def forks(cluster: None) -> Iterator[DriverForks]:
    """Starts drivers whose executors are tests.fake_executor.PlannedExecutor."""
    with driver_forks({**os.environ, **cluster_secret()}, executor_class="tests.fake_executor:PlannedExecutor") as made:
        yield made


@pytest.fixture(scope="session")
def make_sweep(forks: DriverForks, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ForkedSweep]:
    """Makes sweeps of real drivers, on the tests' cluster unless told `address=None`."""

    def make(**options: Any) -> ForkedSweep:
        folder = tmp_path_factory.mktemp("forked") / "sweep"
        return ForkedSweep(folder, forks, **{"address": ray.get_runtime_context().gcs_address, **options})

    return make


@pytest.fixture(scope="session")
def undisturbed(make_sweep: Callable[..., ForkedSweep]) -> tuple[ForkedSweep, int]:
    """A sweep that nothing has disturbed, and how many operations its driver took."""
    sweep = make_sweep()
    return sweep, sweep.drive().num_operations
