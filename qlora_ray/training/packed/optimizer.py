"""A trial's AdamW over its flat adapter row, and its moments on their way to a state and back.

The optimizers are torch's and bitsandbytes' own, one per trial: each has its own learning rate, betas, decay and step
count, and a slot reused has a new one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qlora_ray.config.schema import Training
from qlora_ray.modeling.multi_lora.flat_adapter import FlatAdapter
from qlora_ray.training.checkpoint import TrialState, flatten_optimizer, restore_optimizer
from qlora_ray.training.moments import FLAT, LAYOUT, Moments, is_flat, quantized_state, read_moments


def make_optimizer(parameter: nn.Parameter, training: Training) -> torch.optim.Optimizer:
    """AdamW as `training.optim` names it, over one parameter; the learning rate is set before every step."""
    options: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
        "weight_decay": training.weight_decay,
    }
    if training.optim == "adamw_torch":
        return torch.optim.AdamW([parameter], fused=True, **options)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit([parameter], **options)


def running_optim(training: Training) -> str:
    """The optimizer that runs: `paged_adamw_8bit` does as `adamw_8bit`.

    bitsandbytes 0.50 keeps every paged buffer of a process in a list for good (functional.py, GlobalPageManager), so
    that each trial that ever ran would leave its moments there. A pack's plan has room for them unpaged.
    """
    return "adamw_8bit" if training.optim == "paged_adamw_8bit" else training.optim


def take_moments(optimizer: torch.optim.Optimizer, adapter: FlatAdapter) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns an adapter's moments as tensors on the CPU, and the numbers that are not tensors.

    32-bit moments go by PEFT's names; 8-bit ones as the flat row that they are, with its layout among the numbers.
    """
    tensors, facts = flatten_optimizer(optimizer, [FLAT])
    if is_8bit(optimizer) or not tensors:
        return tensors, {**facts, LAYOUT: _layout(adapter)}
    named: dict[str, Tensor] = {}
    for moment in ("exp_avg", "exp_avg_sq"):
        for name, tensor in adapter.named_tensors(tensors[f"{FLAT}/{moment}"]).items():
            named[f"{name}/{moment}"] = tensor
            named[f"{name}/step"] = tensors[f"{FLAT}/step"].clone()
    return named, facts


def give_moments(optimizer: torch.optim.Optimizer, adapter: FlatAdapter, state: TrialState) -> None:
    """Gives an adapter's optimizer the moments of a state, whichever engine wrote it.

    Args:
        optimizer: Of the adapter's flat row; it has not stepped yet.
        adapter: Whose names and shapes the moments have.
        state: Where they are; one of before the first step has none.
    """
    tensors, facts = state.optimizer, state.optimizer_facts
    if not tensors:
        return
    if is_8bit(optimizer) and is_flat(tensors) and facts[LAYOUT] == _layout(adapter):
        numbers = {name: value for name, value in facts.items() if name != LAYOUT}
        restore_optimizer(optimizer, tensors, numbers, [FLAT])
        return
    moments = read_moments(tensors, facts)
    step = next(iter(moments.values())).step
    first = adapter.flatten({name: moment.first for name, moment in moments.items()})
    second = adapter.flatten({name: moment.second for name, moment in moments.items()})
    entries: dict[str, Any] = {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}
    if is_8bit(optimizer):
        entries = quantized_state(Moments(first, second, step), always=True)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {0: entries}, "param_groups": groups})


def is_8bit(optimizer: torch.optim.Optimizer) -> bool:
    """Returns whether an optimizer of `make_optimizer` is bitsandbytes' 8-bit AdamW."""
    return not isinstance(optimizer, torch.optim.AdamW)


def _layout(adapter: FlatAdapter) -> list[list[Any]]:
    """Where each parameter lies in the flat row, as JSON has it."""
    return [[p.name, p.start, p.rows, p.columns, p.own_rows, p.own_columns] for p in adapter.pieces()]
