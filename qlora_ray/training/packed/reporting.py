"""A trial's report in two parts: its state, what it did and what really ran; then its loss on the validation rows.

The state is whole before the evaluation begins, which can run out of memory or be killed.
"""

from __future__ import annotations

import math
import time
from typing import Any

from qlora_ray.errors import TrialDiverged
from qlora_ray.modeling.multi_lora.dropout import rounded_rate
from qlora_ray.modeling.multi_lora.layout import SoloLayout
from qlora_ray.modeling.multi_lora.wrapped_base import FusedBase
from qlora_ray.scoring.loss import evaluate_loss
from qlora_ray.scoring.split import EvaluationSplit
from qlora_ray.training.budget import warmup_steps
from qlora_ray.training.curve import thin_losses
from qlora_ray.training.engine import Report
from qlora_ray.training.packed.member import Interval, Member
from qlora_ray.training.packed.optimizer import running_optim
from qlora_ray.training.peak import PEAK_METRIC, peak_memory_bytes, reported_peak_bytes


class Reporter:
    """Makes the reports of all trials of an engine.

    Args:
        fused: The base with its fused layers.
        validation: The rows that trials are compared on.
        max_eval_batch: Rows per forward that fit the device; None for no bound.
    """

    def __init__(self, fused: FusedBase, validation: EvaluationSplit, *, max_eval_batch: int | None) -> None:
        self._fused = fused
        self._base = fused.base
        self._validation = validation
        self._max_eval_batch = max_eval_batch

    def keep_state(self, member: Member, *, max_tokens: int, checkpoints: bool) -> None:
        """Keeps a member's state after a step that its budget reports at: from now on it owes that report.

        Args:
            member: The trial.
            max_tokens: The cap on its passes.
            checkpoints: Whether its last step recomputed activations.
        """
        spec, interval = member.spec, member.interval
        unreported = {
            "train_loss": sum(interval.losses) / len(interval.losses),
            "learning_rate": member.learning_rate,
            "train_s": interval.train_s,
            "tokens_per_s": interval.num_tokens / max(interval.train_s, 1e-9),
            "step": member.step,
            "samples_seen": spec.budget.samples_seen(member.step),
            PEAK_METRIC: peak_memory_bytes(self._base.device),
        }
        facts = self.describe(member, max_tokens=max_tokens, checkpoints=checkpoints)
        points = thin_losses(interval.losses, last_step=member.step, every=spec.training.logging_steps)
        member.interval = Interval()
        state = member.take_state()
        state.unreported, state.train_losses, state.facts = unreported, points, facts
        member.state = state

    def report(self, member: Member) -> Report:
        """Evaluates a member that owes a report, and makes it.

        Raises:
            TrialDiverged: Its evaluation loss is not finite.
            torch.OutOfMemoryError: One validation row alone does not fit. The member still owes the report.
        """
        spec, state = member.spec, member.state
        assert state is not None and state.owes_report
        started = time.perf_counter()
        loss = self._evaluate(member)
        if not math.isfinite(loss):
            raise TrialDiverged(f"eval_loss is {loss} after step {member.step}")
        metrics = {
            "eval_loss": loss,
            **state.unreported,
            "eval_s": time.perf_counter() - started,
            PEAK_METRIC: reported_peak_bytes(state, device=self._base.device),
        }
        member.report_index = spec.budget.report_steps.index(member.step) + 1
        member.state = state.reported(member.report_index, metrics=metrics)
        is_final = member.step == spec.budget.num_steps
        return Report(
            spec.trial_id, member.report_index, is_final, metrics, facts=state.facts, train_losses=state.train_losses
        )

    def _evaluate(self, member: Member) -> float:
        """Mean loss on the validation rows, through the same layers that train."""
        eval_batch = member.spec.training.per_device_eval_batch_size
        layout = SoloLayout(member.owner(training=False), device=self._base.device)
        with self._fused.switch.routing(layout):
            return evaluate_loss(
                self._base.model,
                self._validation,
                batch_size=min(eval_batch, self._max_eval_batch or eval_batch),
                pad_token_id=int(self._base.tokenizer.pad_token_id),
                precision=self._base.precision,
            ).loss

    def describe(self, member: Member, *, max_tokens: int, checkpoints: bool) -> dict[str, Any]:
        """What really runs: every value resolved, none left as an expression. Arguments as for `keep_state`."""
        spec, blueprint = member.spec, member.blueprint
        training, budget = spec.training, spec.budget
        return {
            "engine": "fused",
            "training": {
                **training.model_dump(exclude={"num_train_epochs", "max_samples", "warmup_ratio", "precision"}),
                "optim": running_optim(training),
                "gradient_checkpointing": checkpoints,
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
            "effective_batch": budget.effective_batch,
            "num_samples": budget.num_samples,
            "num_steps": budget.num_steps,
            "precision": self._base.precision,
            "quantization": self._base.quantization.to_dict(),
            "hold_dequantized": self._fused.holds_dequantized,
            "max_tokens_per_pass": max_tokens,
            "pack": member.interval.describe(),
            "trainable_parameters": blueprint.trainable_parameters,
            "total_parameters": blueprint.total_parameters,
            "trainable_percent": round(100 * blueprint.trainable_parameters / blueprint.total_parameters, 4),
        }
