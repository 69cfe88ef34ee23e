"""What the planner is asked for: the largest trial of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qlora_ray.hardware.workload import Loss


@dataclass(frozen=True)
class TrialDemand:
    """The largest trial that the search space can propose.

    Args:
        max_r: Highest rank.
        targets: The widest preset or list of modules.
        effective_batch: Most samples per optimizer step.
        per_device_train_batch_size: Most rows through a device at once; the planner may choose fewer.
        gradient_checkpointing: Whether activations are recomputed; `auto`: where a class has too little memory without.
        eval_batch: Most validation rows at once; the planner may choose fewer.
        loss: How the engine computes the loss, see hardware.workload. `auto`: by the engine and the node's TRL version.
        fp32_parameters: Which unquantized parameters the engine keeps in fp32, see hardware.workload.
        attn_implementation: The config's model.attn_implementation.
        mean_seq_length: Tokens of a training row on average; None: as many as the longest.
        num_trials: Trials of the sweep in all; None: no bound.
        num_head_parameters: Of one trial's auxiliary heads, all of them trained.
        single_reason: Why these trials cannot share one base and need the single engine; None if they can.
    """

    max_r: int = 16
    targets: str | Sequence[str] = "all-linear"
    effective_batch: int = 8
    per_device_train_batch_size: int = 1
    max_seq_length: int = 512
    optim: str = "paged_adamw_8bit"
    gradient_checkpointing: bool | Literal["auto"] = False
    eval_batch: int = 8
    modules_to_save: tuple[str, ...] = ()
    num_head_parameters: int = 0
    loss: Loss | Literal["auto"] = "auto"
    fp32_parameters: Literal["all", "norms", "none"] = "none"
    lora_dropout: float = 0.05
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    mean_seq_length: float | None = None
    num_trials: int | None = None
    single_reason: str | None = None

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step of one trial, on average."""
        return math.ceil(self.effective_batch * min(self.mean_seq_length or self.max_seq_length, self.max_seq_length))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
