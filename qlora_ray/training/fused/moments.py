"""A trial's AdamW over its flat adapter row, and its moments on their way to a state and back.

The optimizers are torch's and bitsandbytes' own, one per trial: each has its own learning rate, betas, decay and step
count, and a slot reused has a new one. 32-bit moments are stored by parameter name, as the sft engine stores them,
so that either engine goes on from them. 8-bit moments are quantized in blocks of the flat row: they are stored as they
are, for a pack of any size; coming from the other engine they are dequantized and quantized again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qlora_ray.config.schema import Training
from qlora_ray.training.checkpoint import TrialState, flatten_optimizer, restore_optimizer

if TYPE_CHECKING:
    from qlora_ray.training.fused.member import Member

FLAT = "flat"
MOMENTS = ("exp_avg", "exp_avg_sq")


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
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind = PagedAdamW8bit if training.optim == "paged_adamw_8bit" else AdamW8bit
    return kind([parameter], **options)


def read_moments(member: Member) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A member's moments as tensors on the CPU by name, and the numbers that are not tensors."""
    tensors, facts = flatten_optimizer(member.optimizer, [FLAT])
    if member.spec.training.optim != "adamw_torch" or not tensors:
        return tensors, {**facts, f"{FLAT}/bucket": member.bank.key.bucket}
    named: dict[str, Tensor] = {}
    for moment in MOMENTS:
        for name, tensor in member.named_tensors(tensors[f"{FLAT}/{moment}"]).items():
            named[f"{name}/{moment}"] = tensor
            named[f"{name}/step"] = tensors[f"{FLAT}/step"].clone()
    return named, facts


def load_moments(member: Member, state: TrialState) -> None:
    """Gives a member's optimizer the moments of a state."""
    if not state.optimizer:
        return
    tensors, facts = state.optimizer, dict(state.optimizer_facts)
    if member.spec.training.optim == "adamw_torch":
        step = next(tensor for name, tensor in tensors.items() if name.endswith("/step"))
        flat = {f"{FLAT}/step": step.clone()}
        for moment in MOMENTS:
            suffix = f"/{moment}"
            named = {n.removesuffix(suffix): tensor for n, tensor in tensors.items() if n.endswith(suffix)}
            flat[f"{FLAT}/{moment}"] = member.flatten_named(named).to(member.parameter.device)
        restore_optimizer(member.optimizer, flat, {}, [FLAT])
        return
    facts.pop(f"{FLAT}/bucket", None)
    restore_optimizer(member.optimizer, tensors, facts, [FLAT])
