"""The same trials in turn, as plain PEFT: a loop that any user could write, on a base loaded once.

Nothing of the engines is used here, so that what is compared with them does not share their mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import get_scheduler

from qlora_ray.data import TokenizedSplit
from qlora_ray.modeling.adapters import detach_adapter
from qlora_ray.modeling.loading import LoadedBase
from qlora_ray.modeling.targets import resolve_targets
from qlora_ray.scoring.inference import computing_in
from qlora_ray.training.budget import sample_order, warmup_steps
from qlora_ray.training.engine import TrialSpec

IGNORED = -100


@contextmanager
def bare_trial(base: LoadedBase, rows: TokenizedSplit, spec: TrialSpec) -> Iterator[Callable[[], torch.Tensor]]:
    """A function that trains the next step of a trial and returns its loss, for the length of the block."""
    training, lora, budget = spec.training, spec.lora, spec.budget
    torch.manual_seed(training.seed)
    model = get_peft_model(
        base.model,
        LoraConfig(
            r=lora.r,
            lora_alpha=int(lora.resolved_alpha),
            lora_dropout=lora.lora_dropout,
            target_modules=resolve_targets(base.model, lora.target_modules),
            task_type="CAUSAL_LM",
        ),
    )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
    )
    schedule = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup_steps(training, budget.num_steps),
        num_training_steps=budget.num_steps,
    )
    order = iter(sample_order(num_rows=len(rows), num_samples=budget.num_samples, data_seed=training.data_seed))
    model.train()

    def train_step() -> torch.Tensor:
        chosen = [next(order) for _ in range(budget.effective_batch)]
        batch = pad_batch(rows, chosen, pad_token_id=int(base.tokenizer.pad_token_id))
        with _autocast(base):
            loss: torch.Tensor = model(**{name: tensor.to(base.device) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        return loss.detach()

    try:
        yield train_step
    finally:
        detach_adapter(base)


def pad_batch(rows: TokenizedSplit, chosen: list[int], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels of some rows, padded on the right to the longest."""
    longest = max(len(rows.input_ids[row]) for row in chosen)
    ids = torch.full((len(chosen), longest), pad_token_id)
    attention = torch.zeros(len(chosen), longest, dtype=torch.long)
    labels = torch.full((len(chosen), longest), IGNORED)
    for at, row in enumerate(chosen):
        tokens = torch.tensor(rows.input_ids[row])
        trained = torch.tensor(rows.completion_mask[row], dtype=torch.bool)
        ids[at, : len(tokens)] = tokens
        attention[at, : len(tokens)] = 1
        labels[at, : len(tokens)] = torch.where(trained, tokens, IGNORED)
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def _autocast(base: LoadedBase) -> Any:
    """As Trainer computes."""
    return computing_in(base.precision, device_type=torch.device(base.device).type)
