"""An executor actor around the fake engine: Ray, pool, leases and trials are real, training is a formula."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

from fake_engine import FakeEngine

from qlora_ray.orchestration.executor import Executor, ExecutorTerms
from qlora_ray.orchestration.executor_core import ExecutorCore
from qlora_ray.runs import SweepPaths


class FakeExecutor(Executor):
    """Serves one FakeEngine with two slots; only its making and its description are not the real one's."""

    def __init__(self, terms: ExecutorTerms, placement: Any, data: Any) -> None:
        self._core = ExecutorCore(
            FakeEngine(),
            paths=SweepPaths(terms.root),
            lease_timeout_s=terms.config.cluster.lease_timeout_s,
            keep_state=True,
        )
        self._closing = threading.Event()

    def describe(self) -> dict[str, Any]:
        """What the pool and the records need."""
        return {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "slots": 2,
            "device": "fake",
            "device_class": "fake",
            "precision_reason": "none",
        }


class BrokenExecutor(FakeExecutor):
    """Never comes up."""

    def __init__(self, terms: ExecutorTerms, placement: Any, data: Any) -> None:
        from qlora_ray.errors import ModelError

        raise ModelError("model.name: no-such-base cannot be loaded: it is not there.")


class FakePlacement:
    """What a pool asks of a placement."""

    num_cpus = 0.1
    num_gpus = 0.0
    slots_per_device = 2
