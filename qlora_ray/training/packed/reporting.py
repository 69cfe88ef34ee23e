"""A trial's report in two parts: its state, what it did and what really ran; then its loss on the validation rows.

The state is whole before the evaluation begins, which can run out of memory or be killed.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from qlora_ray.errors import TrialDiverged, first_line
from qlora_ray.modeling.device_memory import as_out_of_memory, peak_memory_bytes
from qlora_ray.modeling.multi_lora.dropout import rounded_rate
from qlora_ray.modeling.multi_lora.layout import SoloLayout
from qlora_ray.modeling.multi_lora.wrapped_base import WrappedBase
from qlora_ray.scoring.heads import HeadScorer
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.training.budget import warmup_steps
from qlora_ray.training.engine import UNEVALUATED, Failure, Report
from qlora_ray.training.packed.limits import Limits
from qlora_ray.training.packed.optimizer import running_optim
from qlora_ray.training.packed.step import StepRunner
from qlora_ray.training.packed.trial import Interval, PackedTrial
from qlora_ray.training.report_metrics import PEAK_METRIC, reported_peak_bytes, thin_losses
from qlora_ray.training.simulated_memory import SimulatedMemory

if TYPE_CHECKING:
    from qlora_ray.data import TokenizedSplit


class Reporter:
    """Makes the reports of all trials of an engine.

    Args:
        wrapped: The base with its wrapped layers.
        validation: The rows that trials are compared on.
        max_eval_batch: Rows per forward that fit the device; None for no bound.
        limits: The caps that trials train under.
        runner: Who runs their steps.
        memory: The memory of the device that this one stands for; None on a real one.
    """

    def __init__(
        self,
        wrapped: WrappedBase,
        validation: TokenizedSplit,
        *,
        max_eval_batch: int | None,
        limits: Limits,
        runner: StepRunner,
        memory: SimulatedMemory | None = None,
    ) -> None:
        self._memory = memory
        self._longest = int(validation.input_ids.lengths.max(initial=1))
        self._wrapped = wrapped
        self._base = wrapped.base
        self._validation = validation
        self._max_eval_batch = max_eval_batch
        self._limits = limits
        self._runner = runner

    def keep_state(self, trial: PackedTrial) -> None:
        """Keeps a trial's state after a step that its budget reports at: that report is pending from now on."""
        spec, interval = trial.spec, trial.interval
        pending_metrics = {
            "train_loss": sum(interval.losses) / len(interval.losses),
            "learning_rate": trial.learning_rate,
            "train_s": interval.train_s,
            "tokens_per_s": interval.num_tokens / max(interval.train_s, 1e-9),
            "step": trial.step,
            "samples_seen": spec.budget.samples_seen(trial.step),
            PEAK_METRIC: peak_memory_bytes(self._base.device),
        }
        facts = self._describe(trial)
        points = thin_losses(interval.losses, last_step=trial.step, every=spec.training.logging_steps)
        trial.interval = Interval()
        state = trial.take_state()
        state.pending_metrics, state.train_losses, state.facts = pending_metrics, points, facts
        trial.state = state

    def report(self, trial: PackedTrial) -> Report | Failure:
        """Evaluates a trial with a pending report, and makes the report.

        Returns:
            The report; or a failure: the loss is not finite (`diverged`), one validation row alone does not fit the
            memory (`unevaluated`; the report stays pending), or an error, which is this trial's own: the others have
            taken their steps, and their reports are worth as much as ever.
        """
        try:
            return self._report(trial)
        except TrialDiverged as error:
            return Failure("diverged", str(error))
        except torch.OutOfMemoryError as error:
            return Failure("unevaluated", f"{UNEVALUATED}: {first_line(error)}")
        except Exception as error:
            return Failure.from_error(error)

    @as_out_of_memory()
    def _report(self, trial: PackedTrial) -> Report:
        spec, state = trial.spec, trial.state
        assert state is not None and state.has_pending_report
        started = time.perf_counter()
        scorer = HeadScorer(trial.heads, self._validation)
        loss = self._evaluate(trial, scorer)
        if not math.isfinite(loss):
            raise TrialDiverged(f"eval_loss is {loss} after step {trial.step}")
        metrics = {
            "eval_loss": loss,
            **scorer.metrics(),
            **state.pending_metrics,
            "eval_s": time.perf_counter() - started,
            PEAK_METRIC: reported_peak_bytes(state, device=self._base.device),
        }
        trial.report_index = spec.budget.report_steps.index(trial.step) + 1
        trial.state = state.reported(trial.report_index, metrics=metrics)
        is_final = trial.step == spec.budget.num_steps
        return Report(
            spec.trial_id, trial.report_index, is_final, metrics, facts=state.facts, train_losses=state.train_losses
        )

    def _evaluate(self, trial: PackedTrial, scorer: HeadScorer) -> float:
        """Mean loss on the validation rows, through the same layers that train."""
        eval_batch = trial.spec.training.per_device_eval_batch_size
        num_rows = min(eval_batch, self._max_eval_batch or eval_batch)
        if self._memory is not None:
            self._memory.take_evaluation(num_rows=num_rows, longest=self._longest)
        layout = SoloLayout(trial.owner(training=False), device=self._base.device)
        with self._wrapped.switch.routing(layout):
            return evaluate_loss(
                self._base.model,
                self._validation,
                batch_size=num_rows,
                pad_token_id=int(self._base.tokenizer.pad_token_id),
                precision=self._base.precision,
                on_hidden=scorer.observe if trial.spec.heads else None,
            ).loss

    def describe_run(self, trial: PackedTrial) -> dict[str, Any]:
        """What really ran, for the last report of a trial that has failed, also where it never reported."""
        if trial.state is not None and trial.has_pending_report:
            # It has not trained since: what ran is what was kept with its state, also in another process.
            return trial.state.facts
        return self._describe(trial)

    def _describe(self, trial: PackedTrial) -> dict[str, Any]:
        """What runs: every value resolved, none left as an expression."""
        spec, blueprint = trial.spec, trial.blueprint
        training, budget = spec.training, spec.budget
        return {
            "engine": "packed",
            "training": {
                **training.model_dump(exclude={"num_train_epochs", "max_samples", "warmup_ratio", "precision"}),
                "optim": running_optim(training),
                "gradient_checkpointing": self._runner.checkpoints,
                "max_steps": budget.num_steps,
                "warmup_steps": warmup_steps(training, budget.num_steps),
                "bf16": self._base.precision == "bf16",
                "fp16": self._base.precision == "fp16",
            },
            "lora": {
                **spec.lora.model_dump(exclude={"alpha_ratio"}),
                "lora_alpha": spec.lora.resolved_alpha,
                "lora_dropout": rounded_rate(spec.lora.lora_dropout),
                "target_modules": sorted(blueprint.config.target_modules or ()),
            },
            "heads": {head.name: head.describe() for head in spec.heads},
            "effective_batch": budget.effective_batch,
            "num_samples": budget.num_samples,
            "num_steps": budget.num_steps,
            "precision": self._base.precision,
            "quantization": self._base.quantization.to_dict(),
            "hold_dequantized": self._wrapped.holds_dequantized,
            "max_tokens_per_micro_batch": self._limits.max_tokens,
            "largest_micro_batch": trial.largest_micro_batch,
            "pack": trial.interval.describe(),
            "trainable_parameters": blueprint.trainable_parameters,
            "total_parameters": blueprint.total_parameters,
            "trainable_percent": round(100 * blueprint.trainable_parameters / blueprint.total_parameters, 4),
        }
