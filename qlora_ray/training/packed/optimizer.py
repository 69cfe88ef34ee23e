"""A trial's AdamW over its flat adapter row, and its moments on their way to a state and back.

The optimizers are torch's and bitsandbytes' own, one per trial: each has its own learning rate, betas, decay and step
count, and a slot reused has a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qlora_ray.config.schema import Training
from qlora_ray.training.checkpoint import TrialState, flatten_optimizer, restore_optimizer
from qlora_ray.training.moments import FLAT, LAYOUT, Moments, is_flat, quantized_state, read_moments

if TYPE_CHECKING:
    from qlora_ray.training.packed.member import Member


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


def take_moments(member: Member) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A member's moments as tensors on the CPU, and the numbers that are not tensors."""
    tensors, facts = flatten_optimizer(member.optimizer, [FLAT])
    if member.spec.training.optim != "adamw_torch" or not tensors:
        return tensors, {**facts, LAYOUT: _layout(member)}
    named: dict[str, Tensor] = {}
    for moment in ("exp_avg", "exp_avg_sq"):
        for name, tensor in member.named_tensors(tensors[f"{FLAT}/{moment}"]).items():
            named[f"{name}/{moment}"] = tensor
            named[f"{name}/step"] = tensors[f"{FLAT}/step"].clone()
    return named, facts


def give_moments(member: Member, state: TrialState) -> None:
    """Gives a member's optimizer the moments of a state."""
    tensors, facts = state.optimizer, state.optimizer_facts
    if not tensors:
        return
    is_8bit = member.spec.training.optim != "adamw_torch"
    if is_8bit and is_flat(tensors) and facts[LAYOUT] == _layout(member):
        numbers = {name: value for name, value in facts.items() if name != LAYOUT}
        restore_optimizer(member.optimizer, tensors, numbers, [FLAT])
        return
    moments = read_moments(tensors, facts)
    step = next(iter(moments.values())).step
    first = member.flatten_named({name: one.first for name, one in moments.items()})
    second = member.flatten_named({name: one.second for name, one in moments.items()})
    entries: dict[str, Any] = {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}
    if is_8bit:
        entries = quantized_state(Moments(first, second, step), always=True)
    groups = member.optimizer.state_dict()["param_groups"]
    member.optimizer.load_state_dict({"state": {0: entries}, "param_groups": groups})


def _layout(member: Member) -> list[list[Any]]:
    """Where each parameter lies in the flat row, as JSON has it."""
    return [[p.name, p.start, p.rows, p.columns, p.own_rows, p.own_columns] for p in member.pieces()]
