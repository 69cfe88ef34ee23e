"""An executor: the Ray actor around one engine on one device, whose slots trials lease.

It finds out what device it really got, loads the base once, and speaks ExecutorCore's methods.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import PlacementError
from qlora_ray.hardware import Placement, Plan
from qlora_ray.orchestration.cluster.nodes import describe_own_node, own_gpu_ids
from qlora_ray.orchestration.executor.core import ExecutorCore
from qlora_ray.orchestration.executor.progress import ProgressCounter
from qlora_ray.orchestration.executor.shared_data import SharedData
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.training.engine import Report, TrialSpec
from qlora_ray.training.engines import make_engine

if TYPE_CHECKING:
    from qlora_ray.scoring.scores import Scores


@dataclass(frozen=True)
class ExecutorTerms:
    """What every executor of a sweep is told.

    Attributes:
        base: The base's name, revision and hash, as the sweep's records have them.
    """

    config: SweepConfig
    root: Path
    plan: Plan | None = None
    base: Mapping[str, Any] | None = None


class Executor:
    """The actor: finds its device and precision, loads the base once, and serves one engine.

    It is created with as many concurrent calls as its trials need for their long polls.
    """

    def __init__(self, terms: ExecutorTerms, placement: Placement, shared_data: SharedData) -> None:
        # Before torch is imported: OpenMP reads this once. Ray sets it to the CPUs requested, which are shares.
        os.environ["OMP_NUM_THREADS"] = str(placement.num_threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch

        torch.set_num_threads(placement.num_threads)
        from qlora_ray.hardware import probe_node
        from qlora_ray.hardware.device import GpuClaims
        from qlora_ray.hardware.simulation import as_if, choose_arithmetic
        from qlora_ray.modeling.device_memory import used_memory_bytes
        from qlora_ray.modeling.loading import load_base, specify_base
        from qlora_ray.orchestration.executor.node_precision import find_precision
        from qlora_ray.scoring.metrics.choice import resolve_data_metrics
        from qlora_ray.training.engine import TrainingData
        from qlora_ray.training.simulated_memory import simulate_memory

        config = terms.config
        data = shared_data.map()
        node = probe_node()
        if placement.simulates is not None:
            node = as_if(node, GpuClaims(placement.simulates, 1))
        self._device = node.devices[0]
        # Only a real GPU has memory of its own, and computes.
        is_gpu = self._device.kind == "cuda" and not self._device.is_simulated
        placement = self._find_placement(terms, placement, node.hostname)
        if is_gpu and placement.memory_cap_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(placement.memory_cap_fraction)
        planned = find_precision(node, config, num_threads=placement.num_threads)
        self._planned_precision = planned.name
        self._precision = choose_arithmetic(self._device, planned)
        base = load_base(
            config.model,
            quantization=specify_base(config.model, compute_dtype=self._precision.name),
            device="cuda:0" if is_gpu else "cpu",
        )
        progress = ProgressCounter()
        progress.count_forwards(base.model)
        metrics, _ = resolve_data_metrics(config, data)
        self._engine = make_engine(
            placement,
            base,
            TrainingData(data.train, data.validation),
            memory_limit_bytes=self._memory_limit_bytes(placement) if is_gpu else None,
            memory=simulate_memory(placement, config) if self._device.is_simulated else None,
            evaluate=config.evaluate,
            metrics=metrics,
        )
        self._core = ExecutorCore(
            self._engine,
            paths=SweepPaths(terms.root),
            lease_timeout_s=config.cluster.lease_timeout_s,
            keep_state=config.cluster.keep_trial_state,
            origin={
                "base": dict(terms.base or {"name": config.model.name, "revision": config.model.revision}),
                "quantization": base.quantization.to_dict(),
            },
            progress=progress,
            read_memory=lambda: used_memory_bytes(base.device),
            total_memory_bytes=self._device.total_memory_bytes,
        )
        self._scoring = threading.Lock()
        self._data = data
        self._placement = placement
        self._node = node

    def _find_placement(self, terms: ExecutorTerms, planned: Placement, hostname: str) -> Placement:
        """The plan for the device this process really got: on a node of mixed GPUs, Ray chooses which."""
        if self._device.kind != planned.device_kind:
            raise PlacementError(
                f"executor: must be on a {planned.device_kind} device as planned, got {self._device.name} on "
                f"{hostname}. Check CUDA_VISIBLE_DEVICES and the driver there."
            )
        # The driver's own node is probed in the driver's environment, which may hold it to nothing.
        keys = (self._device.class_key, replace(self._device, held_precision=None).class_key)
        if self._device.kind == "cpu" or planned.device_class in keys or terms.plan is None:
            return planned
        found = terms.plan.placement_for(self._device.class_key)
        if found is None:
            raise PlacementError(
                f"executor: got {self._device.name} on {hostname}, which the plan leaves out. "
                "Hide it with CUDA_VISIBLE_DEVICES where Ray is started."
            )
        if found.engine != planned.engine:
            # A packed executor needs a whole device, and a single one leaves the rest of its device to others.
            raise PlacementError(
                f"executor: got {self._device.name} on {hostname}, which the plan has for the {found.engine} engine, "
                f"not for {planned.engine}. Set cluster.packing: single, or start a Ray node per kind of GPU."
            )
        return found

    def _memory_limit_bytes(self, placement: Placement) -> int | None:
        """What this process may reserve of its GPU."""
        if self._device.kind != "cuda" or placement.memory_cap_fraction is None:
            return None
        return int(self._device.total_memory_bytes * placement.memory_cap_fraction)

    def describe(self) -> dict[str, Any]:
        """What this executor is and runs on, and its slots now; goes into the record of each of its trials."""
        return {
            **self._core.describe_slots(),
            "engine": self._placement.engine,
            "hostname": socket.gethostname(),
            **describe_own_node(),
            "pid": os.getpid(),
            "device": self._device.shown_name,
            "simulated": self._device.is_simulated,
            "planned_precision": self._planned_precision,
            "device_class": self._device.class_key,
            "compute_capability": self._device.capability_text if self._device.kind == "cuda" else None,
            "precision": self._precision.name,
            "precision_reason": self._precision.reason,
            "bf16": self._precision.bf16,
            "fp16": self._precision.fp16,
            "cuda_available": self._device.kind == "cuda" and not self._device.is_simulated,
            "cuda": self._node.cuda_version,
            "driver": self._node.driver_version,
            "cpu": self._node.cpu_name,
            "num_threads": self._placement.num_threads,
            "versions": {**self._node.packages, "python": self._node.python_version},
            "estimated_memory_bytes": self._placement.estimate.total_bytes,
        }

    def admit(self, spec: TrialSpec, lease_number: int) -> bool:
        """See ExecutorCore.admit."""
        return self._core.admit(spec, lease_number)

    def next_report(
        self, trial_id: str, lease_number: int, *, timeout_s: float, num_heard: int | None = None
    ) -> Report | None:
        """See ExecutorCore.next_report."""
        return self._core.next_report(trial_id, lease_number, timeout_s=timeout_s, num_heard=num_heard)

    def evict(self, trial_id: str, lease_number: int | None = None) -> None:
        """See ExecutorCore.evict."""
        self._core.evict(trial_id, lease_number)

    def preempt(self, trial_id: str, lease_number: int, reason: str) -> None:
        """See ExecutorCore.preempt."""
        self._core.preempt(trial_id, lease_number, reason)

    def heartbeat(self) -> dict[str, Any]:
        """See ExecutorCore.heartbeat."""
        return self._core.heartbeat()

    def live(self) -> dict[str, Any]:
        """See ExecutorCore.live; and which GPUs of its node this process has."""
        return {**self._core.live(), "gpu_ids": own_gpu_ids()}

    def score(self, models: Mapping[str, Path | None], split: str, *, with_answers: bool) -> dict[str, Scores]:
        """Scores saved adapters, and the bare base, on the rows of a split: see Engine.score.

        Called when the search is over: a trial still here has lost its driver, and is evicted.
        """
        with self._scoring, self._core.scoring():
            return self._engine.score(
                models, self._data.splits[split], with_answers=with_answers, progress=self._core.scoring_progress
            )

    def usage(self) -> dict[str, float | None]:
        """See ExecutorCore.usage."""
        return self._core.usage()

    def wait_change(self, seen_version: int) -> dict[str, Any] | None:
        """The facts once the slots are others than in that version; None when the executor closes.

        Its caller hears of a crash at once.
        """
        return self.describe() if self._core.wait_change(seen_version) else None

    def close(self) -> None:
        """Evicts all trials and lets `wait_change` return."""
        self._core.close()
