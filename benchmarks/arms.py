"""The arms that run in this process: our packed engine, our single engine, and a bare PEFT loop in turn.

All train the same TrialSpecs on the same rows. The clock runs from after the first step to the last; what an engine
says it spent on evaluating its one validation row is taken off, because the bare loop evaluates nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from benchmarks.bare_loop import bare_trial
from benchmarks.cases import NUM_WARMUP_STEPS, Workload
from benchmarks.stopwatch import Run, Stopwatch
from qlora_ray.errors import RunError
from qlora_ray.hardware import Placement
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.engine import Engine, Preemption, Report, TrainingData
from qlora_ray.training.packed.engine import PackedEngine
from qlora_ray.training.single.engine import SingleEngine

ArmName = Literal["packed", "single", "in_turn"]
ARMS: tuple[ArmName, ...] = ("packed", "in_turn", "single")


def run_arm(arm: ArmName, base: LoadedBase, workload: Workload, placement: Placement) -> Run:
    """One repetition of one arm, as the sweep would place it.

    Raises:
        RunError: A trial failed.
        torch.OutOfMemoryError: The trials did not fit the device, all at once or one of them.
    """
    watch = Stopwatch(base.device)
    watch.reset_peak()
    run: Run
    if arm == "in_turn":
        run = run_in_turn(base, workload, watch)
    else:
        run = run_engine(make_engine_maker(arm, base, workload, placement), workload, watch)
    run.peak_bytes = watch.peak_bytes()
    return run


def make_engine_maker(arm: ArmName, base: LoadedBase, workload: Workload, placement: Placement) -> Callable[[], Engine]:
    """What makes the engine: making it is part of its set-up."""
    data = TrainingData(workload.rows, workload.validation)
    if arm == "packed":
        assert placement.max_tokens_per_micro_batch is not None
        max_tokens = placement.max_tokens_per_micro_batch
        return lambda: PackedEngine(
            base,
            data,
            slots=len(workload.specs),
            max_tokens_per_micro_batch=max_tokens,
            hold_dequantized=placement.hold_dequantized,
        )
    return lambda: SingleEngine(base, data, max_micro_batch=workload.specs[0].budget.effective_batch)


def run_engine(make_engine: Callable[[], Engine], workload: Workload, watch: Stopwatch) -> Run:
    """All trials through an engine, as many at once as it has slots."""
    run = Run()
    began = watch.now()
    engine = make_engine()
    paddings: list[float] = []
    waiting = list(workload.specs)
    while waiting:
        here, waiting = waiting[: engine.slots], waiting[engine.slots :]
        try:
            for spec in here:
                engine.admit(spec)
            _collect(engine, len(here))
            run.setup_s += watch.now() - began
            began = watch.now()
            for spec in here:
                engine.proceed(spec.trial_id)
            reports = _collect(engine, len(here))
            run.seconds += watch.now() - began - sum(report.metrics["eval_s"] for report in reports)
            began = watch.now()
        finally:
            # Whatever happened, the next arm finds the base as this one found it.
            for spec in here:
                engine.evict(spec.trial_id)
        for report in reports:
            run.losses[report.trial_id] = report.metrics["train_loss"]
            paddings.append(report.facts.get("pack", {}).get("padding_share", workload.batch_padding_share))
    run.padding_share = sum(paddings) / len(paddings)
    return run


def run_in_turn(base: LoadedBase, workload: Workload, watch: Stopwatch) -> Run:
    """All trials one after another through the bare loop."""
    run = Run(padding_share=workload.batch_padding_share)
    for spec in workload.specs:
        began = watch.now()
        with bare_trial(base, workload.rows, spec) as train_step:
            for _ in range(NUM_WARMUP_STEPS):
                train_step()
            ready = watch.now()
            losses = [train_step() for _ in range(workload.case.steps)]
            run.seconds += watch.now() - ready
        run.setup_s += ready - began
        # Read after the clock stopped: a loss read at each step would make a GPU wait for the host.
        run.losses[spec.trial_id] = float(torch.stack(losses).mean())
    return run


def _collect(engine: Engine, num_trials: int) -> list[Report]:
    """One report of each trial that is here."""
    reports: list[Report] = []
    while len(reports) < num_trials:
        for event in engine.advance():
            if isinstance(event, Preemption):
                raise torch.OutOfMemoryError(event.reason)
            if event.failure is not None and event.failure.cause == "oom":
                raise torch.OutOfMemoryError(event.failure.message)
            if event.failure is not None:
                raise RunError(
                    f"benchmark: trial {event.trial_id} must train to its end, got {event.failure.cause}: "
                    f"{event.failure.message}. See tests/contracts."
                )
            reports.append(event)
    return reports
