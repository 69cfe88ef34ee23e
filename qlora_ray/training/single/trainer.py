"""TRL's SFTTrainer over rows in a fixed order, startable at any step, that stops at every report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback, get_scheduler
from trl import SFTTrainer

from qlora_ray.errors import TrialDiverged
from qlora_ray.modeling.auxiliary_heads import MODULE
from qlora_ray.training.budget import warmup_steps
from qlora_ray.training.checkpoint import TrialState, flatten_optimizer, restore_optimizer
from qlora_ray.training.engine import TrialSpec
from qlora_ray.training.moments import is_flat, quantized_state, read_moments
from qlora_ray.training.schedules import schedule_options, scheduler_name
from qlora_ray.training.single.head_loss import HeadLoss

# What a time that something is divided by counts at least.
SHORTEST_S = 1e-9


class OrderedTrainer(SFTTrainer):
    """SFTTrainer over rows in their given order, from the start or from a state.

    Args:
        spec: The trial.
        state: Where it goes on from; None starts afresh. The model must carry the state's adapter already.
        on_report: Called on the training thread after each step the budget reports at; it may block.
        is_stopping: Asked after each step; True ends training.
        is_leaving: Asked after each step, and after the report there; True ends training with `on_leave`.
        on_leave: Called on the training thread with the step after which training ends so.
        before_micro_batch: Called with the rows of each micro-batch and the tokens that each is padded to.
        head_loss: What auxiliary heads add to the loss; None without heads.
        kwargs: SFTTrainer's own, with a dataset that begins at the state's step.
    """

    def __init__(
        self,
        spec: TrialSpec,
        *,
        state: TrialState | None,
        on_report: Callable[[int], None],
        is_stopping: Callable[[], bool],
        is_leaving: Callable[[], bool] = lambda: False,
        on_leave: Callable[[int], None] = lambda step: None,
        before_micro_batch: Callable[[int, int], None] = lambda num_rows, num_tokens: None,
        head_loss: HeadLoss | None = None,
        **kwargs: Any,
    ) -> None:
        model: PeftModel = kwargs["model"]
        initial = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(callbacks=[_ReportCallback(self)], **kwargs)
        # TRL 1.16 rounds adapters on a quantized base to bf16; ours start, and train, in fp32.
        load_trainable(model, initial)
        self.spec = spec
        self.peft_model = model
        self.start_step = self.last_step = state.step if state else 0
        self.last_loss: float | None = None
        self.tokens_per_s: float | None = None
        self.on_report = on_report
        self.is_stopping = is_stopping
        self.is_leaving = is_leaving
        self.on_leave = on_leave
        self._before_micro_batch = before_micro_batch
        self._head_loss = head_loss
        self._restored_state = state
        # One that was preempted between two reports brings the losses since the last one.
        self._step_losses: list[float] = list(state.interval_losses) if state else []
        self._micro_losses: list[torch.Tensor] = []
        self._train_s = 0.0
        self._tokens_before = 0
        self._resumed_at = time.perf_counter()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule over all the trial's steps, whatever part of them this trainer runs."""
        optimizer = optimizer or self.optimizer
        num_steps = self.spec.budget.num_steps
        scheduler = get_scheduler(
            scheduler_name(self.spec.training),
            optimizer=optimizer,
            num_warmup_steps=warmup_steps(self.spec.training, num_steps),
            num_training_steps=num_steps,
            scheduler_specific_kwargs=schedule_options(self.spec.training),
        )
        if self._restored_state is not None:
            # A loss scale that skips an optimizer step skips the schedule's too.
            position = self._restored_state.schedule_step
            scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": position})
            for group, rate, multiplier in zip(
                optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = rate * multiplier(position)
        self.lr_scheduler = scheduler
        return scheduler

    @property
    def _built_scheduler(self) -> Any:
        assert self.lr_scheduler is not None, "built by train() before any step"
        return self.lr_scheduler

    @property
    def _built_optimizer(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None, "built by train() before any step"
        return self.optimizer

    def _restore_moments(self, state: TrialState) -> None:
        """Gives the optimizer the moments of a state, of whichever engine."""
        names = self._parameter_names()
        if not is_flat(state.optimizer):
            restore_optimizer(self._built_optimizer, state.optimizer, state.optimizer_facts, names)
            return
        moments = read_moments(state.optimizer, state.optimizer_facts)
        entries = {number: quantized_state(moments[name]) for number, name in enumerate(names)}
        groups = self._built_optimizer.state_dict()["param_groups"]
        self._built_optimizer.load_state_dict({"state": entries, "param_groups": groups})

    def _parameter_names(self) -> list[str]:
        """The optimizer's parameters by name, in its own order."""
        names = {parameter: name for name, parameter in self.peft_model.named_parameters()}
        return [names[parameter] for group in self._built_optimizer.param_groups for parameter in group["params"]]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; its loss is already divided by the tokens of the whole effective batch."""
        self._before_micro_batch(*inputs["input_ids"].shape)
        if self._head_loss is None:
            loss = super().training_step(model, inputs, *args, **kwargs)
            self._micro_losses.append(loss.detach())
            return loss
        with self._head_loss.watching(self.peft_model):
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The language model's loss, and what the heads add to it."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self._head_loss is None:
            return loss
        self._micro_losses.append(loss.detach())
        return loss + self._head_loss.take(inputs["input_ids"].shape[0])

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Those of transformers, and all heads: it leaves out what has `bias` or `norm` in its name."""
        heads = [name for name, _ in model.named_parameters() if name.startswith(f"{MODULE}.")]
        return sorted({*super().get_decay_parameter_names(model), *heads})

    def begin(self) -> None:
        """Restores what exists only once training has begun: moments and loss scale."""
        state = self._restored_state
        if state is not None:
            self._restore_moments(state)
            scaler = getattr(self.accelerator, "scaler", None)
            if scaler is not None and state.loss_scale:
                scaler.load_state_dict(state.loss_scale)
        self.resume_clock()

    def end_step(self, step: int) -> None:
        """Closes an optimizer step; raises TrialDiverged if its loss is not finite."""
        loss = torch.stack(self._micro_losses).sum().item()
        self._micro_losses.clear()
        head_loss = 0.0 if self._head_loss is None else self._head_loss.end_step()
        self._step_losses.append(loss)
        self.last_step, self.last_loss = step, loss
        self.tokens_per_s = self._count_tokens() / max(time.perf_counter() - self._resumed_at, SHORTEST_S)
        if not math.isfinite(loss):
            raise TrialDiverged(f"training loss is {loss} at step {step}")
        if not math.isfinite(head_loss):
            raise TrialDiverged(f"the heads' training loss is {head_loss} at step {step}")

    def resume_clock(self) -> None:
        """Starts the time that training metrics are counted over."""
        self._resumed_at = time.perf_counter()
        self._tokens_before = self._total_train_tokens

    def pause_clock(self) -> None:
        """Stops that time: waits and evaluations are not training."""
        self._train_s = time.perf_counter() - self._resumed_at

    def take_metrics(self) -> dict[str, float]:
        """Metrics since the last report: mean loss of its steps, learning rate, non-padding tokens per second."""
        return {
            # In single precision, as the losses were.
            "train_loss": torch.tensor(self._step_losses, dtype=torch.float32).mean().item(),
            "learning_rate": self._get_learning_rate(),
            "train_s": self._train_s,
            "tokens_per_s": self._count_tokens() / max(self._train_s, SHORTEST_S),
        }

    def _count_tokens(self) -> int:
        """Non-padding tokens trained since the last report."""
        num_tokens: int = self._total_train_tokens - self._tokens_before
        return num_tokens

    def take_losses(self) -> list[float]:
        """Each step's loss since the last report."""
        losses, self._step_losses = self._step_losses, []
        return losses

    def take_state(self, step: int, report_index: int) -> TrialState:
        """The trial's state after a step, on the CPU."""
        tensors, facts = flatten_optimizer(self._built_optimizer, self._parameter_names())
        scaler = getattr(self.accelerator, "scaler", None)
        return TrialState(
            trial_id=self.spec.trial_id,
            step=step,
            report_index=report_index,
            adapter={n: p.detach().cpu().clone() for n, p in self.peft_model.named_parameters() if p.requires_grad},
            optimizer=tensors,
            optimizer_facts=facts,
            loss_scale=dict(scaler.state_dict()) if scaler is not None else {},
            schedule_step=self._built_scheduler.state_dict()["last_epoch"],
        )


class _ReportCallback(TrainerCallback):
    """Seeds every step, watches every loss, and stops at every report."""

    def __init__(self, trainer: OrderedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes on from a state, if there is one."""
        self._trainer.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the step's dropout a function of (seed, step), so that a restored trial draws the same masks."""
        step = self._trainer.start_step + state.global_step
        torch.manual_seed(step_seed(self._trainer.spec.training.seed, step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports where the budget says so; stops where the engine says so."""
        trainer = self._trainer
        step = trainer.start_step + state.global_step
        trainer.end_step(step)
        if step in trainer.spec.budget.report_steps and not trainer.is_stopping():
            trainer.pause_clock()
            trainer.on_report(step)
            trainer.resume_clock()
        if trainer.is_stopping():
            control.should_training_stop = True
        elif trainer.is_leaving() and step < trainer.spec.budget.num_steps:
            trainer.on_leave(step)
            control.should_training_stop = True


def step_seed(seed: int, step: int) -> int:
    """A 63-bit seed that differs for every (seed, step)."""
    return (seed * 1_000_003 + step * 7_919 + 1) % (2**63)


def load_trainable(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Sets the trainable parameters, in fp32, from tensors by name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = tensors[name].to(device=parameter.device, dtype=torch.float32).clone()
