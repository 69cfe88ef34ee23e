"""An executor: one engine on one device, whose slots trials lease.

`ExecutorCore` holds the logic and knows no Ray; `Executor` is the actor around it, which finds out what device
it really got, loads the base once, and speaks the core's methods.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_ray.config.schema import SweepConfig
from qlora_ray.errors import PlacementError
from qlora_ray.hardware import Placement, Plan
from qlora_ray.runs.files import whole_folder
from qlora_ray.runs.paths import SweepPaths
from qlora_ray.training.engine import Engine, Failure, Report, TrialSpec

if TYPE_CHECKING:
    from qlora_ray.data import PreparedData

# How often the training loop wakes to look for leases that timed out, when nothing else wakes it.
REAP_INTERVAL_S = 1.0


class LeaseLost(RuntimeError):
    """The trial is not on this executor any more: it was evicted, or its driver stopped asking."""


class ExecutorCore:
    """Runs an engine's loop on a thread, and hands each trial's reports to whoever asks for them.

    Args:
        engine: The engine.
        paths: The sweep's folder, on storage that the driver sees too.
        lease_timeout_s: A trial nobody asks for this long is evicted, and its slot is free.
        keep_state: Whether a trial's state is written at each report, so that it can go on elsewhere.
        clock: Monotonic seconds; tests give their own.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        paths: SweepPaths,
        lease_timeout_s: float,
        keep_state: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._paths = paths
        self._lease_timeout_s = lease_timeout_s
        self._keep_state = keep_state
        self._clock = clock
        self._changed = threading.Condition()
        self._asked_at: dict[str, float] = {}
        self._reports: dict[str, Report] = {}
        self._runnable: set[str] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def admit(self, spec: TrialSpec, *, resume: bool) -> bool:
        """Takes a trial in.

        Args:
            spec: The trial.
            resume: Whether to go on from the state its last report left on disk, if there is one.

        Returns:
            Whether it went on from a state.
        """
        from qlora_ray.training.checkpoint import TrialState

        folder = self._paths.trial(spec.trial_id).state
        state = TrialState.load(folder) if resume and folder.exists() else None
        with self._changed:
            self._engine.admit(spec, state)
            self._asked_at[spec.trial_id] = self._clock()
            self._runnable.add(spec.trial_id)
            self._changed.notify_all()
        return state is not None

    def next_report(self, trial_id: str, *, timeout_s: float) -> Report | None:
        """The trial's next report; asking again after one means go on.

        Returns:
            The report, or None if none came within `timeout_s`: ask again.

        Raises:
            LeaseLost: If the trial is not here.
        """
        with self._changed:
            self._touch(trial_id)
            if trial_id not in self._runnable and trial_id not in self._reports:
                self._runnable.add(trial_id)
                self._engine.proceed(trial_id)
                self._changed.notify_all()
            self._changed.wait_for(
                lambda: trial_id in self._reports or trial_id not in self._asked_at, timeout=timeout_s
            )
            self._touch(trial_id)
            return self._reports.pop(trial_id, None)

    def evict(self, trial_id: str) -> None:
        """Ends a trial and frees its slot; does nothing for one that is not here."""
        with self._changed:
            known = self._asked_at.pop(trial_id, None) is not None
            self._runnable.discard(trial_id)
            self._reports.pop(trial_id, None)
            self._changed.notify_all()
        if known:
            self._engine.evict(trial_id)

    def trials(self) -> list[str]:
        """Ids of the admitted trials."""
        with self._changed:
            return sorted(self._asked_at)

    def reap(self) -> list[str]:
        """Evicts the trials that nobody has asked for in `lease_timeout_s`; returns their ids."""
        now = self._clock()
        with self._changed:
            lost = [trial for trial, asked in self._asked_at.items() if now - asked > self._lease_timeout_s]
        for trial_id in lost:
            self.evict(trial_id)
        return lost

    def close(self) -> None:
        """Evicts all trials and ends the loop."""
        for trial_id in self.trials():
            self.evict(trial_id)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _touch(self, trial_id: str) -> None:
        if trial_id not in self._asked_at:
            raise LeaseLost(f"executor: trial {trial_id} is not here")
        self._asked_at[trial_id] = self._clock()

    def _loop(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._runnable or self._closed, timeout=REAP_INTERVAL_S)
            self.reap()
            try:
                reports = self._engine.advance()
            except Exception as error:
                reports = self._fail_all(error)
            for report in reports:
                kept = self._keep(report)
                with self._changed:
                    if report.trial_id in self._asked_at:
                        self._runnable.discard(report.trial_id)
                        self._reports[report.trial_id] = kept
                        # Nobody could ask while the engine trained, so the wait for the driver starts now.
                        self._asked_at[report.trial_id] = self._clock()
                        self._changed.notify_all()

    def _keep(self, report: Report) -> Report:
        """Writes what a report leaves on disk; a trial whose adapter cannot be written has failed."""
        if report.failure:
            return report
        trial = self._paths.trial(report.trial_id)
        try:
            if report.is_final:
                with whole_folder(trial.adapter) as folder:
                    self._engine.save_adapter(report.trial_id, folder)
            elif self._keep_state:
                state = self._engine.snapshot(report.trial_id)
                if state is not None:
                    state.save(trial.state)
        except Exception as error:
            message = f"{trial.root}: cannot be written: {error}"
            failure = Failure("error", message, traceback.format_exc())
            return Report(report.trial_id, report.index, True, report.metrics, report.facts, failure)
        return report

    def _fail_all(self, error: Exception) -> list[Report]:
        failure = Failure("error", f"{type(error).__name__}: {error}", traceback.format_exc())
        with self._changed:
            return [Report(trial_id, 0, True, {}, failure=failure) for trial_id in sorted(self._runnable)]


@dataclass(frozen=True)
class ExecutorTerms:
    """What every executor of a sweep is told."""

    config: SweepConfig
    root: Path
    has_references: bool
    plan: Plan | None = None


class Executor:
    """The actor: finds its device and precision, loads the base once, and serves one engine.

    It is created with as many concurrent calls as its trials need for their long polls.
    """

    def __init__(self, terms: ExecutorTerms, placement: Placement, data: PreparedData) -> None:
        # Before torch is imported: OpenMP reads this once. Ray sets it to the CPUs requested, which are shares.
        os.environ["OMP_NUM_THREADS"] = str(placement.num_threads)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import torch

        torch.set_num_threads(placement.num_threads)
        from qlora_ray.evaluation import resolve_metrics
        from qlora_ray.hardware import choose_precision, probe_node
        from qlora_ray.modeling.loading import EMBEDDED, load_base
        from qlora_ray.modeling.quantization import specify_quantization
        from qlora_ray.training.sft import SftEngine
        from qlora_ray.training.sft_run import TrainingData

        config = terms.config
        node = probe_node()
        self._device = node.devices[0]
        placement = self._find_placement(terms, placement, node.hostname)
        if self._device.kind == "cuda" and placement.memory_cap_fraction is not None:
            torch.cuda.set_per_process_memory_fraction(placement.memory_cap_fraction)
        self._precision = choose_precision(self._device, requested=config.training.precision)
        base = load_base(
            config.model,
            quantization=specify_quantization(config.model.quantization, compute_dtype=self._precision.name),
            device="cuda:0" if self._device.kind == "cuda" else "cpu",
        )
        metrics, _ = resolve_metrics(
            config.evaluate,
            trains_on_embedded=config.data.train == EMBEDDED,
            has_references=terms.has_references,
        )
        self._engine = SftEngine(
            base,
            TrainingData.from_splits(data.train, data.validation),
            max_micro_batch=placement.max_micro_batch,
            max_eval_batch=placement.eval_batch,
            evaluate=config.evaluate,
            metrics=metrics,
        )
        self._core = ExecutorCore(
            self._engine,
            paths=SweepPaths(terms.root),
            lease_timeout_s=config.cluster.lease_timeout_s,
            keep_state=config.cluster.keep_trial_state,
        )
        self._scoring = threading.Lock()
        self._closing = threading.Event()
        self._placement = placement
        self._node = node

    def _find_placement(self, terms: ExecutorTerms, planned: Placement, hostname: str) -> Placement:
        """The plan for the device this process really got: on a node of mixed GPUs, Ray chooses which."""
        if self._device.kind != planned.device_kind:
            raise PlacementError(
                f"executor: must be on a {planned.device_kind} device as planned, got {self._device.name} on "
                f"{hostname}. Check CUDA_VISIBLE_DEVICES and the driver there."
            )
        if self._device.kind == "cpu" or self._device.class_key == planned.device_class or terms.plan is None:
            return planned
        found = terms.plan.placement_for(self._device.class_key)
        if found is None:
            raise PlacementError(
                f"executor: got {self._device.name} on {hostname}, which the plan leaves out. "
                "Hide it with CUDA_VISIBLE_DEVICES where Ray is started."
            )
        return found

    def describe(self) -> dict[str, Any]:
        """What this executor is and runs on; goes into the record of each of its trials."""
        return {
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "slots": self._engine.slots,
            "device": self._device.name,
            "device_class": self._device.class_key,
            "compute_capability": self._device.capability_text if self._device.kind == "cuda" else None,
            "precision": self._precision.name,
            "precision_reason": self._precision.reason,
            "bf16": self._precision.bf16,
            "fp16": self._precision.fp16,
            "cuda_available": self._device.kind == "cuda",
            "cuda": self._node.cuda_version,
            "driver": self._node.driver_version,
            "cpu": self._node.cpu_name,
            "num_threads": self._placement.num_threads,
            "versions": {**self._node.packages, "python": self._node.python_version},
            "estimated_memory_bytes": self._placement.estimate.total_bytes,
        }

    def admit(self, spec: TrialSpec, *, resume: bool = False) -> bool:
        """See ExecutorCore.admit."""
        return self._core.admit(spec, resume=resume)

    def next_report(self, trial_id: str, *, timeout_s: float) -> Report | None:
        """See ExecutorCore.next_report."""
        return self._core.next_report(trial_id, timeout_s=timeout_s)

    def evict(self, trial_id: str) -> None:
        """See ExecutorCore.evict."""
        self._core.evict(trial_id)

    def trials(self) -> list[str]:
        """See ExecutorCore.trials."""
        return self._core.trials()

    def score(self, adapter: Path | None) -> Any:
        """Scores a saved adapter, or the bare base, on the validation rows; one at a time.

        Called when the search is over: a trial still here has lost its driver, and is evicted.
        """
        with self._scoring:
            for trial_id in self._core.trials():
                self._core.evict(trial_id)
            return self._engine.score(adapter)

    def wait_closed(self) -> None:
        """Returns when the executor closes; its caller hears of a crash at once."""
        self._closing.wait()

    def close(self) -> None:
        """Evicts all trials and lets `wait_closed` return."""
        self._core.close()
        self._closing.set()
