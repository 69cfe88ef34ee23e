"""The same losses by torch and PEFT alone: what the engines are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qlora_ray.data import PreparedData, TokenizedSplit
from qlora_ray.modeling.adapters import attach_adapter, detach_adapter
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.training.budget import sample_order, warmup_steps
from qlora_ray.training.checkpoint import TrialState
from qlora_ray.training.engine import TrialSpec


@dataclass
class PlainRun:
    """Each step's loss of the language model, and all trainable weights at the end by name."""

    losses: list[float]
    weights: dict[str, Tensor]


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
    return _train(spec, base, data, None).losses


def plain_training(spec: TrialSpec, base: LoadedBase, data: PreparedData) -> PlainRun:
    """The same with auxiliary heads, and the weights at the end."""
    return _train(spec, base, data, None)


def plain_head_answers(
    spec: TrialSpec, weights: dict[str, Tensor], base: LoadedBase, split: TokenizedSplit
) -> dict[str, tuple[float, float]]:
    """Each head's accuracy and mean loss on a split's labelled rows, row by row, by torch alone."""
    model = attach_adapter(base, spec.lora, seed=spec.training.seed)
    model.eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(weights[name])
    found = {}
    for head in spec.heads:
        labels = split.labels(head.name).tolist()
        hits, losses = [], []
        for row, label in enumerate(labels):
            if label >= 0:
                with torch.no_grad():
                    logits = weights[head.parameter_name] @ _read_row(model, split, row, head.pooling)
                hits.append(int(logits.argmax()) == label)
                losses.append(-torch.log_softmax(logits, 0)[label].item())
        found[head.name] = sum(hits) / len(hits), sum(losses) / len(losses)
    detach_adapter(base)
    return found


def _read_row(model: Any, split: TokenizedSplit, row: int, pooling: str) -> Tensor:
    ids = torch.tensor([split.input_ids[row]])
    hidden_TD = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    if pooling == "mean":
        return hidden_TD.mean(0)
    return hidden_TD[len(split.prompt_ids[row]) - 1] if pooling == "prompt" else hidden_TD[-1]


def plain_continued_losses(spec: TrialSpec, base: LoadedBase, data: PreparedData, state: TrialState) -> list[float]:
    """The same from a state on: its weights, moments and step, and all else as the trial has it."""
    return _train(spec, base, data, state).losses


def _train(spec: TrialSpec, base: LoadedBase, data: PreparedData, state: TrialState | None) -> PlainRun:
    training, num_steps, batch = spec.training, spec.budget.num_steps, spec.budget.effective_batch
    model = attach_adapter(base, spec.lora, seed=training.seed)
    model.train()
    width = base.model.config.hidden_size
    heads = {head.name: torch.zeros(len(head.classes), width, requires_grad=True) for head in spec.heads}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad] + list(heads.values())
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, eps=training.adam_epsilon, weight_decay=training.weight_decay
    )
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
        loss = total / count
        for head in spec.heads:
            labels = data.train.labels(head.name)
            rows = [row for row in order[step * batch : (step + 1) * batch] if labels[row] >= 0]
            loss = loss + 0.0 * heads[head.name].sum()
            if rows:
                logits = torch.stack(
                    [heads[head.name] @ _read_row(model, data.train, row, head.pooling) for row in rows]
                )
                loss = loss + head.weight * F.cross_entropy(logits, torch.tensor(labels[rows].tolist()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(total.item() / count)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    weights |= {head.parameter_name: heads[head.name].detach() for head in spec.heads}
    detach_adapter(base)
    return PlainRun(seen, weights)
