"""One trial in the pack: its adapter's row in a stack, its optimizer, its place in budget and data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import nn

from qlora_ray.hardware.memory_counts import ADAPTER_GRADIENT_BYTES, ADAPTER_WEIGHT_BYTES, MOMENT_BYTES
from qlora_ray.modeling.auxiliary_heads import TrainedHead
from qlora_ray.modeling.device_memory import as_out_of_memory
from qlora_ray.modeling.multi_lora.adapter_stack import AdapterStack
from qlora_ray.modeling.multi_lora.adapters import Blueprint, LayerTensors
from qlora_ray.modeling.multi_lora.dropout import rounded_rate
from qlora_ray.modeling.multi_lora.flat_adapter import FlatAdapter
from qlora_ray.modeling.multi_lora.layout import RowOwner
from qlora_ray.training.budget import sample_order
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import TrialProgress, TrialSpec
from qlora_ray.training.packed.optimizer import give_moments, make_optimizer, take_moments
from qlora_ray.training.packed.schedule import LossScale, rate_factor


@dataclass
class Interval:
    """What happened to a trial since its last report."""

    losses: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_padding: int = 0
    train_s: float = 0.0
    num_trials: int = 0
    num_steps: int = 0

    def add_step(self, elapsed_s: float, *, num_trials: int) -> None:
        """Takes note of a step that so many trials shared."""
        self.train_s += elapsed_s
        self.num_trials += num_trials
        self.num_steps += 1

    @property
    def tokens_per_s(self) -> float | None:
        """Non-padding tokens per second of training; None before the first step."""
        return self.num_tokens / self.train_s if self.train_s else None

    def describe(self) -> dict[str, float]:
        """How well packing went: trials per step, and the share of padding in this trial's rows."""
        return {
            "mean_trials": round(self.num_trials / max(1, self.num_steps), 2),
            "padding_share": round(self.num_padding / max(1, self.num_tokens + self.num_padding), 4),
        }


class PackedTrial:
    """A trial in the pack.

    Args:
        spec: The trial.
        blueprint: Its adapter.
        tensors: Its initial values; not used where it goes on from a state.
        stack: Where its adapter is put.
        num_rows: Training rows there are.
        state: Where it goes on from.
        scales_loss: Whether it computes in fp16.
    """

    def __init__(
        self,
        spec: TrialSpec,
        blueprint: Blueprint,
        tensors: LayerTensors,
        *,
        stack: AdapterStack,
        num_rows: int,
        state: TrialState | None,
        scales_loss: bool,
    ) -> None:
        self.spec = spec
        self.blueprint = blueprint
        self.stack = stack
        self.state = state
        self.step = state.step if state else 0
        self.schedule_step = state.schedule_step if state else 0
        self.report_index = state.report_index if state else 0
        self.interval = Interval(losses=list(state.interval_losses) if state else [])
        self.last_loss: float | None = None
        # Padded tokens, while it was here: what memory was really taken for.
        self.largest_micro_batch = 0
        self.loss_scale = LossScale() if scales_loss else None
        if state and state.loss_scale and self.loss_scale:
            self.loss_scale = LossScale.from_dict(state.loss_scale)
        budget = spec.budget
        self.order = sample_order(
            num_rows=num_rows,
            num_samples=budget.samples_seen(budget.num_steps),
            data_seed=spec.training.data_seed,
        )
        self.adapter = FlatAdapter(spec.trial_id, blueprint, stack)
        flat_P = self.adapter.flatten(state.adapter) if state else stack.flatten(tensors)
        stack.add(spec.trial_id, flat_P)
        self.parameter = nn.Parameter(self.adapter.weights_P)
        self.optimizer = make_optimizer(self.parameter, spec.training)
        if state:
            give_moments(self.optimizer, self.adapter, state)

    @property
    def slot(self) -> int:
        """Its row in the stack."""
        return self.adapter.slot

    @property
    def num_bytes(self) -> int:
        """What one more trial of its stack takes: fp32 weights and gradients, and the moments."""
        per_parameter = ADAPTER_WEIGHT_BYTES + ADAPTER_GRADIENT_BYTES + MOMENT_BYTES[self.spec.training.optim]
        return int(self.stack.num_parameters * per_parameter)

    @property
    def learning_rate(self) -> float:
        """The rate of the trial's next optimizer step."""
        factor = rate_factor(self.spec.training, position=self.schedule_step, num_steps=self.spec.budget.num_steps)
        return self.spec.training.learning_rate * factor

    @property
    def is_due(self) -> bool:
        """Whether it reports after the step it has just done."""
        return self.step in self.spec.budget.report_steps

    def next_rows(self) -> list[int]:
        """The data rows of its next step."""
        batch = self.spec.budget.effective_batch
        return self.order[self.step * batch : (self.step + 1) * batch]

    def owner(self, *, training: bool) -> RowOwner:
        """Whose rows its rows are: with dropout in training, and without in evaluation."""
        rate = rounded_rate(self.spec.lora.lora_dropout) if training else 0.0
        return self.adapter.owner(dropout=rate)

    @property
    def heads(self) -> list[TrainedHead]:
        """Its auxiliary heads, as views of its row: stale when others come or go."""
        return [TrainedHead(spec, self.adapter.matrix(spec.parameter_name).detach()) for spec in self.spec.heads]

    def bind(self) -> None:
        """Points its parameter at its row, which moves when others come or go; called whenever they do."""
        self.parameter.data = self.adapter.weights_P
        self.parameter.grad = self.adapter.gradients_P

    @as_out_of_memory()
    def finish_step(self, gradient_norm: float) -> None:
        """Clips, and takes the optimizer step, unless its loss scale was too large for it.

        Args:
            gradient_norm: Of its summed gradient, loss scale included.

        Raises:
            torch.OutOfMemoryError: No room for its moments, which the first step makes; it has not stepped.
        """
        training = self.spec.training
        assert self.parameter.grad is not None
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        overflowed = self.loss_scale is not None and not math.isfinite(gradient_norm)
        if not overflowed:
            factor = 1 / scale
            if training.max_grad_norm > 0:
                # torch.nn.utils.clip_grad_norm_: the same guard against a norm of zero.
                factor *= min(1.0, training.max_grad_norm / (gradient_norm * factor + 1e-6))
            if factor != 1.0:
                self.parameter.grad.mul_(factor)
            self.optimizer.param_groups[0]["lr"] = self.learning_rate
            self.optimizer.step()
            self.schedule_step += 1
        # Only now: an optimizer that finds no room for its moments has not stepped.
        if self.loss_scale is not None:
            self.loss_scale.update(overflowed=overflowed)
        self.step += 1

    def progress(self) -> TrialProgress:
        """How far it is; from any thread."""
        # Other threads replace these as a whole.
        state, interval = self.state, self.interval
        metrics = {**state.metrics, **state.pending_metrics} if state else {}
        return TrialProgress(
            self.spec.trial_id,
            self.step,
            train_loss=self.last_loss,
            eval_loss=metrics.get("eval_loss"),
            tokens_per_s=interval.tokens_per_s or metrics.get("tokens_per_s"),
        )

    @property
    def has_pending_report(self) -> bool:
        """Whether it has trained to a report that it has not made."""
        return self.state is not None and self.state.has_pending_report

    def take_state(self) -> TrialState:
        """Its state now, on the CPU."""
        tensors, facts = take_moments(self.optimizer, self.adapter)
        return TrialState(
            trial_id=self.spec.trial_id,
            step=self.step,
            report_index=self.report_index,
            adapter=self.adapter.named_tensors(self.parameter.detach()),
            optimizer=tensors,
            optimizer_facts=facts,
            loss_scale=self.loss_scale.to_dict() if self.loss_scale else {},
            schedule_step=self.schedule_step,
            metrics=self.state.metrics if self.state else {},
            facts=self.state.facts if self.state else {},
            interval_losses=list(self.interval.losses),
            train_losses=self.state.train_losses if self.state else [],
        )
