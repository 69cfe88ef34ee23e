"""A sweep's trials again in this process, each stopped where the sweep stopped it: packed, single, and bare PEFT in
turn.

No Ray, no processes, no scheduler that has to be waited for: what is left is training and evaluating.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.arms import ArmName
from benchmarks.bare_loop import bare_trial
from benchmarks.stopwatch import Stopwatch
from benchmarks.sweeps import OurSweep, Trial
from qlora_ray.config.schema import Lora, SweepConfig
from qlora_ray.data import PreparedData
from qlora_ray.errors import RunError
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.training.budget import make_budget
from qlora_ray.training.engine import Engine, Preemption, TrialSpec

# Of a trial's training settings, what is the config's by another name.
RENAMED = ("warmup_steps",)


def replay(
    ours: OurSweep, base: LoadedBase, data: PreparedData, *, engines: dict[ArmName, Callable[[], Engine]]
) -> dict[str, Any]:
    """Seconds of each way to train and evaluate all trials of a sweep, the base being loaded."""
    watch = Stopwatch(base.device)
    specs = [make_spec(trial, ours.config, num_train_rows=len(data.train)) for trial in ours.trials]
    stops = {trial.id: trial.num_reports for trial in ours.trials}
    seconds: dict[str, float] = {}
    losses: dict[str, dict[str, float]] = {}
    for arm, make_engine in engines.items():
        began = watch.now()
        losses[arm] = replay_engine(make_engine(), specs, stops)
        seconds[arm] = round(watch.now() - began, 2)
    began = watch.now()
    losses["in_turn"] = {spec.trial_id: replay_bare(base, data, spec, stops[spec.trial_id]) for spec in specs}
    seconds["in_turn"] = round(watch.now() - began, 2)
    return {"seconds": seconds, "eval_losses": losses}


def make_spec(trial: Trial, config: SweepConfig, *, num_train_rows: int) -> TrialSpec:
    """The trial as engines take it."""
    settings = {key: value for key, value in trial.training.items() if key not in RENAMED}
    training = config.training.model_copy(update=settings)
    budget = make_budget(training, num_train_rows=num_train_rows, num_reports=config.search.num_reports)
    return TrialSpec(trial.id, Lora(**trial.lora), training, budget)


def replay_engine(engine: Engine, specs: list[TrialSpec], stops: dict[str, int]) -> dict[str, float]:
    """Trains all trials, as many at once as there are slots; each one's last evaluation loss.

    Raises:
        RunError: A trial failed that the sweep had trained.
    """
    coming = list(specs)
    losses: dict[str, float] = {}
    num_here = 0
    while coming or num_here:
        while coming and num_here < engine.slots:
            engine.admit(coming.pop(0))
            num_here += 1
        for report in engine.advance():
            if isinstance(report, Preemption):
                raise RunError(
                    f"benchmark: trial {report.trial_id} must train as it did in the sweep, but was preempted: "
                    f"{report.reason}. Choose a device with more memory."
                )
            if report.failure is not None:
                raise RunError(
                    f"benchmark: trial {report.trial_id} must train as it did in the sweep, got "
                    f"{report.failure.cause}: {report.failure.message}. See the sweep's record of it."
                )
            losses[report.trial_id] = report.metrics["eval_loss"]
            if report.is_final or report.index >= stops[report.trial_id]:
                engine.evict(report.trial_id)
                num_here -= 1
            else:
                engine.proceed(report.trial_id)
    return losses


def replay_bare(base: LoadedBase, data: PreparedData, spec: TrialSpec, num_reports: int) -> float:
    """Trains one trial in the bare loop and evaluates it where it reports; its last evaluation loss."""
    loss = float("nan")
    with bare_trial(base, data.train, spec) as train_step:
        for step in range(1, spec.budget.report_steps[num_reports - 1] + 1):
            train_step()
            if step in spec.budget.report_steps:
                loss = evaluate_loss(
                    base.model,
                    data.validation,
                    batch_size=spec.training.per_device_eval_batch_size,
                    pad_token_id=int(base.tokenizer.pad_token_id),
                    precision=base.precision,
                ).loss
    return loss
