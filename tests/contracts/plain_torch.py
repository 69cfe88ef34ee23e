"""The same losses by torch and PEFT alone: what the engines are held against."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from qlora_ray.data import PreparedData
from qlora_ray.modeling.adapters import attach_adapter, detach_adapter
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.budget import sample_order, warmup_steps
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import TrialSpec


def plain_validation_loss(model: Any, data: PreparedData) -> float:
    """Mean loss over all answer tokens, row by row, by torch alone."""
    total, count = 0.0, 0
    model.eval()
    for ids, mask in zip(data.validation.input_ids, data.validation.completion_mask, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        kept = torch.tensor(mask[1:], dtype=torch.bool)
        total += F.cross_entropy(logits[kept], torch.tensor(ids[1:])[kept], reduction="sum").item()
        count += int(kept.sum())
    return total / count


def plain_training_losses(spec: TrialSpec, base: LoadedBase, data: PreparedData) -> list[float]:
    """Each step's loss of a hand-written loop: PEFT, AdamW, cosine schedule with warm-up, clipping at 1."""
    return _train(spec, base, data, None)


def plain_continued_losses(spec: TrialSpec, base: LoadedBase, data: PreparedData, state: TrialState) -> list[float]:
    """The same from a state on: its weights, moments and step, and all else as the trial has it."""
    return _train(spec, base, data, state)


def _train(spec: TrialSpec, base: LoadedBase, data: PreparedData, state: TrialState | None) -> list[float]:
    training, num_steps, batch = spec.training, spec.budget.num_steps, spec.budget.effective_batch
    model = attach_adapter(base, spec.lora, seed=training.seed)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    warmup = warmup_steps(training, num_steps)
    order = sample_order(num_rows=len(data.train), num_samples=num_steps * batch, data_seed=training.data_seed)
    if state is not None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(state.adapter[name])
                optimizer.state[parameter] = {
                    key: state.optimizer[f"{name}/{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
                }
    seen = []
    for step in range(state.step if state else 0, num_steps):
        if step < warmup:
            factor = step / warmup
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))
        optimizer.param_groups[0]["lr"] = training.learning_rate * factor
        total, count = torch.zeros(()), 0
        for row in order[step * batch : (step + 1) * batch]:
            ids, mask = data.train.input_ids[row], data.train.completion_mask[row]
            kept = torch.tensor(mask[1:], dtype=torch.bool)
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
            total = total + F.cross_entropy(logits[kept], torch.tensor(ids[1:])[kept], reduction="sum")
            count += int(kept.sum())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(total.item() / count)
    detach_adapter(base)
    return seen
